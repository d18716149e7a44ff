"""Which jobs, tasks, workers and API keys a part of an id names."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, or_, select

from cluster.ledger.schema import api_keys, jobs, tasks, workers


def like(
    connection: Connection, column: ColumnElement[str], part: str, *, prefix: str = "", most: int = 8
) -> list[str]:
    """Ids that begin with `part` (after `prefix` too) or end with it; one that is just `part` alone."""
    exact = connection.execute(select(column).where(column == part)).scalar_one_or_none()
    if exact is not None:
        return [exact]
    starts = or_(column.startswith(part, autoescape=True), column.startswith(prefix + part, autoescape=True))
    found = select(column).where(or_(starts, column.endswith(part, autoescape=True))).order_by(column).limit(most)
    return list(connection.execute(found).scalars())


def job_ids(connection: Connection, part: str) -> list[str]:
    return like(connection, jobs.c.id, part, prefix="job_")


def task_ids(connection: Connection, part: str) -> list[str]:
    return like(connection, tasks.c.id, part, prefix="task_")


def worker_ids(connection: Connection, part: str) -> list[str]:
    """FLEET/END is understood too: so lists of workers write them."""
    fleet, slash, end = part.partition("/")
    if not slash:
        return like(connection, workers.c.id, part)
    both = and_(workers.c.id.startswith(f"{fleet}/", autoescape=True), workers.c.id.endswith(end, autoescape=True))
    exact = like(connection, workers.c.id, part)
    return exact or list(connection.execute(select(workers.c.id).where(both).order_by(workers.c.id).limit(8)).scalars())


def api_key_ids(connection: Connection, part: str) -> list[str]:
    return like(connection, api_keys.c.id, part, prefix="key_")


def keys_of(connection: Connection, job_id: str) -> list[RowMapping]:
    """(key, id) of each task of a job."""
    query = select(tasks.c.key, tasks.c.id).where(tasks.c.job_id == job_id).order_by(tasks.c.ordinal)
    return [row._mapping for row in connection.execute(query)]
