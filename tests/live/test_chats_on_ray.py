"""Chats with workers on real Ray: beside orders, aborted, drained, killed; an engine of milliseconds talks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from actors.contract import Chat, Piece
from cluster.accelerators import Fleet
from cluster.errors import NoWriter, WorkerLost
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from serve.local import Farm
from serve.watch import Watch
from tests.talking_engine import DIE, PID, WAIT

pytestmark = pytest.mark.live
TALKING = "tests.talking_engine:make"
Test = Callable[[Any], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with Farm(home=tmp_path_factory.mktemp("home"), gpus=0) as running:
        running.fleets.want(Fleet(name="lone", role="writer", model="lone", engine=TALKING, price_class="spot"))
        running.fleets.want(Fleet(name="pair", role="writer", model="pair", engine=TALKING, num_workers=2))
        wait_until(lambda: len(running.fleets.desk.workers()) == 3)
        yield running


@pytest.fixture(autouse=True)
def nothing_goes_on(farm: Farm) -> None:
    (farm.settings.home / "go").unlink(missing_ok=True)


def wait_until(ready: Callable[[], bool]) -> None:
    import time

    ends_s = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < ends_s
        time.sleep(0.05)


def writers_of_pair(farm: Farm) -> set[str]:
    return {worker.id for worker in farm.fleets.desk.workers() if "pair" in worker.models}


def wait_until_one_is_replaced(farm: Farm, before: set[str]) -> None:
    """A worker that has just died is listed until the farm sees it, so their number alone says nothing."""
    wait_until(lambda: len(before & (now := writers_of_pair(farm))) == 1 and len(now) == 2)


def with_writers(farm: Farm, test: Test) -> None:
    """On a loop of its own, with writers as one replica has them."""
    from serve.writers import RayWriters  # after the farm has set how Ray authenticates

    asyncio.run(asyncio.wait_for(test(RayWriters(farm.fleets.desk.workers)), 100))


def chat(text: str, *, model: str = "lone", name: str = "chat-1") -> Chat:
    return Chat(id=name, model=model, messages=({"role": "user", "content": text},), timeout_s=60.0)


async def said(pieces: AsyncGenerator[Piece, None]) -> str:
    return "".join([piece.text async for piece in pieces])


async def until_said(pieces: AsyncGenerator[Piece, None]) -> str:
    """The first text."""
    return next(text for text in [(await anext(pieces)).text, (await anext(pieces)).text] if text)


def end_of(farm: Farm, name: str) -> str:
    path: Path = farm.settings.home / name
    wait_until(lambda: path.exists() and bool(path.read_text(encoding="utf-8")))
    return path.read_text(encoding="utf-8")


def test_a_worker_chats_while_it_works_on_an_order(farm: Farm, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    order = TaskSpec(key="o", step="s", role="writer", model="lone", entry="x:y", params={"gate": str(gate)})
    job_id, _ = farm.ledger.submit(JobSpec(recipe="tests", title="test", spec={}), [order])
    farm.fleets.desk.poke()
    wait_until((tmp_path / "pid").exists)

    async def talk(writers: Any) -> None:
        pieces = [piece async for piece in writers.answer(chat("a red boat"))]
        assert [piece.text for piece in pieces] == ["", "a ", "red ", "boat "]
        assert (pieces[-1].finish_reason, pieces[-1].completion_tokens, pieces[-1].price_class) == ("stop", 3, "spot")
        pids = await asyncio.gather(*(said(writers.answer(chat(PID, name=f"at-once-{n}"))) for n in range(20)))
        assert {pid.strip() for pid in pids} == {(tmp_path / "pid").read_text(encoding="utf-8")}

    with_writers(farm, talk)
    assert farm.ledger.job(job_id).state == "running"
    gate.touch()
    list(Watch(farm.ledger, job_id, progress=farm.fleets.desk.progress, num_workers=farm.fleets.num_workers))
    assert farm.ledger.job(job_id).state == "succeeded"


def test_who_leaves_stops_the_answer_whether_it_has_begun_or_not(farm: Farm) -> None:
    async def leave(writers: Any) -> None:
        for name, text in (("begun", f"boat {WAIT} sea"), ("waiting", f"{WAIT} boat")):
            async with aclosing(writers.answer(chat(text, name=name))) as pieces:
                assert (await anext(pieces)).text == ""
                if name == "begun":
                    assert (await anext(pieces)).text == "boat "
        assert not writers._open

    with_writers(farm, leave)
    assert [end_of(farm, name) for name in ("begun", "waiting")] == ["aborted", "aborted"]


def test_chats_go_to_who_has_the_fewest(farm: Farm) -> None:
    async def spread(writers: Any) -> None:
        async with (
            aclosing(writers.answer(chat(f"{PID} {WAIT}", model="pair", name="s1"))) as one,
            aclosing(writers.answer(chat(f"{PID} {WAIT}", model="pair", name="s2"))) as two,
        ):
            assert await until_said(one) != await until_said(two)
        with pytest.raises(NoWriter) as refused:
            await said(writers.answer(chat("x", model="none")))
        assert refused.value.retry_after_s == 5.0

    with_writers(farm, spread)


def test_a_worker_that_is_killed_breaks_its_stream_and_the_next_chat_goes_elsewhere(farm: Farm) -> None:
    async def kill(writers: Any) -> None:
        pieces = writers.answer(chat(f"{PID} {WAIT}", model="pair", name="killed"))
        pid = int(await until_said(pieces))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerLost):
            await said(pieces)
        for n in range(4):
            assert int(await said(writers.answer(chat(PID, model="pair", name=f"after-{n}")))) != pid

    before = writers_of_pair(farm)
    with_writers(farm, kill)
    wait_until_one_is_replaced(farm, before)


def test_a_worker_whose_engine_died_is_replaced(farm: Farm) -> None:
    async def die(writers: Any) -> None:
        pieces = writers.answer(chat(f"{PID} {DIE}", model="pair", name="dying"))
        pid = int(await until_said(pieces))
        with pytest.raises(WorkerLost, match="the engine died"):
            await said(pieces)
        for n in range(4):
            assert int(await said(writers.answer(chat(PID, model="pair", name=f"next-{n}")))) != pid

    before = writers_of_pair(farm)
    with_writers(farm, die)
    wait_until_one_is_replaced(farm, before)


def test_a_drained_worker_lets_its_chats_end(farm: Farm) -> None:
    """The last of the file: nobody takes the worker's place."""
    [lone] = [worker.id for worker in farm.fleets.desk.workers() if "lone" in worker.models]

    async def drain(writers: Any) -> None:
        pieces = writers.answer(chat(f"a {WAIT} boat", name="drained"))
        assert await until_said(pieces) == "a "
        farm.ledger.drain(lone, reason="its node is needed")
        await asyncio.to_thread(wait_until, lambda: lone not in {w.id for w in farm.fleets.desk.workers()})
        writers._until_s = 0.0
        with pytest.raises(NoWriter):
            await said(writers.answer(chat("too late", name="late")))
        (farm.settings.home / "go").touch()
        assert await said(pieces) == f"{WAIT} boat "

    with_writers(farm, drain)
    assert end_of(farm, "drained") == "done"
    wait_until(lambda: farm.fleets.num_workers().get("writer") == 2)
