"""an index of the attempts that run: a dispatcher reads them every second, and all that ever ran are many more"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    running = sa.text("state = 'running'")
    op.create_index("ix_attempts_running", "attempts", ["task_id"], sqlite_where=running, postgresql_where=running)


def downgrade() -> None:
    op.drop_index("ix_attempts_running", "attempts")
