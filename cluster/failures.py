"""What follows from a failure: each class has a budget and a back-off of its own. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.errors import FailureClass

BUDGET: dict[FailureClass, int | None] = {
    FailureClass.INFRA: 20,
    FailureClass.RESOURCE: 2,
    FailureClass.LIMIT: None,  # until the deadline
    FailureClass.QUALITY: 3,
    FailureClass.INPUT: 0,
    FailureClass.BUG: 3,
    FailureClass.POISON: 3,
}
"""Failures after which a task is dead, where the count passes the number: INPUT dies at once, BUG at the third."""

FIRST_DELAY_S = {FailureClass.INFRA: 1.0, FailureClass.LIMIT: 5.0}
LONGEST_DELAY_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    dead: bool
    delay_s: float
    counts: dict[str, int]


def judge(failure: FailureClass, before: Mapping[str, int]) -> Verdict:
    """Dead, or again after a delay that doubles with each failure of the same class."""
    count = before.get(failure.value, 0) + 1
    budget = BUDGET[failure]
    delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S.get(failure, 0.5) * 2 ** min(count - 1, 20))
    dead = budget is not None and count >= max(budget, 1)
    return Verdict(dead=dead, delay_s=0.0 if dead else delay_s, counts={**before, failure.value: count})
