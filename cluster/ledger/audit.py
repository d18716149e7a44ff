"""The checker: one function over all that the ledger only ever appends, with the invariants by name.

Its input is the log alone (events of jobs, events of workers, cost lines), never a table that is updated: so it
convicts the code that keeps those tables too. Within a job events are numbered, and their order is exact; between jobs
and workers it goes by the ledger's clock, and what needs that order is left out for a log during which the clock was
set. `cluster.ledger.recount` holds the tables against the log.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from cluster.ledger import schema
from cluster.ledger.chains import bills
from cluster.ledger.events import Event, WorkerEvent
from cluster.ledger.replay import SUMMARY, Attempt, Injected, Replay
from cluster.rates import cost_until
from cluster.states import AttemptState

FREE = ("load", "idle")
"""Kinds of held time that no task had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What the checker reads of a cost line."""

    kind: str
    tenant: str
    attempt_id: str | None
    worker_id: str | None  # None for what a meter counted
    from_us: int
    to_us: int
    held_us: int
    nano: int
    note: str | None  # of a line that books another one again, or that came late
    show: str = ""
    job_id: str | None = None
    task_id: str | None = None
    quantity: int | None = None
    item: str | None = None
    model: str | None = None
    price_class: str = ""
    price_nano: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """All that a ledger only appends: events by (job, number) and (worker, number), lines by their id."""

    events: Sequence[Event]
    workers: Sequence[WorkerEvent] = ()
    lines: Sequence[Line] = ()


def read_log(connection: Connection) -> Log:
    """As one transaction sees it."""
    e, w, c = schema.events, schema.worker_events, schema.cost_lines
    lines = select(*(c.c[name] for name in Line.__dataclass_fields__)).order_by(c.c.id)
    return Log(
        events=[Event(**row._mapping) for row in connection.execute(select(e).order_by(e.c.job_id, e.c.seq))],
        workers=[WorkerEvent(**row._mapping) for row in connection.execute(select(w).order_by(w.c.worker_id, w.c.seq))],
        lines=[Line(**row._mapping) for row in connection.execute(lines)],
    )


def violations(
    log: Log,
    *,
    injected: Sequence[Injected] | None = None,
    orders_per_worker: int | None = None,
    patience_s: float | None = None,
    quiet: bool = False,
) -> list[str]:
    """What the log convicts the farm of, each as "invariant: which task and how"; empty when all is well.

    `injected`, all failures that were planted: no task may be DEAD but those whose planted failures spend a budget, and
    these must be. `orders_per_worker` run at once at most. `patience_s`: no task waits longer for a worker. `quiet`:
    the farm has stopped, nothing may be left that would still move.
    """
    replay = Replay()
    for event in log.events:
        replay.take(event)
    replay.expansions()
    replay.gates()
    clock_was_set = any(e.kind == "worker.clock" for e in log.workers)
    if not clock_was_set:
        replay.workers(log.workers, orders_per_worker)
    if patience_s is not None:
        replay.waits(patience_s)
    if injected is not None:
        replay.deaths(injected)
    if quiet:
        replay.rest(log.workers)
    return [
        *replay.broken,
        *_imbalances(log, replay.attempts, clock_was_set=clock_was_set),
        *_misbooked(log, replay),
        *_waste(log, replay.attempts, exact=not clock_was_set and not replay.broken),
    ]


def wasted_nano(log: Log) -> int:
    """What was wasted, by the events alone; of what they do not tell how much was kept, nothing."""
    replay = Replay()
    for event in log.events:
        replay.take(event)
    return sum(bill.wasted_nano or 0 for bill in bills(log.workers, replay.attempts).values())


def _imbalances(log: Log, attempts: dict[str, Attempt], *, clock_was_set: bool) -> Iterator[str]:
    """Held time times rate is what the lines say, to the nano-dollar, and each line is booked to whom it belongs."""
    joined: dict[str, Any] = {}
    for e in log.workers:
        if e.kind == "worker.join":
            joined.setdefault(e.worker_id, e.data)
    by_worker: dict[str, list[Line]] = defaultdict(list)
    by_attempt: dict[str, Counter[str]] = defaultdict(Counter)
    for line in log.lines:
        if line.worker_id is None:
            continue
        by_worker[line.worker_id].append(line)
        if line.attempt_id is not None:
            by_attempt[line.attempt_id][line.kind] += line.nano
        if (line.attempt_id is None) != (line.tenant == "farm") or (line.attempt_id is None) != (line.kind in FREE):
            what = f"{line.kind} line of {line.worker_id}"
            yield f"ledger balanced: a {what} for {line.attempt_id} is of tenant {line.tenant}"
    for worker_id, lines in by_worker.items():
        worker = joined.get(worker_id)
        if worker is None:
            yield f"ledger balanced: {worker_id} was billed and never joined"
            continue
        held: dict[tuple[int, int], int] = defaultdict(int)
        for line in lines:
            if line.note is None or line.attempt_id is None:
                held[line.from_us, line.to_us] += line.held_us
        ends_us = worker["spawned_us"]
        for (from_us, to_us), held_us in held.items():
            if held_us != (to_us - from_us) * max(1, worker["num_accelerators"]):
                yield f"ledger balanced: {worker_id} held {held_us} us from {from_us} to {to_us}"
            if from_us != ends_us and not clock_was_set:
                yield f"ledger balanced: {worker_id} has a gap from {ends_us} to {from_us}"
            ends_us = to_us
        owed, booked = sum(to_us - from_us for from_us, to_us in held), sum(line.nano for line in lines)
        if booked != cost_until(worker["nano_per_hour"], owed):
            yield f"ledger balanced: {worker_id} was billed {booked} for {owed} us"
    for attempt_id, booked_by in by_attempt.items():
        a = attempts.get(attempt_id)
        if min(booked_by.values()) < 0 or a is None:
            yield f"ledger balanced: {attempt_id}, {a.state if a else 'unknown'}, was booked {dict(booked_by)}"


def _misbooked(log: Log, replay: Replay) -> Iterator[str]:
    """What the tasks of a show cost, and its meters, is what the show is booked; the rest is the farm's own."""
    owners = {
        e.job_id: (e.data["tenant"], e.data["show"])
        for e in log.events
        if e.kind in ("job.created", SUMMARY) and "tenant" in e.data
    }
    owed: dict[tuple[str, str], int] = defaultdict(int)
    booked: dict[tuple[str, str], int] = defaultdict(int)
    for line in log.lines:
        booked[line.tenant, line.show] += line.nano
        attempt = replay.attempts.get(line.attempt_id or "")
        if attempt is not None and attempt.task_id in replay.tasks:
            owed[owners.get(replay.tasks[attempt.task_id].job_id, (line.tenant, line.show))] += line.nano
        else:
            owed[line.tenant, line.show] += line.nano
    for who in booked.keys() | owed.keys():
        if booked[who] != owed[who]:
            yield f"every show pays for its own: {'/'.join(who)} was booked {booked[who]}, its work cost {owed[who]}"


def _waste(log: Log, attempts: dict[str, Attempt], *, exact: bool) -> Iterator[str]:
    """What each attempt was billed, and what of it as wasted, is what follows from the events alone; not `exact`, only
    that committed work is no waste, and lost work nothing else."""
    booked: dict[str, Counter[str]] = defaultdict(Counter)
    for line in log.lines:
        if line.attempt_id is not None:
            booked[line.attempt_id][line.kind] += line.nano
            booked[line.attempt_id]["held"] += line.held_us
    for attempt_id, bill in bills(log.workers, attempts).items():
        lines, a = booked[attempt_id], attempts[attempt_id]
        nano = lines["busy"] + lines["wasted"]
        if not exact:
            ended = a.state != AttemptState.RUNNING.value
            if lines["wasted"] if a.committed else ended and not a.resumed and lines["busy"]:
                yield f"waste is what the log says: {attempt_id}, {a.state}, was booked {dict(lines)}"
        elif (nano, lines["held"]) != (bill.nano, bill.held_us):
            yield f"ledger balanced: {attempt_id} was billed {nano}, the log says {bill.nano}"
        elif bill.wasted_nano not in (None, lines["wasted"]):
            said = f"{lines['wasted']} booked, {bill.wasted_nano} by the log"
            yield f"waste is what the log says: {attempt_id}, {a.state}: {said}"
