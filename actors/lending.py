"""Giving out leases: what fits those who ask, many in one transaction, and the order that each of them gets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from actors.contract import Order, WorkerFacts
from actors.grouped import Grouped
from actors.memory import Memory
from actors.orders import checkpoints, order_of
from actors.purser import Purser
from actors.queue import Queue
from cluster.clock import Clock
from cluster.errors import FarmError, StoreUnavailable
from cluster.fit import last_trial
from cluster.ledger.jobs import Job
from cluster.ledger.leases import Held
from cluster.ledger.ledger import Given, Ledger
from cluster.logs import say
from cluster.metrics import Meters
from cluster.schedule import Candidate
from cluster.store.port import Store

log = logging.getLogger(__name__)
GROUP = 64  # leases, or commits, of one transaction


class _Missed:
    """The ledger did not give what looked best; the next best may fit."""


MISSED = _Missed()


class Lender:
    """Part of one dispatcher, on its event loop. `call` runs SQL in its thread, `look` refills the queue."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        store: Store,
        clock: Clock,
        lease_s: float,
        queue: Queue,
        memory: Memory,
        purser: Purser,
        call: Callable[[Callable[[], Any]], Awaitable[Any]],
        look: Callable[[], Awaitable[None]],
        meters: Meters,
    ) -> None:
        self.term = 0
        self._ledger, self._store, self._clock, self._lease_s = ledger, store, clock, lease_s
        self._queue, self._memory, self._call, self._look = queue, memory, call, look
        self._meters = meters
        self._purser = purser
        self._asks = Grouped(self._lend, most=GROUP)

    async def pick(self, worker: WorkerFacts, request_id: str, *, again: bool) -> Order | None:
        """What the worker gets now: the best of what fits, or what it got before if it asks `again`."""
        got = await self._asks.ask((worker, request_id, again))
        while isinstance(got, _Missed):
            got = await self._asks.ask((worker, request_id, again))
        if got is None:
            return None
        order = await self._order(*got)
        say(log, "A task was leased.", action="lease", task=order.task_id, attempt=order.attempt_id)
        return order

    async def _lend(self, asks: Sequence[tuple[WorkerFacts, str, bool]]) -> list[Given | _Missed | Exception | None]:
        """Leases in one transaction what fits those who ask, each in turn as if the others had theirs already."""
        now_s, now_us = self._clock.monotonic_s(), self._clock.now_us()
        chosen: list[Candidate | None] = []
        self._memory.planned.clear()
        for worker, _, _ in asks:
            best: Sequence[Candidate] = ()
            if self._memory.takes_work(worker.id):
                best = self._queue.best(worker, fits=self._memory.fitting(worker), now_us=now_us)
            if best:
                task = self._queue.take(best[0], fleet=worker.fleet, now_s=now_s, now_us=now_us)
                self._memory.planned.append((worker.node, last_trial(task.failures)))
            chosen.append(best[0] if best else None)
        answers: list[Given | _Missed | Exception | None] = [None] * len(asks)
        wanted = {
            n: (c.task_id if c else "", c.epoch if c else 0, worker.id, request_id)
            for n, (c, (worker, request_id, again)) in enumerate(zip(chosen, asks, strict=True))
            if c is not None or again
        }
        reserves, found = self._purser.reserves, list[Any]()
        try:
            if wanted:
                asked = list(wanted.values())
                found = await self._call(lambda: self._ledger.lease_all(self.term, asked, reserves=reserves))
        except FarmError:
            for c in chosen:
                if c is not None:
                    self._queue.missed(c)
            raise
        for n, got in zip(wanted, found, strict=True):
            c = chosen[n]
            if isinstance(got, tuple):
                self._keep_order(got[0], got[1], asks[n][0].id)
            if c is not None and isinstance(got, tuple) and got[0]["id"] == c.task_id:
                role, waited_s = asks[n][0].role, (now_us - c.ready_us) / 1e6
                self._meters.count("farm_leases_total", role=role, tier=c.tier)
                self._meters.count("farm_queue_wait_seconds_total", waited_s, role=role, tier=c.tier)
            elif c is not None:
                self._queue.missed(c)
            if isinstance(got, Held):
                self._queue.bar(got, now_s=now_s)
            answers[n] = MISSED if c is not None and (got is None or isinstance(got, Held)) else got
        self._memory.planned.clear()
        if self._queue.is_low:
            await self._look()
        return answers

    def _keep_order(self, task: Any, job: Job, worker_id: str) -> None:
        row = {**task, "task_id": task["id"], "worker_id": worker_id, "tenant": job.tenant, "tier": job.tier}
        self._memory.keep(row, now_s=self._clock.monotonic_s(), lease_s=self._lease_s)

    async def _order(self, task: Any, job: Any, inputs: Sequence[Any], spends: dict[str, Any]) -> Order:
        saved: list[str] = []
        if task["epoch"] > 1:  # somebody tried before; who opens a task again wants it from the start
            rows = await self._call(partial(self._ledger.attempts_of, task["id"]))
            earlier = [a["id"] for a in rows[1:] if a["generation"] == task["generation"]]
            try:
                saved = await asyncio.to_thread(checkpoints, self._store, job.tenant, earlier)
            except StoreUnavailable as error:
                say(log, "Checkpoints could not be looked for.", action="checkpoint.unseen", error=error.line())
        return order_of(task, job, inputs, spends, saved)
