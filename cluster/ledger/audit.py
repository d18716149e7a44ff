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
from cluster.ledger.events import Event, WorkerEvent
from cluster.ledger.replay import Attempt, Injected, Replay
from cluster.rates import cost_until
from cluster.states import AttemptState


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
    note: str | None  # of a line that books another one again


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
    return [*replay.broken, *_imbalances(log, replay.attempts, clock_was_set=clock_was_set)]


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
        if (line.attempt_id is None) != (line.tenant == "farm"):
            yield f"ledger balanced: a line of {line.worker_id} for {line.attempt_id} is of tenant {line.tenant}"
    for worker_id, lines in by_worker.items():
        worker = joined.get(worker_id)
        if worker is None:
            yield f"ledger balanced: {worker_id} was billed and never joined"
            continue
        held: dict[tuple[int, int], int] = defaultdict(int)
        for line in lines:
            if line.note is None:
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
        wrong = min(booked_by.values()) < 0 or a is None
        if a is not None and a.committed:
            wrong = wrong or booked_by["wasted"] != 0
        elif a is not None and a.state not in (AttemptState.RUNNING.value, AttemptState.INTERRUPTED.value):
            wrong = wrong or (booked_by["busy"] != 0 and not a.resumed)
        if wrong:
            yield f"ledger balanced: {attempt_id}, {a.state if a else 'unknown'}, was booked {dict(booked_by)}"
