"""News of jobs for all who follow some here: one look at the ledger for all of them together, handed round.

The ledger is the only memory: who reads slowly gets no news meanwhile, and then what happened since the last one, in
one piece. So nobody is told anything twice, nothing is left out, and a reader holds one piece of news at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from actors.contract import Json
from cluster.errors import Unavailable
from cluster.ledger import following, keys
from cluster.ledger.events import Event
from cluster.ledger.following import Look
from cluster.ledger.outcomes import Outcome
from cluster.states import State
from serve.standing import Standing, standing

if TYPE_CHECKING:
    from serve.service import Service

log = logging.getLogger(__name__)
END_LOOK_S = 0.25
MOST_LISTENERS = 128
"""Each of them holds one of the requests that a replica works on: as many again are for all that is over soon."""
MOST_OF_A_KEY = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How often, in seconds. A look never takes more than a fifth of the time."""

    look_s: float = 0.25
    progress_s: float = 0.5  # between two pieces of news that are no events
    heartbeat_s: float = 15.0
    slow_s: float = 30.0  # a reader that takes nothing for so long is cut off
    most_s: float = 600.0  # then a stream ends, and its reader comes back with its key
    retry_s: float = 2.0  # after which readers come back


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    """A job as it stands, and what happened to it since its listener's last news."""

    outcome: Outcome
    standing: Standing
    moving: tuple[Json, ...]  # what the dispatcher has heard of its running tasks
    events: tuple[Event, ...]  # none: only something moved, or they are kept no longer
    seen: int  # the number of the newest event that is told by now
    nano: int  # booked, and held by running attempts since
    at_us: int

    @property
    def last(self) -> bool:
        return self.outcome.job.over and self.seen >= self.outcome.job.seq


class Listener:
    """Who follows one job; it takes its news from here."""

    def __init__(self, job_id: str, seen: int, key_id: str) -> None:
        self.job_id, self.seen, self.key_id = job_id, seen, key_id
        self.told: object = None
        self.told_s = float("-inf")
        self._box: asyncio.Queue[News | None] = asyncio.Queue(1)

    @property
    def waits(self) -> bool:
        return self._box.empty()

    async def news(self, wait_s: float) -> News | None:
        """The next news; None: there will be no more here. Raises TimeoutError."""
        async with asyncio.timeout(wait_s):
            return await self._box.get()

    def tell(self, news: News, about: object) -> None:
        self.seen, self.told, self.told_s = news.seen, about, time.monotonic()
        self._box.put_nowait(news)

    def end(self) -> None:
        """What was not taken yet is told again, to whoever comes back for it."""
        with contextlib.suppress(asyncio.QueueEmpty):
            self._box.get_nowait()
        self._box.put_nowait(None)


class Feed:
    """Of one event loop. It looks while somebody listens, and rests otherwise."""

    def __init__(self, service: Service, pace: Pace | None = None) -> None:
        self._service = service
        self.pace = pace or Pace()
        self.draining: Callable[[], bool] = lambda: False
        """Whether this replica is being stopped: then all streams end."""
        self._listeners: set[Listener] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._woken = asyncio.Event()
        self._known: dict[str, Outcome] = {}
        self._moving: Mapping[str, list[Json]] = {}

    def full(self, key_id: str) -> bool:
        """Whether nobody more may follow a job here with this key."""
        of_key = sum(listener.key_id == key_id for listener in self._listeners)
        return len(self._listeners) >= MOST_LISTENERS or of_key >= MOST_OF_A_KEY

    @asynccontextmanager
    async def following(self, job_id: str, seen: int, key_id: str) -> AsyncIterator[Listener]:
        """Tells what happens to a job after its event `seen`."""
        listener = Listener(job_id, seen, key_id)
        self._listeners.add(listener)
        if not self._tasks:
            self._woken, self._moving = asyncio.Event(), {}
            work = (self._look_on(), self._hear(), self._see_the_end())
            self._tasks = [asyncio.create_task(one) for one in work]
        self._woken.set()
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            if not self._listeners:
                tasks, self._tasks, self._known = self._tasks, [], {}
                for task in tasks:
                    task.cancel()

    def end_all(self) -> None:
        for listener in self._listeners:
            listener.end()

    async def _look_on(self) -> None:
        while True:
            began_s, behind = time.monotonic(), False
            self._woken.clear()
            try:
                behind = await self._look()
            except Unavailable:
                pass  # the ledger is away for a moment: nobody knows any news
            except Exception:
                log.exception("A look at the jobs that are followed failed.")
                self.end_all()
            await asyncio.sleep(4 * (time.monotonic() - began_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0 if behind else self.pace.look_s):
                    await self._woken.wait()

    async def _see_the_end(self) -> None:
        """Beside the looks: a ledger that is slow, or away, must not keep streams open until they are cut off."""
        while True:
            if self.draining():
                self.end_all()
            await asyncio.sleep(END_LOOK_S)

    async def _look(self) -> bool:
        """Tells all who wait what they do not know; whether there is more to tell them at once."""
        waiting = [listener for listener in self._listeners if listener.waits]
        seen: dict[str, int] = {}
        for one in waiting:
            seen[one.job_id] = min(one.seen, seen.get(one.job_id, one.seen))
        if not seen:
            return False
        service, known, now_us = self._service, self._known, self._service.ledger.clock.now_us()
        key_ids = {listener.key_id for listener in self._listeners}
        look, closed = await run_in_threadpool(  # keys come last: none that is revoked before a change hears of it
            lambda: service.ledger.view(
                lambda c: (following.look(c, seen, known, now_us=now_us), keys.closed(c, key_ids))
            )
        )
        for listener in self._listeners:
            if listener.key_id in closed:
                listener.end()
        followed = {listener.job_id for listener in self._listeners}
        self._known = {
            job_id: one for job_id, one in {**known, **look.changed}.items()
            if job_id in followed and (job_id in look.heads or job_id not in seen)
        }  # fmt: skip
        opened = any(not self._known[job_id].job.over for job_id in look.heads if job_id in self._known)
        queue = await run_in_threadpool(service.queue_now) if opened else None
        standings: dict[str, Standing] = {}
        for listener in waiting:
            job_id = listener.job_id
            outcome = self._known.get(job_id)
            if outcome is None:
                listener.end()  # it was deleted
                continue
            if job_id not in standings:
                standings[job_id] = standing(
                    outcome, self._moving.get(job_id, ()), backlog=queue, place=service.queue.place(job_id),
                    ratios=service.queue.ratios, now_us=now_us,
                )  # fmt: skip
            self._tell(listener, outcome, standings[job_id], look, now_us)
        return any(job.seen < look.heads.get(job.job_id, 0) for job in waiting)

    def _tell(self, listener: Listener, outcome: Outcome, now: Standing, look: Look, now_us: int) -> None:
        job_id = listener.job_id
        moving = tuple(self._moving.get(job_id, ()))
        about = (now.status, now.progress, now.queue_position, moving)
        events = tuple(event for event in look.events.get(job_id, ()) if event.seq > listener.seen)
        all_read = sum(map(len, look.events.values())) < following.PAGE
        summed_up = outcome.job.over and not events and all_read and listener.seen < outcome.job.seq
        quiet = about == listener.told or time.monotonic() < listener.told_s + self.pace.progress_s
        nothing = not events and not summed_up and (quiet or outcome.job.over)
        if listener not in self._listeners or not listener.waits or nothing:
            return
        news = News(
            outcome=outcome, standing=now, moving=moving, events=events,
            seen=events[-1].seq if events else outcome.job.seq if summed_up else listener.seen,
            nano=outcome.spend.nano + look.accruing_nano.get(job_id, 0), at_us=now_us,
        )  # fmt: skip
        listener.tell(news, about)

    async def _hear(self) -> None:
        """Keeps what the dispatcher says of running tasks. One question at a time: it may be away."""
        while True:
            await asyncio.sleep(self.pace.progress_s)
            running = [job_id for job_id, one in self._known.items() if one.job.counts.get(State.RUNNING)]
            if running:
                self._moving = await self._service.moving(running)
