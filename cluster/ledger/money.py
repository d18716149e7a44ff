"""Cost lines: one priced fact each. A worker's time is a chain of adjoining intervals, closed at every change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, case, func, insert, select, update

from cluster import faults
from cluster.assets import RESERVED
from cluster.ledger import budgets, events
from cluster.ledger.database import padded
from cluster.ledger.schema import attempts, cost_lines, jobs, workers
from cluster.rates import cost_until, split
from cluster.states import AttemptState

FARM_TENANT = RESERVED
FARM_SHOW = "farm"
"""Idle and load time belong to no task; the farm's own show carries them."""

WORKERS = select(workers).where(workers.c.id.in_(bindparam("workers", expanding=True)), workers.c.ended_us.is_(None))
OCCUPANTS = (
    select(
        attempts.c.id,
        attempts.c.worker_id,
        attempts.c.task_id,
        attempts.c.job_id,
        attempts.c.reserved_nano,
        jobs.c.tenant,
        jobs.c.show,
    )
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .where(
        attempts.c.worker_id.in_(bindparam("workers", expanding=True)),
        attempts.c.state == AttemptState.RUNNING.value,
    )
    .order_by(attempts.c.worker_id, attempts.c.started_us, attempts.c.id)
)
SINCE = update(workers).where(workers.c.id == bindparam("worker")).values(since_us=bindparam("now"))
LINES = select(cost_lines).where(cost_lines.c.attempt_id == bindparam("attempt"), cost_lines.c.kind == bindparam("of"))
INSERT = insert(cost_lines)
MAKER = attempts.alias("maker")
SPENT_ON = (
    select(attempts.c.task_id, func.sum(cost_lines.c.nano), func.sum(cost_lines.c.held_us))
    .join(cost_lines, cost_lines.c.attempt_id == attempts.c.id)
    .where(attempts.c.task_id.in_(bindparam("tasks", expanding=True)))
    .group_by(attempts.c.task_id)
)
SPENT_FOR = (
    select(func.coalesce(func.sum(cost_lines.c.nano), 0), func.coalesce(func.sum(cost_lines.c.held_us), 0))
    .join(attempts, attempts.c.id == cost_lines.c.attempt_id)
    .join(MAKER, and_(MAKER.c.task_id == attempts.c.task_id, MAKER.c.generation == attempts.c.generation))
    .where(MAKER.c.id == bindparam("attempt"), cost_lines.c.kind == "busy")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spend:
    """Sums over cost lines. `held_s` is accelerator-seconds (worker-seconds on a cpu)."""

    nano: int
    held_s: float


def close_interval(
    connection: Connection, worker_id: str, *, now_us: int, idle_kind: str = "idle", note: str | None = None
) -> None:
    """Prices the worker's time since its last change and begins the next interval; nothing for one that has left."""
    close_intervals(connection, [worker_id], now_us=now_us, idle_kind=idle_kind, note=note)


def close_intervals(
    connection: Connection,
    worker_ids: Sequence[str],
    *,
    now_us: int,
    idle_kind: str = "idle",
    note: str | None = None,
    heard_us: int | None = None,
) -> None:
    """The same for many workers, in four statements; until `heard_us` if that is earlier.

    With occupants the interval is split between them by largest remainder; without, it is the farm's own. A `note` says
    why that comes late.
    """
    found = connection.execute(WORKERS, {"workers": padded(worker_ids)}).all()
    occupants: dict[str, list[Any]] = {}
    for row in connection.execute(OCCUPANTS, {"workers": padded(worker_ids)}) if found else ():
        occupants.setdefault(row.worker_id, []).append(row)
    lines, ends, capped = [], [], list[tuple[str, str, int, int]]()
    for worker in found:
        ends_us = now_us if heard_us is None else min(now_us, heard_us)
        until_us = max(ends_us, worker.since_us)  # a wall clock that was set back makes no negative bill
        if until_us != now_us:
            data = {"at_us": now_us, "edge_us": until_us}
            events.append_of_worker(connection, worker.id, at_us=until_us, kind="worker.overtaken", data=data)
        nano = cost_until(worker.nano_per_hour, until_us - worker.spawned_us) - cost_until(
            worker.nano_per_hour, worker.since_us - worker.spawned_us
        )
        held_us = (until_us - worker.since_us) * max(1, worker.num_accelerators)
        whose = occupants.get(worker.id, [])
        if held_us and whose:
            equal = [1] * len(whose)
            for who, share, held in zip(whose, split(nano, equal), split(held_us, equal), strict=True):
                lines.append(_line(worker, until_us, "busy", share, held, who))
                if who.reserved_nano is not None:
                    capped.append((who.job_id, who.id, share, who.reserved_nano))
        elif held_us:
            lines.append(_line(worker, until_us, idle_kind, nano, held_us, None) | {"note": note})
        ends.append({"worker": worker.id, "now": until_us})
    with faults.point("ledger.settle"):
        if lines:
            connection.execute(INSERT, lines)
        if ends:
            connection.execute(SINCE, ends)
    if capped:
        budgets.book(connection, capped, now_us=now_us)


def book_running(connection: Connection, worker_ids: Sequence[str], *, now_us: int) -> None:
    """Closes the intervals of workers that go on with what they run; the log says where they were cut."""
    close_intervals(connection, worker_ids, now_us=now_us)
    for worker_id in worker_ids:
        events.append_of_worker(connection, worker_id, at_us=now_us, kind="worker.booked")


def waste(connection: Connection, attempt_id: str, *, now_us: int, note: str) -> None:
    """What the attempt was billed as busy is taken back by a new line and booked as wasted."""
    _rebook(connection, attempt_id, "busy", "wasted", now_us=now_us, note=note)


def redeem(connection: Connection, attempt_id: str, *, now_us: int, note: str, part: float = 1.0) -> None:
    """What had been booked as wasted, or `part` of it, was work: it is adopted, or another goes on from it."""
    _rebook(connection, attempt_id, "wasted", "busy", now_us=now_us, note=note, part=part)


def _rebook(
    connection: Connection, attempt_id: str, old: str, new: str, *, now_us: int, note: str, part: float = 1.0
) -> None:
    lines = connection.execute(LINES, {"attempt": attempt_id, "of": old}).all()
    held_us = round(part * sum(line.held_us for line in lines))
    nano = round(part * sum(line.nano for line in lines))
    if not held_us and not nano:
        return
    row = {k: v for k, v in lines[0]._mapping.items() if k != "id"} | {
        "at_us": now_us,
        "from_us": min(line.from_us for line in lines),
        "to_us": max(line.to_us for line in lines),
        "note": note,
    }
    connection.execute(
        INSERT,
        [
            row | {"kind": old, "held_us": -held_us, "nano": -nano},
            row | {"kind": new, "held_us": held_us, "nano": nano},
        ],
    )


def rebase(connection: Connection, jumped_us: int, *, now_us: int) -> None:
    """The wall clock was set: nobody held anything longer for it. Sums stay exact, for they are differences. Where a
    person was quicker, no chain goes on from an instant that is yet to come."""
    since_us = workers.c.since_us
    by_us = case((since_us + jumped_us > now_us, now_us - since_us), else_=jumped_us)
    connection.execute(
        update(workers)
        .where(workers.c.ended_us.is_(None))
        .values(spawned_us=workers.c.spawned_us + by_us, since_us=since_us + by_us)
    )


def spent(connection: Connection, **equals: str) -> Spend:
    """The sum of the lines where each named column equals its value."""
    query = select(func.coalesce(func.sum(cost_lines.c.nano), 0), func.coalesce(func.sum(cost_lines.c.held_us), 0))
    for column, value in equals.items():
        query = query.where(cost_lines.c[column] == value)
    nano, held_us = connection.execute(query).one()
    return Spend(nano=int(nano), held_s=int(held_us) / 1e6)


def spent_by_task(connection: Connection, job_id: str) -> dict[str, Spend]:
    rows = connection.execute(
        select(cost_lines.c.task_id, func.sum(cost_lines.c.nano), func.sum(cost_lines.c.held_us))
        .where(cost_lines.c.job_id == job_id)
        .group_by(cost_lines.c.task_id)
    )
    return {task: Spend(nano=int(nano), held_s=int(held) / 1e6) for task, nano, held in rows}


def spent_on(connection: Connection, task_ids: Sequence[str]) -> dict[str, Spend]:
    """Of these tasks, over all their attempts."""
    rows = connection.execute(SPENT_ON, {"tasks": padded(task_ids)}) if task_ids else ()
    return {task: Spend(nano=int(nano), held_s=int(held) / 1e6) for task, nano, held in rows}


def spent_for(connection: Connection, attempt_id: str) -> Spend:
    """What an attempt that committed took: its work, and that of those whose checkpoints it went on from."""
    nano, held_us = connection.execute(SPENT_FOR, {"attempt": attempt_id}).one()
    return Spend(nano=int(nano), held_s=int(held_us) / 1e6)


def unbalanced_workers(connection: Connection) -> list[str]:
    """Workers whose lines do not sum to held time x rate, to the nano-dollar. Empty when the ledger balances."""
    wrong = []
    for worker in connection.execute(select(workers)):
        booked = connection.execute(
            select(func.coalesce(func.sum(cost_lines.c.nano), 0)).where(cost_lines.c.worker_id == worker.id)
        ).scalar_one()
        if int(booked) != cost_until(worker.nano_per_hour, worker.since_us - worker.spawned_us):
            wrong.append(worker.id)
    return wrong


def _line(worker: Row[Any], now_us: int, kind: str, nano: int, held_us: int, who: Any) -> dict[str, Any]:
    return {
        "at_us": now_us,
        "kind": kind,
        "tenant": who.tenant if who else FARM_TENANT,
        "show": who.show if who else FARM_SHOW,
        "job_id": who.job_id if who else None,
        "task_id": who.task_id if who else None,
        "attempt_id": who.id if who else None,
        "worker_id": worker.id,
        "from_us": worker.since_us,
        "to_us": now_us,
        "held_us": held_us,
        "nano": nano,
        "accelerator": worker.accelerator,
        "price_class": worker.price_class,
        "rate_card": worker.rate_card,
        "note": None,
    }
