"""What happens to a job as it is told over HTTP: replay, progress, ends, readers that are slow or go away."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, event
from starlette.types import Message

from cluster.ledger import following
from cluster.ledger.following import Look
from cluster.ledger.jobs import JobSpec
from cluster.ledger.keys import KeySpec, Scope
from cluster.states import State
from serve.feed import Pace
from tests.front_desk import BOAT, CATALOG, FrontDesk, Working, front_desk
from tests.ledger_desk import task
from tests.listening import served, stream
from tests.picture_engine import PictureEngine
from tests.scripts import script_of

QUICK = Pace(look_s=0.01, progress_s=0.01, heartbeat_s=0.05, slow_s=0.2, retry_s=0.1)


@pytest.fixture
def desk(sqlite_url: str, tmp_path: Path) -> Iterator[FrontDesk]:
    with front_desk(sqlite_url, tmp_path) as desk:
        desk.app.state.service.feed.pace = QUICK
        yield desk


@pytest.fixture(scope="module")
def working(fast_folder: Path) -> Iterator[Working]:
    home = fast_folder / "http-events"
    home.mkdir()
    working = Working(home, PictureEngine())
    working.desk.app.state.service.feed.pace = QUICK
    yield working
    working.close()


def job_of(video: Any) -> str:
    return str(video["id"]).replace("video_", "job_")


def test_a_stream_tells_the_whole_object_from_the_queue_to_the_end(working: Working):
    desk, working.engine.at_half = working.desk, threading.Event()
    try:
        video = desk.create(f"{BOAT} \u2028 slowly")
        with served(desk.app) as url, stream(f"{url}/v1/videos/{video['id']}/events", desk.secret) as told:
            seen = []
            for one in told:
                seen.append(one)
                if one.data["progress"] == 44:  # 3 + 82 / 2
                    assert one.data["status"] == "in_progress"
                    working.engine.at_half.set()
        assert working.engine.at_half.is_set()
        assert (seen[0].name, seen[0].data["prompt"]) == ("status", f"{BOAT} \u2028 slowly")
        ids = [one.id for one in seen if one.id is not None]
        assert ids == sorted(set(ids))
        assert all((one.id is None) == (one.name == "progress") for one in seen)
        last = seen[-1]
        assert (last.name, last.data["progress"]) == ("completed", 100)
        assert last.id == working.farm.ledger.job(job_of(video)).seq
        assert last.data == desk.ask("GET", f"/v1/videos/{video['id']}").json()
    finally:
        working.engine.at_half = None


def test_who_knows_the_end_is_told_nothing_more(working: Working):
    desk, video = working.desk, working.desk.create("a green fish drifts on a coral reef")
    path = f"/v1/videos/{video['id']}/events"
    working.farm.wait_for(lambda: working.farm.ledger.job(job_of(video)).over)
    seq = working.farm.ledger.job(job_of(video)).seq
    again = desk.ask("GET", path, headers={"Last-Event-ID": str(seq)})
    assert (again.status_code, again.content) == (204, b"")
    whole = desk.ask("GET", path, params={"after": 1})
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert whole.headers["cache-control"] == "no-store"
    text = whole.text.replace(": nothing new\n\n", "")  # of a machine that is busy
    assert text.startswith("retry: 100\n\nevent: completed\ndata: {")
    assert f"\nid: {seq}\n\n" in whole.text
    assert whole.text.count("event: ") == 1


def test_a_replica_that_is_stopped_ends_its_streams_while_the_ledger_hangs(
    desk: FrontDesk, monkeypatch: pytest.MonkeyPatch
):
    look = following.look
    begun, hangs, answers, ended = (threading.Event() for _ in range(4))
    feed, path = desk.app.state.service.feed, f"/v1/videos/{desk.create()['id']}/events"

    def hanging(*args: Any, **more: Any) -> following.Look:
        if begun.is_set():
            hangs.set()
            assert answers.wait(60)
        return look(*args, **more)

    def follow(url: str) -> None:
        with stream(f"{url}{path}", desk.secret) as told:
            for _ in told:
                begun.set()
        ended.set()

    monkeypatch.setattr(following, "look", hanging)
    with served(desk.app) as url:
        follower = threading.Thread(target=follow, args=(url,))
        follower.start()
        try:
            assert hangs.wait(30)
            feed.draining = lambda: True
            assert ended.wait(30), "the stream was not ended"
        finally:
            answers.set()
            feed.draining = lambda: True
            follower.join()


@pytest.mark.parametrize("mark", ["-1", "x", "99", "1e3", "9" * 30, "\u0662"])
def test_an_event_that_never_was_is_a_mistake(desk: FrontDesk, mark: str):
    path = f"/v1/videos/{desk.create()['id']}/events"
    for more in ({"headers": {"Last-Event-ID": mark.encode()}}, {"params": {"after": mark}}):
        refused = desk.ask("GET", path, **more)
        assert refused.status_code == 422
        assert refused.json()["error"]["param"] in ("last-event-id", "after")


def test_whoever_comes_back_is_told_what_came_later_and_nothing_twice(desk: FrontDesk):
    """Through two replicas in turn, while an operator is at work."""
    other = FrontDesk(desk.ledger, desk.store, desk.settings)
    other.app.state.service.feed.pace = QUICK
    video = desk.create()
    job_id = job_of(video)
    seen: list[int] = []
    with served(desk.app) as here, served(other.app) as there:
        for turn in range(6):
            desk.ledger.set_held(job_id, turn % 2 == 0)
            url = f"{(here, there)[turn % 2]}/v1/videos/{video['id']}/events"
            with stream(url, desk.secret, seen=seen[-1] if seen else None) as told:
                seen.append(next(one.id for one in told if one.id is not None))
            assert seen[-1] == desk.ledger.job(job_id).seq
        with stream(f"{there}/v1/videos/{video['id']}/events", desk.secret, seen=seen[-1]) as told:
            assert desk.ask("POST", f"/v1/videos/{video['id']}/cancel").json()["status"] == "cancelled"
            ended = [one for one in told if one.id is not None]
    assert [one.name for one in ended][-1] == "cancelled"
    assert ended[-1].id == desk.ledger.job(job_id).seq
    assert seen == sorted(set(seen))
    assert ended[0].id > seen[-1]


def test_the_log_of_a_job_is_told_without_a_gap_and_nothing_twice(desk: FrontDesk):
    """In pieces: it is longer than what one look reads."""
    film = JobSpec(recipe="pipelines.recipes.film", title="A film", spec={}, tenant="studio")
    job_id, _ = desk.ledger.submit(film, [task(f"sh{n:03}") for n in range(following.PAGE + 30)])
    with served(desk.app) as url:
        events = f"{url}/v1/jobs/{job_id}/events"
        with stream(events, desk.secret) as told:
            first = next(told)
        mark = first.data["happened"][-1]["seq"]
        assert first.id == mark == following.PAGE
        with stream(events, desk.secret, seen=mark) as told:
            rest = [next(told)]
            desk.ledger.cancel_job(job_id)
            rest += told
    assert rest[-1].name == "cancelled"
    assert [one.name for one in rest[:-1] if one.id is not None] == ["status"] * (len(rest) - 1)
    happened = [event for one in [first, *rest] for event in one.data["happened"]]
    assert [event["seq"] for event in happened] == list(range(1, desk.ledger.job(job_id).seq + 1))
    canceled = {one["task"] for one in rest[-1].data["changed"] if one["state"] == "canceled"}
    assert {event["task"] for event in rest[-1].data["happened"] if event.get("state") == "canceled"} <= canceled
    assert rest[-1].data["state"] == "canceled"
    assert rest[-1].data["counts"] == {"canceled": following.PAGE + 30}


def test_two_who_follow_one_job_from_different_events_are_each_told_what_they_do_not_know(desk: FrontDesk):
    job_id = job_of(desk.create())
    desk.ledger.set_held(job_id, True)
    seq = desk.ledger.job(job_id).seq
    with served(desk.app) as url:
        events = f"{url}/v1/jobs/{job_id}/events"
        with stream(events, desk.secret, seen=seq - 1) as late, stream(events, desk.secret) as early:
            firsts = (next(late), next(early))
            desk.ledger.cancel_job(job_id)
            told = [[first, *rest] for first, rest in zip(firsts, (late, early), strict=True)]
    happened = [[event["seq"] for one in some for event in one.data["happened"]] for some in told]
    end = desk.ledger.job(job_id).seq
    assert happened == [list(range(seq, end + 1)), list(range(1, end + 1))]


def test_a_film_is_told_of_on_through_its_revisions(desk: FrontDesk):
    film = desk.ask("POST", "/v1/films", json={"script": script_of(CATALOG, "boat", "star")}).json()
    script = script_of(CATALOG, "fish", "star")
    with served(desk.app) as url:
        events = f"{url}/v1/films/{film['id']}/events"
        with stream(events, desk.secret) as told:
            first = next(told)
            changed = desk.ask("PUT", f"/v1/films/{film['id']}/script", json=script)
            assert changed.status_code == 200, changed.text
            rest = list(told)
        marks = [one.id for one in [first, *rest] if one.id is not None]
        assert all(mark.startswith("1.") for mark in marks)
        assert {one.name for one in [first, *rest]} <= {"status", "progress"}
        with stream(events, desk.secret, seen=marks[-1]) as told:
            again = next(told)
            assert (again.name, again.id.partition(".")[0]) == ("status", "2")
            assert len(again.data["revisions"]) == 2
            desk.ask("POST", f"/v1/films/{film['id']}/cancel")
            last = list(told)[-1]
    assert (last.name, last.data["status"]) == ("cancelled", "cancelled")
    assert desk.ask("GET", f"/v1/films/{film['id']}/events", headers={"Last-Event-ID": last.id}).status_code == 204


def test_files_of_a_job_are_there_once_it_is_done(working: Working):
    desk = working.desk
    working.engine.at_half = threading.Event()
    try:
        path = f"/v1/jobs/{job_of(desk.create('a yellow star rises over the sea'))}"
        early = desk.ask("GET", f"{path}/files/clip.mp4")
        assert (early.status_code, early.headers["x-should-retry"]) == (409, "false")
    finally:
        working.engine.at_half.set()
        working.engine.at_half = None
    done = desk.ask("GET", path, headers={"Prefer": 'respond-async, wait="20"'})
    assert (done.json()["state"], done.headers["preference-applied"]) == ("succeeded", "wait=20")
    clip = desk.ask("GET", f"{path}/files/clip.mp4")
    assert clip.headers["etag"] == f'"{hashlib.sha256(clip.content).hexdigest()}"'
    assert desk.ask("HEAD", f"{path}/files/poster.png").status_code == 200
    assert desk.ask("GET", f"{path}/files/film.mp4").status_code == 404
    assert desk.ask("GET", f"{path}/files/..%2fclip.mp4").status_code == 404


def test_an_answer_waits_for_the_end_if_that_is_preferred(working: Working, desk: FrontDesk):
    video = working.desk.ask("POST", "/v1/videos", json={"prompt": BOAT, "seed": 71}, headers={"Prefer": "wait=30"})
    assert (video.status_code, video.json()["status"]) == (200, "completed")
    assert video.headers["preference-applied"] == "wait=30"
    path = f"/v1/videos/{desk.create()['id']}"
    for asked, applied in (("wait=0", "wait=0"), ("WAIT = 0", "wait=0"), ("wait=x", None), ("wait=-1", None)):
        still = desk.ask("GET", path, headers={"Prefer": asked})
        assert (still.json()["status"], still.headers.get("preference-applied")) == ("queued", applied)
    assert not desk.app.state.service.feed._listeners


def test_a_video_that_is_deleted_while_its_answer_waits_was_taken_on(desk: FrontDesk, monkeypatch: pytest.MonkeyPatch):
    async def deleted(*_: Any, **__: Any) -> bool:
        for job in desk.ledger.jobs():
            desk.ledger.delete_job(job.id)
        return True

    monkeypatch.setattr("serve.prefer.waited", deleted)
    taken = desk.create()
    assert taken["status"] == "queued"
    assert desk.ask("GET", f"/v1/videos/{taken['id']}").status_code == 404


def test_a_still_is_answered_at_once_if_that_is_preferred(desk: FrontDesk):
    answer = desk.ask("POST", "/v1/images/generations", json={"prompt": BOAT}, headers={"Prefer": "respond-async"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
    assert answer.json()["recipe"] == "pipelines.recipes.image"
    assert desk.ask("GET", f"/v1/jobs/{answer.json()['job']}").json()["state"] == "queued"


def test_a_video_that_is_deleted_ends_its_stream(desk: FrontDesk):
    video = desk.create()
    with served(desk.app) as url, stream(f"{url}/v1/videos/{video['id']}/events", desk.secret) as told:
        next(told)
        desk.ask("DELETE", f"/v1/videos/{video['id']}")
        assert [one.name for one in told] in ([], ["cancelled"])


def test_a_key_that_is_revoked_hears_no_more(desk: FrontDesk):
    video = desk.create()
    key, secret = desk.ledger.create_key(KeySpec(tenant="studio", name="leaver", scopes=(Scope.READ,)))
    with served(desk.app) as url:
        events = f"{url}/v1/videos/{video['id']}/events"
        with stream(events, secret) as leaver, stream(events, desk.secret) as other:
            next(leaver)
            next(other)
            desk.ledger.revoke_key(key.id)
            desk.ledger.cancel_job(job_of(video))
            told = [[one.name for one in some] for some in (leaver, other)]
    assert ["cancelled" in names for names in told] == [False, True]


def test_a_quiet_stream_says_that_it_is_alive_and_a_replica_that_is_stopped_ends_it(desk: FrontDesk):
    video = desk.create()
    headers = {"Authorization": f"Bearer {desk.secret}"}
    with served(desk.app) as url:
        answer = httpx.Client(timeout=30).send(
            httpx.Request("GET", f"{url}/v1/videos/{video['id']}/events", headers=headers), stream=True
        )
        lines = answer.iter_lines()
        assert next(lines) == "retry: 100"
        assert next(line for line in lines if line.startswith(":")) == ": nothing new"
    rest = list(lines)  # the server is going: no error, an end
    assert not [line for line in rest if line.startswith("event: c")]
    assert desk.ledger.job(job_of(video)).counts == {State.READY: 1}


def test_many_streams_take_the_statements_of_one(desk: FrontDesk, monkeypatch: pytest.MonkeyPatch):
    feed = desk.app.state.service.feed
    feed.pace = Pace(look_s=0.02, progress_s=0.02, heartbeat_s=60)
    videos = [desk.create() for _ in range(12)]
    looks: list[tuple[int, int]] = []
    enough = threading.Event()
    look = following.look

    def counted(connection: Connection, seen: dict[str, int], *args: Any, **more: Any) -> Look:
        statements: list[str] = []
        event.listen(connection, "before_cursor_execute", lambda *args: statements.append(args[2]))
        found = look(connection, seen, *args, **more)
        looks.append((len(seen), len(statements)))
        if len(looks) == 20:
            enough.set()
        return found

    with served(desk.app) as url, httpx.Client(timeout=30, limits=httpx.Limits(max_connections=100)) as client:
        streams = []
        for video in videos:
            request = client.build_request(
                "GET", f"{url}/v1/videos/{video['id']}/events", headers={"Authorization": f"Bearer {desk.secret}"}
            )
            answer = client.send(request, stream=True)
            lines = answer.iter_lines()
            assert any(line.startswith("event: status") for line in lines)
            streams.append((answer, lines))
        monkeypatch.setattr(following, "look", counted)
        assert enough.wait(30)
        assert len(feed._listeners) == 12
        assert looks[:20] == [(12, 1)] * 20
        for video in videos:
            desk.ledger.cancel_job(job_of(video))
        for _, lines in streams:
            assert any(line == "event: cancelled" for line in lines)
        for answer, _ in streams:
            answer.close()


def test_a_client_that_goes_away_leaves_nothing_behind(desk: FrontDesk):
    feed, video = desk.app.state.service.feed, desk.create()
    with served(desk.app) as url:
        for _ in range(3):
            with stream(f"{url}/v1/videos/{video['id']}/events", desk.secret) as told:
                next(told)
        gone = threading.Event()
        for _ in range(200):
            if not (feed._listeners or feed._tasks):
                break
            gone.wait(0.05)
        assert not feed._listeners
        assert not feed._tasks


def test_a_job_whose_events_were_summed_up_is_told_to_its_end(desk: FrontDesk):
    video = desk.create()
    job_id = job_of(video)
    desk.ledger.cancel_job(job_id)
    end = desk.ledger.job(job_id).seq
    assert desk.ledger.sum_up(job_id, before_us=desk.ledger.clock.now_us() + 1)
    with served(desk.app) as url:
        for seen in (None, 1):
            with stream(f"{url}/v1/videos/{video['id']}/events", desk.secret, seen=seen) as told:
                last = list(told)[-1]
            assert (last.name, last.id, last.data["status"]) == ("cancelled", end, "cancelled")


def test_a_client_that_reads_nothing_is_cut_off(desk: FrontDesk):
    feed, path = desk.app.state.service.feed, f"/v1/videos/{desk.create()['id']}/events"
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 3:
            await asyncio.Event().wait()

    scope = {
        "type": "http", "asgi": {"spec_version": "2.3"}, "http_version": "1.1", "method": "GET", "path": path,
        "query_string": b"", "headers": [(b"authorization", f"Bearer {desk.secret}".encode())],
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(desk.app(scope, receive, send), 30))
    assert [message.get("more_body") for message in sent] == [None, True, True]
    assert not feed._listeners


def test_a_key_that_follows_too_many_jobs_is_told_so_and_others_are_not(
    desk: FrontDesk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve.feed.MOST_OF_A_KEY", 2)
    path = f"/v1/videos/{desk.create()['id']}"
    with served(desk.app) as url, contextlib.ExitStack() as followers:
        told = [followers.enter_context(stream(f"{url}{path}/events", desk.secret)) for _ in range(2)]
        assert [next(one).name for one in told] == ["status", "status"]
        refused = desk.ask("GET", f"{path}/events")
        assert (refused.status_code, "retry-after" in refused.headers) == (429, True)
        at_once = desk.ask("GET", path, headers={"Prefer": "wait=60"})
        assert (at_once.json()["status"], at_once.headers.get("preference-applied")) == ("queued", None)
        other = followers.enter_context(stream(f"{url}{path}/events", desk.key()))
        assert next(other).name == "status"


def test_the_client_of_openai_reads_the_stream_too(working: Working):
    from openai._streaming import SSEDecoder

    desk, video = working.desk, working.desk.create("a white bird glides over a meadow")
    with served(desk.app) as url:
        headers = {"Authorization": f"Bearer {desk.secret}"}
        answer = httpx.get(f"{url}/v1/videos/{video['id']}/events", headers=headers, timeout=30)
    read = list(SSEDecoder().iter_bytes(iter([answer.content])))
    named = [one for one in read if one.event]
    assert named[-1].event == "completed"
    assert json.loads(named[-1].data)["id"] == video["id"]
    assert read[0].retry == 100
