"""The ledger: the only truth about jobs, attempts and money. Each method is one transaction."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, RowMapping, select
from ulid import ULID

from cluster import faults
from cluster.budgets import Budget, BudgetSpec, Reserves
from cluster.clock import Clock, SystemClock
from cluster.errors import FailureClass, NotFound, WorkerLost
from cluster.graph import TaskSpec, check_size
from cluster.ledger import (
    audit,
    budget_recount,
    budgets,
    chores,
    erasure,
    events,
    films,
    history,
    holdings,
    hooks,
    inventory,
    jobs,
    keys,
    leases,
    meters,
    money,
    moves,
    operations,
    questions,
    recount,
    retention,
    shares,
    tending,
    tokens,
)
from cluster.ledger.audit import Log
from cluster.ledger.database import Database
from cluster.ledger.events import Event
from cluster.ledger.films import Change
from cluster.ledger.hooks import Delivery, Hook, HookSight, HookSpec, Message, Tried
from cluster.ledger.jobs import Job, JobSpec, Terms
from cluster.ledger.keys import Admitted, Key, KeySpec, NewSecret
from cluster.ledger.leases import Answer, Ask, Commit, Held, Leased
from cluster.ledger.money import Spend
from cluster.ledger.schema import attempts, workers
from cluster.ledger.schema import jobs as jobs_table
from cluster.logs import say
from cluster.rates import RateCard
from cluster.states import AttemptState, Move, State
from cluster.timing import Paces

T = TypeVar("T")
Given = tuple[Mapping[str, Any], Job, list[RowMapping], dict[str, Spend]]
"""A leased task with its job, its inputs and what these cost."""
log = logging.getLogger(__name__)
JUMP_US = 5_000_000
"""More than this between the wall and the monotonic clock, from one call of a dispatcher to the next, is a jump."""


class Ledger:
    """Synchronous; call it off the event loop, from any thread. Methods of a dispatcher carry its term: StaleTerm.

    Any method raises LedgerUnavailable while the database does not answer. A call of which nobody heard whether it was
    committed may be repeated: submit, lease and reports find what they did; `take_term` takes another term.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        new_id: Callable[[], str] | None = None,
        durable: bool = True,
    ) -> None:
        self.database = Database(url, durable=durable)
        self.clock = clock or SystemClock()
        self._seen = self._look_at_clocks()
        self._watching = threading.Lock()
        self._new_id = new_id or (lambda: str(ULID()).lower())
        self.database.migrate()

    def close(self) -> None:
        self.database.close()

    def _do(self, work: Callable[[Connection], T], term: int | None = None, *, repeatable: bool = True) -> T:
        if term is None:
            return self.database.transaction(work, repeatable=repeatable)

        def fenced(connection: Connection) -> T:
            leases.check_term(connection, term)
            return work(connection)

        self._watch_clock(term)
        return self.database.transaction(fenced, repeatable=repeatable)

    def _watch_clock(self, term: int) -> None:
        """A machine that slept, or a clock that was set, neither bills anybody nor moves a back-off."""
        with self._watching:
            wall_us, mono_s = self._look_at_clocks()
            jumped_us = wall_us - self._seen[0] - round((mono_s - self._seen[1]) * 1e6)
            if abs(jumped_us) > JUMP_US:

                def rebase(connection: Connection) -> None:
                    leases.check_term(connection, term)
                    holdings.rebase(connection, jumped_us, now_us=wall_us)

                self.database.transaction(rebase, repeatable=False)
                say(log, "The wall clock jumped.", action="clock.jump", level=logging.WARNING, seconds=jumped_us / 1e6)
            self._seen = (wall_us, mono_s)

    def _look_at_clocks(self) -> tuple[int, float]:
        """Both at one instant: a thread that was stopped between two looks would take that for a jump."""
        while True:
            before_s, wall_us, mono_s = self.clock.monotonic_s(), self.clock.now_us(), self.clock.monotonic_s()
            if (mono_s - before_s) * 1e6 < JUMP_US / 2:
                return wall_us, mono_s

    # What anybody may do

    @faults.at("ledger.submit")
    def submit(self, spec: JobSpec, graph: Sequence[TaskSpec], terms: Terms | None = None) -> tuple[str, bool]:
        """(job id, created). The job is durable when this returns. Raises InvalidGraph, InvalidInput, RateLimited."""
        check_size(len(graph))
        job_id, ids = f"job_{self._new_id()}", self._ids("task", len(graph))
        now_us = self.clock.now_us()
        return self._do(lambda c: jobs.submit(c, spec, graph, job_id=job_id, ids=ids, now_us=now_us, terms=terms))

    def job(self, job_id: str) -> Job:
        return self.view(lambda c: jobs.read(c, job_id))

    def jobs(self, *, limit: int = 50) -> list[Job]:
        query = select(jobs_table).order_by(jobs_table.c.created_us.desc(), jobs_table.c.id.desc()).limit(limit)
        return self.view(lambda c: [jobs.as_job(row) for row in c.execute(query)])

    def tasks(self, job_id: str) -> list[RowMapping]:
        return self.view(lambda c: [row._mapping for row in jobs.tasks_of(c, job_id)])

    def task(self, task_id: str) -> RowMapping:
        row = self.view(lambda c: moves.read(c, task_id))
        if row is None:
            raise NotFound(f"no task {task_id}")
        return row._mapping

    def attempts(self, job_id: str) -> list[RowMapping]:
        query = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.started_us, attempts.c.id)
        return self.view(lambda c: [row._mapping for row in c.execute(query)])

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        return self.view(lambda c: events.after(c, job_id, after, limit))

    def workers(self) -> list[RowMapping]:
        return self.view(lambda c: [row._mapping for row in c.execute(select(workers).order_by(workers.c.spawned_us))])

    def spent(self, **equals: str) -> Spend:
        """The sum of the cost lines whose columns have these values (`job_id=...`, `kind="busy"`)."""
        return self.view(lambda c: money.spent(c, **equals))

    def spent_by_task(self, job_id: str) -> dict[str, Spend]:
        return self.view(lambda c: money.spent_by_task(c, job_id))

    def view(self, look: Callable[[Connection], T]) -> T:
        """One look by a function that writes nothing. It waits for nobody who writes, and nobody waits for it."""
        return self.database.snapshot(look)

    def durations(self) -> list[tuple[str, float, float]]:
        """(step, predicted seconds, actual seconds) of the newest attempts that succeeded."""
        return self.view(history.durations)

    def tell_chore(self, name: str, *, error: str | None) -> None:
        """A chore of the farm's upkeep was tried; `error` None: it succeeded."""
        now_us = self.clock.now_us()
        self._do(lambda c: chores.tell(c, name, error=error, now_us=now_us))

    def unbalanced_workers(self) -> list[str]:
        return self.view(money.unbalanced_workers)

    def log(self) -> Log:
        """All that was ever appended: what `cluster.ledger.audit.violations` reads."""
        return self.view(audit.read_log)

    def flaws(self) -> list[str]:
        """What the checker finds in the log, and in the tables by it; empty when all is well."""
        return self.view(lambda c: [*recount.flaws(recount.read_books(c)), *budget_recount.flaws(c)])

    def cancel_job(self, job_id: str) -> int:
        now_us = self.clock.now_us()
        return self._do(lambda c: operations.cancel_job(c, job_id, now_us=now_us))

    def delete_job(self, job_id: str) -> None:
        now_us = self.clock.now_us()
        self._do(lambda c: operations.delete_job(c, job_id, now_us=now_us))

    @faults.at("ledger.submit")
    def submit_film(self, spec: JobSpec, graph: Sequence[TaskSpec], terms: Terms | None = None) -> tuple[str, bool]:
        """(film id, created), as `submit`: its first revision is the job."""
        check_size(len(graph))
        new_id = self._new_id()
        names = {"film_id": f"film_{new_id}", "job_id": f"job_{new_id}"}
        ids, now_us = self._ids("task", len(graph)), self.clock.now_us()
        return self._do(lambda c: films.begin(c, spec, graph, **names, ids=ids, now_us=now_us, terms=terms))

    def revise_film(self, change: Change) -> None:
        """A newer job of the film, and the end of the one before. Raises NotFound, IllegalMove, RateLimited."""
        check_size(len(change.graph))
        job_id, ids = f"job_{self._new_id()}", self._ids("task", len(change.graph))
        now_us = self.clock.now_us()
        self._do(lambda c: films.revise(c, change, job_id=job_id, ids=ids, now_us=now_us))

    def cancel_film(self, film_id: str) -> None:
        now_us = self.clock.now_us()
        self._do(lambda c: films.cancel(c, film_id, now_us=now_us))

    def delete_film(self, film_id: str) -> None:
        now_us = self.clock.now_us()
        self._do(lambda c: films.delete(c, film_id, now_us=now_us))

    def create_key(self, spec: KeySpec) -> tuple[Key, str]:
        """(the key, its secret, which is shown this once)."""
        key_id, new, now_us = f"key_{self._new_id()}", NewSecret(), self.clock.now_us()
        return self._do(lambda c: keys.create(c, key_id, spec, new, now_us=now_us)), new.secret

    def rotate_key(self, key_id: str, *, keep_old_s: float = 0.0) -> tuple[Key, str]:
        """(the key, its new secret). Raises NotFound, IllegalMove."""
        new, now_us, keep_old_us = NewSecret(), self.clock.now_us(), round(keep_old_s * 1e6)
        return self._do(lambda c: keys.rotate(c, key_id, new, keep_old_us=keep_old_us, now_us=now_us)), new.secret

    def revoke_key(self, key_id: str) -> Key:
        now_us = self.clock.now_us()
        return self._do(lambda c: keys.revoke(c, key_id, now_us=now_us))

    def keys(self, tenant: str | None = None, show: str | None = None) -> list[Key]:
        return self.view(lambda c: keys.listed(c, tenant=tenant, show=show))

    def authenticate(self, secret: str) -> Admitted | None:
        """Whose secret this is, None if nobody's; a key with a limit pays for a request."""
        now_us = self.clock.now_us()
        admitted, changes = self.view(lambda c: keys.admit(c, secret, now_us=now_us))
        return self._do(lambda c: keys.pay(c, secret, now_us=now_us)) if changes else admitted

    def create_hook(self, spec: HookSpec) -> tuple[Hook, str]:
        """(the endpoint, its secret). Raises InvalidInput."""
        hook_id, secret, now_us = f"whe_{self._new_id()}", hooks.new_secret(), self.clock.now_us()
        return self._do(lambda c: hooks.create(c, hook_id, spec, secret, now_us=now_us)), secret

    def change_hook(self, sight: HookSight, hook_id: str, **changes: Any) -> Hook:
        """`changes` are those of `cluster.ledger.hooks.change`."""
        now_us = self.clock.now_us()
        return self._do(lambda c: hooks.change(c, sight, hook_id, **changes, now_us=now_us))

    def rotate_hook(self, sight: HookSight, hook_id: str, *, keep_old_s: float = 0.0) -> tuple[Hook, str]:
        """(the endpoint, its new secret). Raises NotFound."""
        secret, now_us, keep_old_us = hooks.new_secret(), self.clock.now_us(), round(keep_old_s * 1e6)
        made = self._do(lambda c: hooks.rotate(c, sight, hook_id, secret, keep_old_us=keep_old_us, now_us=now_us))
        return made, secret

    def remove_hook(self, sight: HookSight, hook_id: str) -> None:
        self._do(lambda c: hooks.remove(c, sight, hook_id))

    def redeliver(self, sight: HookSight, hook_id: str, delivery_id: str) -> Delivery:
        now_us = self.clock.now_us()
        return self._do(lambda c: hooks.redeliver(c, sight, hook_id, delivery_id, now_us=now_us))

    @faults.at("webhooks.claim")
    def claim_deliveries(
        self, *, limit: int, each: int, of_tenant: int, beside: Collection[Message], lease_s: float
    ) -> list[Message]:
        """What has to be sent now, for so long nobody else's; see `cluster.ledger.hooks.claim`."""
        times = {"now_us": self.clock.now_us(), "lease_us": round(lease_s * 1e6)}
        return self._do(
            lambda c: hooks.claim(c, limit=limit, each=each, of_tenant=of_tenant, beside=beside, **times),
            repeatable=False,
        )

    @faults.at("webhooks.settle")
    def settle_delivery(self, message: Message, tried: Tried, *, next_us: int | None) -> bool:
        """Writes a try down. False if it came too late; see `cluster.ledger.hooks.settle`."""
        now_us = self.clock.now_us()
        return self._do(lambda c: hooks.settle(c, message, tried, next_us=next_us, now_us=now_us))

    def forget_deliveries(self, *, older_s: float) -> int:
        """Of what is over. Returns how many."""
        before_us = self.clock.now_us() - round(older_s * 1e6)
        return self._do(lambda c: hooks.forget(c, before_us=before_us))

    def book_tokens(self, source: str, totals: Sequence[tuple[tokens.Meter, tokens.Counts]]) -> None:
        """What `source` has counted so far, by meter. Again is fine."""
        now_us = self.clock.now_us()
        self._do(lambda c: tokens.book(c, source, totals, now_us=now_us))

    def sum_up(self, job_id: str, *, before_us: int) -> bool:
        """One summary takes the place of its events, if it ended before then. Raises DamagedLedger."""
        return self._do(lambda c: retention.sum_up(c, job_id, before_us=before_us))

    def forget_attempts(self, before_us: int) -> int:
        """What those of jobs that ended before then said, some jobs at a time; returns how many jobs."""
        return self._do(lambda c: retention.forget_attempts(c, before_us))

    def close_tenant(self, tenant: str) -> list[str]:
        """Their keys and webhooks are gone. Returns the ids of their jobs."""
        now_us = self.clock.now_us()
        return self._do(lambda c: erasure.close(c, tenant, now_us=now_us))

    def erase_job(self, job_id: str) -> None:
        """What it said and made is gone; its states and its bill stay. Raises NotFound, DamagedLedger."""
        now_us = self.clock.now_us()
        self._do(lambda c: erasure.erase_job(c, job_id, now_us=now_us))

    def forget_tenant(self, tenant: str) -> None:
        self._do(lambda c: erasure.forget(c, tenant))

    def name_asset(self, tenant: str, file: Mapping[str, Any]) -> None:
        """Before a blob that no task makes is put; see `cluster.ledger.inventory.name`. Raises Unavailable."""
        now_us = self.clock.now_us()
        self._do(lambda c: inventory.name(c, tenant, file, now_us=now_us))

    def release_job(self, job_id: str, *, before_us: int) -> bool:
        """Its files are nobody's from now on, if it still is what was to be released."""
        now_us = self.clock.now_us()
        return self._do(lambda c: retention.release(c, job_id, before_us=before_us, now_us=now_us))

    @faults.at("assets.mark")
    def mark_assets(self, tenant: str, shas: Collection[str], *, before_us: int) -> int:
        """Those of them that were not committed since `before_us`; see `cluster.ledger.inventory`."""
        now_us = self.clock.now_us()
        return self._do(lambda c: inventory.mark(c, tenant, shas, before_us=before_us, now_us=now_us))

    def mark_strays(self, tenant: str, files: Sequence[Mapping[str, Any]]) -> int:
        now_us = self.clock.now_us()
        return self._do(lambda c: inventory.mark_strays(c, tenant, files, now_us=now_us))

    def unmark_assets(self, tenant: str, shas: Collection[str]) -> None:
        self._do(lambda c: inventory.unmark(c, tenant, shas))

    @faults.at("assets.claim")
    def claim_assets(self, tenant: str, marks: Mapping[str, int]) -> list[str]:
        """Those that are marked as they were seen, for CLAIM_US the caller's to remove."""
        now_us = self.clock.now_us()
        return self._do(lambda c: inventory.claim(c, tenant, marks, now_us=now_us), repeatable=False)

    def drop_assets(self, tenant: str) -> int:
        """Rows of what was removed long ago."""
        now_us = self.clock.now_us()
        return self._do(lambda c: inventory.drop(c, tenant, now_us=now_us))

    def book_egress(self, source: str, totals: Sequence[tuple[meters.Leaving, int]]) -> None:
        """Bytes that `source` has sent so far, by meter. Again is fine."""
        self._do(lambda c: meters.book_egress(c, source, totals))

    def bill_meters(self, card: RateCard, *, every_s: float | None = None) -> meters.Billed:
        """Books lines for what the meters have counted and no line says: until now, or until the last time that was
        a multiple of `every_s`; then what is kept is counted as well. Again is fine."""
        now_us = self.clock.now_us()
        until_us = now_us if every_s is None else now_us - now_us % round(every_s * 1e6)

        def work(connection: Connection) -> meters.Billed:
            counted_us = meters.storage_counted_until(connection)
            if counted_us is None or counted_us < until_us:
                meters.count_storage(connection, now_us=now_us)
            return meters.bill(connection, card, now_us=now_us, until_us=until_us)

        whole = self._do(work)
        while whole.more:
            part = self._do(work)
            whole = replace(part, num_lines=whole.num_lines + part.num_lines)
        return whole

    def set_held(self, job_id: str, held: bool) -> None:
        now_us = self.clock.now_us()
        self._do(lambda c: operations.set_held(c, job_id, held, now_us=now_us))

    def set_priority(self, job_id: str, *, priority: int | None = None, tier: str | None = None) -> None:
        now_us = self.clock.now_us()
        self._do(lambda c: operations.set_priority(c, job_id, priority=priority, tier=tier, now_us=now_us))

    def set_share(self, tenant: str, show: str, share: float) -> None:
        """What the show is owed, as a weight beside the others. Raises InvalidInput."""
        now_us = self.clock.now_us()
        self._do(lambda c: shares.set_share(c, tenant, show, share, now_us=now_us))

    def shares(self) -> dict[str, float]:
        """By show, as "tenant/name"."""
        return self.view(shares.shares)

    def set_budget(self, spec: BudgetSpec) -> Budget:
        """The one budget of its scope. What was stopped for want of money goes on if there is some. NotFound."""
        budget_id, now_us = f"budget_{self._new_id()}", self.clock.now_us()

        def put(connection: Connection) -> Budget:
            heard_us = holdings.heard_us(connection, now_us=now_us)
            money.book_running(connection, budgets.workers_under(connection, spec), now_us=heard_us)
            made = budgets.put(connection, budget_id, spec, now_us=now_us)
            tending.wake(connection, [spec.tenant], now_us=now_us)
            return made

        return self._do(put)

    def remove_budget(self, tenant: str, budget_id: str) -> None:
        """Raises NotFound."""
        now_us = self.clock.now_us()

        def remove(connection: Connection) -> None:
            budgets.remove(connection, tenant, budget_id, now_us=now_us)
            tending.wake(connection, [tenant], now_us=now_us)

        self._do(remove)

    def budgets(self, tenant: str | None = None, show: str | None = None) -> list[Budget]:
        """Of a tenant; of one show of it, with its films."""
        return self.view(lambda c: budgets.listed(c, tenant=tenant, show=show))

    def move_task(self, task_id: str, how: Move, *, reason: str) -> State:
        """A move of a person. Raises NotFound, IllegalMove."""
        now_us = self.clock.now_us()
        return self._do(lambda c: operations.move_task(c, task_id, how, now_us=now_us, reason=reason), repeatable=False)

    def make_input_again(self, term: int, task_id: str, input_key: str, *, reason: str) -> None:
        """What an input of a task made is lost: the input is made again, if it can be."""
        now_us = self.clock.now_us()
        self._do(lambda c: operations.make_input_again(c, task_id, input_key, now_us=now_us, reason=reason), term)

    def forget_takes(self, tenant: str, sha256: str) -> int:
        """Nobody is given these bytes as an answer any more: they are gone, or damaged. Returns how many takes."""
        return self._do(lambda c: questions.forget(c, tenant, sha256))

    def move_tasks(
        self, job_id: str, how: Move, *, states: Collection[State], keys: Collection[str] | None = None, reason: str
    ) -> int:
        """A move of a person for every task of a job that is in one of `states`; returns how many moved.

        Retry is REOPEN of {DEAD}, requeue REOPEN of what was named, eat EAT of {DEAD}. Raises NotFound, IllegalMove.
        """
        now_us = self.clock.now_us()
        return self._do(
            lambda c: operations.move_tasks(c, job_id, how, states=states, keys=keys, now_us=now_us, reason=reason),
            repeatable=False,
        )

    def drain(self, worker_id: str, *, reason: str) -> bool:
        """A worker gets no more work; what it runs is checkpointed or ended. False if it was asked before. NotFound."""
        now_us = self.clock.now_us()
        return self._do(lambda c: holdings.drain(c, worker_id, reason=reason, now_us=now_us))

    # What only a dispatcher may do

    @faults.at("ledger.term")
    def take_term(self) -> int:
        now_us = self.clock.now_us()
        return self._do(lambda c: leases.take_term(c, now_us=now_us))

    def jobs_with_ready_tasks(self) -> list[Row[Any]]:
        return self.view(jobs.with_ready_tasks)

    def ready_tasks(self, job_ids: Sequence[str], limit: int) -> list[Row[Any]]:
        return self.view(lambda c: jobs.ready_tasks(c, job_ids, limit))

    def running(self) -> list[Row[Any]]:
        return self.view(leases.running)

    def open_workers(self) -> list[RowMapping]:
        """The rows of the workers that are here."""
        query = select(workers).where(workers.c.ended_us.is_(None)).order_by(workers.c.spawned_us)
        return self.view(lambda c: [row._mapping for row in c.execute(query)])

    def draining(self) -> dict[str, str]:
        """Why they drain, by the ids of the workers that are here and do."""
        query = select(workers.c.id, workers.c.drain_reason).where(
            workers.c.ended_us.is_(None), workers.c.drain_us.is_not(None)
        )
        return self.view(lambda c: {row.id: row.drain_reason for row in c.execute(query)})

    def attempts_of(self, task_id: str) -> list[RowMapping]:
        """The attempts of a task, the newest first."""
        query = select(attempts).where(attempts.c.task_id == task_id).order_by(attempts.c.epoch.desc())
        return self.view(lambda c: [row._mapping for row in c.execute(query)])

    def gaps(self) -> list[tuple[str, str | None, dict[str, float]]]:
        """(step, model, longest time without progress by stage) of the newest attempts that succeeded."""
        return self.view(history.gaps)

    @faults.at("ledger.join")
    def join(self, term: int, worker: dict[str, Any]) -> None:
        now_us = self.clock.now_us()
        self._do(lambda c: holdings.join(c, worker, now_us=now_us), term)

    @faults.at("ledger.leave")
    def leave(self, term: int, worker_id: str, *, at_us: int | None = None) -> None:
        """Its holding ends now, or at an earlier instant since which nobody knows of it."""
        now_us = self.clock.now_us() if at_us is None else min(at_us, self.clock.now_us())
        self._do(lambda c: holdings.leave(c, worker_id, now_us=now_us), term)

    def say_alive(self, term: int) -> None:
        now_us = self.clock.now_us()
        self._do(lambda c: holdings.say_alive(c, now_us=now_us), term)

    def last_alive(self) -> int | None:
        """When a dispatcher last said that it was alive."""
        return self.view(holdings.last_alive)

    def lease(self, term: int, task_id: str, *, epoch: int, worker_id: str, request_id: str) -> Given | None:
        """The leased task; None if it was not READY at `epoch`, or a budget has no room. Raises WorkerLost."""
        found = self.lease_all(term, [(task_id, epoch, worker_id, request_id)])[0]
        if isinstance(found, WorkerLost):
            raise found
        return None if isinstance(found, Held) else found

    def extend(self, term: int, attempt_ids: Sequence[str], reserves: Reserves) -> dict[str, bool]:
        """Which of these attempts may go on under their budgets; see `cluster.ledger.leases.extend`."""
        now_us = self.clock.now_us()
        return self._do(lambda c: leases.extend(c, attempt_ids, now_us=now_us, reserves=reserves), term)

    def tend_budgets(self, term: int) -> int | None:
        """None if there are no budgets; else how many tasks may go on, or were canceled."""
        now_us = self.clock.now_us()
        return self._do(lambda c: tending.tend(c, now_us=now_us), term)

    def paces(self) -> Paces:
        """What the newest attempts that succeeded have taught."""
        return Paces(self.view(history.samples))

    @faults.at("ledger.lease")
    def lease_all(
        self, term: int, asks: Sequence[tuple[str, int, str, str]], *, reserves: Reserves | None = None
    ) -> list[Given | Held | WorkerLost | None]:
        """Of many (task id, epoch, worker id, request id) in one transaction; see `cluster.ledger.leases.lease`."""
        now_us = self.clock.now_us()
        made = [
            Ask(task_id=task_id, epoch=epoch, worker_id=worker_id, request_id=request_id, attempt_id=attempt_id)
            for attempt_id, (task_id, epoch, worker_id, request_id) in zip(
                self._ids("att", len(asks)), asks, strict=True
            )
        ]
        found = self._do(lambda c: leases.lease(c, made, now_us=now_us, reserves=reserves), term)
        return [_given(one) if isinstance(one, Leased) else one for one in found]

    def leased_by_request(self, worker_id: str, request_id: str) -> Given | None:
        """The lease of a call whose reply was lost."""
        now_us = self.clock.now_us()
        found = self._do(lambda c: leases.leased_by_request(c, worker_id, request_id, now_us=now_us))
        return None if found is None else _given(found)

    def commit(self, term: int, **made: Any) -> Answer:
        """One attempt; `made` are the fields of `Commit`."""
        return self.commit_all(term, [Commit(**made)])[0]

    @faults.at("ledger.commit")
    def commit_all(self, term: int, commits: Sequence[Commit]) -> list[Answer]:
        """Many attempts in one transaction; see `cluster.ledger.leases.commit`."""
        now_us = self.clock.now_us()
        commits = [replace(c, child_ids=self._ids("task", len(c.children))) for c in commits]
        return self._do(lambda c: leases.commit(c, commits, now_us=now_us), term)

    @faults.at("ledger.fail")
    def fail(
        self,
        term: int,
        *,
        task_id: str,
        attempt_id: str,
        epoch: int,
        failure: FailureClass,
        code: str,
        message: str,
        facts: dict[str, Any],
    ) -> Answer:
        now_us = self.clock.now_us()
        return self._do(
            lambda c: leases.fail(
                c,
                task_id=task_id,
                attempt_id=attempt_id,
                epoch=epoch,
                failure=failure,
                code=code,
                message=message,
                facts=facts,
                now_us=now_us,
            ),
            term,
        )

    @faults.at("ledger.interrupt")
    def interrupt(
        self, term: int, *, task_id: str, attempt_id: str, epoch: int, facts: dict[str, Any], suspend: str | None = None
    ) -> Answer:
        """`suspend`: it is not READY again, but SUSPENDED for this reason."""
        who, now_us = {"task_id": task_id, "attempt_id": attempt_id, "epoch": epoch}, self.clock.now_us()
        return self._do(
            lambda c: leases.interrupt(c, **who, facts=facts, now_us=now_us, suspend=suspend),  # type: ignore[arg-type]
            term,
        )

    @faults.at("ledger.lose")
    def lose(
        self,
        term: int,
        *,
        task_id: str,
        attempt_id: str,
        epoch: int,
        why: str,
        failure: FailureClass = FailureClass.INFRA,
        end: AttemptState = AttemptState.LOST,
        facts: dict[str, Any] | None = None,
    ) -> Answer:
        """`failure` is POISON for a task whose worker died in the middle of it; see `cluster.ledger.leases.lose`."""
        who, now_us = {"task_id": task_id, "attempt_id": attempt_id, "epoch": epoch}, self.clock.now_us()
        return self._do(
            lambda c: leases.lose(c, **who, why=why, now_us=now_us, failure=failure, end=end, facts=facts),  # type: ignore[arg-type]
            term,
        )

    @faults.at("ledger.backoff_over")
    def backoff_over(self, term: int) -> list[str]:
        now_us = self.clock.now_us()
        return self._do(lambda c: leases.backoff_over(c, now_us=now_us), term)

    def _ids(self, kind: str, count: int) -> list[str]:
        return [f"{kind}_{self._new_id()}" for _ in range(count)]


def _given(leased: Leased) -> Given:
    inputs = [row._mapping for row in leased.inputs]
    return leased.task, jobs.as_job(leased.job), inputs, leased.spends
