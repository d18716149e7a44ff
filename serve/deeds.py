"""What a person does to jobs, tasks and workers: what it would touch, and doing it."""

from __future__ import annotations

from collections.abc import Collection

from cluster.errors import IllegalMove, InvalidInput
from cluster.ledger import rosters, views
from cluster.ledger.ledger import Ledger
from cluster.ledger.outcomes import Sight
from cluster.states import MOVES, OPEN, REOPENABLE, Move, State
from serve.clerk import money
from serve.office import DONE, Order, Verb
from serve.rows import Deed

MOVE_OF = {
    Verb.CANCEL: Move.CANCEL,
    Verb.HOLD: Move.HOLD,
    Verb.RELEASE: Move.RELEASE,
    Verb.RETRY: Move.REOPEN,
    Verb.REQUEUE: Move.REOPEN,
    Verb.EAT: Move.EAT,
}


def perform(ledger: Ledger, order: Order, *, live_us: int | None, farm_runs: bool | None) -> Deed:
    """Raises IllegalMove for a task that cannot make the move, InvalidInput."""
    where, verb = order.where, order.verb
    if wrong := order.states - REOPENABLE:
        allowed = ", ".join(sorted(one.value for one in REOPENABLE))
        raise InvalidInput(f"a task that is {min(wrong)} has not ended", field="states", remedy=f"use {allowed}")
    if where.task is None and verb in (Verb.HOLD, Verb.RELEASE):
        if not order.dry_run:
            ledger.set_held(where.job, verb is Verb.HOLD)
        if not order.with_tasks:
            return Deed(verb=verb.value, job=where.job, farm_runs=farm_runs, done=not order.dry_run)
    how, states = MOVE_OF[verb], _states(order)
    keys = [] if where.task is None else [where.task]
    seen = ledger.view(lambda c: views.touched(c, where.job, how, keys=keys, states=states, live_us=live_us))
    if where.task is not None and not seen.keys:
        raise _illegal(ledger, order, is_fixed=bool(seen.left_out))
    count = len(seen.keys)
    if not order.dry_run and count and where.task is None and verb is Verb.CANCEL:
        count = ledger.cancel_job(where.job)
    elif not order.dry_run and count:
        reason = f"{DONE[verb]} by a person"
        count = ledger.move_tasks(where.job, how, states=states, keys=seen.keys, reason=reason)
    return Deed(
        verb=verb.value,
        job=where.job,
        task=where.task,
        tasks=count,
        states={state.value: n for state, n in seen.by_state.items()},
        spent_usd=money(seen.nano),
        stale=seen.num_stale,
        left_out=list(seen.left_out),
        farm_runs=farm_runs,
        done=not order.dry_run,
    )


def set_priority(ledger: Ledger, job_id: str, *, priority: int | None, tier: str | None) -> Deed:
    if priority is None and tier is None:
        raise InvalidInput("nothing to set", field="priority", remedy="give a priority, a tier, or both")
    ledger.set_priority(job_id, priority=priority, tier=tier)
    job = ledger.job(job_id)
    return Deed(verb="pri", job=job.id, tier=job.tier, priority=job.priority, done=True)


def drain(ledger: Ledger, worker_id: str, *, reason: str, dry_run: bool, sight: Sight) -> Deed:
    """Raises NotFound, and InvalidInput for a worker that has left. What `sight` does not cover is counted unnamed."""
    line = ledger.view(lambda c: rosters.worker(c, worker_id, sight=sight, live_us=None))
    if line.row.ended_us is not None:
        raise InvalidInput(f"{worker_id} has left already", field="worker", remedy="`farm workers` lists those here")
    return Deed(
        verb="drain",
        worker=worker_id,
        workers=int(line.row.drain_us is None) if dry_run else int(ledger.drain(worker_id, reason=reason)),
        tasks=len(line.running) + line.num_others,
        running=[f"{job_id}/{key}" for job_id, key in line.running],
        others=line.num_others,
        reason=reason,
        done=not dry_run,
    )


def _states(order: Order) -> Collection[State]:
    """The states of the tasks that an order is for."""
    whole = order.where.task is None
    match order.verb:
        case Verb.CANCEL:
            return OPEN if whole else _from(Move.CANCEL)
        case Verb.HOLD:
            return _from(Move.HOLD)
        case Verb.RELEASE:
            return {State.SUSPENDED}
        case Verb.RETRY:
            return {State.DEAD}
        case Verb.REQUEUE:
            return order.states or REOPENABLE
        case Verb.EAT:
            return {State.DEAD} if whole else _from(Move.EAT)


def _from(how: Move) -> frozenset[State]:
    """The states in which the table has this move."""
    return frozenset(state for state, move in MOVES if move is how)


def _verbs(state: State) -> list[str]:
    """What a person may do to a task in this state."""
    words = {Move.CANCEL: "cancel", Move.HOLD: "hold", Move.RELEASE: "release", Move.EAT: "eat", Move.REOPEN: "requeue"}
    words |= {Move.APPROVE: "approve", Move.REJECT: "reject"}
    return [word for move, word in words.items() if (state, move) in MOVES] + ["retry"] * (state is State.DEAD)


def _illegal(ledger: Ledger, order: Order, *, is_fixed: bool) -> IllegalMove:
    where = order.where
    if is_fixed:
        return IllegalMove(
            f"{where.name} cannot run again: tasks of its job were made from it, once", field="task",
            remedy="submit the job again: what has not changed costs nothing",
        )  # fmt: skip
    state = State(ledger.task(where.id or "")["state"])
    possible = ", ".join(sorted(_verbs(state))) or "nothing"
    return IllegalMove(
        f"{where.name} is {state}, which a person cannot {order.verb}", field="task",
        remedy=f"possible now: {possible}",
    )  # fmt: skip
