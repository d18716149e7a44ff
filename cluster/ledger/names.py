"""Which jobs, tasks, workers and API keys a part of an id names."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, or_, select

from cluster.errors import NotFound
from cluster.ledger.outcomes import Sight
from cluster.ledger.schema import api_keys, jobs, tasks, workers


def like(
    connection: Connection,
    column: ColumnElement[str],
    part: str,
    *among: ColumnElement[bool],
    prefix: str = "",
    most: int = 8,
) -> list[str]:
    """Ids that begin with `part` (after `prefix` too) or end with it; one that is just `part` alone."""
    exact = connection.execute(select(column).where(column == part, *among)).scalar_one_or_none()
    if exact is not None:
        return [exact]
    starts = or_(column.startswith(part, autoescape=True), column.startswith(prefix + part, autoescape=True))
    fits = or_(starts, column.endswith(part, autoescape=True))
    return list(connection.execute(select(column).where(fits, *among).order_by(column).limit(most)).scalars())


def job_ids(connection: Connection, part: str, sight: Sight) -> list[str]:
    return like(connection, jobs.c.id, part, sight.covers(), prefix="job_")


def task_ids(connection: Connection, part: str, sight: Sight) -> list[str]:
    return like(connection, tasks.c.id, part, tasks.c.job_id == jobs.c.id, sight.covers(), prefix="task_")


def task(connection: Connection, task_id: str, sight: Sight) -> RowMapping:
    """Its id, job_id and key. Raises NotFound."""
    query = select(tasks.c.id, tasks.c.job_id, tasks.c.key).where(tasks.c.id == task_id)
    row = connection.execute(query.where(tasks.c.job_id == jobs.c.id, sight.covers())).one_or_none()
    if row is None:
        raise NotFound("no such task", remedy="`farm tasks JOB` lists them")
    return row._mapping


def worker_ids(connection: Connection, part: str) -> list[str]:
    """FLEET/END is understood too: so lists of workers write them."""
    fleet, slash, end = part.partition("/")
    if not slash:
        return like(connection, workers.c.id, part)
    both = and_(workers.c.id.startswith(f"{fleet}/", autoescape=True), workers.c.id.endswith(end, autoescape=True))
    exact = like(connection, workers.c.id, part)
    return exact or list(connection.execute(select(workers.c.id).where(both).order_by(workers.c.id).limit(8)).scalars())


def api_key_ids(connection: Connection, part: str, *, tenant: str | None = None, show: str | None = None) -> list[str]:
    """Of one tenant, and of one show, if they are named."""
    bounds = ((api_keys.c.tenant, tenant), (api_keys.c.show, show))
    among = (column == value for column, value in bounds if value is not None)
    return like(connection, api_keys.c.id, part, *among, prefix="key_")


def keys_of(connection: Connection, job_id: str) -> list[RowMapping]:
    """(key, id) of each task of a job."""
    query = select(tasks.c.key, tasks.c.id).where(tasks.c.job_id == job_id).order_by(tasks.c.ordinal)
    return [row._mapping for row in connection.execute(query)]


def keys_by_id(connection: Connection, task_ids: Collection[str]) -> dict[str, str]:
    """Of at most a page of tasks."""
    query = select(tasks.c.id, tasks.c.key).where(tasks.c.id.in_(list(task_ids)))
    return {row.id: row.key for row in connection.execute(query)}
