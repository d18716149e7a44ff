"""Rendering on a farm that is elsewhere: a real port, a real farm behind it, the same lines as if it were here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster import farm_lock
from cluster.clock import SystemClock
from cluster.errors import (
    DamagedAsset,
    FarmError,
    InvalidSpec,
    JobFailed,
    NotFound,
    Unauthenticated,
    Unavailable,
    UserMistake,
)
from cluster.ledger.jobs import JobSpec
from cluster.ledger.keys import Scope
from cluster.settings import Settings
from cluster.states import JobState, State
from pipelines.recipes import clip
from serve import up
from serve.cli.board import Board
from serve.cli.lines import JsonShow, LineShow
from serve.distant import RemoteFarm
from serve.feed import Pace
from serve.remote import Remote
from serve.watch import Update, Watch
from tests.cutting_engine import CuttingEngine
from tests.front_desk import BOAT, CATALOG, Working
from tests.listening import served
from tests.picture_engine import PictureEngine
from tests.script_engine import ScriptEngine
from tests.scripts import script_of

CLOCK = SystemClock()
ROOT = Path(__file__).resolve().parents[2]
SAD = {"cloud": InvalidSpec("too sad to draw", field="prompt"), "rocket": RuntimeError("it exploded")}


@pytest.fixture(scope="module")
def working(fast_folder: Path) -> Iterator[Working]:
    home = fast_folder / "distant"
    home.mkdir()
    engine = PictureEngine(lambda prompt: next((error for word, error in SAD.items() if word in prompt), None))
    working = Working(home, engine, {"finish": CuttingEngine(CATALOG), "writer": ScriptEngine(CATALOG)})
    working.desk.app.state.service.feed.pace = Pace(look_s=0.02, progress_s=0.02, retry_s=0.1)
    yield working
    working.close()


@pytest.fixture(scope="module")
def url(working: Working) -> Iterator[str]:
    with served(working.desk.app) as url:
        yield url


@pytest.fixture
def farm(working: Working, url: str) -> Iterator[RemoteFarm]:
    with RemoteFarm(Remote(url, working.desk.secret), sleep=lambda _: None) as farm:
        yield farm


def board() -> Board:
    return Board(headline=BOAT, facts="", began_us=CLOCK.now_us())


def plain(text: str) -> list[str]:
    """Without times, and what is spent in them."""
    text = re.sub(r"^\d+:\d\d(:\d\d)?  ", "", text, flags=re.MULTILINE)
    return re.sub(r"[\d.]+ s\b|(under )?\$[\d.]+", "~", text).splitlines()


def here(working: Working, seed: int) -> Iterator[Update]:
    """A clip as a private farm watches it."""
    brief = clip.Brief(prompt=BOAT, seed=seed, size=(512, 512))
    job = JobSpec(recipe="pipelines.recipes.clip", title=BOAT, spec=brief.to_json(), tier="interactive")
    ledger = working.farm.ledger
    job_id, _ = ledger.submit(job, clip.plan(brief, CATALOG))
    desk = working.desk.app.state.service.desk
    return iter(Watch(ledger, job_id, progress=desk.progress, num_workers=dict))


def test_a_clip_from_elsewhere_reads_as_one_from_here(working: Working, farm: RemoteFarm, tmp_path: Path):
    shown = {"here": io.StringIO(), "there": io.StringIO()}
    show = LineShow(shown["here"], board(), CLOCK)
    for update in here(working, seed=11):
        show.update(update)
    show = LineShow(shown["there"], board(), CLOCK)
    finished = farm.clip(BOAT, seed=12, out=tmp_path / "clip", on_update=show.update)
    assert plain(shown["there"].getvalue()) == plain(shown["here"].getvalue())
    assert "clip: drawing" in plain(shown["there"].getvalue())
    job = working.farm.ledger.job(finished.job_id)
    assert (job.state, job.tier) == (JobState.SUCCEEDED, "interactive")
    assert finished.path == tmp_path / "clip" / "clip.mp4"
    assert [path.name for path in finished.files] == ["clip.mp4", "poster.png"]
    receipt = {file["name"]: file["sha256"] for task in working.farm.ledger.tasks(job.id) for file in task["files"]}
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in finished.files} == receipt
    assert finished.title == BOAT
    assert {"last_clip", "film", "delivered"} <= set(finished.marks_s)
    assert max(finished.marks_s.values()) == round(finished.seconds, 2)


def test_json_lines_have_the_same_members_from_both(working: Working, farm: RemoteFarm, tmp_path: Path):
    shown = {"here": io.StringIO(), "there": io.StringIO()}
    show = JsonShow(shown["here"], board(), CLOCK)
    for update in here(working, seed=13):
        show.update(update)
    show = JsonShow(shown["there"], board(), CLOCK)
    farm.clip(BOAT, seed=14, out=tmp_path / "clip", on_update=show.update)
    lines = {name: [json.loads(line) for line in out.getvalue().splitlines()] for name, out in shown.items()}
    assert [sorted(line) for line in lines["there"]] == [sorted(line) for line in lines["here"]]
    for name in ("seq", "event", "task", "step", "state"):
        assert [line.get(name) for line in lines["there"]] == [line.get(name) for line in lines["here"]]


def test_a_still_from_elsewhere(farm: RemoteFarm, tmp_path: Path):
    updates: list[Update] = []
    finished = farm.image(BOAT, seed=5, out=tmp_path / "still", on_update=updates.append)
    assert finished.path.read_bytes().startswith(b"\x89PNG")
    assert [event.seq for update in updates for event in update.events] == list(range(1, updates[-1].job.seq + 1))
    assert updates[-1].state is JobState.SUCCEEDED


def test_a_film_from_elsewhere(working: Working, farm: RemoteFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CuttingEngine, "really", True)
    out = io.StringIO()
    finished = farm.render(BOAT, shots=2, seed=3, out=tmp_path / "film", on_update=LineShow(out, board(), CLOCK).update)
    assert (finished.path.name, finished.title) == ("film.mp4", "The Crossing")
    names = {path.name for path in finished.files}
    assert {"film.mp4", "manifest.json", "script.json", "poster.png", "contact-sheet.png", "film.vtt"} <= names
    manifest = json.loads((tmp_path / "film" / "manifest.json").read_text())
    assert manifest["files"]["film.mp4"]["sha256"] == hashlib.sha256(finished.path.read_bytes()).hexdigest()
    lines = plain(out.getvalue())
    assert lines[0] == "the job is in the ledger"
    assert 'script: done in ~, "The Crossing", ~ so far' in lines
    assert {"shot sh010 take 1: drawing", "shot sh020 take 1: drawing"} <= set(lines)
    assert lines[-1] == "the job has ended"
    assert {"script", "last_clip", "film", "delivered"} <= set(finished.marks_s)


def test_a_film_is_here_though_a_take_that_is_not_in_it_was_lost(
    working: Working, farm: RemoteFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[str] = []

    def second_is_lost(prompt: str) -> FarmError | None:
        drawn.append(prompt)
        return InvalidSpec("too sad to draw", field="prompt") if len(drawn) == 2 else None

    monkeypatch.setattr(working.engine, "_fails", second_is_lost)
    script = script_of(CATALOG, "moon")
    finished = farm.render(script=script, seed=41, takes=2, out=tmp_path / "film")
    assert working.farm.ledger.job(finished.job_id).state is JobState.FAILED
    assert finished.path.read_text().startswith("film.mp4 of")
    assert {"film.mp4", "manifest.json"} <= {path.name for path in finished.files}
    assert {"last_clip", "film", "delivered"} <= set(finished.marks_s)


def test_a_film_that_was_stopped_goes_on_by_the_name_of_a_job_that_made_it(
    working: Working, farm: RemoteFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[str] = []
    drawn: list[str] = []
    script = script_of(CATALOG, "car", "bird")
    goes_on = threading.Event()

    def first_only(prompt: str) -> None:
        drawn.append(prompt)
        if len(drawn) > 1:
            goes_on.wait(60)

    def stop(update: Update) -> None:
        if any(task.step == "render" and task.state is State.SUCCEEDED for task in update.tasks):
            made.append(update.job.id)
            raise KeyboardInterrupt

    monkeypatch.setattr(working.engine, "_fails", first_only)
    with pytest.raises(KeyboardInterrupt):
        farm.render(script=script, seed=42, out=tmp_path / "film", on_update=stop)
    assert working.farm.ledger.job(made[0]).state is JobState.CANCELED
    goes_on.set()
    finished = farm.render(film=made[0].lower()[-12:], out=tmp_path / "film")
    assert finished.job_id != made[0]
    assert finished.path.exists()
    again = farm.render(film=finished.job_id, out=tmp_path / "again")  # it is finished: nothing is made anew
    assert (again.job_id, again.path.read_bytes()) == (finished.job_id, finished.path.read_bytes())
    with pytest.raises(NotFound, match="no job nothing-like-it"):
        farm.render(film="nothing-like-it", out=tmp_path / "again")


def test_denoise_steps_are_seen_as_they_are_done(working: Working, farm: RemoteFarm, tmp_path: Path):
    working.engine.at_half = threading.Event()

    def look(update: Update) -> None:
        if any((task.stage, task.done, task.total) == ("denoise", 8, 16) for task in update.tasks):
            assert working.engine.at_half is not None
            working.engine.at_half.set()

    try:
        farm.clip(BOAT, seed=15, out=tmp_path / "clip", on_update=look)
    finally:
        working.engine.at_half = None


def test_who_stops_waiting_cancels_the_job(working: Working, farm: RemoteFarm, tmp_path: Path):
    working.engine.at_half = threading.Event()
    seen: list[str] = []

    def stop(update: Update) -> None:
        seen.append(update.job.id)
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            farm.clip(BOAT, seed=16, out=tmp_path / "clip", on_update=stop)
        assert working.farm.ledger.job(seen[0]).state is JobState.CANCELED
        assert not list((tmp_path / "clip").iterdir())
    finally:
        working.engine.at_half = None


@pytest.mark.parametrize("what", ["image", "clip"])
def test_who_may_ask_for_work_may_stop_it(working: Working, url: str, tmp_path: Path, what: str):
    working.engine.at_half = threading.Event()
    seen: list[str] = []

    def stop(update: Update) -> None:
        seen.append(update.job.id)
        raise KeyboardInterrupt

    usual = working.desk.key(Scope.GENERATE, Scope.READ)
    try:
        with RemoteFarm(Remote(url, usual)) as farm, pytest.raises(KeyboardInterrupt):
            getattr(farm, what)(BOAT, seed=18, out=tmp_path / "out", on_update=stop)
        assert working.farm.ledger.job(seen[0]).state is JobState.CANCELED
    finally:
        working.engine.at_half = None


@pytest.mark.parametrize(
    ("prompt", "kind", "said"),
    [
        ("a white cloud over the sea", UserMistake, "clip: prompt: too sad to draw"),
        ("", InvalidSpec, "the prompt is empty"),
    ],
    ids=["dead task", "refused"],
)
def test_a_mistake_is_the_same_as_here(farm: RemoteFarm, tmp_path: Path, prompt: str, kind: type[Exception], said: str):
    with pytest.raises(kind, match=said) as caught:
        farm.clip(prompt, out=tmp_path / "clip")
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]


def test_a_job_that_somebody_else_cancels_has_failed(working: Working, farm: RemoteFarm, tmp_path: Path):
    working.engine.at_half = threading.Event()
    try:
        with pytest.raises(JobFailed, match="the job ended canceled"):
            farm.clip(
                BOAT, seed=17, out=tmp_path / "clip", on_update=lambda update: cancel_once(working, update.job.id)
            )
    finally:
        working.engine.at_half = None


def cancel_once(working: Working, job_id: str) -> None:
    if not working.farm.ledger.job(job_id).over:
        working.farm.ledger.cancel_job(job_id)


def test_a_key_that_opens_nothing_is_said_so(url: str, tmp_path: Path):
    with RemoteFarm(Remote(url, "farm_" + "x" * 43)) as farm, pytest.raises(Unauthenticated, match="knows no such key"):
        farm.clip(BOAT, out=tmp_path / "clip")


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in a process of its own, with nothing of this one's settings."""

    def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
        return subprocess.run(
            [sys.executable, "-m", "serve.cli.main", *argv], env={**own, "PYTHONPATH": str(ROOT), **environment},
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


def test_the_command_renders_at_the_farm_of_the_settings(working: Working, url: str, tmp_path: Path, command: Any):
    there = {"FARM_URL": url, "FARM_API_KEY": working.desk.secret, "FARM_HOME": str(tmp_path / "home")}
    done = command("clip", BOAT, "--seed", "31", "--out", "clip", "--json", **there)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (lines[0]["event"], lines[0]["farm"]) == ("farm.asked", url)
    assert [line["event"] for line in lines[1:3]] == ["job.created", "task.created"]
    assert lines[-1]["event"] == "result"
    assert (tmp_path / "clip" / "clip.mp4").stat().st_size > 1000
    assert working.desk.secret not in done.stdout
    refused = command("clip", BOAT, "--gpus", "1", **there)
    assert refused.returncode == 2
    assert refused.stderr == f"farm: --gpus: the farm at {url} has its own accelerators; leave it out\n"


def test_the_command_renders_at_the_farm_that_stands_here(working: Working, url: str, tmp_path: Path, command: Any):
    home = tmp_path / "home"
    home.mkdir()
    (home / "key").write_text(working.desk.secret)
    with farm_lock.held(home):
        up.say(home, up.Up(pid=os.getpid(), url=url, key_file=str(home / "key")))
        done = command("image", BOAT, "--seed", "32", "--out", "still", FARM_HOME=str(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"0:00  the farm at {home} (pid {os.getpid()}) is asked"
    assert (tmp_path / "still" / "still.png").exists()


def test_a_farm_that_stood_here_before_is_not_asked(tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    settings = Settings(home=home)
    with farm_lock.held(home):
        up.say(home, up.Up(pid=os.getpid() + 1, url="http://127.0.0.1:1", key_file="x"))
        assert up.here(settings) is None
        up.say(home, up.Up(pid=os.getpid(), url="http://127.0.0.1:1", key_file="x"))
        assert up.here(settings) is not None
    assert up.here(settings) is None


class Flaky(httpx.HTTPTransport):
    """A network that cuts streams and downloads after some bytes, and loses answers."""

    def __init__(self, spoil: Callable[[httpx.Request, int], int | None]) -> None:
        super().__init__()
        self.asked: list[httpx.Request] = []
        self._spoil = spoil

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        most = self._spoil(request, sum(one.url == request.url for one in self.asked))
        response = super().handle_request(request)
        if most is None:
            return response
        if most == 0:
            response.read()
            raise httpx.ReadError("the answer was lost")
        stream = response.stream
        assert isinstance(stream, httpx.SyncByteStream)
        return httpx.Response(response.status_code, headers=response.headers, stream=Cut(stream, most))


class Cut(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream, most: int) -> None:
        self._inner, self._most = inner, most

    def __iter__(self) -> Iterator[bytes]:
        left = self._most
        for chunk in self._inner:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                raise httpx.ReadError("the connection broke")

    def close(self) -> None:
        self._inner.close()


def flaky(url: str, secret: str, spoil: Callable[[httpx.Request, int], int | None]) -> tuple[RemoteFarm, Flaky]:
    transport = Flaky(spoil)
    return RemoteFarm(Remote(url, secret, transport=transport, sleep=_no_time), sleep=_no_time), transport


def _no_time(_: float) -> None:
    return None


def test_what_breaks_on_the_way_is_asked_for_again_and_told_once(working: Working, url: str, tmp_path: Path):
    def spoil(request: httpx.Request, nth: int) -> int | None:
        if request.method == "POST":
            return 0 if nth == 1 else None
        if request.url.path.endswith("/events"):
            return 1800 * nth if nth < 4 else None
        return 1000 if nth == 1 else None

    updates: list[Update] = []
    remote, transport = flaky(url, working.desk.secret, spoil)
    with remote as farm:
        finished = farm.clip(BOAT, seed=21, out=tmp_path / "clip", on_update=updates.append)
    assert [event.seq for update in updates for event in update.events] == list(range(1, updates[-1].job.seq + 1))
    posts = [request for request in transport.asked if request.method == "POST"]
    assert len(posts) == 2
    assert posts[0].headers["idempotency-key"] == posts[1].headers["idempotency-key"]
    ranges = [request.headers.get("range") for request in transport.asked if request.url.path.endswith("clip.mp4")]
    assert ranges == ["bytes=0-", "bytes=1000-"]
    data = finished.path.read_bytes()
    [task] = working.farm.ledger.tasks(finished.job_id)
    assert hashlib.sha256(data).hexdigest() in {file["sha256"] for file in task["files"]}


def test_a_download_that_is_not_what_was_made_is_refused(
    working: Working, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from serve import distant

    real = distant._append

    def other(response: Any, path: Path) -> None:
        real(response, path)
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(bytes(data))

    monkeypatch.setattr(distant, "_append", other)
    with RemoteFarm(Remote(url, working.desk.secret)) as farm, pytest.raises(DamagedAsset, match="came damaged"):
        farm.clip(BOAT, seed=22, out=tmp_path / "clip")
    assert not list((tmp_path / "clip").iterdir())


def test_a_farm_that_stays_away_is_given_up_and_its_job_goes_on(
    working: Working, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve.distant.AWAY_S", 0.0)
    remote, transport = flaky(url, working.desk.secret, lambda request, _: 0 if request.method == "GET" else None)
    with remote as farm, pytest.raises(Unavailable, match="has been away") as caught:
        farm.clip(BOAT, seed=23, out=tmp_path / "clip")
    assert "the job goes on there: `farm info job_" in str(caught.value.remedy)
    assert not [request for request in transport.asked if request.url.path.endswith("/cancel")]
