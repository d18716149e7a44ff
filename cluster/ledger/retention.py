"""What is kept no longer: the files of jobs that failed or were deleted long ago, and the story of jobs long over."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, and_, delete, or_, select, update

from cluster.ledger import events
from cluster.ledger.schema import jobs, takes, tasks
from cluster.ledger.views import JOB_STATE
from cluster.states import JobState

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
