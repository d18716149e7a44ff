"""Which ready task a worker gets: one pure order over a small snapshot (section 7 of the design).

Tier first, then what its show is owed, then deadline within the show, then priority with ageing and a bonus for warm
weights, then age. `ranked` is that order; a `Balance` keeps what it needs to know, for each fleet on its own: the
workers of a fleet can all run the same, so that nobody is charged for accelerators that nobody else could have used.
Use is counted in predicted accelerator-seconds when a lease is given, and put right by `settle` when it ends.

Fairness is start-time fair queueing: each show has a clock that runs by the seconds it gets over its share, and the
show whose clock is behind goes first. A show that comes back begins where the others are: time without work earns
nothing, or shows that come and go would push aside the one that is always there. What a show gets in one tier moves
its clocks in the others too, but by no more than CARRIED of a window.

Bounds, in a fleet that is never idle, with `longest` its longest task (tests/unit/test_schedule_bounds.py):

- While a show has READY work in a tier it gets, over all tiers and in every window of WINDOW_S, at least 90 % of its
  share of what is given in that tier, less one `longest` for each show there and one more. So it gets 80 % wherever
  its share of a window is worth ten tasks of every show. Its share is counted among the shows with READY or running
  work there: whose next task comes with the end of the last one is not gone in between.
- While `normal` or `batch` has READY work it gets KEPT of all that is given, less 2 x `longest`. Otherwise interactive
  goes before normal, and normal before batch.
- Within a show and tier, deadlines go in their order, and before what has none. A task that has waited AGEING_S is
  due: from then on nothing goes before it that came after that, whatever its deadline or priority. So nothing starves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

TIER_RANK = {"interactive": 0, "normal": 1, "batch": 2}
KEPT = 0.10
"""What each tier below interactive gets while it has work."""
WINDOW_S = 1800.0
CARRIED = 0.05
"""How much of a window a show can be behind in one tier for what it got in another."""
AGEING_S = 4 * 3600.0
"""Waiting this long is worth 100 points of priority, and makes a task due."""
RESIDENCY_BONUS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """The head of one (job, requirement): its first ready task."""

    task_id: str
    job_id: str
    epoch: int
    show: str  # tenant/name
    tier: str
    priority: int
    deadline_us: int | None
    ready_us: int
    predicted_s: float
    resident: bool = False  # the asking worker holds its weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What a fleet owes. `clocks` by (tier, show): who is behind goes first; none is as far as the slowest."""

    clocks: Mapping[tuple[str, str], float] = field(default_factory=dict)
    owed_tiers: frozenset[str] = frozenset()  # below KEPT: they go first


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """What a lease was charged, to be settled when it ends."""

    tier: str
    show: str
    share: float
    seconds: float


def ranked(candidates: Iterable[Candidate], *, standing: Standing, now_us: int) -> list[Candidate]:
    """Best first."""

    def order(c: Candidate) -> tuple[object, ...]:
        tier = TIER_RANK[c.tier] - (len(TIER_RANK) if c.tier in standing.owed_tiers else 0)
        return (tier, standing.clocks.get((c.tier, c.show), 0.0), c.show, *within_show(c, now_us=now_us))

    return sorted(candidates, key=order)


def within_show(c: Candidate, *, now_us: int) -> tuple[float, float, int, str]:
    """The order of tasks of one show and tier. A deadline that was over before the task was ready counts from then.

    Only the first number changes with time, and once: when the task becomes due.
    """
    due_us = float("inf") if c.deadline_us is None else max(c.deadline_us, c.ready_us)
    if c.ready_us + AGEING_S * 1e6 <= now_us:
        due_us = min(due_us, c.ready_us + AGEING_S * 1e6)
    points = c.priority - c.ready_us / 1e6 * 100 / AGEING_S + (RESIDENCY_BONUS if c.resident else 0.0)
    return (due_us, -points, c.ready_us, c.task_id)


class Balance:
    """What one fleet has given to whom. Not durable: a new one begins with nobody owed anything."""

    def __init__(self) -> None:
        self._clocks: dict[str, dict[str, float]] = {tier: {} for tier in TIER_RANK}
        self._now = dict.fromkeys(TIER_RANK, 0.0)  # a tier's own time: the clock of the show that it served last
        self._here: dict[str, dict[str, float]] = {tier: {} for tier in TIER_RANK}  # shares of shows with READY work
        self._owed_s = {tier: 0.0 for tier in TIER_RANK if tier != "interactive"}
        self._owed_tiers: frozenset[str] = frozenset()
        self._given: deque[tuple[float, float]] = deque()  # (when, seconds) of a window
        self._given_s = 0.0

    def standing(self, candidates: Collection[Candidate], *, shares: Mapping[str, float]) -> Standing:
        """Of the shows that have work now. `shares` are weights by show, 1 where none is given."""
        here: dict[str, dict[str, float]] = {tier: {} for tier in TIER_RANK}
        for c in candidates:
            here[c.tier][c.show] = shares.get(c.show, 1.0)
        for tier, shows in here.items():
            clocks = self._clocks[tier]
            for show in shows.keys() - self._here[tier].keys():
                clocks[show] = max(clocks.get(show, 0.0), self._now[tier])
            if not shows and tier in self._owed_s:
                self._owed_s[tier] = min(0.0, self._owed_s[tier])
        self._here = here
        self._owed_tiers = frozenset(
            tier
            for tier, owed_s in self._owed_s.items()
            if here[tier] and owed_s > 0 and owed_s >= min(c.predicted_s for c in candidates if c.tier == tier) - 1e-6
        )
        return Standing(
            clocks={(tier, show): self._clocks[tier][show] for tier, shows in here.items() for show in shows},
            owed_tiers=self._owed_tiers,
        )

    def charge(self, c: Candidate, *, now_s: float) -> Charge:
        """A lease of it is given, as the last `standing` ordered it."""
        self._now[c.tier] = max(self._now[c.tier], self._clocks[c.tier].get(c.show, 0.0))
        for tier, owed_s in self._owed_s.items():
            if tier in self._owed_tiers and tier == c.tier:
                self._owed_s[tier] = owed_s - (1 - KEPT) * c.predicted_s
            elif tier == c.tier:  # it got what nobody else wanted: that pays what it is owed, and makes no debt
                self._owed_s[tier] = max(min(0.0, owed_s), owed_s - (1 - KEPT) * c.predicted_s)
            elif self._here[tier]:
                self._owed_s[tier] = owed_s + KEPT * c.predicted_s
        self._given.append((now_s, c.predicted_s))
        self._given_s += c.predicted_s
        while self._given[0][0] < now_s - WINDOW_S:
            self._given_s -= self._given.popleft()[1]
        share = self._here[c.tier].get(c.show, 1.0)
        self._advance(c.tier, c.show, c.predicted_s / share, most=float("inf"))
        return Charge(tier=c.tier, show=c.show, share=share, seconds=c.predicted_s)

    def settle(self, charge: Charge, seconds: float) -> None:
        """The lease is over and took so long. What was not foreseen sets its show back by CARRIED at most."""
        most = self._carried(charge.tier)
        self._advance(charge.tier, charge.show, (seconds - charge.seconds) / charge.share, most=most)

    def _advance(self, own: str, show: str, by: float, *, most: float) -> None:
        """Moves a show's clocks: in its `own` tier to `most` ahead of the others, elsewhere within what is carried."""
        for tier, clocks in self._clocks.items():
            if show not in clocks:
                continue
            old, now = clocks[show], self._now[tier]
            if by > 0:
                clocks[show] = max(old, min(old + by, now + (most if tier == own else self._carried(tier))))
            else:
                clocks[show] = old + by if tier == own else min(old, max(old + by, now))

    def _carried(self, tier: str) -> float:
        return CARRIED * self._given_s / (sum(self._here[tier].values()) or 1.0)
