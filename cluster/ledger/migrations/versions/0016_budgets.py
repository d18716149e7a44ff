"""budgets of tenants, shows and films, what attempts reserve of them, and what jobs were estimated to cost"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("cap_nano", sa.BigInteger(), nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("thresholds", sa.JSON(), nullable=False),
        sa.Column("spent_nano", sa.BigInteger(), nullable=False),
        sa.Column("reserved_nano", sa.BigInteger(), nullable=False),
        sa.Column("fired", sa.JSON(), nullable=False),
        sa.Column("acting", sa.String(16)),
        sa.Column("from_us", sa.BigInteger(), nullable=False),
        sa.Column("until_us", sa.BigInteger()),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("changed_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_budgets"),
        sa.UniqueConstraint("tenant", "scope", "subject", name="uq_budgets_tenant_scope_subject"),
    )
    op.create_table(
        "budget_events",
        sa.Column("budget_id", sa.String(40), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(48), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("budget_id", "seq", name="pk_budget_events"),
    )
    op.add_column("attempts", sa.Column("reserved_nano", sa.BigInteger()))
    op.add_column("jobs", sa.Column("estimate", sa.JSON()))


def downgrade() -> None:
    op.drop_column("jobs", "estimate")
    op.drop_column("attempts", "reserved_nano")
    op.drop_table("budget_events")
    op.drop_table("budgets")
