"""A batch over HTTP: real requests on loopback, a farm of milliseconds, real processes that are really killed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from actors.contract import Bench, Made, MadeFile, ShotSpec
from cluster.errors import InvalidInput, InvalidSpec, JobFailed, Unauthenticated, Unavailable
from cluster.states import Move
from pipelines.batch.farm import Farm, Seen
from pipelines.batch.progress import Lines
from pipelines.batch.results import Result
from pipelines.batch.run import MAX_POLL_S, Batch, check_all_made, pause_s, run
from serve.cli import main
from tests.front_desk import BOAT, Working
from tests.listening import served
from tests.picture_engine import PictureEngine

ROOT = Path(__file__).resolve().parents[2]
CREATE, CONTENT = "POST /v1/videos", "GET content"


class TinyEngine(PictureEngine):
    """Clips of some bytes that tell their seed. Nothing is drawn until it goes on; some seeds fail."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: set[int] = set()
        self.goes_on = threading.Event()
        self.goes_on.set()

    def run(self, bench: Bench) -> Made:
        spec = ShotSpec.from_json(bench.order.params["spec"])
        if spec.seed in self.fails:
            raise InvalidSpec("it cannot be drawn")
        while not self.goes_on.wait(0.02):
            bench.progress("denoise", 1, 2)
        made = []
        for name, kind in (("clip.mp4", "video/mp4"), ("poster.png", "image/png")):
            (bench.scratch / name).write_text(f"{name} {spec.seed}")
            made.append(MadeFile(name=name, path=bench.scratch / name, media_type=kind))
        return Made(files=tuple(made))


class Wire:
    """Between a batch and its farm: counts requests, holds answers back, and answers itself where it is told to.

    Who waits for a video is told to ask again at once, as a farm of milliseconds should."""

    def __init__(self, app: FastAPI) -> None:
        self.app, self.state = app, app.state
        self.seen, self.answered = Counter[str](), Counter[str]()
        self.holds: dict[str, int] = {}  # answers of this kind are held back after so many
        self.held, self.open = threading.Event(), threading.Event()
        self.says: dict[str, list[tuple[int, dict[str, str]]]] = {}  # instead of the farm, each once
        self.spoils = 0  # bodies of so many downloads
        self.tag: bytes | None = None  # of a download, in place of the farm's own: that of a store elsewhere
        self.at_s: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        what = f"{scope['method']} {'content' if scope['path'].endswith('/content') else scope['path']}"
        self.seen[what] += 1
        self.at_s.append(time.monotonic())
        if self.says.get(what):
            status, headers = self.says[what].pop(0)
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await send({"type": "http.response.body", "body": b'{"error": {"message": "no room", "code": "x"}}'})
            return
        spoil = what == CONTENT and self.spoils > 0
        self.spoils -= spoil
        told: list[Message] = []

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                quick = [
                    (name, b"50" if name == b"openai-poll-after-ms" else value) for name, value in message["headers"]
                ]
                if what == CONTENT and self.tag is not None:
                    quick = [(name, self.tag if name == b"etag" else value) for name, value in quick]
                message = {**message, "headers": quick}
            if spoil and message["type"] == "http.response.body":
                message = {**message, "body": bytes(len(message.get("body", b"")))}
            told.append(message)

        await self.app(scope, receive, keep)
        self.answered[what] += 1
        if self.answered[what] > self.holds.get(what, 10**9):
            self.held.set()
            await asyncio.to_thread(self.open.wait, 60)
        for message in told:
            await send(message)


class Place:
    """A farm on loopback, and a folder with what a data team has."""

    def __init__(self, folder: Path) -> None:
        self.engine = TinyEngine()
        (folder / "home").mkdir()
        self.working = Working(folder / "home", self.engine)
        self.ledger, self.desk = self.working.farm.ledger, self.working.desk
        self.wire = Wire(self.desk.app)
        self.input, self.out, self.key = folder / "prompts.jsonl", folder / "out", folder / "key"
        self.key.write_text(self.desk.secret)
        self.said = StringIO()
        self._served = served(self.wire)
        self.url = self._served.__enter__()

    def close(self) -> None:
        self.engine.goes_on.set()
        self.wire.open.set()
        self._served.__exit__(None, None, None)
        self.working.close()

    def lines(self, *rows: Any) -> None:
        self.input.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))

    def run(self, *, secret: str | None = None, **more: Any) -> list[Result]:
        batch = Batch(**{"input": self.input, "output": self.out, **more})
        return run(batch, url=self.url, secret=secret or self.desk.secret, display=Lines(self.said))

    def process(self, *module: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "FARM_URL": self.url, "FARM_API_KEY_FILE": str(self.key)}
        named = module or ("pipelines.batch",)
        command = [sys.executable, "-m", *named, "--input", str(self.input), "--output", str(self.out)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)  # type: ignore[call-overload,no-any-return]

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]

    def until(self, ready: Callable[[], bool]) -> None:
        ends_s = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < ends_s
            threading.Event().wait(0.02)


@pytest.fixture
def place(fast_folder: Path) -> Iterator[Place]:
    folder = fast_folder / uuid4().hex
    folder.mkdir()
    place = Place(folder)
    yield place
    place.close()


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=30)


def test_sixty_prompts_whose_batch_is_killed_twice_are_sixty_videos(place: Place):
    place.lines(*({"prompt": BOAT} for _ in range(60)))
    place.wire.holds = {CREATE: 30}
    process = place.process()
    assert place.wire.held.wait(60)
    killed(process)  # thirty answers were read, some more videos are made of which it never heard
    assert 30 < len(place.ledger.jobs(limit=100)) < 60
    place.wire.holds = {CONTENT: 20}
    place.wire.open.set()
    place.wire.held.clear()
    place.wire.open.clear()
    process = place.process()
    assert place.wire.held.wait(60)
    killed(process)
    assert not (place.out / "results.jsonl").exists()
    place.wire.holds = {}
    place.wire.open.set()
    process = place.process()
    said, complained = process.communicate(timeout=120)
    assert process.returncode == 0, complained
    assert "60 of 60 lines are over" in said
    jobs = place.ledger.jobs(limit=100)
    assert len(jobs) == 60
    assert all(len(place.ledger.attempts(job.id)) == 1 for job in jobs)
    rows = place.results()
    assert [row["line"] for row in rows] == list(range(1, 61))
    assert {row["video_id"].replace("video_", "job_") for row in rows} == {job.id for job in jobs}
    assert {job.tier for job in jobs} == {"batch"}
    for row in rows:
        [file] = row["files"]
        content = (place.out / file["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert content.decode() == f"clip.mp4 {row['seed']}"
        assert (row["status"], row["error"]) == ("completed", None)
        assert float(row["cost_usd"]) > 0
        assert row["accelerator_seconds"] > 0


def test_a_batch_that_was_done_asks_the_farm_for_nothing_but_what_is_missing(place: Place):
    place.lines({"prompt": BOAT, "id": "a"}, {"prompt": BOAT, "seed": 3}, {"prompt": BOAT})
    first = place.run()
    place.wire.seen.clear()
    assert place.run() == first
    assert not place.wire.seen
    (place.out / "clips" / "a.mp4").write_text("damaged")
    place.lines({"prompt": "a blue ball"}, {"prompt": BOAT}, {"prompt": BOAT, "seed": 3}, {"prompt": BOAT, "id": "a"})
    again = {result.key: result for result in place.run()}
    assert [again[one.key].video_id for one in first] == [one.video_id for one in first]
    assert (place.out / "clips" / "a.mp4").read_text() == f"clip.mp4 {first[0].seed}"
    assert place.wire.seen[CREATE] == 1  # the line that is new
    assert place.wire.seen[CONTENT] == 2
    assert len(place.ledger.jobs()) == 4


def test_without_its_directory_a_batch_is_the_same_videos_and_under_another_name_new_ones(place: Place):
    place.lines({"prompt": BOAT, "id": "a", "metadata": {"mine": "1"}}, {"prompt": BOAT}, {"prompt": BOAT})
    first = place.run()
    elsewhere = place.input.with_name("moved.jsonl")
    place.input.rename(elsewhere)
    again = place.run(input=elsewhere, output=place.out.with_name("other"))
    assert [one.video_id for one in again] == [one.video_id for one in first]
    assert len({one.video_id for one in first}) == 3
    named = place.run(input=elsewhere, name="second", show="winter")
    assert not {one.video_id for one in named} & {one.video_id for one in first}
    job = place.ledger.job(str(named[0].video_id).replace("video_", "job_"))
    assert (job.show, job.request["metadata"]) == ("winter", {"batch": "second", "line": "a", "mine": "1"})


def test_bad_lines_are_named_with_their_fields_and_nothing_is_submitted(place: Place):
    good, bad_id, twice = {"prompt": BOAT}, {"prompt": BOAT, "id": "../x"}, {"prompt": BOAT, "id": "a"}
    refused = ({"prompt": BOAT, "seconds": 99}, {"prompt": BOAT, "nothing": 1}, {"seed": 1})
    place.lines(good, "{", "[1]", '{"prompt": "\\ud800"}', bad_id, twice, twice, *refused, "", '{"prompt": NaN}')
    with pytest.raises(InvalidInput, match=r"^9 lines of .* are bad, nothing was submitted; the first is line 2: "):
        place.run()
    said = place.said.getvalue()
    for line in (2, 3, 4, 5, 7, 8, 9, 10, 12):
        assert f"line {line}: " in said
    assert "the id a stands in line 6 too" in said
    assert "prompt is missing" in said
    assert place.ledger.jobs() == []
    made = place.run(skip_bad=True)
    assert [one.line for one in made if one.made] == [1, 6]
    fields = {row["line"]: (row["status"], row["error"]["param"]) for row in place.results() if row["error"]}
    assert fields[5] == ("bad", "id")
    assert fields[8] == ("bad", "seconds")
    assert fields[9] == ("bad", "nothing")
    check_all_made(made, place.out)


@pytest.mark.parametrize("content", [None, "", "\n\n"], ids=["missing", "empty", "blank"])
def test_a_file_without_lines_is_the_mistake_of_whoever_named_it(place: Place, content: str | None):
    if content is not None:
        place.input.write_text(content)
    with pytest.raises(InvalidInput) as error:
        place.run()
    assert error.value.field == "--input"


def test_a_line_that_fails_is_told_by_its_error_and_fetched_once_it_was_made_after_all(place: Place):
    place.lines({"prompt": BOAT, "seed": 13, "id": "a"}, {"prompt": BOAT})
    place.engine.fails = {13}
    found = place.run()
    assert [one.made for one in found] == [False, True]
    with pytest.raises(JobFailed, match=r"1 of 2 lines were not made \(1 x invalid_spec\)"):
        check_all_made(found, place.out)
    [row, _] = place.results()
    assert (row["status"], row["error"]["message"], row["files"]) == ("failed", "it cannot be drawn", [])
    assert "a was not made: invalid_spec: it cannot be drawn" in place.said.getvalue()
    place.engine.fails = set()
    [task] = place.ledger.tasks(str(row["video_id"]).replace("video_", "job_"))
    place.ledger.move_task(task["id"], Move.REOPEN, reason="a person asked")
    again = place.run()
    assert [one.made for one in again] == [True, True]
    assert again[0].video_id == row["video_id"]


def test_a_video_that_was_canceled_or_deleted_is_said_to_be(place: Place):
    place.engine.goes_on.clear()
    place.lines({"prompt": BOAT, "id": "first"}, {"prompt": BOAT, "id": "gone"}, {"prompt": BOAT, "id": "stopped"})
    thread_found: list[Result] = []
    thread = threading.Thread(target=lambda: thread_found.extend(place.run()))
    thread.start()
    place.until(lambda: place.wire.answered[CREATE] == 3)
    ids = {job.request["metadata"]["line"]: job.id for job in place.ledger.jobs()}
    place.ledger.cancel_job(ids["stopped"])
    place.ledger.delete_job(ids["gone"])
    place.engine.goes_on.set()
    thread.join(60)
    assert [(one.status, (one.error or {}).get("code")) for one in thread_found] == [
        ("completed", None), ("gone", "not_found"), ("cancelled", "cancelled"),
    ]  # fmt: skip
    again = place.run(output=place.out.with_name("other"))
    assert [(one.status, (one.error or {}).get("code")) for one in again][1] == ("refused", "expired")


def test_a_farm_without_room_is_asked_again_when_it_says_so(place: Place):
    busy = (429, {"retry-after-ms": "200", "retry-after": "60"})
    away = (503, {"retry-after": "0.2"})
    place.wire.says = {CREATE: [busy, away, (502, {})]}
    place.lines({"prompt": BOAT})
    began = len(place.wire.at_s)
    [made] = place.run(concurrency=1)
    assert made.made
    assert place.wire.seen[CREATE] == 4
    first, second, third = place.wire.at_s[began + 1 : began + 4]
    assert second - first >= 0.2
    assert third - second >= 0.2
    assert "waiting for the farm: no room" in place.said.getvalue()


def test_more_than_the_key_may_have_in_flight_is_submitted_as_room_comes(place: Place):
    key = place.desk.key(in_flight_s=13.0)  # two takes
    place.lines(*({"prompt": BOAT, "id": f"l{n}", "quality": "draft"} for n in range(6)))
    found = place.run(secret=key)
    assert [one.made for one in found] == [True] * 6
    assert len(place.ledger.jobs()) == 6


@pytest.mark.parametrize("tag", [None, b'"9b2cf535f27731c974343645a3985328-2"'], ids=["the farm's", "a store's"])
def test_a_download_that_does_not_verify_is_fetched_again_and_given_up_in_the_end(place: Place, tag: bytes | None):
    place.wire.tag = tag
    place.lines({"prompt": BOAT})
    place.wire.spoils = 1
    [good] = place.run()
    assert good.made
    assert place.wire.seen[CONTENT] == 2
    place.wire.spoils = 3
    [bad] = place.run(output=place.out.with_name("other"))
    assert (bad.status, (bad.error or {})["code"], bad.files) == ("completed", "damaged_asset", ())
    assert list((place.out.with_name("other") / "clips").iterdir()) == []


def test_without_a_download_the_clip_is_named_by_its_hash(place: Place):
    place.lines({"prompt": BOAT, "seed": 5})
    [found] = place.run(download=False)
    [file] = found.files
    assert file["path"] is None
    assert file["sha256"] == hashlib.sha256(b"clip.mp4 5").hexdigest()
    assert file["size_bytes"] == 10
    assert place.wire.seen[CONTENT] == 0
    [fetched] = place.run()
    assert (place.out / fetched.files[0]["path"]).stat().st_size == file["size_bytes"]
    assert place.wire.seen[CREATE] == 1


def test_a_key_that_is_none_ends_the_batch_at_once_and_is_never_said(place: Place):
    place.lines({"prompt": BOAT})
    with pytest.raises(Unauthenticated) as error:
        place.run(secret="farm_not-a-key")
    assert "farm_not-a-key" not in error.value.line() + place.said.getvalue()


def test_a_farm_that_is_away_for_too_long_is_given_up_with_how_to_go_on():
    async def ask() -> Any:
        async with Farm("http://127.0.0.1:1", "key", patience_s=0.0) as farm:
            return await farm.video("video_x")

    with pytest.raises(Unavailable, match=r"^the farm at http://127\.0\.0\.1:1 does not answer") as error:
        asyncio.run(ask())
    assert "goes on" in error.value.line()


@pytest.mark.parametrize(
    ("module", "who"),
    [(["pipelines.batch"], "batch"), (["serve.cli.main", "batch"], "farm")],
    ids=["module", "command"],
)
def test_a_batch_that_is_told_to_stop_leaves_its_videos_going_and_says_how_to_come_back(
    place: Place, module: list[str], who: str
):
    place.engine.goes_on.clear()
    place.lines(*({"prompt": BOAT} for _ in range(3)))
    process = place.process(*module)
    submitted = place.out / "submitted.jsonl"
    place.until(lambda: submitted.exists() and len(submitted.read_text().splitlines()) == 3)
    process.send_signal(signal.SIGTERM)
    _, complained = process.communicate(timeout=30)
    assert process.returncode == 143
    assert complained.startswith(f"{who}: stopped waiting: 0 of 3 lines are over")
    assert "the same command again waits for it" in complained
    assert not any(job.over for job in place.ledger.jobs())


def test_the_command_finds_the_farm_of_the_settings(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    argv = ["batch", "--input", str(place.input), "--output", str(place.out)]
    place.lines({"prompt": BOAT}, {"prompt": BOAT, "seed": 13})
    place.engine.fails = {13}
    try:
        assert main.run(argv) == 2
        assert "no farm is up here" in capsys.readouterr().err
        monkeypatch.setenv("FARM_URL", f"{place.url}/v1/")
        monkeypatch.setenv("FARM_API_KEY_FILE", str(place.key))
        assert main.run(argv) == 1
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    out, err = capsys.readouterr()
    assert "1 of 2 lines are made" in out
    assert err.startswith("farm: 1 of 2 lines were not made (1 x invalid_spec)")


@pytest.mark.parametrize(
    ("eta_s", "looks", "low_s", "high_s"),
    [
        (40, 0, 18, 22),
        (0.5, 0, 1.8, 2.2),
        (7200, 0, 54, 66),
        (None, 0, 1.8, 2.2),
        (None, 3, 6, 7.5),
        (None, 99, 54, 66),
    ],
    ids=["half", "as-the-farm-says", "longest", "unknown", "longer", "longest-unknown"],
)
def test_who_waits_long_is_asked_seldom(eta_s: float | None, looks: int, low_s: float, high_s: float):
    seen = Seen(video={"status": "queued", "eta_seconds": eta_s}, again_s=2.0)
    assert low_s <= pause_s(seen, looks) <= high_s <= MAX_POLL_S * 1.1
