"""jobs that are over, and those that are not, are counted without reading their rows"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None
OUTCOME = ["n_pending", "n_stale", "n_canceled", "n_dead", "n_not_compatible"]


def upgrade() -> None:
    over, still = sa.text("ended_us IS NOT NULL"), sa.text("ended_us IS NULL")
    op.create_index("ix_jobs_over", "jobs", ["recipe", *OUTCOME], sqlite_where=over, postgresql_where=over)
    op.create_index("ix_jobs_open", "jobs", ["recipe"], sqlite_where=still, postgresql_where=still)


def downgrade() -> None:
    op.drop_index("ix_jobs_open", "jobs")
    op.drop_index("ix_jobs_over", "jobs")
