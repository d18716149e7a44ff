"""Which ready task a worker gets: one pure order over a small snapshot (section 7 of the design).

Tier first, then what the show is owed, then deadline within the show, then priority with ageing and a bonus for
warm weights, then age. The batch tier keeps a part of the farm while it has work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

TIER_RANK = {"interactive": 0, "normal": 1, "batch": 2}
BATCH_PART = 0.10
HALF_LIFE_S = 1800.0
AGEING_S = 600.0
"""Waiting this long is worth 100 points of priority."""
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
class Use:
    """Predicted accelerator-seconds given out, faded by half every HALF_LIFE_S."""

    by_show: Mapping[str, float]
    by_tier: Mapping[str, float]


def ranked(candidates: Iterable[Candidate], *, shares: Mapping[str, float], use: Use, now_us: int) -> list[Candidate]:
    """Best first. `shares` are weights by show (1 where none is given); only shows with work here divide the farm."""
    pool = list(candidates)
    present = {c.show for c in pool}
    whole = sum(shares.get(s, 1.0) for s in present) or 1.0
    used = sum(use.by_show.get(s, 0.0) for s in present) or 1.0
    deficit = {s: shares.get(s, 1.0) / whole - use.by_show.get(s, 0.0) / used for s in present}
    given = sum(use.by_tier.values())
    batch_is_owed = given > 0 and use.by_tier.get("batch", 0.0) < BATCH_PART * given

    def order(c: Candidate) -> tuple[object, ...]:
        tier = -1 if batch_is_owed and c.tier == "batch" else TIER_RANK[c.tier]
        waited_s = max(0, now_us - c.ready_us) / 1e6
        points = c.priority + 100 * waited_s / AGEING_S + (RESIDENCY_BONUS if c.resident else 0.0)
        deadline = c.deadline_us if c.deadline_us is not None else 2**63
        return (tier, -deficit[c.show], c.show, deadline, -points, c.ready_us, c.task_id)

    return sorted(pool, key=order)


class UseMeter:
    """Keeps `Use` up to date: `add` what a lease is predicted to take, `at` fades the past."""

    def __init__(self) -> None:
        self._show: dict[str, float] = {}
        self._tier: dict[str, float] = {}
        self._at_s = 0.0

    def add(self, *, show: str, tier: str, seconds: float, now_s: float) -> None:
        self._fade(now_s)
        self._show[show] = self._show.get(show, 0.0) + seconds
        self._tier[tier] = self._tier.get(tier, 0.0) + seconds

    def at(self, now_s: float) -> Use:
        self._fade(now_s)
        return Use(by_show=dict(self._show), by_tier=dict(self._tier))

    def _fade(self, now_s: float) -> None:
        factor = 0.5 ** (max(0.0, now_s - self._at_s) / HALF_LIFE_S)
        self._at_s = max(self._at_s, now_s)
        for table in (self._show, self._tier):
            for name in list(table):
                table[name] *= factor
                if table[name] < 1e-9:
                    del table[name]
