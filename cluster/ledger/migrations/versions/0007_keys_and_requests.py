"""keys of those who ask over HTTP, and what of their requests is kept with a job"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("show", sa.String(64)),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("old_hash", sa.String(64)),
        sa.Column("old_until_us", sa.BigInteger()),
        sa.Column("requests_per_minute", sa.Integer()),
        sa.Column("in_flight_s", sa.Float()),
        sa.Column("paced_us", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("used_us", sa.BigInteger()),
        sa.Column("rotated_us", sa.BigInteger()),
        sa.Column("revoked_us", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("hash", name="uq_api_keys_hash"),
        sa.UniqueConstraint("old_hash", name="uq_api_keys_old_hash"),
    )
    op.add_column("jobs", sa.Column("request", sa.JSON(), nullable=False, server_default=sa.text("'{}'")))
    op.add_column("jobs", sa.Column("deleted_us", sa.BigInteger()))
    op.create_index("ix_jobs_tenant_ended", "jobs", ["tenant", "ended_us"])
    op.create_index("ix_jobs_tenant_fingerprint", "jobs", ["tenant", "fingerprint", "created_us"])


def downgrade() -> None:
    op.drop_index("ix_jobs_tenant_fingerprint", "jobs")
    op.drop_index("ix_jobs_tenant_ended", "jobs")
    op.drop_column("jobs", "deleted_us")
    op.drop_column("jobs", "request")
    op.drop_table("api_keys")
