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
"""The failure of a class that kills: INPUT the first (there is nothing to wait for), BUG the third, LIMIT none."""

FIRST_DELAY_S = {FailureClass.INFRA: 1.0, FailureClass.LIMIT: 5.0}
LONGEST_DELAY_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    dead: bool
    delay_s: float
    counts: dict[str, int]


def judge(failure: FailureClass, before: Mapping[str, int], *, left_s: float | None = None) -> Verdict:
    """Dead, or again after a delay that doubles with each failure of the same class.

    `left_s` is the time until the deadline of the job, None without one: a LIMIT that would be tried after it is dead.
    """
    count = before.get(failure.value, 0) + 1
    budget = BUDGET[failure]
    delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S.get(failure, 0.5) * 2 ** min(count - 1, 20))
    too_late = failure is FailureClass.LIMIT and left_s is not None and delay_s >= left_s
    dead = too_late or (budget is not None and count >= max(budget, 1))
    return Verdict(dead=dead, delay_s=0.0 if dead else delay_s, counts={**before, failure.value: count})
