"""What a person does to jobs, tasks and workers. What cannot be undone says first what it touches, and wants --yes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import IllegalMove, InvalidInput
from cluster.ledger import views
from cluster.ledger.views import Touched
from cluster.rates import usd
from cluster.states import MOVES, OPEN, Move, State
from serve.cli import rows
from serve.cli.office import Named, Office, named, worker_named
from serve.cli.tables import summed
from serve.cli.wording import dollars, plural, short_worker

NO_FARM = "no farm is at work here: what is ready waits until one is"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How a person wants it: confirmed beforehand, and answered in JSON."""

    yes: bool
    as_json: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Deed:
    """What is about to be done, in words and as data; `do` does it and returns how many tasks it moved."""

    verb: str
    done: str  # the verb in the past
    target: str
    what: str  # "3 tasks (1 running, 2 ready)"
    costs: str  # what follows, in a sentence; empty if nothing does
    facts: dict[str, Any]
    asks: bool
    do: Callable[[], int]


def cancel(office: Office, text: str, manner: Manner) -> None:
    """A job and all that has not ended in it, or one task."""
    where = named(office, text)
    if where.key is None:
        deed = _deed(office, where, Move.CANCEL, "cancel", "canceled", OPEN)
        _perform(office, replace(deed, do=lambda: office.ledger.cancel_job(where.job_id)), manner)
    else:
        _perform(office, _deed(office, where, Move.CANCEL, "cancel", "canceled", _from(Move.CANCEL)), manner)


def hold(office: Office, text: str, manner: Manner) -> None:
    """A job gets no new work; a task on hold stops, which wastes what it runs."""
    where = named(office, text)
    if where.key is None:
        _set_held(office, where, True, manner)
    else:
        deed = _deed(office, where, Move.HOLD, "hold", "put on hold", _from(Move.HOLD))
        _perform(office, replace(deed, asks=State.RUNNING.value in deed.facts["states"]), manner)


def release(office: Office, text: str, manner: Manner, *, with_tasks: bool) -> None:
    """A job, with the tasks on hold in it if that is asked; or one task."""
    where = named(office, text)
    if where.key is None:
        _set_held(office, where, False, manner)
        if not with_tasks:
            return
    _perform(
        office,
        replace(_deed(office, where, Move.RELEASE, "release", "released", {State.SUSPENDED}), asks=False),
        manner,
    )


def retry(office: Office, text: str, manner: Manner) -> None:
    """Dead tasks run again, with fresh budgets for failures."""
    where = named(office, text)
    deed = _deed(office, where, Move.REOPEN, "retry", "opened again", {State.DEAD})
    _perform(office, replace(deed, asks=deed.facts["tasks"] > 1), manner)


def requeue(office: Office, text: str, manner: Manner, *, states: Collection[State]) -> None:
    """What has ended runs again, whatever its state: a new generation, answered by no cache."""
    _perform(office, _deed(office, named(office, text), Move.REOPEN, "requeue", "opened again", states), manner)


def eat(office: Office, text: str, manner: Manner) -> None:
    """Accepted as done without output: what needs it goes on. Of a job, its dead tasks."""
    where = named(office, text)
    states = {State.DEAD} if where.key is None else _from(Move.EAT)
    _perform(office, _deed(office, where, Move.EAT, "eat", "accepted without output", states), manner)


def set_priority(office: Office, text: str, *, priority: int | None, tier: str | None, as_json: bool) -> None:
    where = named(office, text)
    if where.key is not None:
        raise InvalidInput("a task has the priority of its job", field="JOB", remedy=f"farm pri {where.job_id} ...")
    if priority is None and tier is None:
        raise InvalidInput("nothing to set", field="--priority", remedy="give --priority N, --tier NAME, or both")
    office.ledger.set_priority(where.job_id, priority=priority, tier=tier)
    job = office.ledger.job(where.job_id)
    if as_json:
        rows.write([{"verb": "pri", "job": job.id, "tier": job.tier, "priority": job.priority, "done": True}])
    else:
        print(f"{job.id} has tier {job.tier}, priority {job.priority}")


def drain(office: Office, text: str, manner: Manner, *, reason: str) -> None:
    """A worker gets no more work, and ends or checkpoints what it runs."""
    worker_id = worker_named(office, text)
    line = next(w for w in office.ledger.view(lambda c: views.worker_list(c, gone=True, limit=10**6, live_us=None))
                if w.row.id == worker_id)  # fmt: skip
    runs = [f"{job_id}/{key}" for job_id, key in line.running]
    if line.row.ended_us is not None:
        raise InvalidInput(f"{worker_id} has left already", field="WORKER", remedy="`farm workers` lists those here")
    costs = f"what it runs ({', '.join(runs)}) is ended or checkpointed" if runs else "it runs nothing now"
    facts = {"worker": worker_id, "tasks": len(runs), "running": runs, "reason": reason}
    _perform(
        office,
        Deed(
            verb="drain", done="drained", target=short_worker(worker_id), what="1 worker", costs=costs, facts=facts,
            asks=True, do=lambda: int(office.ledger.drain(worker_id, reason=reason)),
        ),
        manner,
    )  # fmt: skip


def _from(how: Move) -> frozenset[State]:
    """The states in which the table has this move."""
    return frozenset(state for state, move in MOVES if move is how)


def _verbs(state: State) -> list[str]:
    """What a person may do to a task in this state."""
    words = {Move.CANCEL: "cancel", Move.HOLD: "hold", Move.RELEASE: "release", Move.EAT: "eat", Move.REOPEN: "requeue"}
    return [word for move, word in words.items() if (state, move) in MOVES] + ["retry"] * (state is State.DEAD)


def _deed(office: Office, where: Named, how: Move, verb: str, done: str, states: Collection[State]) -> Deed:
    """A move of the tasks of `where` that are in one of `states`. Raises IllegalMove for a task that cannot make it."""
    keys = [] if where.key is None else [where.key]
    live_us = office.live_us
    seen = office.ledger.view(
        lambda c: views.touched(c, where.job_id, how, keys=keys, states=states, live_us=live_us)
    )  # fmt: skip
    if where.key is not None and not seen.keys:
        if seen.left_out:
            raise IllegalMove(
                f"{where.name} cannot run again: tasks of its job were made from it, once", field="TASK",
                remedy="submit the job again: what has not changed costs nothing",
            )  # fmt: skip
        state = State(office.ledger.task(where.task_id or "")["state"])
        possible = ", ".join(sorted(_verbs(state))) or "nothing"
        raise IllegalMove(f"{where.name} is {state}, which a person cannot {verb}", remedy=f"possible now: {possible}")
    return Deed(
        verb=verb,
        done=done,
        target=where.name,
        what=summed(len(seen.keys), "task", seen.by_state),
        costs=_costs(how, seen),
        facts={
            "job": where.job_id,
            **({"task": where.key} if where.key else {}),
            "tasks": len(seen.keys),
            "states": {state.value: n for state, n in seen.by_state.items()},
            "spent_usd": rows.money(seen.nano),
            "stale": seen.num_stale,
            "left_out": list(seen.left_out),
        },
        asks=True,
        do=lambda: office.ledger.move_tasks(
            where.job_id, how, states=states, keys=seen.keys, reason=f"{done} by a person"
        ),
    )


def _costs(how: Move, seen: Touched) -> str:
    spent, them = dollars(usd(seen.nano)), "it" if len(seen.keys) == 1 else "them"
    if not seen.nano:
        said = f"nothing was spent on {them} yet"
    elif how is Move.REOPEN:
        said = f"{spent} was spent on {them}, and would be spent again"
    else:
        said = f"{spent} was spent on {them} so far"
    if seen.num_stale:
        said += f"; {plural(seen.num_stale, 'task')} built on {them} would be stale"
    if seen.left_out:
        more = " and others" if len(seen.left_out) > 5 else ""
        said += f"; {', '.join(seen.left_out[:5])}{more} stay as they are: tasks of the job were made from them, once"
    return said


def _set_held(office: Office, where: Named, held: bool, manner: Manner) -> None:
    office.ledger.set_held(where.job_id, held)
    verb, done = ("hold", "on hold: it gets no new work, what runs goes on") if held else ("release", "released")
    if manner.as_json:
        rows.write([{"verb": verb, "job": where.job_id, "done": True}])
    else:
        print(f"{where.job_id} is {done}")


def _perform(office: Office, deed: Deed, manner: Manner) -> None:
    """Says what would be done, has it confirmed, does it. Raises InvalidInput if it is not confirmed."""
    if not deed.facts["tasks"] and deed.verb != "drain":
        if manner.as_json:
            rows.write([{"verb": deed.verb, **deed.facts, "done": True}])
        else:
            print(f"nothing to {deed.verb}: {deed.target} has no such task")
        return
    if deed.asks and not manner.yes:
        if manner.as_json:
            rows.write([{"verb": deed.verb, **deed.facts, "done": False}])
        else:
            print(f"{deed.verb} {deed.target}: {deed.what}; {deed.costs}", flush=True)
        if manner.as_json or not _confirmed():
            raise InvalidInput("nothing was done", field=deed.verb, remedy="give --yes to do it")
    count = deed.do()
    if manner.as_json:
        rows.write([{"verb": deed.verb, **deed.facts, "tasks": count, "done": True}])
        return
    print(f"{deed.target}: {plural(count, 'worker' if deed.verb == 'drain' else 'task')} {deed.done}")
    if deed.facts.get("stale"):
        print(f"farm requeue {deed.facts['job']} --state stale makes again what is older than its inputs now")
    if office.farm_runs is False and deed.verb in ("retry", "requeue", "release", "eat"):
        print(NO_FARM)


def _confirmed() -> bool:
    """Asks, where there is somebody to ask."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
