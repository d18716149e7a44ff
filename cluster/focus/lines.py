"""What an export reads and what it makes: a cost line with all that names it, a charge of one hour. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from cluster.rates import HOUR_US

GRACE_US = HOUR_US
"""A month is closed this long after its end: until then what was measured in it may be booked, or booked again."""


class Amounts(NamedTuple):
    """What is split and summed: nano-dollars, held time, what a meter counted."""

    nano: int
    held_us: int
    quantity: int

    def plus(self, other: Amounts) -> Amounts:
        return Amounts(self.nano + other.nano, self.held_us + other.held_us, self.quantity + other.quantity)

    def negated(self) -> Amounts:
        return Amounts(-self.nano, -self.held_us, -self.quantity)


NOTHING = Amounts(0, 0, 0)


class Line(NamedTuple):
    """A row of `cost_lines`, joined with what it was for. Quantities are integers of the ledger's own units."""

    id: int
    at_us: int
    kind: str  # busy | wasted | load | idle; tokens | storage | egress
    tenant: str
    show: str
    job_id: str | None
    task_id: str | None
    attempt_id: str | None
    worker_id: str | None  # None for what a meter counted
    from_us: int
    to_us: int
    held_us: int  # accelerator-microseconds; worker-microseconds of one without accelerators
    nano: int
    accelerator: str | None
    price_class: str
    rate_card: str
    note: str | None  # why it books another line again, or why it came late
    quantity: int | None  # what a meter counted
    unit: str | None  # tokens | MiB-seconds | bytes
    item: str | None  # of tokens: prompt | completion
    model: str | None  # of the task, of the worker, or of the tokens
    price_nano: int | None  # of a meter: of a million tokens, a GiB-month, a GiB
    nano_per_hour: int | None  # of the whole worker
    num_accelerators: int | None
    role: str | None  # of the task, or of the worker
    task_key: str | None
    recipe: str | None
    film_id: str | None

    @property
    def amounts(self) -> Amounts:
        return Amounts(self.nano, self.held_us, self.quantity or 0)

    @property
    def booked_us(self) -> int:
        """When it counts as booked: what is booked before a month is closed is of that month."""
        return self.at_us - GRACE_US


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """What was charged for one hour to one attempt, to the farm itself, or by a meter.

    `ratio`: which part it is of what its worker cost the same show for the same service in that hour, in
    millionths of a millionth; the parts of one such whole sum to 10**12. None for meters and corrections.
    """

    hour_us: int
    of: Line  # the first of its lines: all of them name the same
    amounts: Amounts
    month_us: int  # whose bill it is on, by its first instant
    correction: bool  # of an hour whose month was closed before
    ratio: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Period:
    """Whole hours, UTC; the end is not part of it."""

    from_us: int
    to_us: int

    def holds(self, at_us: int) -> bool:
        return self.from_us <= at_us < self.to_us


@lru_cache(maxsize=4096)
def _month_of_hour(hour: int) -> int:
    at = datetime.fromtimestamp(hour * 3600, tz=UTC)
    return round(datetime(at.year, at.month, 1, tzinfo=UTC).timestamp()) * 1_000_000


def month_of(at_us: int) -> int:
    """The first instant of its month, UTC."""
    return _month_of_hour(at_us // HOUR_US)


def month_after(month_us: int) -> int:
    """The first instant of the month that follows."""
    return month_of(month_us + 32 * 24 * HOUR_US)
