"""What budgets ask for as time goes by: a new month, work that may go on, work that is to be canceled."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, bindparam, select

from cluster.budgets import REASON, Action
from cluster.ledger import budget_recount, budgets, moves, operations
from cluster.ledger.schema import budgets as table
from cluster.ledger.schema import jobs, tasks
from cluster.states import Move, State

ALL = select(table).order_by(table.c.id)
MOST = 200
"""Tasks, or jobs, of one call: the next one goes on."""
STOPPED = (
    select(tasks)
    .where(tasks.c.state == State.SUSPENDED.value, tasks.c.reason == REASON, tasks.c.job_id == jobs.c.id)
    .where(jobs.c.tenant.in_(bindparam("tenants", expanding=True)))
    .order_by(tasks.c.changed_us, tasks.c.id)
    .limit(MOST)
)


def tend(connection: Connection, *, now_us: int) -> int | None:
    """One look at all budgets; None if there are none. Returns how many tasks may go on, or were canceled."""
    rows = connection.execute(ALL).all()
    if not rows:
        return None
    rows = [budgets.turn(connection, row, now_us=now_us) for row in rows]
    canceled = sum(_cancel(connection, row, now_us=now_us) for row in rows if row.acting == Action.CANCEL.value)
    return canceled + wake(connection, sorted({row.tenant for row in rows}), now_us=now_us)


def wake(connection: Connection, tenants: list[str], *, now_us: int) -> int:
    """What was stopped for want of money goes on once each budget above it has some and lets work start."""
    stopped = connection.execute(STOPPED, {"tenants": tenants}).all()
    till = budgets.Till(connection, sorted({task.job_id for task in stopped}), now_us=now_us)
    batch, count = moves.Batch(connection, now_us=now_us), 0
    for task in stopped:
        if all(not purse.blocks and purse.room_nano > 0 for purse in till.purses(task.job_id)):
            how = Move.RELEASE if task.unmet == 0 else Move.RELEASE_PENDING
            batch.apply(task, how, reason=REASON, data={"by": REASON})
            count += 1
    batch.close()
    return count


def _cancel(connection: Connection, row: Row[Any], *, now_us: int) -> int:
    of = budget_recount.jobs_under(row)
    still = select(jobs.c.id).where(of, jobs.c.ended_us.is_(None), jobs.c.target == "run").limit(MOST)
    return sum(operations.cancel_job(connection, i, now_us=now_us) for i in connection.execute(still).scalars().all())
