"""workers have a log of their own, and moves say how an attempt ended, so that a checker needs nothing but logs"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

EVENTS = sa.table(
    "events", *(sa.column(n) for n in ("job_id", "seq", "attempt_id", "from_state")), sa.column("data", sa.JSON())
)
ATTEMPTS = sa.table("attempts", sa.column("id"), sa.column("state"))


def upgrade() -> None:
    op.create_table(
        "worker_events",
        sa.Column("worker_id", sa.String(128), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(48), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name="fk_worker_events_worker_id"),
        sa.PrimaryKeyConstraint("worker_id", "seq", name="pk_worker_events"),
    )
    workers = sa.table(
        "workers",
        *(sa.column(n) for n in ("id", "spawned_us", "ended_us", "nano_per_hour", "num_accelerators")),
    )
    log = sa.table(
        "worker_events", *(sa.column(n) for n in ("worker_id", "seq", "at_us", "kind")), sa.column("data", sa.JSON())
    )
    connection = op.get_bind()
    for w in connection.execute(sa.select(workers)).all():
        data = {"spawned_us": w.spawned_us, "nano_per_hour": w.nano_per_hour, "num_accelerators": w.num_accelerators}
        first = {"worker_id": w.id, "seq": 1, "at_us": w.spawned_us, "kind": "worker.join", "data": data}
        connection.execute(sa.insert(log).values(**first))
        if w.ended_us is not None:
            last = {"worker_id": w.id, "seq": 2, "at_us": w.ended_us, "kind": "worker.leave", "data": {}}
            connection.execute(sa.insert(log).values(**last))
    _say_how_attempts_ended(connection)


def downgrade() -> None:
    op.drop_table("worker_events")
    connection = op.get_bind()
    for row in connection.execute(sa.select(EVENTS).where(EVENTS.c.from_state == "running")).all():
        _rewrite(connection, row, {k: v for k, v in row.data.items() if k != "attempt"})


def _say_how_attempts_ended(connection: sa.Connection) -> None:
    ends = connection.execute(
        sa.select(EVENTS, ATTEMPTS.c.state)
        .join(ATTEMPTS, ATTEMPTS.c.id == EVENTS.c.attempt_id)
        .where(EVENTS.c.from_state == "running")
    )
    for row in ends.all():
        _rewrite(connection, row, row.data | {"attempt": row.state})


def _rewrite(connection: sa.Connection, row: sa.Row[Any], data: dict[str, Any]) -> None:
    here = sa.and_(EVENTS.c.job_id == row.job_id, EVENTS.c.seq == row.seq)
    connection.execute(sa.update(EVENTS).where(here).values(data=data))
