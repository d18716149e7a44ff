"""The dispatcher, as a plain class: it gives out leases and takes in reports. It plans in memory and owns nothing.

Killed, it comes back with a higher term and reads the ledger; whatever ran has a full lease of grace. All methods
are coroutines of one event loop; SQL and the store are called in threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict, TypeVar

from actors.contract import Beat, Input, Json, Order, Outcome, Report, WorkerFacts
from actors.queue import Queue
from cluster.clock import Clock, to_datetime
from cluster.errors import (
    DamagedAsset,
    FailureClass,
    FarmError,
    InvalidGraph,
    InvalidInput,
    StaleTerm,
    StoreUnavailable,
    Unavailable,
)
from cluster.fit import Asked, Place, unfit
from cluster.graph import TaskSpec
from cluster.ledger.leases import Answer
from cluster.ledger.ledger import Ledger
from cluster.logs import about, say
from cluster.rates import RateCard
from cluster.store import Store, find_receipt, verify_receipt

T = TypeVar("T")
log = logging.getLogger(__name__)


class _Claim(TypedDict):
    """What every write of an attempt carries."""

    task_id: str
    attempt_id: str
    epoch: int


@dataclass(slots=True)
class _Lease:
    """A running attempt in memory. `ends_s` is on the monotonic clock of this process."""

    task_id: str
    attempt_id: str
    epoch: int
    worker_id: str
    job_id: str
    tenant: str
    ends_s: float
    stop: str | None = None
    stage: str = ""
    done: int = 0
    total: int = 0


class Dispatcher:
    """Leases, heartbeats, commits. Create it, `await start()`, and keep `run()` going beside the calls."""

    def __init__(
        self, *, ledger: Ledger, store: Store, rates: RateCard, clock: Clock, lease_s: float, lease_wait_s: float
    ) -> None:
        self._ledger, self._store, self._rates, self._clock = ledger, store, rates, clock
        self._lease_s, self._lease_wait_s = lease_s, lease_wait_s
        self._sql = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._term = 0
        self._leases: dict[str, _Lease] = {}
        self._workers: dict[str, WorkerFacts] = {}
        self._seen_s: dict[str, float] = {}
        self._queue = Queue(ledger)
        self._dismissed: set[str] = set()
        self._woken = asyncio.Event()
        self._picking = asyncio.Lock()

    async def start(self) -> int:
        """Takes a new term and gives everything that runs a full lease of grace. Returns the term."""
        self._term = await self._call(self._ledger.take_term)
        now_s = self._clock.monotonic_s()
        for row in await self._call(self._ledger.running):
            job = await self._call(partial(self._ledger.job, row.job_id))
            self._leases[row.attempt_id] = _Lease(
                row.task_id, row.attempt_id, row.epoch, row.worker_id, row.job_id, job.tenant, now_s + self._lease_s
            )
        for worker in await self._call(self._ledger.open_workers):
            self._seen_s[worker["id"]] = now_s
        await self._look()
        say(log, "The dispatcher took a term.", action="dispatcher.start", term=self._term, running=len(self._leases))
        return self._term

    async def run(self, tick_s: float = 1.0) -> None:
        """Expires leases, ends back-offs and looks for new work, about once a second, until it is cancelled."""
        while True:
            try:
                await self.tick()
            except StaleTerm:
                raise
            except FarmError as error:
                say(log, "A tick failed; the next one tries again.", action="dispatcher.tick", error=error.line())
            await asyncio.sleep(tick_s)

    async def tick(self) -> None:
        now_s = self._clock.monotonic_s()
        for lease in [lease for lease in self._leases.values() if lease.ends_s <= now_s]:
            await self._lost(lease, "its lease ran out")
        silent = [w for w, seen in self._seen_s.items() if now_s - seen > self._lease_s]
        for worker_id in silent:
            await self.leave(worker_id)
        await self._call(lambda: self._ledger.backoff_over(self._term))
        running = {row.attempt_id for row in await self._call(self._ledger.running)}
        for lease in self._leases.values():
            if lease.attempt_id not in running and lease.stop is None:
                lease.stop = "canceled"  # somebody canceled or held it in the ledger
        await self._look()

    async def poke(self) -> None:
        """Somebody submitted or changed a job: look now, not in a second."""
        await self._look()

    # What workers call

    async def join(self, worker: WorkerFacts) -> None:
        rate = self._rates.rate(worker.accelerator, worker.price_class, to_datetime(self._clock.now_us()))
        row = {
            "id": worker.id,
            "fleet": worker.fleet,
            "role": worker.role,
            "model": worker.models[0] if worker.models else None,
            "node": worker.node,
            "accelerator": worker.accelerator,
            "num_accelerators": worker.num_accelerators,
            "price_class": worker.price_class,
            "rate_card": rate.card,
            "nano_per_hour": rate.nano_per_hour * max(1, worker.num_accelerators),
            "spawned_us": worker.spawned_us,
            "facts": worker.facts,
        }
        await self._call(lambda: self._ledger.join(self._term, row))
        self._workers[worker.id] = worker
        self._seen_s[worker.id] = self._clock.monotonic_s()
        say(log, "A worker joined.", action="worker.join", worker=worker.id)

    async def lease(self, worker_id: str, request_id: str) -> Order | None:
        """Waits up to the setting for a task that the worker can run. The same request gets the same lease.

        Raises Unavailable for a worker that this dispatcher has not met: it joins again and asks again.
        """
        worker = self._workers.get(worker_id)
        if worker is None:
            raise Unavailable(f"worker {worker_id} has not joined this dispatcher", remedy="join again")
        again = await self._call(lambda: self._ledger.leased_by_request(worker_id, request_id))
        if again is not None:
            return self._order(*again, worker_id)
        deadline = asyncio.get_running_loop().time() + self._lease_wait_s
        while True:
            self._seen_s[worker_id] = self._clock.monotonic_s()
            self._woken.clear()
            if worker_id in self._dismissed:
                return None
            order = await self._pick(worker, request_id)
            if order is not None:
                return order
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                return None
            try:
                await asyncio.wait_for(self._woken.wait(), min(left_s, self._lease_s / 3))
            except TimeoutError:
                continue

    async def dismiss(self, worker_id: str) -> None:
        """The worker stops: its waiting call for work returns at once."""
        self._dismissed.add(worker_id)
        self._woken.set()

    async def beat(self, worker_id: str, beats: Sequence[Beat]) -> dict[str, str]:
        """Renews the leases of what runs, keeps its progress, and says what shall stop, and why."""
        now_s = self._clock.monotonic_s()
        if worker_id in self._workers:
            self._seen_s[worker_id] = now_s
        stop: dict[str, str] = {}
        for beat in beats:
            lease = self._leases.get(beat.attempt_id)
            if lease is None or lease.epoch != beat.epoch:
                stop[beat.attempt_id] = "superseded"
                continue
            lease.ends_s = now_s + self._lease_s
            lease.stage, lease.done, lease.total = beat.stage, beat.done, beat.total
            if lease.stop:
                stop[beat.attempt_id] = lease.stop
        return stop

    async def report(self, report: Report) -> str:
        """Ends an attempt. Idempotent: a report that is repeated is answered `duplicate`."""
        with about(task=report.task_id, attempt=report.attempt_id, worker=report.worker_id):
            answer = await self._take(report)
            self._leases.pop(report.attempt_id, None)
            say(log, "A report came in.", action="report", outcome=report.outcome.value, answer=answer.value)
        await self._look()
        return answer.value

    async def leave(self, worker_id: str) -> None:
        """The worker is gone: what it ran is lost (or found by its receipt), its holding ends."""
        for lease in [lease for lease in self._leases.values() if lease.worker_id == worker_id]:
            await self._lost(lease, "its worker is gone")
        await self._call(lambda: self._ledger.leave(self._term, worker_id))
        self._workers.pop(worker_id, None)
        self._seen_s.pop(worker_id, None)
        self._dismissed.discard(worker_id)
        say(log, "A worker left.", action="worker.leave", worker=worker_id)

    # What people call

    async def progress(self, job_id: str) -> list[Json]:
        """Where the running attempts of a job are: never an event, only this memory."""
        return [
            {"task_id": x.task_id, "attempt_id": x.attempt_id, "stage": x.stage, "done": x.done, "total": x.total}
            for x in self._leases.values()
            if x.job_id == job_id
        ]

    async def workers(self) -> list[WorkerFacts]:
        return list(self._workers.values())

    async def cancel(self, job_id: str) -> int:
        """Cancels a job; its workers learn of it with their next heartbeat. Returns how many tasks were canceled."""
        count = await self._call(lambda: self._ledger.cancel_job(job_id))
        for lease in self._leases.values():
            if lease.job_id == job_id:
                lease.stop = "canceled"
        return count

    # Inside

    async def _take(self, report: Report) -> Answer:
        who = _Claim(task_id=report.task_id, attempt_id=report.attempt_id, epoch=report.epoch)
        if report.outcome is Outcome.SUCCEEDED:
            return await self._commit(report.tenant, report.attempt_id, who)
        if report.outcome is Outcome.FAILED:
            failure = FailureClass(report.failure or FailureClass.BUG)
            return await self._call(
                lambda: self._ledger.fail(
                    self._term,
                    **who,
                    failure=failure,
                    code=report.code or "internal",
                    message=report.message or "failed without a message",
                    facts=report.facts,
                )
            )
        return await self._call(lambda: self._ledger.interrupt(self._term, **who, facts=report.facts))

    async def _commit(self, tenant: str, attempt_id: str, who: _Claim) -> Answer:
        """Commits by the receipt, which is verified before the transaction begins."""

        def work() -> Answer:
            receipt = find_receipt(self._store, tenant, attempt_id)
            if receipt is None:
                raise StoreUnavailable(f"the receipt of {attempt_id} is not in the store")
            verify_receipt(self._store, receipt)
            facts = dict(receipt.facts)
            document = receipt.to_json()
            return self._ledger.commit(
                self._term,
                **who,
                receipt_key=f"{tenant}/attempts/{attempt_id}/receipt.json",
                files=document["files"],
                result=facts.pop("result", {}),
                children=[TaskSpec.from_json(c) for c in facts.pop("children", [])],
                facts=facts,
            )

        try:
            return await self._call(work)
        except (DamagedAsset, InvalidGraph, InvalidInput) as error:  # or the job cannot take its children
            fail = partial(self._ledger.fail, self._term, **who, failure=error.failure, code=error.code)
            return await self._call(partial(fail, message=error.line(), facts={}))

    async def _lost(self, lease: _Lease, why: str) -> None:
        """A lost attempt that had uploaded is committed by its receipt; any other is lost, and READY again."""
        who = _Claim(task_id=lease.task_id, attempt_id=lease.attempt_id, epoch=lease.epoch)
        with about(task=lease.task_id, attempt=lease.attempt_id, worker=lease.worker_id):
            found = await self._call(lambda: find_receipt(self._store, lease.tenant, lease.attempt_id))
            if found is not None:
                answer = await self._commit(lease.tenant, lease.attempt_id, who)
            else:
                answer = await self._call(lambda: self._ledger.lose(self._term, **who, why=why))
            self._leases.pop(lease.attempt_id, None)
            say(log, "An attempt was lost.", action="attempt.lost", why=why, answer=answer.value, found=bool(found))

    async def _look(self) -> None:
        """Reads what changed since the last look, and wakes who waits."""
        if await self._call(self._queue.read):
            self._woken.set()

    async def _pick(self, worker: WorkerFacts, request_id: str) -> Order | None:
        async with self._picking:
            now_s = self._clock.monotonic_s()
            fits = partial(self._fits, worker)
            for candidate in self._queue.best(worker, fits=fits, now_s=now_s, now_us=self._clock.now_us()):
                got = await self._call(
                    partial(
                        self._ledger.lease,
                        self._term,
                        candidate.task_id,
                        epoch=candidate.epoch,
                        worker_id=worker.id,
                        request_id=request_id,
                    )
                )
                self._queue.drop(candidate)
                if got is None:
                    continue
                self._queue.given(candidate, now_s=now_s)
                order = self._order(*got, worker.id)
                say(log, "A task was leased.", action="lease", task=order.task_id, attempt=order.attempt_id)
                return order
            return None

    def _fits(self, worker: WorkerFacts, task: Any) -> bool:
        asked = Asked(role=task.role, model=task.model, failures=task.failures, failed_on={})
        place = Place(worker_id=worker.id, role=worker.role, models=worker.models, node=worker.node)
        return unfit(asked, place) is None

    def _order(self, task: Any, job: Any, inputs: Sequence[Any], spends: dict[str, Any], worker_id: str) -> Order:
        self._leases[task["attempt_id"]] = _Lease(
            task["id"],
            task["attempt_id"],
            task["epoch"],
            worker_id,
            job.id,
            job.tenant,
            self._clock.monotonic_s() + self._lease_s,
        )
        return Order(
            task_id=task["id"],
            attempt_id=task["attempt_id"],
            epoch=task["epoch"],
            generation=task["generation"],
            job_id=job.id,
            tenant=job.tenant,
            show=job.show,
            title=job.title,
            spec=job.spec,
            key=task["key"],
            step=task["step"],
            entry=task["entry"],
            params=task["params"],
            model=task["model"],
            inputs=tuple(
                Input(
                    key=i["key"],
                    step=i["step"],
                    model=i["model"],
                    params=i["params"],
                    files=tuple(i["files"] or ()),
                    result=i["result"] or {},
                    held_s=spends[i["id"]].held_s if i["id"] in spends else 0.0,
                    cost_nano=spends[i["id"]].nano if i["id"] in spends else 0,
                )
                for i in inputs
            ),
        )

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._sql, work)
