"""The numbered event log: one row per state change, written in the transaction that makes the change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from cluster.ledger.database import padded
from cluster.ledger.schema import events, jobs, worker_events
from cluster.states import State

INSERT = insert(events)


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    """An event that has no number yet."""

    kind: str
    task_id: str | None = None
    attempt_id: str | None = None
    epoch: int | None = None
    from_state: State | None = None
    to_state: State | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    job_id: str
    seq: int  # numbered within the job, without gaps
    at_us: int
    kind: str
    task_id: str | None
    attempt_id: str | None
    epoch: int | None
    from_state: str | None
    to_state: str | None
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerEvent:
    worker_id: str
    seq: int  # numbered within the worker, without gaps
    at_us: int
    kind: str  # worker.join | leave | drain | clock
    data: dict[str, Any]


def append_of_worker(
    connection: Connection, worker_id: str, *, at_us: int, kind: str, data: dict[str, Any] | None = None
) -> None:
    """Writes one event of a worker: it is here, is gone, drains, the clock that bills its time was set, or a change of
    who has its time came to the ledger after a later one, and counts from that one on."""
    newest = select(func.coalesce(func.max(worker_events.c.seq), 0)).where(worker_events.c.worker_id == worker_id)
    row = {"worker_id": worker_id, "seq": connection.execute(newest).scalar_one() + 1, "at_us": at_us, "kind": kind}
    connection.execute(insert(worker_events).values(**row, data=data or {}))


def append(
    connection: Connection,
    job_id: str,
    *,
    at_us: int,
    kind: str,
    task_id: str | None = None,
    attempt_id: str | None = None,
    epoch: int | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Writes one event of a job that moves no task."""
    news = News(kind=kind, task_id=task_id, attempt_id=attempt_id, epoch=epoch, data=data or {})
    append_all(connection, {job_id: [news]}, at_us=at_us)


def append_all(connection: Connection, news: Mapping[str, Sequence[News]], *, at_us: int) -> list[Row[Any]]:
    """Numbers and writes events of some jobs, moves their counters along, and returns their rows.

    PostgreSQL keeps every version of a row that one transaction makes and walks all of them at each change: so the row
    of a job is changed once, not once for each of its tasks. Jobs to which the same happened share a statement.
    """
    alike: dict[tuple[int, tuple[tuple[str, int], ...]], list[str]] = {}
    for job_id, some in news.items():
        moved: Counter[str] = Counter()
        for one in some:
            if one.from_state is not None:
                moved[one.from_state.value] -= 1
            if one.to_state is not None:
                moved[one.to_state.value] += 1
        changed = tuple(sorted((state, n) for state, n in moved.items() if n))
        alike.setdefault((len(some), changed), []).append(job_id)
    rows: list[Row[Any]] = []
    for (num, changed), job_ids in alike.items():
        more = {f"more_{state}": n for state, n in changed}
        count = _count(tuple(state for state, _ in changed))
        rows += connection.execute(count, {"jobs": padded(job_ids), "num": num, **more})
    connection.execute(
        INSERT,
        [
            {
                "job_id": job.id,
                "seq": seq,
                "at_us": at_us,
                "kind": one.kind,
                "task_id": one.task_id,
                "attempt_id": one.attempt_id,
                "epoch": one.epoch,
                "from_state": one.from_state.value if one.from_state else None,
                "to_state": one.to_state.value if one.to_state else None,
                "data": one.data,
            }
            for job in rows
            for seq, one in enumerate(news[job.id], job.seq - len(news[job.id]) + 1)
        ],
    )
    return rows


@cache
def _count(states: tuple[str, ...]) -> ReturningUpdate[Any]:
    """The next numbers of jobs, and their counters of these states moved along; built once for each set of states."""
    counters = {f"n_{state}": jobs.c[f"n_{state}"] + bindparam(f"more_{state}") for state in states}
    return (
        update(jobs)
        .where(jobs.c.id.in_(bindparam("jobs", expanding=True)))
        .values({"seq": jobs.c.seq + bindparam("num"), **counters})
        .returning(*jobs.c)
    )


def after(connection: Connection, job_id: str, seq: int, limit: int) -> list[Event]:
    rows = connection.execute(
        select(events).where(events.c.job_id == job_id, events.c.seq > seq).order_by(events.c.seq).limit(limit)
    )
    return [_event(row) for row in rows]


def _event(row: Row[Any]) -> Event:
    return Event(**row._mapping)
