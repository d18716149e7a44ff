"""cost lines of tokens, storage and egress, and the meters that they balance against"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

BIG = sa.BigInteger()


def upgrade() -> None:
    with op.batch_alter_table("cost_lines", schema=None) as batch_op:
        batch_op.alter_column("worker_id", existing_type=sa.String(128), nullable=True)
        batch_op.alter_column("accelerator", existing_type=sa.String(64), nullable=True)
        batch_op.add_column(sa.Column("quantity", BIG))
        batch_op.add_column(sa.Column("unit", sa.String(32)))
        batch_op.add_column(sa.Column("item", sa.String(32)))
        batch_op.add_column(sa.Column("model", sa.String(128)))
        batch_op.add_column(sa.Column("price_nano", BIG))
    op.create_index("ix_cost_lines_tenant_at", "cost_lines", ["tenant", "at_us"])
    metered = sa.text("worker_id IS NULL")
    op.create_index("ix_cost_lines_metered", "cost_lines", ["kind"], sqlite_where=metered, postgresql_where=metered)
    op.add_column("assets", sa.Column("show", sa.String(64), nullable=False, server_default=sa.text("'default'")))
    for what in ("prompt", "completion"):
        column = sa.Column(f"billed_{what}_tokens", BIG, nullable=False, server_default=sa.text("0"))
        op.add_column("token_minutes", column)
    unbilled = sa.text("prompt_tokens > billed_prompt_tokens OR completion_tokens > billed_completion_tokens")
    op.create_index(
        "ix_token_minutes_unbilled", "token_minutes", ["minute_us"], sqlite_where=unbilled, postgresql_where=unbilled
    )
    op.create_table(
        "egress_minutes",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("show", sa.String(64), nullable=False),
        sa.Column("minute_us", BIG, autoincrement=False, nullable=False),
        sa.Column("source", sa.String(40), nullable=False),
        sa.Column("num_bytes", BIG, nullable=False),
        sa.Column("billed_bytes", BIG, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("tenant", "show", "minute_us", "source", name="pk_egress_minutes"),
    )
    unbilled = sa.text("num_bytes > billed_bytes")
    op.create_index(
        "ix_egress_minutes_unbilled", "egress_minutes", ["minute_us"], sqlite_where=unbilled, postgresql_where=unbilled
    )
    op.create_table(
        "storage_meters",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("show", sa.String(64), nullable=False),
        sa.Column("since_us", BIG, nullable=False),
        sa.Column("mib_seconds", BIG, nullable=False),
        sa.Column("rest", BIG, nullable=False),
        sa.Column("billed_mib_seconds", BIG, nullable=False),
        sa.Column("billed_us", BIG, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "show", name="pk_storage_meters"),
    )


def downgrade() -> None:
    op.drop_table("storage_meters")
    op.drop_table("egress_minutes")
    op.drop_index("ix_token_minutes_unbilled", "token_minutes")
    op.drop_column("token_minutes", "billed_completion_tokens")
    op.drop_column("token_minutes", "billed_prompt_tokens")
    op.drop_column("assets", "show")
    op.drop_index("ix_cost_lines_metered", "cost_lines")
    op.drop_index("ix_cost_lines_tenant_at", "cost_lines")
    op.execute("DELETE FROM cost_lines WHERE worker_id IS NULL")
    with op.batch_alter_table("cost_lines", schema=None) as batch_op:
        for name in ("price_nano", "model", "item", "unit", "quantity"):
            batch_op.drop_column(name)
        batch_op.alter_column("accelerator", existing_type=sa.String(64), nullable=False)
        batch_op.alter_column("worker_id", existing_type=sa.String(128), nullable=False)
