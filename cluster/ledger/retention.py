"""What is kept no longer: the files of jobs that failed or were deleted long ago, and the story of jobs long over."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, null, or_, select, update

from cluster.errors import DamagedLedger
from cluster.ledger import events
from cluster.ledger.replay import SUMMARY, Replay
from cluster.ledger.schema import attempts, jobs, takes, tasks
from cluster.ledger.schema import events as events_table
from cluster.ledger.views import JOB_STATE
from cluster.states import AttemptState, JobState

KEPT_EVENTS = ("task.cached",)
"""Of a bill: they stay as long as its lines."""
AT_ONCE = 500

LOST = (JobState.FAILED.value, JobState.CANCELED.value)


def _expired(before_us: int) -> ColumnElement[bool]:
    failed = and_(jobs.c.ended_us < before_us, JOB_STATE.in_(LOST))
    deleted = and_(jobs.c.ended_us.is_not(None), jobs.c.deleted_us < before_us)
    return and_(jobs.c.released_us.is_(None), or_(failed, deleted))


def expired(connection: Connection, tenant: str, before_us: int) -> list[str]:
    """Jobs that failed, were canceled or were deleted before then, and whose files are still theirs."""
    query = select(jobs.c.id).where(jobs.c.tenant == tenant, _expired(before_us)).order_by(jobs.c.id)
    return list(connection.execute(query).scalars())


def release(connection: Connection, job_id: str, *, before_us: int, now_us: int) -> bool:
    """Its files are nobody's from now on, and the takes that only it used answer nothing. False if it is open again."""
    done = connection.execute(
        update(jobs).where(jobs.c.id == job_id, _expired(before_us)).values(released_us=now_us).returning(jobs.c.tenant)
    ).one_or_none()
    if done is None:
        return False
    for key in doomed_takes(connection, done.tenant, [job_id]):
        connection.execute(delete(takes).where(takes.c.tenant == done.tenant, takes.c.content_key == key))
    events.append(connection, job_id, at_us=now_us, kind="job.files_released")
    return True


def doomed_takes(connection: Connection, tenant: str, job_ids: Collection[str]) -> set[str]:
    """Content keys of the takes that these jobs use, and no other job that has its files."""
    other, its_job = tasks.alias("other"), jobs.alias("other_job")
    used = (
        select(takes.c.content_key)
        .join(tasks, and_(tasks.c.content_key == takes.c.content_key, tasks.c.attempt_id == takes.c.attempt_id))
        .where(takes.c.tenant == tenant, tasks.c.job_id.in_(list(job_ids)))
    )
    elsewhere = (
        select(other.c.content_key)
        .join(its_job, its_job.c.id == other.c.job_id)
        .where(
            other.c.content_key.in_(used),
            its_job.c.tenant == tenant,
            its_job.c.released_us.is_(None),
            its_job.c.id.not_in(list(job_ids)),
        )
    )
    return {*connection.execute(used).scalars()} - {*connection.execute(elsewhere).scalars()}


def receipts_in_use(connection: Connection, receipt_keys: Sequence[str]) -> set[str]:
    """Those of them that a take names, or a task of a job that has its files."""
    found = set[str]()
    for first in range(0, len(receipt_keys), 5_000):  # databases bound the parameters of a statement
        asked = receipt_keys[first : first + 5_000]
        of_tasks = select(tasks.c.receipt_key).join(jobs, jobs.c.id == tasks.c.job_id)
        of_tasks = of_tasks.where(jobs.c.released_us.is_(None), tasks.c.receipt_key.in_(asked))
        found |= {*connection.execute(select(takes.c.receipt_key).where(takes.c.receipt_key.in_(asked))).scalars()}
        found |= {*connection.execute(of_tasks).scalars()}
    return found


def unsummed(connection: Connection, before_us: int, *, tenant: str | None = None) -> list[str]:
    """Jobs that ended before then and whose events are all there: some of them."""
    first = and_(events_table.c.job_id == jobs.c.id, events_table.c.seq == 1, events_table.c.kind != SUMMARY)
    query = select(jobs.c.id).join(events_table, first).where(jobs.c.ended_us < before_us).limit(AT_ONCE)
    if tenant is not None:
        query = query.where(jobs.c.tenant == tenant)
    return list(connection.execute(query).scalars())


def sum_up(connection: Connection, job_id: str, *, before_us: int) -> bool:
    """One summary takes the place of the events of a job, for the checker to go on from; False if it is open again.

    Raises DamagedLedger for a log that convicts the farm: it is kept, as evidence.
    """
    ended_us = connection.execute(select(jobs.c.ended_us).where(jobs.c.id == job_id)).scalar_one_or_none()
    if ended_us is None or ended_us >= before_us:
        return False
    replay, log = Replay(), events.after(connection, job_id, 0, 1_000_000)
    if not log or log[0].kind == SUMMARY:
        return False
    for event in log:
        replay.take(event)
    if replay.broken:
        raise DamagedLedger(f"{job_id} is not summed up: {replay.broken[0]}", remedy="run `farm ledger check`")
    e = events_table.c
    whose: dict[str, Any] = {name: log[0].data[name] for name in ("tenant", "show") if name in log[0].data}
    data: dict[str, Any] = {"num_events": len(log), **whose, **replay.summary(job_id)}
    summed = {"kind": SUMMARY, "data": data, "at_us": log[-1].at_us, "task_id": None, "attempt_id": None}
    connection.execute(update(events_table).where(e.job_id == job_id, e.seq == 1).values(**summed))
    gone = and_(e.job_id == job_id, e.seq > 1, e.kind.not_in(KEPT_EVENTS))
    connection.execute(delete(events_table).where(gone))
    return True


def forget_attempts(connection: Connection, before_us: int) -> int:
    """Of attempts of jobs that ended before then goes what they said; their rows stay, as long as their cost lines.

    Some of them, the oldest first; returns how many jobs that was.
    """
    a = attempts.c
    left = and_(a.state != AttemptState.RUNNING.value, or_(a.facts.is_not(None), a.message.is_not(None)))
    query = select(jobs.c.id).where(jobs.c.ended_us < before_us, jobs.c.id.in_(select(a.job_id).where(left)))
    old = list(connection.execute(query.order_by(jobs.c.ended_us).limit(AT_ONCE)).scalars())
    blank_attempts(connection, old)
    return len(old)


def blank_attempts(connection: Connection, job_ids: Sequence[str]) -> None:
    """What attempts that are over said of themselves goes."""
    a = attempts.c
    over = and_(a.job_id.in_(list(job_ids)), a.state != AttemptState.RUNNING.value)
    connection.execute(update(attempts).where(over).values(facts=null(), message=null()))
