"""films with their revisions, and gates before which a take waits for a person"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "films",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("show", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("deleted_us", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_films"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_films_job_id"),
    )
    op.create_index("ix_films_tenant_created", "films", ["tenant", "created_us"])
    op.create_table(
        "revisions",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("film_id", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_revisions"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_revisions_job_id"),
        sa.ForeignKeyConstraint(["film_id"], ["films.id"], name="fk_revisions_film_id"),
        sa.UniqueConstraint("film_id", "number", name="uq_revisions_film_id_number"),
    )
    op.add_column("tasks", sa.Column("gate", sa.String(64)))
    op.add_column("takes", sa.Column("approved_us", sa.BigInteger()))


def downgrade() -> None:
    op.drop_column("takes", "approved_us")
    op.drop_column("tasks", "gate")
    op.drop_table("revisions")
    op.drop_index("ix_films_tenant_created", "films")
    op.drop_table("films")
