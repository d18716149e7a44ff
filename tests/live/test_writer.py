"""The real writer: vLLM with the house model, one engine for all tests of this file."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import BadRequestError, LengthFinishReasonError, OpenAI, UnprocessableEntityError
from pydantic import BaseModel

from actors.catalog import Catalog
from actors.contract import Chat
from actors.weights import CHECKSUMS, MARKER, weights_dir
from actors.writer import Writer
from cluster.errors import Interrupted, InvalidInput, QualityCheckFailed, TooLong, WorkerLost
from pipelines.writer_eval import LOGLINES, judge
from pipelines.writing import write_script
from tests.front_desk import front_desk
from tests.line import Line
from tests.writer_at_hand import WriterAtHand

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
LINE = {"type": "string", "pattern": r"^Then the boat rises( [a-z]+){3,9}\.$"}
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 1900}
"""More items than its answer may have tokens: it goes on until it is cut off."""
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


def chat(name: str, **changes: Any) -> Chat:
    return Chat(id=name, model="house-writer", messages=tuple(CHAT), timeout_s=240.0, **changes)


def test_a_stream_adds_up_to_the_answer(writer: Writer) -> None:
    pieces = list(writer.stream(chat("sum", seed=3, schema=LINE, max_tokens=60, temperature=0.9)))
    assert len(pieces) > 4
    assert "".join(piece.text for piece in pieces) == ask(writer, 3)
    first, *_, last = pieces
    assert (first.text, first.completion_tokens, first.prompt_tokens) == ("", 0, last.prompt_tokens)
    assert last.finish_reason == "stop"
    whole = writer.complete(CHAT, schema=LINE, seed=3, max_tokens=60, temperature=0.9, timeout_s=240.0)
    assert (whole.prompt_tokens, whole.completion_tokens) == (last.prompt_tokens, last.completion_tokens)


def test_a_stream_tells_what_of_its_prompt_was_known(writer: Writer) -> None:
    messages = ({"role": "user", "content": "a boat that rises to the stars " * 40},)
    asks = [Chat(id=f"known{n}", model="", messages=messages, timeout_s=240.0, max_tokens=1) for n in range(2)]
    *_, new = writer.stream(asks[0])
    *_, known = writer.stream(asks[1])
    assert (new.cached_tokens, 0 < known.cached_tokens < known.prompt_tokens) == (0, True)


def test_a_stream_ends_where_it_was_told_to(writer: Writer) -> None:
    *_, cut = writer.stream(chat("cut", seed=3, max_tokens=5))
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 5)
    whole = "".join(piece.text for piece in writer.stream(chat("whole", seed=3, max_tokens=40)))
    word = whole.split()[4]
    *_, last = stopped = list(writer.stream(chat("stopped", seed=3, max_tokens=40, stop=(word,))))
    assert "".join(piece.text for piece in stopped) == whole.partition(word)[0]
    assert (last.finish_reason, last.completion_tokens < 40) == ("stop", True)
    again = "".join(p.text for p in writer.stream(chat("again", seed=3, max_tokens=40, frequency_penalty=2.0)))
    assert again != whole


def test_a_stream_that_is_left_early_or_that_nobody_waits_for_frees_the_engine(writer: Writer) -> None:
    stream = writer.stream(chat("left", schema=ENDLESS, max_tokens=1900))
    assert next(stream).text == ""
    assert next(stream).text
    assert running(writer) == 1
    stream.close()
    wait_until(lambda: running(writer) == 0)
    busy = [writer.stream(chat(f"busy{n}", schema=ENDLESS, max_tokens=1900)) for n in range(8)]
    assert all(next(stream).text == "" and next(stream) for stream in busy)
    waiting = writer.stream(chat("waiting", max_tokens=5), gone=lambda: True)  # the engine has 8 places
    assert next(waiting).text == ""
    with pytest.raises(Interrupted):
        next(waiting)
    for stream in busy:
        stream.close()
    wait_until(lambda: running(writer) == 0)
    assert ask(writer, 0)


def running(writer: Writer) -> int:
    """Requests that vLLM has in hand."""
    assert writer._engine is not None
    return len(writer._engine.output_processor.request_states)


def wait_until(ready: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


class Shot(BaseModel):
    subject: Literal["boat", "moon", "whale"]
    seconds: Literal[2, 4]


@pytest.fixture
def client(writer: Writer, tmp_path: Path, sqlite_url: str) -> Iterator[OpenAI]:
    """OpenAI's own client, of the application before the real writer."""
    with front_desk(sqlite_url, tmp_path, WriterAtHand(writer)) as desk:
        yield desk.openai(max_retries=0)


def test_the_openai_client_gets_the_same_words_whole_streamed_and_from_the_writer(
    writer: Writer, client: OpenAI
) -> None:
    asked: dict[str, Any] = {"model": "house-writer", "messages": CHAT, "seed": 5, "max_tokens": 24}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    direct = "".join(piece.text for piece in writer.stream(chat("direct", seed=5, max_tokens=24)))
    assert whole.choices[0].message.content == direct
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == direct
    assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason == "length"
    assert whole.usage == chunks[-1].usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24


def test_the_openai_client_parses_what_the_writer_says_into_a_model(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "house-writer", "messages": CHAT, "response_format": Shot}
    shot = client.chat.completions.parse(**asked).choices[0].message.parsed
    assert isinstance(shot, Shot)
    with pytest.raises(LengthFinishReasonError):
        client.chat.completions.parse(**asked, max_tokens=2)
    with client.chat.completions.stream(**asked) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Shot)


def test_the_openai_client_is_told_what_the_writer_refuses(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="context of 2048") as long:
        client.chat.completions.create(model="house-writer", messages=CHAT, max_tokens=2040, stream=True)  # type: ignore[call-overload]
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "max_tokens")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "(("}}}
    with pytest.raises(UnprocessableEntityError) as refused:
        client.chat.completions.create(model="house-writer", messages=CHAT, response_format=form)  # type: ignore[call-overload]
    assert refused.value.param == "response_format"


def test_a_client_that_leaves_a_stream_frees_the_engine(writer: Writer, tmp_path: Path, sqlite_url: str) -> None:
    with front_desk(sqlite_url, tmp_path, WriterAtHand(writer)) as desk:

        async def leave() -> None:
            form = {"type": "json_schema", "json_schema": {"name": "endless", "schema": ENDLESS}}
            line = Line(desk, {"messages": CHAT, "stream": True, "max_tokens": 1900, "response_format": form})
            await line.hear("data: ", times=4)
            assert running(writer) == 1
            await line.hang_up()
            await asyncio.to_thread(wait_until, lambda: running(writer) == 0)

        asyncio.run(leave())
        [used] = [row for minute in desk.ask("GET", "/v1/usage").json()["data"] for row in minute["results"]]
        assert 2 <= used["completion_tokens"] < 500


def test_an_answer_that_is_cut_off_is_an_error(writer: Writer) -> None:
    with pytest.raises(QualityCheckFailed, match="3 tokens"):
        ask(writer, 0, max_tokens=3)


def test_a_chat_that_is_too_long_is_refused_before_it_runs(writer: Writer) -> None:
    with pytest.raises(TooLong, match="context has 2048") as long:
        next(
            writer.stream(Chat(id="l", model="", messages=({"role": "user", "content": "boat " * 5000},), timeout_s=9))
        )
    with pytest.raises(TooLong, match="context of 2048") as greedy:
        next(writer.stream(chat("greedy", max_tokens=2040)))
    assert (long.value.field, greedy.value.field) == ("messages", "max_tokens")
    assert next(writer.stream(chat("fits", max_tokens=2000))).prompt_tokens < 48


def test_a_schema_that_is_none_is_refused(writer: Writer) -> None:
    with pytest.raises(InvalidInput) as refused:
        ask(writer, 0, schema={"type": "string", "pattern": "(("})
    assert refused.value.field == "response_format"
    assert ask(writer, 0)


def test_an_answer_that_does_not_come_in_time_is_a_lost_worker(writer: Writer) -> None:
    with pytest.raises(WorkerLost, match="within"):
        ask(writer, 0, timeout_s=0.0)


def test_an_engine_that_is_killed_is_a_lost_worker_and_closing_leaves_no_process(writer: Writer) -> None:
    """The last test of the file: it uses the engine up."""
    pids = writer.engine_pids()
    assert not writer.dead
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(WorkerLost):
        ask_until_it_fails(writer)
    assert writer.dead
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
