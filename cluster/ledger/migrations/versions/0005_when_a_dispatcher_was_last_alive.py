"""a dispatcher says now and then that it is alive, so that nobody pays for the time after its farm was killed"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("dispatcher", sa.Column("alive_us", sa.BigInteger()))


def downgrade() -> None:
    with op.batch_alter_table("dispatcher") as dispatcher:
        dispatcher.drop_column("alive_us")
