"""Prices: a rate card in YAML, and exact arithmetic on nano-dollars. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import InvalidSettings

NANO = 10**9
HOUR_US = 3_600_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    accelerator: str
    price_class: str
    nano_per_hour: int  # nano-dollars for one accelerator (or one cpu worker) held for one hour
    since: date
    card: str  # version of the rate card


@dataclass(frozen=True, kw_only=True, slots=True)
class RateCard:
    version: str
    rates: tuple[Rate, ...]

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
        data = yaml.safe_load(source.read_text(encoding="utf-8"))
        version, rows = str(data["version"]), list(data["rates"])
        currency = data.get("currency", "USD")
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InvalidSettings(f"cannot read the rate card {source.name}: {error}", field="rates") from error
    if currency != "USD":
        raise InvalidSettings(f"the rate card is in {currency}; only USD is accounted", field="rates.currency")
    return RateCard(version=version, rates=tuple(_rate(row, i, version) for i, row in enumerate(rows)))


def _rate(row: dict[str, Any], index: int, version: str) -> Rate:
    field = f"rates[{index}]"
    try:
        price = Decimal(str(row["usd_per_hour"]))
        since = date.fromisoformat(str(row["since"]))
        if not price.is_finite() or price < 0:
            raise ValueError(f"usd_per_hour must be 0 or more, got {price}")
        rate = Rate(
            accelerator=str(row["accelerator"]),
            price_class=str(row["price_class"]),
            nano_per_hour=round(price * NANO),
            since=since,
            card=version,
        )
    except (KeyError, TypeError, ValueError, InvalidOperation) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise InvalidSettings(f"cannot read the rate {field}: {what}", field=field) from error
    return rate


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
