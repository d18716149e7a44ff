"""The dispatcher, as a plain class: it gives out leases and takes in reports. It plans in memory and owns nothing.

Killed, it comes back with a higher term and reads the ledger; whatever ran has a full lease of grace. All methods
are coroutines of one event loop; SQL and the store are called in threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict, TypeVar

from actors.contract import Beat, Json, Order, Outcome, Report, WorkerFacts
from actors.grouped import Grouped
from actors.orders import checkpoints, order_of
from actors.preemption import Requirement, Running, victims
from actors.queue import Queue
from actors.watchdog import Bounds, Health
from cluster import faults
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
from cluster.fit import NOT_THE_WORKERS, Asked, Place, blocked, last_trial, unfit
from cluster.graph import TaskSpec
from cluster.ledger.jobs import Job
from cluster.ledger.leases import Answer, Commit
from cluster.ledger.ledger import Given, Ledger
from cluster.logs import about, say
from cluster.rates import RateCard
from cluster.schedule import Candidate
from cluster.settings import Settings
from cluster.states import AttemptState
from cluster.store import Store, find_receipt, verify_receipt

T = TypeVar("T")
log = logging.getLogger(__name__)
GROUP = 64  # leases, or commits, of one transaction


class _Missed:
    """The ledger did not give what looked best; the next best may fit."""


MISSED = _Missed()


class _Claim(TypedDict):
    """What every write of an attempt carries."""

    task_id: str
    attempt_id: str
    epoch: int


@dataclass(slots=True, kw_only=True)
class _Lease:
    """A running attempt in memory. Times are on the monotonic clock of this process."""

    task_id: str
    attempt_id: str
    epoch: int
    worker_id: str
    job_id: str
    tenant: str
    tier: str
    step: str
    role: str
    model: str | None
    weight: float
    alone: bool  # the last trial of a task that took two workers with it
    ends_s: float
    moved_s: float
    stage: str = ""
    stage_since_s: float = 0.0
    done_before: int = 0  # of the stage, when it was first heard of
    done: int = 0
    total: int = 0
    kept_s: float = 0.0
    resumed_from: str | None = None
    stop: str | None = None

    def hear(self, beat: Beat, now_s: float) -> None:
        if beat.stage != self.stage:
            self.stage_since_s, self.done_before = now_s, beat.done
        if (beat.stage, beat.done) != (self.stage, self.done):
            self.moved_s = now_s
        self.stage, self.done, self.total = beat.stage, beat.done, beat.total
        self.kept_s, self.resumed_from = beat.kept_s, beat.resumed_from

    def left_s(self, now_s: float) -> float:
        """Of its denoise, by its own pace; of the whole task, as predicted, before it has one."""
        if self.done <= self.done_before:
            return self.weight
        return (now_s - self.stage_since_s) / (self.done - self.done_before) * (self.total - self.done)

    def facts(self) -> Json:
        """What its last heartbeats said, for the row of an attempt that cannot report itself."""
        return {
            "stage": self.stage,
            "kept_s": round(self.kept_s, 3),
            **({"resumed_from": self.resumed_from} if self.resumed_from else {}),
        }


class Dispatcher:
    """Leases, heartbeats, commits. Create it, `await start()`, and keep `run()` going beside the calls."""

    def __init__(self, *, ledger: Ledger, store: Store, rates: RateCard, clock: Clock, settings: Settings) -> None:
        self._ledger, self._store, self._rates, self._clock = ledger, store, rates, clock
        self._settings, self._lease_s = settings, settings.lease_s
        self._sql = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._term = 0
        self._leases: dict[str, _Lease] = {}
        self._strangers: set[str] = set()  # attempts that run in the ledger and are not here, as of the last tick
        self._workers: dict[str, WorkerFacts] = {}
        self._nodes: dict[str, str] = {}
        self._seen_s: dict[str, float] = {}
        self._queue = Queue(ledger)
        self._dismissed: set[str] = set()
        self._draining: dict[str, str] = {}
        self._condemned: dict[str, str] = {}
        self._failed_on: dict[str, Counter[str]] = {}  # by task: workers and nodes
        self._bounds = Bounds(cold_s=settings.stuck_s, least_s=settings.stuck_least_s)
        self._health = Health()
        self._woken = asyncio.Event()
        self._looking = asyncio.Lock()
        self._num_waiting = 0
        self._planned: list[tuple[str, bool]] = []  # (node, alone) of what is about to be leased
        self._lending = Grouped(self._lend, most=GROUP)
        self._booking = Grouped(self._book, most=GROUP)

    async def start(self) -> int:
        """Takes a new term and gives everything that runs a full lease of grace. Returns the term."""
        with faults.point("dispatcher.start"):
            self._term = await self._call(self._ledger.take_term)
        for step, model, gaps_s in await self._call(self._ledger.gaps):
            self._bounds.learn(step, model, gaps_s)
        now_s = self._clock.monotonic_s()
        for worker in await self._call(self._ledger.open_workers):
            self._seen_s[worker["id"]], self._nodes[worker["id"]] = now_s, worker["node"]
        for row in await self._call(self._ledger.running):
            self._keep(dict(row._mapping))
        await self._look()
        say(log, "The dispatcher took a term.", action="dispatcher.start", term=self._term, running=len(self._leases))
        return self._term

    async def run(self, tick_s: float = 1.0) -> None:
        """Expires leases, ends back-offs and looks for new work, about once a second, until it is cancelled."""
        while True:
            try:
                with faults.point("dispatcher.tick"):
                    await self.tick()
            except StaleTerm:
                raise
            except FarmError as error:
                say(log, "A tick failed; the next one tries again.", action="dispatcher.tick", error=error.line())
            await asyncio.sleep(tick_s)

    async def tick(self) -> None:
        """What fails for one attempt or worker fails for it alone; it is tried again in the next tick."""
        now_s = self._clock.monotonic_s()
        for lease in list(self._leases.values()):
            bound_s = self._bounds.bound_s(lease.step, lease.model, lease.stage)
            if lease.ends_s <= now_s:
                await self._try(self._lost(lease, "its lease ran out"))
            elif now_s - lease.moved_s > bound_s:
                await self._try(self._stuck(lease, bound_s))
        for worker_id in [w for w, seen in self._seen_s.items() if now_s - seen > self._lease_s]:
            await self._try(self.leave(worker_id))
        await self._call(lambda: self._ledger.backoff_over(self._term))
        await self._see_running()
        await self._see_draining()
        await self._look()

    async def _try(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StaleTerm:
            raise
        except FarmError as error:
            say(log, "A reaper's work failed.", action="dispatcher.reaper", error=error.line())

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
        self._workers[worker.id], self._nodes[worker.id] = worker, worker.node
        self._seen_s[worker.id] = self._clock.monotonic_s()
        say(log, "A worker joined.", action="worker.join", worker=worker.id)

    async def lease(self, worker_id: str, request_id: str) -> Order | None:
        """Waits up to the setting for a task that the worker can run. The same request gets the same lease.

        Raises Unavailable for a worker that this dispatcher has not met: it joins again and asks again.
        """
        worker = self._workers.get(worker_id)
        if worker is None:
            raise Unavailable(f"worker {worker_id} has not joined this dispatcher", remedy="join again")
        deadline = asyncio.get_running_loop().time() + self._settings.lease_wait_s
        again = True
        while True:
            self._seen_s[worker_id] = self._clock.monotonic_s()
            self._woken.clear()
            order = await self._pick(worker, request_id, again=again)
            again = False
            if order is not None:
                return order
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0 or worker_id in self._dismissed or worker_id in self._draining:
                return None
            self._num_waiting += 1
            try:
                await asyncio.wait_for(self._woken.wait(), min(left_s, self._lease_s / 3))
            except TimeoutError:
                continue
            finally:
                self._num_waiting -= 1

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
        if worker_id in self._draining:
            stop[worker_id] = self._draining[worker_id]
        for beat in beats:
            lease = self._leases.get(beat.attempt_id)
            if lease is None or lease.epoch != beat.epoch:
                stop[beat.attempt_id] = "superseded"
                continue
            lease.ends_s = now_s + self._lease_s
            lease.hear(beat, now_s)
            if lease.stop:
                stop[beat.attempt_id] = lease.stop
        return stop

    async def report(self, report: Report) -> str:
        """Ends an attempt. Idempotent: a report that is repeated is answered `duplicate`."""
        with about(task=report.task_id, attempt=report.attempt_id, worker=report.worker_id):
            answer = await self._take(report)
            lease = self._leases.pop(report.attempt_id, None)
            self._queue.settled(report.task_id, now_s=self._clock.monotonic_s())
            say(log, "A report came in.", action="report", outcome=report.outcome.value, answer=answer.value)
            if lease is not None and answer is Answer.ACCEPTED:
                await self._learn_from(report, lease)
        if self._num_waiting:
            await self._look()
        return answer.value

    async def leave(self, worker_id: str, *, died: bool = False) -> None:
        """The worker is gone: what it ran is lost (or found by its receipt), its holding ends."""
        lost = [lease for lease in self._leases.values() if lease.worker_id == worker_id]
        for lease in lost:
            if died:
                await self._lost(lease, "its worker died", failure=FailureClass.POISON)
            else:
                await self._lost(lease, "its worker is gone")
        await self._call(lambda: self._ledger.leave(self._term, worker_id))
        for table in (self._workers, self._nodes, self._seen_s, self._draining, self._condemned):
            table.pop(worker_id, None)
        self._dismissed.discard(worker_id)
        self._health.well(worker_id)
        say(log, "A worker left.", action="worker.leave", worker=worker_id)
        if lost:
            await self._look()

    async def condemned(self) -> dict[str, str]:
        """Why their processes must be killed, by worker: whoever spawned them asks, kills, and calls `leave`."""
        return dict(self._condemned)

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
        try:
            commit = await asyncio.to_thread(self._made, tenant, attempt_id, who)
            answer = await self._booking.ask(commit)
            lease = self._leases.get(attempt_id)
            if lease is not None and answer is Answer.ACCEPTED:  # how long its stages pause, for the next ones
                self._bounds.learn(lease.step, lease.model, commit.facts.get("gap_s", {}))
            return answer
        except (DamagedAsset, InvalidGraph, InvalidInput) as error:  # or the job cannot take its children
            fail = partial(self._ledger.fail, self._term, **who, failure=error.failure, code=error.code)
            return await self._call(partial(fail, message=error.line(), facts={}))

    def _made(self, tenant: str, attempt_id: str, who: _Claim) -> Commit:
        receipt = find_receipt(self._store, tenant, attempt_id)
        if receipt is None:
            raise StoreUnavailable(f"the receipt of {attempt_id} is not in the store")
        verify_receipt(self._store, receipt)
        facts = dict(receipt.facts)
        return Commit(
            **who,
            receipt_key=f"{tenant}/attempts/{attempt_id}/receipt.json",
            files=receipt.to_json()["files"],
            result=facts.pop("result", {}),
            children=[TaskSpec.from_json(c) for c in facts.pop("children", [])],
            facts=facts,
        )

    async def _book(self, commits: Sequence[Commit]) -> list[Answer | Exception]:
        """All in one transaction; where one of them is refused, each in its own."""
        try:
            return list(await self._call(lambda: self._ledger.commit_all(self._term, commits)))
        except (Unavailable, StaleTerm):
            raise
        except FarmError as error:
            if len(commits) == 1:
                return [error]
        return [answer for c in commits for answer in await self._book([c])]

    async def _lost(
        self,
        lease: _Lease,
        why: str,
        *,
        failure: FailureClass = FailureClass.INFRA,
        end: AttemptState = AttemptState.LOST,
    ) -> None:
        """A lost attempt that had uploaded is committed by its receipt; any other is lost, and READY again."""
        who = _Claim(task_id=lease.task_id, attempt_id=lease.attempt_id, epoch=lease.epoch)
        with about(task=lease.task_id, attempt=lease.attempt_id, worker=lease.worker_id):
            try:
                found = await self._call(lambda: find_receipt(self._store, lease.tenant, lease.attempt_id))
            except DamagedAsset as error:
                found = None
                say(log, "A receipt is damaged.", action="receipt.damaged", error=error.line())
            if found is not None:
                with faults.point("dispatcher.adopt"):
                    answer = await self._commit(lease.tenant, lease.attempt_id, who)
            else:
                lose = partial(self._ledger.lose, self._term, **who, why=why, facts=lease.facts())
                answer = await self._call(partial(lose, failure=failure, end=end))
                self._note_failure(lease)
            self._leases.pop(lease.attempt_id, None)
            self._queue.settled(lease.task_id, now_s=self._clock.monotonic_s())
            say(log, "An attempt was lost.", action="attempt.lost", why=why, answer=answer.value, found=bool(found))

    async def _stuck(self, lease: _Lease, bound_s: float) -> None:
        """Nothing moves: the whole worker is killed, and its task goes to another."""
        why = f"no progress for {bound_s:.0f} s in stage {lease.stage or 'starting'}"
        self._condemned[lease.worker_id] = why
        await self._lost(lease, why, failure=FailureClass.POISON, end=AttemptState.STUCK)

    async def _learn_from(self, report: Report, lease: _Lease) -> None:
        """Failures of different jobs in a row make a worker sick, unless it succeeds in between."""
        if report.outcome is Outcome.SUCCEEDED:
            self._failed_on.pop(report.task_id, None)
            self._health.well(report.worker_id)
        elif report.outcome is Outcome.FAILED and report.failure not in NOT_THE_WORKERS:
            self._note_failure(lease)
            sick = self._health.failed(report.worker_id, lease.job_id, report.message or "")
            if sick is not None:
                await self._call(partial(self._ledger.drain, report.worker_id, reason=sick))
                await self._see_draining()

    def _note_failure(self, lease: _Lease) -> None:
        places = [lease.worker_id, *([self._nodes[lease.worker_id]] if lease.worker_id in self._nodes else [])]
        self._failed_on.setdefault(lease.task_id, Counter()).update(places)

    async def _see_running(self) -> None:
        """What runs in the ledger is in memory, and the other way round: a reply of a lease, or of a person's cancel,
        may have been lost on the way here. What only changed while the ledger was read is seen alike the next time."""
        before = set(self._leases)
        rows = {row.attempt_id: row for row in await self._call(self._ledger.running)}
        strangers = {attempt_id for attempt_id in rows if attempt_id not in self._leases and attempt_id not in before}
        for attempt_id in strangers & self._strangers:
            self._keep(dict(rows[attempt_id]._mapping))
        self._strangers = strangers - set(self._leases)
        for attempt_id in before - set(rows):
            lease = self._leases.get(attempt_id)
            if lease is not None and lease.stop is None:
                lease.stop = "canceled"  # somebody canceled or held it in the ledger

    def _keep(self, row: Mapping[str, Any]) -> None:
        """Puts a running attempt into memory, under a full lease."""
        now_s = self._clock.monotonic_s()
        names = ("task_id", "attempt_id", "epoch", "worker_id", "job_id", "tenant", "tier", "step", "role", "model")
        self._leases[row["attempt_id"]] = _Lease(
            **{name: row[name] for name in names},
            weight=row["weight"],
            alone=last_trial(row["failures"]),
            ends_s=now_s + self._lease_s,
            moved_s=now_s,
        )

    async def _see_draining(self) -> None:
        new = {w: why for w, why in (await self._call(self._ledger.draining)).items() if w not in self._draining}
        for worker_id, why in new.items():
            self._draining[worker_id] = why
            for lease in self._leases.values():
                if lease.worker_id == worker_id:
                    lease.stop = lease.stop or why
            say(log, "A worker takes no more work.", action="worker.drain", worker=worker_id, why=why)
        if new:
            self._woken.set()

    def _preempt(self) -> None:
        """Interactive work that waits stops batch work at its next denoise step, where that pays."""
        waiting = Counter((task.role, task.model) for task in self._queue.waiting("interactive"))
        if not waiting:
            return
        busy = {lease.worker_id for lease in self._leases.values()}
        idle: Counter[Requirement] = Counter()
        for worker in self._workers.values():
            if worker.id not in busy and worker.id not in self._draining:
                idle.update((worker.role, model) for model in (*worker.models, None))
        now_s = self._clock.monotonic_s()
        running = [
            Running(
                attempt_id=lease.attempt_id,
                requirement=(lease.role, lease.model),
                preemptible=lease.tier == "batch" and lease.stage == "denoise",
                left_s=lease.left_s(now_s),
                stopping=lease.stop is not None,
            )
            for lease in self._leases.values()
        ]
        for attempt_id in victims(waiting, idle, running, pays_s=self._settings.preempt_pays_s):
            self._leases[attempt_id].stop = "preempted"
            say(log, "An attempt is preempted.", action="attempt.preempt", attempt=attempt_id)

    async def _look(self) -> None:
        """Reads what changed since the last look, and wakes who waits."""
        async with self._looking:
            look = await self._call(partial(self._queue.read, self._clock.monotonic_s()))
            if self._queue.take_in(look, now_s=self._clock.monotonic_s(), now_us=self._clock.now_us()):
                self._woken.set()
        self._preempt()

    async def _pick(self, worker: WorkerFacts, request_id: str, *, again: bool) -> Order | None:
        """What the worker gets now: the best of what fits, or what it got before if it asks `again`."""
        got = await self._lending.ask((worker, request_id, again))
        while isinstance(got, _Missed):
            got = await self._lending.ask((worker, request_id, again))
        if got is None:
            return None
        order = await self._order(*got, worker.id)
        say(log, "A task was leased.", action="lease", task=order.task_id, attempt=order.attempt_id)
        return order

    async def _lend(self, asks: Sequence[tuple[WorkerFacts, str, bool]]) -> list[Given | _Missed | Exception | None]:
        """Leases in one transaction what fits those who ask, each in turn as if the others had theirs already."""
        now_s, now_us = self._clock.monotonic_s(), self._clock.now_us()
        chosen: list[Candidate | None] = []
        self._planned.clear()
        for worker, _, _ in asks:
            best: Sequence[Candidate] = ()
            if worker.id not in self._dismissed and worker.id not in self._draining:
                best = self._queue.best(worker, fits=self._fitting(worker), now_us=now_us)
            if best:
                task = self._queue.take(best[0], fleet=worker.fleet, now_s=now_s, now_us=now_us)
                self._planned.append((worker.node, last_trial(task.failures)))
            chosen.append(best[0] if best else None)
        answers: list[Given | _Missed | Exception | None] = [None] * len(asks)
        wanted = {
            n: (c.task_id if c else "", c.epoch if c else 0, worker.id, request_id)
            for n, (c, (worker, request_id, again)) in enumerate(zip(chosen, asks, strict=True))
            if c is not None or again
        }
        try:
            found = (
                await self._call(lambda: self._ledger.lease_all(self._term, list(wanted.values()))) if wanted else []
            )
        except FarmError:
            for c in chosen:
                if c is not None:
                    self._queue.missed(c)
            raise
        for n, got in zip(wanted, found, strict=True):
            c = chosen[n]
            if isinstance(got, tuple):
                self._keep_order(got[0], got[1], asks[n][0].id)
            if c is not None and not (isinstance(got, tuple) and got[0]["id"] == c.task_id):
                self._queue.missed(c)
            answers[n] = MISSED if got is None and c is not None else got
        self._planned.clear()
        if self._queue.is_low:
            await self._look()
        return answers

    def _place(self, worker: WorkerFacts) -> Place:
        on_node = [x.alone for x in self._leases.values() if self._nodes.get(x.worker_id) == worker.node]
        on_node += [alone for node, alone in self._planned if node == worker.node]
        return Place(
            worker_id=worker.id,
            role=worker.role,
            models=worker.models,
            node=worker.node,
            draining=self._draining.get(worker.id),
            num_running_on_node=len(on_node),
            node_is_taken=any(on_node),
        )

    def _fitting(self, worker: WorkerFacts) -> Callable[[Any], bool]:
        """Whether a ready task fits the worker now. Where it stands is looked up once there is a task at all, and tasks
        that have not failed yet are all alike."""
        place: list[Place] = []
        alike: dict[tuple[str, str | None], bool] = {}

        def fits(task: Any) -> bool:
            if not place:
                place.append(self._place(worker))
            if task.failures or task.id in self._failed_on:
                return self._fits(place[0], task)
            asked = (task.role, task.model)
            if asked not in alike:
                alike[asked] = self._fits(place[0], task)
            return alike[asked]

        return fits

    def _fits(self, place: Place, task: Any) -> bool:
        asked = Asked(
            role=task.role, model=task.model, failures=task.failures, failed_on=self._failed_on.get(task.id, {})
        )
        if unfit(asked, place) is not None:
            return False
        return not blocked(asked, place) or not self._elsewhere(asked, place)

    def _elsewhere(self, asked: Asked, place: Place) -> bool:
        """Whether another worker is here that could run it, and on which it has not failed."""
        return any(
            unfit(asked, other, elsewhere=True) is None
            for other in (self._place(w) for w in self._workers.values() if w.id != place.worker_id)
        )

    def _keep_order(self, task: Any, job: Job, worker_id: str) -> None:
        self._keep({**task, "task_id": task["id"], "worker_id": worker_id, "tenant": job.tenant, "tier": job.tier})

    async def _order(self, task: Any, job: Any, inputs: Sequence[Any], spends: dict[str, Any], worker_id: str) -> Order:
        saved: list[str] = []
        if task["epoch"] > 1:  # somebody tried before; who opens a task again wants it from the start
            rows = await self._call(partial(self._ledger.attempts_of, task["id"]))
            earlier = [a["id"] for a in rows[1:] if a["generation"] == task["generation"]]
            try:
                saved = await asyncio.to_thread(checkpoints, self._store, job.tenant, earlier)
            except StoreUnavailable as error:
                say(log, "Checkpoints could not be looked for.", action="checkpoint.unseen", error=error.line())
        return order_of(task, job, inputs, spends, saved)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._sql, work)
