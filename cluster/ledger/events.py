"""The numbered event log: one row per state change, written in the transaction that makes the change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from cluster.ledger.schema import events, jobs
from cluster.states import State


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


def append(
    connection: Connection,
    job_id: str,
    *,
    at_us: int,
    kind: str,
    task_id: str | None = None,
    attempt_id: str | None = None,
    epoch: int | None = None,
    from_state: State | None = None,
    to_state: State | None = None,
    data: dict[str, Any] | None = None,
) -> int:
    """Writes the job's next event, moves its counters of states along, and returns the event's number."""
    counters: dict[str, Any] = {"seq": jobs.c.seq + 1}
    if from_state != to_state:
        if from_state is not None:
            counters[f"n_{from_state.value}"] = jobs.c[f"n_{from_state.value}"] - 1
        if to_state is not None:
            counters[f"n_{to_state.value}"] = jobs.c[f"n_{to_state.value}"] + 1
    seq = connection.execute(update(jobs).where(jobs.c.id == job_id).values(counters).returning(jobs.c.seq)).scalar_one()
    connection.execute(
        insert(events).values(
            job_id=job_id,
            seq=seq,
            at_us=at_us,
            kind=kind,
            task_id=task_id,
            attempt_id=attempt_id,
            epoch=epoch,
            from_state=from_state.value if from_state else None,
            to_state=to_state.value if to_state else None,
            data=data or {},
        )
    )
    return int(seq)


def after(connection: Connection, job_id: str, seq: int, limit: int) -> list[Event]:
    rows = connection.execute(
        select(events).where(events.c.job_id == job_id, events.c.seq > seq).order_by(events.c.seq).limit(limit)
    )
    return [_event(row) for row in rows]


def _event(row: Row[Any]) -> Event:
    return Event(**row._mapping)
