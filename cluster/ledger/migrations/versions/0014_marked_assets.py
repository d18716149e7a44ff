"""assets that nobody needs are marked before they are removed, and jobs whose files are nobody's"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("released_us", sa.BigInteger()))
    op.add_column("assets", sa.Column("used_us", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.add_column("assets", sa.Column("marked_us", sa.BigInteger()))
    op.add_column("assets", sa.Column("swept_us", sa.BigInteger()))


def downgrade() -> None:
    for name in ("swept_us", "marked_us", "used_us"):
        op.drop_column("assets", name)
    op.drop_column("jobs", "released_us")
