"""workers are taken out of service, by a person or for a reason"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("drain_us", sa.BigInteger()))
    op.add_column("workers", sa.Column("drain_reason", sa.Text()))


def downgrade() -> None:
    with op.batch_alter_table("workers") as workers:
        workers.drop_column("drain_reason")
        workers.drop_column("drain_us")
