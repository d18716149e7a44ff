"""tokens of those who chat, by the minute, and the limit of a key"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "token_minutes",
        sa.Column("key_id", sa.String(40), nullable=False),
        sa.Column("show", sa.String(64), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("price_class", sa.String(32), nullable=False),
        sa.Column("minute_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "key_id", "show", "model", "price_class", "minute_us", "source", name="pk_token_minutes"
        ),
    )
    op.create_index("ix_token_minutes_tenant", "token_minutes", ["tenant", "minute_us"])
    op.add_column("api_keys", sa.Column("tokens_per_minute", sa.Integer()))
    op.add_column(
        "api_keys", sa.Column("tokens_paced_us", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
    )


def downgrade() -> None:
    op.drop_column("api_keys", "tokens_paced_us")
    op.drop_column("api_keys", "tokens_per_minute")
    op.drop_index("ix_token_minutes_tenant", "token_minutes")
    op.drop_table("token_minutes")
