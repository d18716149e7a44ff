"""what cache hits saved is found without reading all events"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    cached = sa.text("kind = 'task.cached'")
    op.create_index("ix_events_cached", "events", ["at_us"], sqlite_where=cached, postgresql_where=cached)


def downgrade() -> None:
    op.drop_index("ix_events_cached", "events")
