"""Which attempts are long over: what a store still holds of them may go."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from cluster.ledger import retention
from cluster.ledger.schema import attempts, jobs


def tenants(connection: Connection) -> list[str]:
    """All that ever had a job."""
    return list(connection.execute(select(jobs.c.tenant).distinct().order_by(jobs.c.tenant)).scalars())


def over(connection: Connection, attempt_ids: Sequence[str], *, before_us: int) -> dict[str, bool]:
    """Those of the attempts that ended before then, by id, and whether each has a receipt that is needed."""
    query = select(attempts.c.id, attempts.c.receipt_key, jobs.c.released_us).join(jobs, jobs.c.id == attempts.c.job_id)
    rows = connection.execute(query.where(attempts.c.id.in_(attempt_ids), attempts.c.ended_us < before_us)).all()
    released = [row.receipt_key for row in rows if row.receipt_key is not None and row.released_us is not None]
    unused = {*released} - retention.receipts_in_use(connection, released)
    return {row.id: row.receipt_key is not None and row.receipt_key not in unused for row in rows}
