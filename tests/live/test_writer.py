"""The real writer: vLLM with the house model, one engine for all tests of this file."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors.catalog import Catalog
from actors.weights import CHECKSUMS, MARKER, weights_dir
from actors.writer import Writer
from cluster.errors import InvalidInput, QualityCheckFailed, WorkerLost
from pipelines.writer_eval import LOGLINES, judge
from pipelines.writing import write_script

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
LINE = {"type": "string", "pattern": r"^Then the boat rises( [a-z]+){3,9}\.$"}
CHAT = [{"role": "user", "content": "Write a sentence of a picture book about a boat that rises to the stars."}]


def ask(writer: Writer, seed: int, **changes: object) -> str:
    asked = {"schema": LINE, "max_tokens": 60, "temperature": 0.9, "timeout_s": 240.0, **changes}
    return writer.complete(CHAT, seed=seed, **asked).text  # type: ignore[arg-type]


def ask_until_it_fails(writer: Writer) -> None:
    for seed in range(100):
        ask(writer, seed)


def convert(home: Path) -> None:
    weights_dir(Catalog.load().model("house-writer"), home)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def model_dir(home: Path) -> Path:
    """Two processes ask for the weights at once; one converts."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=convert, args=(home,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0]
    return weights_dir(Catalog.load().model("house-writer"), home)


@pytest.fixture(scope="module")
def writer(model_dir: Path) -> Iterator[Writer]:
    writer = Writer(model_dir, **Catalog.load().model("house-writer").engine)
    facts = writer.start()
    assert facts["versions"]["torch"]
    assert facts["engine_pids"] == writer.engine_pids() != []
    yield writer
    writer.close()


def test_the_conversion_leaves_only_verified_files(model_dir: Path, home: Path) -> None:
    assert (model_dir / MARKER).is_file()
    assert (model_dir / CHECKSUMS).is_file()
    assert [path.name for path in home.joinpath("models").iterdir() if path.is_dir()] == ["house-writer"]


@pytest.mark.parametrize("logline", LOGLINES[:5])
def test_a_script_is_valid_drawable_and_about_its_logline(writer: Writer, logline: str) -> None:
    verdict = judge(logline, model=Catalog.load().model("house-video"), complete=writer.complete, seed=7)
    assert verdict.error == ""
    assert verdict.passes
    assert verdict.shown >= 0.8 * verdict.named


def test_the_same_seed_gives_the_same_script_whatever_else_the_engine_does(writer: Writer) -> None:
    model = Catalog.load().model("house-video")

    def write() -> str:
        return write_script(
            logline=LOGLINES[0], num_shots=2, seed=11, model=model, complete=writer.complete
        ).script.to_json()

    alone = write()
    with ThreadPoolExecutor(4) as pool:
        noise = [pool.submit(ask, writer, seed) for seed in range(3)]
        assert pool.submit(write).result() == alone
        assert all(future.result() for future in noise)


def test_many_threads_ask_at_once_and_each_gets_its_own_answer(writer: Writer) -> None:
    alone = [ask(writer, seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: ask(writer, seed), [0, 1, 2, 3, 0, 1, 2, 3]))
    assert together == alone * 2
    assert all(re.fullmatch(LINE["pattern"], json.loads(text)) for text in alone)


def test_a_stream_adds_up_to_the_answer(writer: Writer) -> None:
    asked = {"schema": LINE, "max_tokens": 60, "temperature": 0.9, "timeout_s": 240.0}
    deltas = list(writer.stream(CHAT, seed=3, **asked))  # type: ignore[arg-type]
    assert len(deltas) > 3
    assert "".join(deltas) == ask(writer, 3)


def test_a_stream_that_is_left_early_frees_the_engine(writer: Writer) -> None:
    stream = writer.stream(CHAT, schema=None, seed=1, max_tokens=1500, temperature=1.0, timeout_s=240.0)
    assert next(stream)
    stream.close()
    assert ask(writer, 0)


def test_an_answer_that_is_cut_off_is_an_error(writer: Writer) -> None:
    with pytest.raises(QualityCheckFailed, match="3 tokens"):
        ask(writer, 0, max_tokens=3)


def test_a_chat_that_is_too_long_or_a_schema_that_is_none_is_refused(writer: Writer) -> None:
    with pytest.raises(InvalidInput):
        writer.complete(
            [{"role": "user", "content": "boat " * 5000}],
            schema=None, seed=1, max_tokens=5, temperature=1.0, timeout_s=60.0,
        )  # fmt: skip
    with pytest.raises(InvalidInput):
        ask(writer, 0, schema={"type": "string", "pattern": "(("})
    assert ask(writer, 0)


def test_an_answer_that_does_not_come_in_time_is_a_lost_worker(writer: Writer) -> None:
    with pytest.raises(WorkerLost, match="within"):
        ask(writer, 0, timeout_s=0.0)


def test_an_engine_that_is_killed_is_a_lost_worker_and_closing_leaves_no_process(writer: Writer) -> None:
    """The last test of the file: it uses the engine up."""
    pids = writer.engine_pids()
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(WorkerLost):
        ask_until_it_fails(writer)
    writer.close()
    writer.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    with pytest.raises(WorkerLost):
        ask(writer, 0)


def test_a_half_written_conversion_is_made_again(model_dir: Path, home: Path) -> None:
    weights = model_dir / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    convert(home)
    assert weights.read_bytes() == good
