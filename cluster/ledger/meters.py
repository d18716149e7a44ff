"""What is counted beside held time: bytes kept, bytes that leave, tokens; and the cost lines of what was counted.

A meter counts first, and knows of how much there are lines; what it has counted more is billed later, by the hour. So a
price that is missing loses nothing, and a line says what was counted, at which price, and nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, bindparam, func, insert, or_, select, update

from cluster.clock import to_datetime
from cluster.errors import InvalidSettings
from cluster.ledger import budgets
from cluster.ledger.keys import MINUTE_US
from cluster.ledger.money import FARM_SHOW, FARM_TENANT
from cluster.ledger.schema import (
    UNBILLED_EGRESS,
    UNBILLED_TOKENS,
    assets,
    cost_lines,
    egress_minutes,
    storage_meters,
    token_minutes,
)
from cluster.rates import HOUR_US, Price, RateCard

MIB_SECOND = 1_000_000 << 20
"""In byte-microseconds."""
MOST_ROWS = 5_000
"""Of a meter, that one transaction bills."""
UNITS = {"storage": "MiB-seconds", "egress": "bytes", "prompt": "tokens", "completion": "tokens"}
NO_CLASS = "on-demand"
OWN = and_(storage_meters.c.tenant == FARM_TENANT, storage_meters.c.show == FARM_SHOW)


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaving:
    """What bytes that leave are counted by."""

    tenant: str
    show: str
    minute_us: int  # when it began


@dataclass(frozen=True, kw_only=True, slots=True)
class Billed:
    """What a look at the meters came to. `gaps`: what could not be billed, for it has no price; it will be."""

    num_lines: int = 0
    gaps: tuple[InvalidSettings, ...] = ()
    more: bool = False  # there is more to bill than fits one transaction


def book_egress(connection: Connection, source: str, totals: Sequence[tuple[Leaving, int]]) -> None:
    """Totals of `source` by minute, as of tokens: writing them again, or an older one, changes nothing."""
    for leaving, num_bytes in totals:
        row = {**asdict(leaving), "source": source}
        where = and_(*(egress_minutes.c[name] == value for name, value in row.items()))
        kept = connection.execute(select(egress_minutes.c.num_bytes).where(where)).scalar_one_or_none()
        if kept is None:
            connection.execute(insert(egress_minutes).values(**row, num_bytes=num_bytes))
        elif num_bytes > kept:
            connection.execute(update(egress_minutes).where(where).values(num_bytes=num_bytes))


def count_storage(connection: Connection, *, now_us: int) -> None:
    """Bytes times time since the last look, for each tenant and show. The first look only begins it.

    What is kept now was kept since the last look, or since it was made if that is later; what was deleted meanwhile is
    not counted for that while. Exact to the byte-microsecond, whose rest below a MiB-second is kept for the next look.
    """
    meters = {(row.tenant, row.show): row for row in connection.execute(select(storage_meters))}
    own = meters.get((FARM_TENANT, FARM_SHOW))
    if own is None:  # in no bill: it says since when is counted
        connection.execute(insert(storage_meters).values(**_new_meter(FARM_TENANT, FARM_SHOW, now_us)))
        return
    since_us = own.since_us
    if now_us <= since_us:
        return
    counted: dict[tuple[str, str], int] = defaultdict(int)
    whose = (assets.c.tenant, assets.c.show)
    here = assets.c.swept_us.is_(None)
    kept = select(*whose, func.sum(assets.c.size)).where(here, assets.c.created_us <= since_us).group_by(*whose)
    for tenant, show, num_bytes in connection.execute(kept):
        counted[tenant, show] += int(num_bytes) * (now_us - since_us)
    newer = select(*whose, assets.c.size, assets.c.created_us)
    for tenant, show, num_bytes, created_us in connection.execute(
        newer.where(here, assets.c.created_us > since_us, assets.c.created_us < now_us)
    ):
        counted[tenant, show] += num_bytes * (now_us - created_us)
    for whom, more in counted.items():
        if whom not in meters:
            connection.execute(insert(storage_meters).values(**_new_meter(*whom, since_us)))
        rest = more + (meters[whom].rest if whom in meters else 0)
        one = and_(storage_meters.c.tenant == whom[0], storage_meters.c.show == whom[1])
        grown = {"mib_seconds": storage_meters.c.mib_seconds + rest // MIB_SECOND, "rest": rest % MIB_SECOND}
        connection.execute(update(storage_meters).where(one).values(**grown))
    connection.execute(update(storage_meters).values(since_us=now_us))


def rebase(connection: Connection, jumped_us: int, *, now_us: int) -> None:
    """The wall clock was set: nothing was kept longer for it. A look that was made since has counted by the new one."""
    since_us = storage_counted_until(connection)
    if since_us is None or since_us + jumped_us > now_us:
        return
    meter, made_us = storage_meters.c, assets.c.created_us
    shifted = {"since_us": meter.since_us + jumped_us, "billed_us": meter.billed_us + jumped_us}
    connection.execute(update(storage_meters).values(**shifted))
    newer = and_(made_us > min(since_us, since_us + jumped_us), made_us <= now_us - jumped_us)
    connection.execute(update(assets).where(newer).values(created_us=made_us + jumped_us))


@dataclass(frozen=True, slots=True)
class Metered:
    """One meter, as lines are held against it."""

    tenant: str
    show: str
    item: str  # storage | egress | prompt | completion
    model: str | None = None
    price_class: str | None = None

    def __str__(self) -> str:
        of = " of ".join(filter(None, (self.item, self.model)))
        return f"{of} for {self.tenant}/{self.show}"


def read(connection: Connection) -> dict[Metered, tuple[int, int]]:
    """(counted, billed) of every meter, in the units of `UNITS`."""
    found: dict[Metered, tuple[int, int]] = {}
    t, e, s = token_minutes.c, egress_minutes.c, storage_meters.c
    whose = (t.tenant, t.show, t.model, t.price_class)
    for item in ("prompt", "completion"):
        sums = (func.sum(t[f"{item}_tokens"]), func.sum(t[f"billed_{item}_tokens"]))
        for *who, counted, billed in connection.execute(select(*whose, *sums).group_by(*whose)):
            tenant, show, model, price_class = who
            found[Metered(tenant, show, item, model, price_class)] = (int(counted), int(billed))
    left = select(e.tenant, e.show, func.sum(e.num_bytes), func.sum(e.billed_bytes)).group_by(e.tenant, e.show)
    for tenant, show, counted, billed in connection.execute(left):
        found[Metered(tenant, show, "egress")] = (int(counted), int(billed))
    for row in connection.execute(select(s.tenant, s.show, s.mib_seconds, s.billed_mib_seconds)):
        found[Metered(row.tenant, row.show, "storage")] = (row.mib_seconds, row.billed_mib_seconds)
    return found


def storage_counted_until(connection: Connection) -> int | None:
    found: int | None = connection.execute(select(storage_meters.c.since_us).where(OWN)).scalar_one_or_none()
    return found


def bill(connection: Connection, card: RateCard, *, now_us: int, until_us: int) -> Billed:
    """Books a line for what was counted until `until_us` and has none: one for each meter and hour."""
    biller = _Biller(card, now_us)
    more = [_bill_tokens(connection, biller, until_us), _bill_egress(connection, biller, until_us)]
    _bill_storage(connection, biller)
    if biller.lines:
        connection.execute(insert(cost_lines), biller.lines)
        by_show = Counter[tuple[str, str]]()
        for line in biller.lines:
            by_show[line["tenant"], line["show"]] += line["nano"]
        for (tenant, show), nano in sorted(by_show.items()):
            budgets.charge(connection, tenant, show, nano, now_us=now_us)
    return Billed(num_lines=len(biller.lines), gaps=tuple(biller.gaps.values()), more=any(more))


class _Biller:
    def __init__(self, card: RateCard, now_us: int) -> None:
        self.lines: list[dict[str, Any]] = []
        self.gaps: dict[str, InvalidSettings] = {}
        self._card, self._now_us = card, now_us

    def price(self, item: str, at_us: int, model: str | None = None) -> Price | None:
        """None, and a gap, if there is none."""
        try:
            return self._card.price(item, to_datetime(at_us), model=model)
        except InvalidSettings as gap:
            self.gaps.setdefault(gap.line(), gap)
            return None

    def book(self, kind: str, price: Price, quantity: int, from_us: int, to_us: int, **whose: str) -> None:
        self.lines.append(
            {
                "at_us": self._now_us,
                "kind": kind,
                "price_class": NO_CLASS,
                "item": price.item if kind == "tokens" else None,
                "model": None,
                **whose,
                "from_us": from_us,
                "to_us": to_us,
                "held_us": 0,
                "nano": price.of(quantity),
                "rate_card": price.card,
                "quantity": quantity,
                "unit": UNITS[price.item],
                "price_nano": price.nano,
            }
        )


def _bill_tokens(connection: Connection, biller: _Biller, until_us: int) -> bool:
    names = ("tenant", "show", "model", "price_class")
    items, model = ("prompt", "completion"), token_minutes.c.model
    rows = _oldest(connection, biller, token_minutes, UNBILLED_TOKENS, until_us, items, model)
    by_hour: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for row in rows:
        by_hour[(row.minute_us // HOUR_US, *(getattr(row, name) for name in names))].append(row)
    billed: list[Any] = []
    for (hour, *values), together in by_hour.items():
        whose, at_us = dict(zip(names, values, strict=True)), hour * HOUR_US
        prices = [biller.price(item, at_us, whose["model"]) for item in items]
        if None in prices:
            continue
        billed += together
        for price in prices:
            assert price is not None
            new = sum(r._mapping[f"{price.item}_tokens"] - r._mapping[f"billed_{price.item}_tokens"] for r in together)
            if new:
                biller.book("tokens", price, new, *_span(together), **whose)
    _mark(connection, token_minutes, billed, ("prompt_tokens", "completion_tokens"))
    return len(rows) == MOST_ROWS and bool(billed)


def _bill_egress(connection: Connection, biller: _Biller, until_us: int) -> bool:
    rows = _oldest(connection, biller, egress_minutes, UNBILLED_EGRESS, until_us, ("egress",))
    by_hour: dict[tuple[int, str, str], list[Any]] = defaultdict(list)
    for row in rows:
        by_hour[row.minute_us // HOUR_US, row.tenant, row.show].append(row)
    billed: list[Any] = []
    for (hour, tenant, show), together in by_hour.items():
        price = biller.price("egress", hour * HOUR_US)
        if price is not None:
            billed += together
            new = sum(row.num_bytes - row.billed_bytes for row in together)
            biller.book("egress", price, new, *_span(together), tenant=tenant, show=show)
    _mark(connection, egress_minutes, billed, ("num_bytes",))
    return len(rows) == MOST_ROWS and bool(billed)


def _bill_storage(connection: Connection, biller: _Biller) -> None:
    meter = storage_meters.c
    for row in connection.execute(select(storage_meters).where(meter.mib_seconds > meter.billed_mib_seconds)).all():
        price = biller.price("storage", row.billed_us)
        if price is None:
            continue
        whose = {"tenant": row.tenant, "show": row.show}
        biller.book("storage", price, row.mib_seconds - row.billed_mib_seconds, row.billed_us, row.since_us, **whose)
        one = and_(meter.tenant == row.tenant, meter.show == row.show)
        done = {"billed_mib_seconds": row.mib_seconds, "billed_us": row.since_us}
        connection.execute(update(storage_meters).where(one).values(**done))


def _oldest(
    connection: Connection,
    biller: _Biller,
    table: Table,
    unbilled: ColumnElement[bool],
    until_us: int,
    items: Sequence[str],
    *by: ColumnElement[str],
) -> Sequence[Row[Any]]:
    """The first minutes that have a price. What has none at an hour had none before: no page is full of that."""
    minute_us = table.c.minute_us
    these = [unbilled, minute_us < until_us]
    hours = select((minute_us // HOUR_US).label("hour"), *by).where(*these).distinct().order_by("hour")
    gaps = {
        tuple(whose): hour
        for hour, *whose in connection.execute(hours)
        if None in [biller.price(item, hour * HOUR_US, *whose) for item in items]
    }
    for whose, hour in gaps.items():
        others = (column != value for column, value in zip(by, whose, strict=True))
        these.append(or_(minute_us >= (hour + 1) * HOUR_US, *others))
    return connection.execute(select(table).where(*these).order_by(minute_us).limit(MOST_ROWS)).all()


def _span(rows: Sequence[Any]) -> tuple[int, int]:
    return min(row.minute_us for row in rows), max(row.minute_us for row in rows) + MINUTE_US


def _mark(connection: Connection, table: Table, rows: Sequence[Any], counted: Sequence[str]) -> None:
    """Of all that these rows have counted there are lines now."""
    if rows:
        key = [column.name for column in table.primary_key]
        these = update(table).where(*(table.c[name] == bindparam(f"of_{name}") for name in key))
        done = these.values({f"billed_{name.removeprefix('num_')}": bindparam(f"to_{name}") for name in counted})
        given = [("of", name) for name in key] + [("to", name) for name in counted]
        connection.execute(done, [{f"{of}_{name}": row._mapping[name] for of, name in given} for row in rows])


def _new_meter(tenant: str, show: str, since_us: int) -> dict[str, Any]:
    zero = {"mib_seconds": 0, "rest": 0, "billed_mib_seconds": 0}
    return {"tenant": tenant, "show": show, "since_us": since_us, **zero, "billed_us": since_us}
