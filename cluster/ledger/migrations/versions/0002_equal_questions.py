"""who asks the same is found by an index"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_tasks_content_key", "tasks", ["content_key", "state"])


def downgrade() -> None:
    op.drop_index("ix_tasks_content_key", "tasks")
