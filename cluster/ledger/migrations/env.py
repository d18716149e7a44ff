"""Alembic's entry: migrations run on the connection that `Database.migrate` holds."""

from __future__ import annotations

from alembic import context

from cluster.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
