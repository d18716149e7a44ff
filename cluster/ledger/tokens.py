"""Tokens of those who chat, by key, show, model, price class and minute: what was read and what was made.

Each process that answers (a source) writes its own totals of a minute, never increments: writing them again after a
commit of which nobody heard changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, and_, func, insert, select, update

from cluster.ledger.keys import MINUTE_US, charge_tokens
from cluster.ledger.schema import token_minutes

COUNTS = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Meter:
    """What is counted together."""

    key_id: str
    tenant: str
    show: str
    model: str
    price_class: str
    minute_us: int  # when it began


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Of one meter. `cached_tokens` are those of the prompts that were known from earlier questions."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in COUNTS})

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Minute:
    minute_us: int
    rows: tuple[tuple[Meter, Counts], ...]


def minute_of(now_us: int) -> int:
    return now_us - now_us % MINUTE_US


def book(connection: Connection, source: str, totals: Sequence[tuple[Meter, Counts]], *, now_us: int) -> None:
    """Totals only grow: an older one than the row's changes nothing. What is new is charged to the key's limit."""
    for meter, counts in totals:
        row = {**asdict(meter), "source": source}
        where = and_(*(token_minutes.c[name] == value for name, value in row.items() if name != "tenant"))
        columns = [token_minutes.c[name] for name in COUNTS]
        kept = connection.execute(select(*columns).where(where)).one_or_none()
        before = Counts() if kept is None else Counts(**kept._mapping)
        if counts.requests < before.requests:
            continue
        if kept is None:
            connection.execute(insert(token_minutes).values(**row, **asdict(counts)))
        elif counts != before:
            connection.execute(update(token_minutes).where(where).values(**asdict(counts)))
        charge_tokens(connection, meter.key_id, counts.total_tokens - before.total_tokens, now_us=now_us)


def minutes(
    connection: Connection, *, tenant: str, show: str | None, since_us: int, until_us: int, limit: int
) -> list[Minute]:
    """Those in which anything was asked, oldest first; `until_us` is not part of it."""
    here = [
        token_minutes.c.tenant == tenant,
        token_minutes.c.minute_us >= since_us,
        token_minutes.c.minute_us < until_us,
        *([] if show is None else [token_minutes.c.show == show]),
    ]
    page = select(token_minutes.c.minute_us).where(*here).distinct().order_by(token_minutes.c.minute_us).limit(limit)
    found = connection.execute(page).scalars().all()
    if not found:
        return []
    by = [token_minutes.c[field.name] for field in fields(Meter)]
    sums = (
        select(*by, *(func.sum(token_minutes.c[name]).label(name) for name in COUNTS))
        .where(*here, token_minutes.c.minute_us <= found[-1])
        .group_by(*by)
        .order_by(token_minutes.c.minute_us, *(column for column in by if column.name != "minute_us"))
    )
    rows = [_row(dict(row._mapping)) for row in connection.execute(sums)]
    return [
        Minute(minute_us=minute_us, rows=tuple(together))
        for minute_us, together in groupby(rows, key=lambda row: row[0].minute_us)
    ]


def _row(columns: dict[str, Any]) -> tuple[Meter, Counts]:
    counts = Counts(**{name: int(columns.pop(name)) for name in COUNTS})
    return Meter(**columns), counts
