"""Prices: a rate card in YAML, and exact arithmetic on nano-dollars. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import InvalidSettings

NANO = 10**9
HOUR_US = 3_600_000_000
GIB_MONTH = 1024 * 730 * 3600
"""In MiB-seconds: a month has 730 hours."""
GIB = 1 << 30
MILLION = 1_000_000
ANY_MODEL = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    accelerator: str
    price_class: str
    nano_per_hour: int  # nano-dollars for one accelerator (or one cpu worker) held for one hour
    since: date
    card: str  # version of the rate card


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """Of what a meter counts: stored bytes, bytes that leave, tokens."""

    item: str  # storage | egress | prompt | completion
    model: str | None  # of tokens; ANY_MODEL for those that no line names
    nano: int  # nano-dollars of a GiB-month, a GiB, a million tokens
    since: date
    card: str

    def of(self, quantity: int) -> int:
        return cost_of(self.item, self.nano, quantity)


WHOLE = {"storage": GIB_MONTH, "egress": GIB, "prompt": MILLION, "completion": MILLION}
"""How many MiB-seconds, bytes or tokens a price is for."""


def cost_of(item: str, price_nano: int, quantity: int) -> int:
    """Nano-dollars of so many MiB-seconds, bytes or tokens, rounded half up."""
    whole = WHOLE[item]
    return (2 * price_nano * quantity + whole) // (2 * whole)


@dataclass(frozen=True, kw_only=True, slots=True)
class RateCard:
    version: str
    rates: tuple[Rate, ...]
    prices: tuple[Price, ...] = ()

    def price(self, item: str, at: datetime, *, model: str | None = None) -> Price:
        """The newest in force at `at`; of tokens the model's own before any other. Raises InvalidSettings for a gap."""
        day = at.astimezone(UTC).date()
        in_force = [p for p in self.prices if p.item == item and p.since <= day]
        for named in [model, ANY_MODEL] if model is not None else [None]:
            fitting = [p for p in in_force if p.model == named]
            if fitting:
                return max(fitting, key=lambda p: p.since)
        what = item if model is None else f"{item} tokens of {model}"
        section = item if model is None else "tokens"
        raise InvalidSettings(
            f"the rate card {self.version} has no price for {what} on {day}",
            field=section,
            remedy=f"add a line under {section} to the rate card (FARM_RATE_CARD)",
        )

    def gaps(self, at: datetime, *, held: Iterable[tuple[str, str]], models: Iterable[str]) -> list[InvalidSettings]:
        """What has no price at `at`: accelerators with their price class, storage, egress, tokens of models."""
        asked: list[Callable[[], object]] = [
            *(partial(self.rate, accelerator, price_class, at) for accelerator, price_class in held),
            *(partial(self.price, item, at) for item in ("storage", "egress")),
            *(partial(self.price, item, at, model=m) for m in models for item in ("prompt", "completion")),
        ]
        found = []
        for ask in asked:
            try:
                ask()
            except InvalidSettings as gap:
                found.append(gap)
        return found

    def rate(self, accelerator: str, price_class: str, at: datetime) -> Rate:
        """The newest rate that is in force at `at`. Raises InvalidSettings where the card has a gap."""
        fitting = [
            r
            for r in self.rates
            if r.accelerator == accelerator and r.price_class == price_class and r.since <= at.astimezone(UTC).date()
        ]
        if not fitting:
            raise InvalidSettings(
                f"the rate card {self.version} has no price for {accelerator}, {price_class} on {at.date()}",
                field="rates",
                remedy="add a line to the rate card (FARM_RATE_CARD)",
            )
        return max(fitting, key=lambda r: r.since)


def load_rate_card(path: Path | None = None) -> RateCard:
    """The card at `path`, or the one that comes with the project. Raises InvalidSettings naming the line at fault."""
    source = path if path is not None else Path(str(resources.files("cluster") / "rates.yaml"))
    try:
        # Every value is the text that stands there: prices are exact, and dates are read here. The safe loader reads
        # none once vLLM was imported, as a package that comes with it changes that loader for the whole process.
        data = yaml.load(source.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506  # it makes nothing but text
        version, rows = data["version"], data["rates"]
        metered = {section: data.get(section) or [] for section in ("storage", "egress", "tokens")}
        if odd := [name for name, lines in {"rates": rows, **metered}.items() if not isinstance(lines, list)]:
            raise TypeError(f"{odd[0]} is no list")
        currency = data.get("currency", "USD")
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        remedy = "name a file that is there (FARM_RATE_CARD), written as cluster/rates.yaml is"
        raise InvalidSettings(
            f"cannot read the rate card {source.name}: {error}", field="rates", remedy=remedy
        ) from error
    if currency != "USD":
        raise InvalidSettings(
            f"the rate card is in {currency}; only USD is accounted",
            field="rates.currency",
            remedy="give its prices in USD, as budgets are (FARM_RATE_CARD)",
        )
    return RateCard(
        version=version,
        rates=tuple(_rate(*row, version) for row in _rows(rows, "rates")),
        prices=tuple(
            price
            for section, lines in metered.items()
            for row in _rows(lines, section)
            for price in _prices(*row, section, version)
        ),
    )


def _rows(rows: Iterable[Any], section: str) -> Iterator[tuple[Any, str]]:
    return ((row, f"{section}[{index}]") for index, row in enumerate(rows))


@contextmanager
def _reading(field: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, InvalidOperation) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        remedy = "mend that line of the rate card (FARM_RATE_CARD); cluster/rates.yaml shows how one is written"
        raise InvalidSettings(f"cannot read the rate {field}: {what}", field=field, remedy=remedy) from error


def _rate(row: Any, field: str, version: str) -> Rate:
    with _reading(field):
        return Rate(
            nano_per_hour=_nano(row, "usd_per_hour"),
            accelerator=str(row["accelerator"]),
            price_class=str(row["price_class"]),
            since=date.fromisoformat(str(row["since"])),
            card=version,
        )


def _prices(row: Any, field: str, section: str, version: str) -> list[Price]:
    with _reading(field):
        when: dict[str, Any] = {"since": date.fromisoformat(str(row["since"])), "card": version}
        if section == "tokens":
            names = {"prompt": "prompt_usd_per_million", "completion": "completion_usd_per_million"}
            model = str(row["model"])
            return [Price(item=item, model=model, nano=_nano(row, name), **when) for item, name in names.items()]
        name = {"storage": "usd_per_gib_month", "egress": "usd_per_gib"}[section]
        return [Price(item=section, model=None, nano=_nano(row, name), **when)]


def _nano(row: Any, name: str) -> int:
    price = Decimal(str(row[name]))
    if not price.is_finite() or price < 0:
        raise ValueError(f"{name} must be 0 or more, got {price}")
    return round(price * NANO)


def cost_until(nano_per_hour: int, held_us: int) -> int:
    """Nano-dollars of a holding of `held_us` microseconds, rounded half up.

    Intervals are priced as differences of this function, so that adjoining ones sum to the whole exactly.
    """
    return (2 * nano_per_hour * held_us + HOUR_US) // (2 * HOUR_US)


def split(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole parts by `weights`, largest remainder first, earlier first among equals; the parts sum to it."""
    if not weights or min(weights) < 0:
        raise ValueError("weights must be some, and none below zero")
    whole = sum(weights)
    if whole == 0:
        return split(total, [1] * len(weights))
    parts = [total * w // whole for w in weights]
    rest = total - sum(parts)
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[:rest]:
        parts[i] += 1
    return parts


def usd(nano: int) -> Decimal:
    return Decimal(nano) / NANO
