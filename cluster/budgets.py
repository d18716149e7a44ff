"""Budgets: caps on what a tenant, a show or a film may cost; what a task reserves of them. Pure.

What a task reserves is what 19 of 20 like it cost, and one heartbeat more: so long it takes until a worker hears that
there is no more. Of work that nobody knows yet it is the longest that such work may be silent. A task needs room in
every budget above it. Where others have reserved something it waits for all that it wants, for they may give some back;
where nobody has, for what it will probably cost, or the last of a budget could never be spent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from cluster.assets import check_tenant
from cluster.clock import to_datetime
from cluster.errors import InvalidInput
from cluster.graph import flaw_of_text
from cluster.rates import cost_until
from cluster.timing import Paces, shape_of

REASON = "budget"
"""Why a task is SUSPENDED that was stopped because its budget has no more: it goes on by itself when there is."""
CURRENCY = "USD"
LARGEST_NANO = 2**62
MOST_THRESHOLDS = 16


class Scope(StrEnum):
    """What a budget caps; budgets nest in this order."""

    TENANT = "tenant"
    SHOW = "show"
    FILM = "film"


class Period(StrEnum):
    TOTAL = "total"
    MONTH = "month"  # of the calendar, UTC


class Action(StrEnum):
    """What happens at a threshold, the mildest first."""

    NOTIFY = "notify"  # somebody is told
    HOLD = "hold"  # nothing new starts; what runs goes on as far as the cap
    FINISH = "finish"  # nothing new starts; what runs is let end, past the cap if it must
    CANCEL = "cancel"  # all that is open is canceled


BLOCKING = (Action.HOLD.value, Action.FINISH.value, Action.CANCEL.value)
GRAVITY = {action: place for place, action in enumerate(Action)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    at: float  # of the cap
    action: Action

    def __post_init__(self) -> None:
        if not math.isfinite(self.at) or not 0 < self.at <= 10:
            raise InvalidInput(f"a threshold must be above 0 and at most 10, got {self.at}", field="thresholds.at")

    def to_json(self) -> dict[str, Any]:
        return {"at": self.at, "action": self.action.value}


DEFAULT = (Threshold(at=0.8, action=Action.NOTIFY), Threshold(at=1.0, action=Action.HOLD))


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetSpec:
    """A budget as somebody wants it. `subject` is the name of a show, the id of a film, or empty."""

    tenant: str
    scope: Scope
    cap_nano: int
    subject: str = ""
    period: Period = Period.TOTAL
    thresholds: tuple[Threshold, ...] = DEFAULT
    currency: str = CURRENCY

    def __post_init__(self) -> None:
        check_tenant(self.tenant)
        if self.currency != CURRENCY:
            raise InvalidInput(
                f"a budget in {self.currency!r}: only {CURRENCY} is accounted", field="currency",
                remedy=f"give the cap in {CURRENCY}, as the rate card is",
            )  # fmt: skip
        if not 0 <= self.cap_nano < LARGEST_NANO:
            raise InvalidInput("a cap must be 0 or more, and below 4.6 billion dollars", field="cap_usd")
        flaw = flaw_of_text(self.subject, 64) if self.subject else None
        if (self.scope is Scope.TENANT) == bool(self.subject):
            flaw = "is for a show or a film" if self.subject else "is empty"
        if flaw:
            what = {Scope.SHOW: "the name of a show", Scope.FILM: "the id of a film"}.get(self.scope, "no subject")
            raise InvalidInput(f"subject {flaw}", field="subject", remedy=f"a budget of a {self.scope} has {what}")
        if len(self.thresholds) > MOST_THRESHOLDS:
            raise InvalidInput(f"more than {MOST_THRESHOLDS} thresholds", field="thresholds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A budget as people see it."""

    id: str
    spec: BudgetSpec
    spent_nano: int  # booked, in this period
    reserved_nano: int  # by what runs, beyond what is booked of it
    acting: Action | None  # the gravest that was reached
    from_us: int  # the period began; 0: there is only one
    until_us: int | None
    created_us: int
    changed_us: int

    @property
    def left_nano(self) -> int:
        return self.spec.cap_nano - self.spent_nano - self.reserved_nano

    def purse(self) -> Purse:
        counted = {"spent_nano": self.spent_nano, "reserved_nano": self.reserved_nano}
        return Purse(id=self.id, cap_nano=self.spec.cap_nano, **counted, acting=self.acting)


@dataclass(slots=True, kw_only=True)
class Purse:
    """What is left of one budget, in the course of a transaction."""

    id: str
    cap_nano: int
    spent_nano: int
    reserved_nano: int
    acting: str | None = None

    @property
    def room_nano(self) -> int:
        return self.cap_nano - self.spent_nano - self.reserved_nano

    @property
    def blocks(self) -> bool:
        """Nothing new starts under it."""
        return self.acting in BLOCKING


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What a task asks of its budgets."""

    likely_nano: int
    wanted_nano: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Reserves:
    """How much a task reserves. `slack_s` is a heartbeat, `cold_s` the time of work of which nothing is known."""

    paces: Paces = field(default_factory=lambda: Paces(()))
    slack_s: float = 10.0
    cold_s: float = 900.0
    pauses_s: Mapping[str, float] = field(default_factory=dict)
    """By attempt that runs, how long the stage that it is in has been seen not to hear anything."""

    def slack_of(self, attempt_id: str) -> float:
        """How long an attempt may go on before it hears that it has to stop."""
        return self.slack_s + self.pauses_s.get(attempt_id, 0.0)

    def need(
        self,
        *,
        step: str,
        model: str | None,
        params: Any,
        weight: float,
        nano_per_hour: int,
        accelerator: str | None = None,
    ) -> Need:
        shape = shape_of(params.get("spec") or params)
        pace = self.paces.of(step, model, shape, weight, accelerator=accelerator)
        cold = pace.num_samples == 0
        wanted_s = max(self.cold_s, weight * pace.p50) if cold else weight * pace.p95
        return Need(
            likely_nano=nano_of(weight * pace.p50 + self.slack_s, nano_per_hour),
            wanted_nano=nano_of(wanted_s + self.slack_s, nano_per_hour),
        )

    def more_nano(self, attempt_id: str, *, weight: float, nano_per_hour: int) -> int:
        """What one that nears its reservation asks for: a quarter of what was predicted, or some heartbeats."""
        return nano_of(max(weight / 4, 3 * self.slack_of(attempt_id)), nano_per_hour)


def nano_of(seconds: float, nano_per_hour: int) -> int:
    return cost_until(nano_per_hour, round(seconds * 1e6))


def granted(purses: Iterable[Purse], need: Need) -> int | Purse:
    """Nano-dollars that a task reserves of each of its budgets, or the first of them that has no room for it."""
    most = need.wanted_nano
    for purse in purses:
        least = need.wanted_nano if purse.reserved_nano > 0 else min(need.likely_nano, need.wanted_nano)
        if purse.blocks or purse.room_nano < least:
            return purse
        most = min(most, purse.room_nano)
    return most


def extended(purses: Iterable[Purse], *, more_nano: int, least_nano: int) -> int | Purse:
    """What one that runs reserves more; the first budget that has not even `least_nano`, if there is one."""
    most = more_nano
    for purse in purses:
        if purse.acting == Action.FINISH.value:
            continue
        if purse.room_nano < least_nano:
            return purse
        most = min(most, purse.room_nano)
    return most


def is_near(reserved_nano: int, *, accrued_s: float, slack_s: float, nano_per_hour: int) -> bool:
    """Whether by the next heartbeat it may have spent what it reserved. What costs nothing spends nothing."""
    return nano_per_hour > 0 and nano_of(accrued_s + slack_s, nano_per_hour) >= reserved_nano


def reached(thresholds: Sequence[Threshold], *, spent_nano: int, cap_nano: int, full: bool = False) -> list[Threshold]:
    """In their order. `full`: there was no more and none could come back; then the cap counts as reached."""
    found = [t for t in thresholds if spent_nano >= math.ceil(t.at * cap_nano) or (full and t.at <= 1.0)]
    return sorted(found, key=lambda t: (t.at, GRAVITY[t.action]))


def gravest(found: Iterable[Threshold]) -> Action | None:
    return max((t.action for t in found), key=lambda action: GRAVITY[action], default=None)


def month(at_us: int) -> tuple[int, int]:
    """The first microsecond of its month, and of the next one."""
    at = to_datetime(at_us)
    begins = datetime(at.year, at.month, 1, tzinfo=UTC)
    ends = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)
    return round(begins.timestamp() * 1e6), round(ends.timestamp() * 1e6)
