"""What every route is handed: the farm's parts, put together once by a composition root. Nothing is global."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from actors.catalog import Catalog
from actors.contract import Json
from cluster.errors import FarmError, Unavailable
from cluster.forecast import Crew
from cluster.graph import TaskSpec
from cluster.ledger import history, holdings, outcomes
from cluster.ledger.ledger import Ledger
from cluster.ledger.outcomes import Backlog
from cluster.rates import RateCard, load_rate_card
from cluster.settings import Settings
from cluster.store.port import Store
from cluster.timing import Paces, learned
from serve.chats import ChatDesk, Places, TokenMeter
from serve.egress import EgressMeter
from serve.feed import Feed
from serve.foresight import Foresight, nobody_yet
from serve.guard import Guard
from serve.scrape import Scrape

log = logging.getLogger(__name__)
T = TypeVar("T")
ASK_S = 1.0
"""How long an answer waits for the dispatcher's memory; then it says what is committed."""
QUIET_S = 5.0
"""After so long a wait in vain, nobody asks it for this long."""
QUESTIONS_AT_ONCE = 4
FRESH_S = 1.0
PICTURES_AT_ONCE = 4
"""Pictures of others that are fetched and decoded at a time: each takes up to 300 MB."""
EXPORTS_AT_ONCE = 2
"""Exports of costs that are written at a time: each holds a connection to the ledger for as long as it is read."""
NO_QUEUE = Backlog(before=(), ready_s={}, running_s={}, num_ready={}, num_workers={})
LOOKS = 20
"""The queue is looked at again after this many times what the last look took: it never takes more than 5 %."""


class Desk(Protocol):
    """The dispatcher, as who asks sees it: its memory and its attention, never the truth. It may be away."""

    def poke(self) -> None: ...

    def progress(self, *job_ids: str) -> list[Json]: ...


class Bell:
    """Tells the dispatcher that there is something to do, from a thread of its own: a dispatcher that hangs keeps
    nobody waiting. What comes while it is told is told once more, in one."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._lock = threading.Lock()
        self._rung = self._rings = False

    def ring(self) -> None:
        with self._lock:
            self._rung = True
            if self._rings:
                return
            self._rings = True
        threading.Thread(target=self._run, name="bell", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._rings, self._rung = self._rung, False
                if not self._rings:
                    return
            try:
                self._desk.poke()
            except FarmError:
                pass  # it also looks by itself
            except Exception:
                log.exception("The dispatcher could not be told that there is something to do.")


class Ear:
    """Asks the dispatcher how far running tasks are, from threads of its own: one that hangs holds these few, none that
    requests need, and is left alone for a while. Whatever goes wrong here, nothing was heard."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._threads = ThreadPoolExecutor(QUESTIONS_AT_ONCE, thread_name_prefix="ear")
        self._quiet_until_s = float("-inf")

    async def hear(self, job_ids: Sequence[str]) -> list[Json]:
        if time.monotonic() < self._quiet_until_s:
            return []
        try:
            async with asyncio.timeout(ASK_S):
                ask = asyncio.get_running_loop().run_in_executor
                return await ask(self._threads, self._desk.progress, *job_ids)
        except TimeoutError:
            self._quiet_until_s = time.monotonic() + QUIET_S
        except FarmError:
            pass  # it is away
        except Exception:
            log.exception("The dispatcher could not be asked how far running tasks are.")
        return []


class Queue:
    """The farm's queue as it was at most some seconds ago. Any thread may ask."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._until_s = float("-inf")
        self._seen = NO_QUEUE
        self._places: dict[str, int] = {}
        self._ratios: dict[str, float] = {}
        self._paces = Paces(())
        self._crews: list[Crew] = []

    def look(self) -> Backlog:
        """Raises LedgerUnavailable. While one thread looks, the others have what the last look saw: with a long queue a
        look takes a while, and each answer waited for it."""
        if not self._lock.acquire(blocking=self._until_s == float("-inf")):
            return self._seen
        try:
            began_s = time.monotonic()
            if began_s >= self._until_s:
                self._seen = self._ledger.view(outcomes.backlog)
                samples = self._ledger.view(history.samples)
                self._ratios = learned((one.step, one.predicted_s, one.actual_s) for one in samples)
                self._paces = Paces(samples)
                self._crews = self._ledger.view(holdings.crews)
                self._places = {job_id: place for place, job_id in enumerate(self._seen.before)}
                took_s = time.monotonic() - began_s
                self._until_s = began_s + max(FRESH_S, LOOKS * took_s)
            return self._seen
        finally:
            self._lock.release()

    def lore(self) -> tuple[Paces, list[Crew]]:
        """What attempts have taught, and who works, as the last look saw it; no look of its own but for the first: an
        answer about a job that was just submitted wants one that sees it. Raises LedgerUnavailable."""
        with self._lock:
            if self._until_s == float("-inf") and not self._crews:
                self._paces = Paces(self._ledger.view(history.samples))
                self._crews = self._ledger.view(holdings.crews)
            return self._paces, self._crews

    def place(self, job_id: str) -> int | None:
        """How many jobs are likely to begin before this one; None if it does not wait."""
        return self._places.get(job_id)

    @property
    def ratios(self) -> dict[str, float]:
        """Actual over predicted seconds, by step."""
        return self._ratios

    @property
    def paces(self) -> Paces:
        return self._paces

    @property
    def crews(self) -> list[Crew]:
        return self._crews


@dataclass(kw_only=True, slots=True)
class Service:
    ledger: Ledger
    store: Store
    catalog: Catalog
    settings: Settings
    desk: Desk | None = None
    chat: ChatDesk | None = None
    rates: RateCard = field(init=False)
    bell: Bell | None = field(init=False)
    ear: Ear | None = field(init=False)
    queue: Queue = field(init=False)
    feed: Feed = field(init=False)
    guard: Guard = field(init=False)
    places: Places = field(init=False)
    meter: TokenMeter = field(init=False)
    scrape: Scrape = field(init=False)
    egress: EgressMeter = field(init=False)
    pictures: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PICTURES_AT_ONCE))
    exports: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(EXPORTS_AT_ONCE))

    def __post_init__(self) -> None:
        self.rates = load_rate_card(self.settings.rate_card)
        self.bell = None if self.desk is None else Bell(self.desk)
        self.ear = None if self.desk is None else Ear(self.desk)
        self.queue = Queue(self.ledger)
        self.feed = Feed(self)
        self.guard = Guard.of(self.settings)
        self.places = Places(self.settings.chats_per_key)
        self.meter = TokenMeter(self.ledger)
        self.scrape = Scrape(self.ledger, self.queue.look)
        self.egress = EgressMeter(self.ledger)

    def poke(self) -> None:
        """The dispatcher also looks by itself: whether and when it hears this does not matter."""
        if self.bell is not None:
            self.bell.ring()

    def foresight(self) -> Foresight:
        """By the queue as it was a moment ago. Raises LedgerUnavailable."""
        backlog = self.queue.look()
        unknown = nobody_yet(self.rates, self.settings, self.ledger.clock.now_us())
        return Foresight(backlog=backlog, paces=self.queue.paces, crews=self.queue.crews, unknown=unknown)

    def foretold(self, graph: Sequence[TaskSpec], *, tier: str, to_come: Sequence[TaskSpec] = ()) -> Json:
        """What a job keeps of its estimate at submit, as `Foresight.of_graph`. Raises LedgerUnavailable."""
        paces, crews = self.queue.lore()
        unknown = nobody_yet(self.rates, self.settings, self.ledger.clock.now_us())
        seen = Foresight(backlog=NO_QUEUE, paces=paces, crews=crews, unknown=unknown)
        return seen.of_graph(graph, tier=tier, to_come=to_come)

    def foresight_now(self) -> Foresight | None:
        """None while the ledger does not answer."""
        try:
            return self.foresight()
        except Unavailable:
            return None

    def queue_now(self) -> Backlog | None:
        """None while the ledger does not answer."""
        try:
            return self.queue.look()
        except Unavailable:
            return None

    async def moving(self, job_ids: Sequence[str]) -> dict[str, list[Json]]:
        """What the dispatcher has heard of the running tasks of these jobs; nothing while it is away."""
        heard: dict[str, list[Json]] = {job_id: [] for job_id in job_ids}
        for one in await self.ear.hear(job_ids) if self.ear is not None and job_ids else []:
            heard[one["job_id"]].append(one)
        return heard


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


async def off_the_loop(work: Callable[[], T]) -> T:
    """Ledger and store block: their calls are made in a thread."""
    return await run_in_threadpool(work)
