"""The dispatcher, as a plain class: it gives out leases and takes in reports. It plans in memory and owns nothing.

Killed, it comes back with a higher term and reads the ledger; whatever ran has a full lease of grace. All methods
are coroutines of one event loop; SQL and the store are called in threads.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypedDict, TypeVar

from actors.contract import LOST_INPUT, Beat, Json, Order, Outcome, Report, WorkerFacts
from actors.grouped import Grouped
from actors.lending import GROUP, Lender
from actors.memory import Lease, Memory
from actors.preemption import victims
from actors.purser import Purser
from actors.queue import Queue
from actors.watchdog import Bounds, Health
from cluster import faults
from cluster.budgets import REASON as BUDGET
from cluster.clock import Clock, to_datetime
from cluster.errors import (
    DamagedAsset,
    FailureClass,
    FarmError,
    InvalidGraph,
    InvalidInput,
    NotFound,
    StaleTerm,
    Unavailable,
)
from cluster.fit import NOT_THE_WORKERS, SICKENING
from cluster.graph import TaskSpec
from cluster.ledger.leases import Answer, Commit
from cluster.ledger.ledger import Ledger
from cluster.logs import about, say
from cluster.metrics import ROLES, Labels, Meters
from cluster.rates import RateCard
from cluster.settings import Settings
from cluster.states import AttemptState
from cluster.store.port import Store, find_receipt, verify_receipt

T = TypeVar("T")
log = logging.getLogger(__name__)
ALIVE_EVERY_S = 5.0
TICK_S = 1.0
REAP_S = 1.0
"""The longest that a tick, or who tells of a dead worker, waits for those who ask the store after lost attempts."""


class _Claim(TypedDict):
    """What every write of an attempt carries."""

    task_id: str
    attempt_id: str
    epoch: int


class Dispatcher:
    """Leases, heartbeats, commits. Create it, `await start()`, and keep `run()` going beside the calls."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        store: Store,
        rates: RateCard,
        clock: Clock,
        settings: Settings,
        meters: Meters | None = None,
    ) -> None:
        self._ledger, self._store, self._rates, self._clock = ledger, store, rates, clock
        self._settings, self._lease_s = settings, settings.lease_s
        self._sql = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._term = 0
        self._memory = memory = Memory()
        self._leases = memory.leases
        self._unheard: set[str] = set()  # workers of an earlier term that have not called yet
        self._before_us: int | None = None  # when that term was last alive
        self._alive_s = -math.inf
        self._strangers: set[str] = set()  # attempts that run in the ledger and are not here, as of the last tick
        self._reaping: dict[str, asyncio.Task[None]] = {}  # by attempt, or by worker
        self._queue = Queue(ledger)
        self._bounds = Bounds(cold_s=settings.stuck_s, least_s=settings.stuck_least_s)
        self._health = Health()
        self._woken = asyncio.Event()
        self._looking = asyncio.Lock()
        self._num_waiting = 0
        self._booking = Grouped(self._book, most=GROUP)
        self._meters = meters or Meters()
        self._meters.watch("farm_leases", self._num_leases)
        self._meters.watch("farm_heartbeat_lag_seconds", self._longest_silence)
        self._purser = Purser(
            ledger=ledger, clock=clock, heartbeat_s=settings.heartbeat_s, tick_s=TICK_S, cold_s=settings.stuck_s,
            bounds=self._bounds, call=self._call,
        )  # fmt: skip
        self._lender = Lender(
            ledger=ledger, store=store, clock=clock, lease_s=self._lease_s, queue=self._queue, memory=memory,
            purser=self._purser, call=self._call, look=self._look, meters=self._meters,
        )  # fmt: skip

    async def start(self) -> int:
        """Takes a new term and gives everything that runs a full lease of grace. Returns the term."""
        self._before_us = await self._call(self._ledger.last_alive)
        with faults.point("dispatcher.start"):
            self._term = self._lender.term = await self._call(self._ledger.take_term)
        for step, model, gaps_s in await self._call(self._ledger.gaps):
            self._bounds.learn(step, model, gaps_s)
        now_s = self._clock.monotonic_s()
        for worker in await self._call(self._ledger.open_workers):
            self._memory.seen_s[worker["id"]], self._memory.nodes[worker["id"]] = now_s, worker["node"]
        self._unheard = set(self._memory.seen_s)
        for row in await self._call(self._ledger.running):
            self._keep(row)
        await self._look()
        say(log, "The dispatcher took a term.", action="dispatcher.start", term=self._term, running=len(self._leases))
        return self._term

    async def run(self, tick_s: float = TICK_S) -> None:
        """Expires leases, ends back-offs and looks for new work, about once a second, until it is cancelled."""
        while True:
            try:
                with faults.point("dispatcher.tick"):
                    await self.tick()
            except StaleTerm:
                raise
            except FarmError as error:
                say(log, "A tick failed; the next one tries again.", action="dispatcher.tick", error=error.line())
            except Exception:  # of nobody's foreseeing: without ticks no lease would ever run out
                log.exception("A tick broke; the next one tries again.")
            await asyncio.sleep(tick_s)

    async def tick(self) -> None:
        """What fails for one attempt or worker fails for it alone; it is tried again in the next tick. Nothing else
        waits for a store that does not say whether a lost attempt left a receipt."""
        now_s = self._clock.monotonic_s()
        for worker_id in [w for w, seen in self._memory.seen_s.items() if now_s - seen > self._lease_s]:
            self._reap(worker_id, partial(self.leave, worker_id))
        for lease in list(self._leases.values()):
            bound_s = self._bounds.bound_s(lease.step, lease.model, lease.stage)
            if lease.ends_s <= now_s:
                self._reap(lease.attempt_id, partial(self._lost, lease, "its lease ran out"))
            elif now_s - lease.moved_s > bound_s:
                self._reap(lease.attempt_id, partial(self._stuck, lease, bound_s))
        if now_s - self._alive_s >= ALIVE_EVERY_S:
            await self._call(lambda: self._ledger.say_alive(self._term))
            self._alive_s = now_s
        await self._call(lambda: self._ledger.backoff_over(self._term))
        rows = await self._see_running()
        if await self._purser.look(self._term, rows, list(self._leases.values())):
            self._queue.unbar()
        await self._see_draining()
        await self._reaped()
        await self._look()

    def _reap(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Begins with it, unless that is under way."""
        known = self._reaping.get(name)
        if known is None or known.done():
            known = self._reaping[name] = asyncio.create_task(self._try(work()))
        return known

    async def _reaped(self) -> None:
        """Waits for the reapers, for a while. Raises StaleTerm."""
        if self._reaping:
            await asyncio.wait(self._reaping.values(), timeout=REAP_S)
        for name in [name for name, task in self._reaping.items() if task.done()]:
            self._reaping.pop(name).result()

    async def _try(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StaleTerm:
            raise
        except FarmError as error:
            say(log, "A reaper's work failed.", action="dispatcher.reaper", error=error.line())

    async def poke(self) -> None:
        """Somebody submitted or changed a job, or a budget: look now, not in a second."""
        self._queue.unbar()
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
        self._unheard.discard(worker.id)
        self._memory.workers[worker.id], self._memory.nodes[worker.id] = worker, worker.node
        self._memory.seen_s[worker.id] = self._clock.monotonic_s()
        say(log, "A worker joined.", action="worker.join", worker=worker.id)

    async def lease(self, worker_id: str, request_id: str) -> Order | None:
        """Waits up to the setting for a task that the worker can run. The same request gets the same lease.

        Raises Unavailable for a worker that this dispatcher has not met: it joins again and asks again.
        """
        worker = self._memory.workers.get(worker_id)
        if worker is None:
            raise Unavailable(f"worker {worker_id} has not joined this dispatcher", remedy="join again")
        deadline = asyncio.get_running_loop().time() + self._settings.lease_wait_s
        again = True
        while True:
            self._memory.seen_s[worker_id] = self._clock.monotonic_s()
            self._woken.clear()
            order = await self._lender.pick(worker, request_id, again=again)
            again = False
            if order is not None:
                return order
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0 or not self._memory.takes_work(worker_id):
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
        self._memory.dismissed.add(worker_id)
        self._woken.set()

    async def beat(self, worker_id: str, beats: Sequence[Beat]) -> dict[str, str]:
        """Renews the leases of what runs, keeps its progress, and says what shall stop, and why."""
        now_s = self._clock.monotonic_s()
        self._unheard.discard(worker_id)
        if worker_id in self._memory.workers:
            self._memory.seen_s[worker_id] = now_s
        stop: dict[str, str] = {}
        if worker_id in self._memory.draining:
            stop[worker_id] = self._memory.draining[worker_id]
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
            if answer is Answer.MARKED:  # it goes on: it puts its files again
                return answer.value
            lease = self._leases.pop(report.attempt_id, None)
            self._queue.settled(report.task_id, now_s=self._clock.monotonic_s())
            self._queue.unbar(report.tenant)
            say(log, "A report came in.", action="report", outcome=report.outcome.value, answer=answer.value)
            if lease is not None and answer is Answer.ACCEPTED:
                self._ended(lease, AttemptState(report.outcome.value), report.failure)
                await self._learn_from(report, lease)
            if LOST_INPUT in report.facts and answer is Answer.ACCEPTED:
                remake = partial(self._ledger.make_input_again, self._term, report.task_id, report.facts[LOST_INPUT])
                await self._call(partial(remake, reason=report.message or ""))
        if self._num_waiting:
            await self._look()
        return answer.value

    async def leave(self, worker_id: str, *, died: bool = False) -> None:
        """The worker is gone: what it ran is lost (or found by its receipt), its holding ends, whether the store
        answers or not. What it does not answer for runs out with its lease."""
        if worker_id in self._unheard:  # it went with the farm before this one: nobody held it since
            await self._call(partial(self._ledger.leave, self._term, worker_id, at_us=self._before_us))
        why, failure = ("its worker died", FailureClass.POISON) if died else ("its worker is gone", FailureClass.INFRA)
        lost = [lease for lease in self._leases.values() if lease.worker_id == worker_id]
        losing = [self._reap(one.attempt_id, partial(self._lost, one, why, failure=failure)) for one in lost]
        if losing:
            await asyncio.wait(losing, timeout=REAP_S)
        await self._call(lambda: self._ledger.leave(self._term, worker_id))
        self._memory.forget(worker_id)
        self._health.well(worker_id)
        say(log, "A worker left.", action="worker.leave", worker=worker_id)
        if lost:
            await self._look()

    async def condemned(self) -> dict[str, str]:
        """Why their processes must be killed, by worker: whoever spawned them asks, kills, and calls `leave`."""
        return dict(self._memory.condemned)

    # What people call

    async def progress(self, *job_ids: str) -> list[Json]:
        """Where the running attempts of these jobs are: never an event, only this memory."""
        told = ("job_id", "task_id", "attempt_id", "stage", "done", "total")
        return [{name: getattr(x, name) for name in told} for x in self._leases.values() if x.job_id in job_ids]

    async def workers(self) -> list[WorkerFacts]:
        return list(self._memory.workers.values())

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
            return await self._end(
                lambda: self._ledger.fail(
                    self._term,
                    **who,
                    failure=failure,
                    code=report.code or "internal",
                    message=report.message or "failed without a message",
                    facts=report.facts,
                )
            )
        lease = self._leases.get(report.attempt_id)
        suspend = BUDGET if lease is not None and lease.stop == BUDGET else None
        return await self._end(lambda: self._ledger.interrupt(self._term, **who, facts=report.facts, suspend=suspend))

    async def _commit(self, tenant: str, attempt_id: str, who: _Claim) -> Answer:
        """Commits by the receipt, which is verified before the transaction begins. A file that is gone was removed
        because nobody needed it, and is MARKED like one that was about to be."""
        try:
            try:
                commit = await asyncio.to_thread(self._made, tenant, attempt_id, who)
            except NotFound as error:
                say(log, "A file of a receipt is gone.", action="receipt.incomplete", error=error.line())
                return Answer.MARKED
            answer = await self._booking.ask(commit)
            lease = self._leases.get(attempt_id)
            if lease is not None and answer is Answer.ACCEPTED:  # how long its stages pause, for the next ones
                self._bounds.learn(lease.step, lease.model, commit.facts.get("gap_s", {}))
            return answer
        except (DamagedAsset, InvalidGraph, InvalidInput) as error:  # or the job cannot take its children
            fail = partial(self._ledger.fail, self._term, **who, failure=error.failure, code=error.code)
            return await self._end(partial(fail, message=error.line(), facts={}))

    def _made(self, tenant: str, attempt_id: str, who: _Claim) -> Commit:
        receipt = find_receipt(self._store, tenant, attempt_id)
        if receipt is None:
            raise DamagedAsset(f"the receipt of {attempt_id} is not in the store")
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
                return [_forgotten(error) if isinstance(error, NotFound) else error]
        return [answer for c in commits for answer in await self._book([c])]

    async def _lost(
        self,
        lease: Lease,
        why: str,
        *,
        failure: FailureClass = FailureClass.INFRA,
        end: AttemptState = AttemptState.LOST,
    ) -> None:
        """A lost attempt that had uploaded is committed by its receipt; any other is lost, and READY again."""
        who = _Claim(task_id=lease.task_id, attempt_id=lease.attempt_id, epoch=lease.epoch)
        with about(task=lease.task_id, attempt=lease.attempt_id, worker=lease.worker_id):
            try:
                found = await asyncio.to_thread(find_receipt, self._store, lease.tenant, lease.attempt_id)
            except DamagedAsset as error:
                found = None
                say(log, "A receipt is damaged.", action="receipt.damaged", error=error.line())
            answer = None
            for _ in range(2 if found is not None else 0):  # what was marked is looked at again: it may be there
                with faults.point("dispatcher.adopt"):
                    answer = await self._commit(lease.tenant, lease.attempt_id, who)
                if answer is not Answer.MARKED:
                    break
            if answer in (None, Answer.MARKED):
                lose = partial(self._ledger.lose, self._term, **who, why=why, facts=lease.facts())
                answer = await self._end(partial(lose, failure=failure, end=end))
                self._memory.note_failure(lease)
                if answer is Answer.ACCEPTED:
                    self._ended(lease, end, failure.value)
            self._leases.pop(lease.attempt_id, None)
            self._queue.settled(lease.task_id, now_s=self._clock.monotonic_s())
            self._queue.unbar(lease.tenant)
            say(log, "An attempt was lost.", action="attempt.lost", why=why, answer=answer.value, found=bool(found))

    def _ended(self, lease: Lease, state: AttemptState, failure: str | None) -> None:
        self._meters.count("farm_attempts_total", role=lease.role, outcome=state.value)
        if failure is not None:
            self._meters.count("farm_failures_total", role=lease.role, failure=failure)

    def _num_leases(self) -> dict[Labels, float]:
        counts = Counter(lease.role for lease in list(self._leases.values()))
        return {(role,): float(counts[role]) for role in ROLES}

    def _longest_silence(self) -> dict[Labels, float]:
        now_s = self._clock.monotonic_s()
        return {(): max((now_s - seen_s for seen_s in list(self._memory.seen_s.values())), default=0.0)}

    async def _stuck(self, lease: Lease, bound_s: float) -> None:
        """Nothing moves: the whole worker is killed, and its task goes to another."""
        why = f"no progress for {bound_s:.0f} s in stage {lease.stage or 'starting'}"
        self._memory.condemned[lease.worker_id] = why
        await self._lost(lease, why, failure=FailureClass.POISON, end=AttemptState.STUCK)

    async def _learn_from(self, report: Report, lease: Lease) -> None:
        """Failures of different jobs in a row make a worker sick, unless it succeeds in between."""
        if report.outcome is Outcome.SUCCEEDED:
            self._memory.failed_on.pop(report.task_id, None)
            self._health.well(report.worker_id)
        elif report.outcome is Outcome.FAILED and report.failure not in NOT_THE_WORKERS:
            self._memory.note_failure(lease)
            if report.failure not in SICKENING:
                return
            sick = self._health.failed(report.worker_id, lease.job_id, report.message or "")
            if sick is not None:
                await self._call(partial(self._ledger.drain, report.worker_id, reason=sick))
                await self._see_draining()

    async def _see_running(self) -> list[Any]:
        """What runs in the ledger is in memory, and the other way round: a reply of a lease, or of a person's cancel,
        may have been lost on the way here. What only changed while the ledger was read is seen alike the next time.
        Returns what the ledger said."""
        before = set(self._leases)
        rows = {row.attempt_id: row for row in await self._call(self._ledger.running)}
        strangers = rows.keys() - self._leases.keys() - before
        for attempt_id in strangers & self._strangers:
            self._keep(rows[attempt_id])
        self._strangers = strangers - set(self._leases)
        for attempt_id in before - set(rows):
            lease = self._leases.get(attempt_id)
            if lease is not None and lease.stop is None:
                lease.stop = "canceled"  # somebody canceled or held it in the ledger
        return list(rows.values())

    def _keep(self, row: Any) -> None:
        self._memory.keep(row._mapping, now_s=self._clock.monotonic_s(), lease_s=self._lease_s)

    async def _see_draining(self) -> None:
        new = {w: why for w, why in (await self._call(self._ledger.draining)).items() if w not in self._memory.draining}
        for worker_id, why in new.items():
            self._memory.draining[worker_id] = why
            for lease in self._leases.values():
                if lease.worker_id == worker_id:
                    lease.stop = lease.stop or why
            say(log, "A worker takes no more work.", action="worker.drain", worker=worker_id, why=why)
        if new:
            self._woken.set()

    def _preempt(self) -> None:
        """Interactive work that waits stops batch work at its next denoise step, where that pays."""
        waiting = Counter((task.role, task.model) for task in self._queue.waiting("interactive"))
        if waiting:
            now_s, pays_s = self._clock.monotonic_s(), self._settings.preempt_pays_s
            for attempt_id in victims(waiting, self._memory.idle(), self._memory.running(now_s), pays_s=pays_s):
                self._leases[attempt_id].stop = "preempted"
                say(log, "An attempt is preempted.", action="attempt.preempt", attempt=attempt_id)

    async def _look(self) -> None:
        """Reads what changed since the last look, and wakes who waits."""
        async with self._looking:
            look = await self._call(partial(self._queue.read, self._clock.monotonic_s()))
            if self._queue.take_in(look, now_s=self._clock.monotonic_s(), now_us=self._clock.now_us()):
                self._woken.set()
        self._preempt()

    async def _end(self, write: Callable[[], Answer]) -> Answer:
        try:
            return await self._call(write)
        except NotFound as error:
            return _forgotten(error)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._sql, work)


def _forgotten(error: NotFound) -> Answer:
    """Of an attempt that is in no backup from which the ledger was restored: who still runs it stops."""
    say(log, "The ledger knows an attempt no more.", action="attempt.forgotten", error=error.line())
    return Answer.SUPERSEDED
