from __future__ import annotations

import pytest

from cluster.errors import FailureClass
from cluster.failures import BUDGET, LONGEST_DELAY_S, judge

F = FailureClass


@pytest.mark.parametrize(
    ("failure", "deadly"),
    [(F.INFRA, 20), (F.RESOURCE, 2), (F.QUALITY, 3), (F.INPUT, 1), (F.BUG, 3), (F.POISON, 3)],
    ids=lambda x: getattr(x, "value", None),
)
def test_the_last_failure_of_a_budget_is_deadly_and_none_before(failure: FailureClass, deadly: int) -> None:
    counts: dict[str, int] = {}
    for n in range(1, deadly + 1):
        verdict = judge(failure, counts)
        counts = verdict.counts
        assert (verdict.dead, counts) == (n == deadly, {failure.value: n})


def test_every_class_has_a_budget() -> None:
    assert set(BUDGET) == set(FailureClass)


def test_one_class_does_not_spend_the_budget_of_another() -> None:
    before = {"infra": 19, "bug": 2}
    assert not judge(F.RESOURCE, before).dead
    assert judge(F.RESOURCE, before).counts == {"infra": 19, "bug": 2, "resource": 1}
    assert before == {"infra": 19, "bug": 2}


def test_delays_double_up_to_five_minutes() -> None:
    delays = [judge(F.LIMIT, {"limit": n}).delay_s for n in range(9)]
    assert delays == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert judge(F.LIMIT, {"limit": 10**6}).delay_s == LONGEST_DELAY_S
    assert judge(F.INFRA, {}).delay_s == 1.0


def test_a_limit_never_dies_without_a_deadline_and_dies_when_the_next_try_would_miss_it() -> None:
    assert not judge(F.LIMIT, {"limit": 10**6}).dead
    assert not judge(F.LIMIT, {}, left_s=5.1).dead
    assert judge(F.LIMIT, {}, left_s=5.0).dead
    assert judge(F.LIMIT, {}, left_s=-1.0).dead
    assert not judge(F.INFRA, {}, left_s=0.0).dead


def test_who_is_dead_waits_for_nothing() -> None:
    assert judge(F.INPUT, {}).delay_s == 0.0
