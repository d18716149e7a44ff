"""Budgets while a dispatcher works: what it offers, whom it stops, and whom it lets go on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.contract import Beat, Order, Outcome, Report, WorkerFacts
from cluster.assets import Receipt
from cluster.budgets import (
    DEFAULT,
    Action,
    BudgetSpec,
    Need,
    Period,
    Purse,
    Scope,
    Threshold,
    extended,
    granted,
    month,
    nano_of,
    reached,
)
from cluster.clock import ManualClock, from_iso
from cluster.errors import InvalidInput
from cluster.graph import TaskSpec
from cluster.ledger import reasons
from cluster.ledger.jobs import JobSpec
from cluster.ledger.outcomes import Sight
from cluster.states import State
from cluster.store.port import put_receipt
from cluster.why import Hold, Predicate, why
from tests.farm import InProcessFarm, in_process_farm

RATE = 40_000_000
"""Nano-dollars an hour of a cpu worker."""


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[InProcessFarm]:
    with in_process_farm(tmp_path, clock=ManualClock(), stuck_s=60.0) as running:
        yield running


def advance(farm: InProcessFarm, seconds: float) -> None:
    assert isinstance(farm.clock, ManualClock)
    farm.clock.advance(seconds)
    farm.desk.ask(farm.desk.dispatcher.tick())


def submit(farm: InProcessFarm, *keys: str, weight: float = 5.0, **more: Any) -> str:
    graph = [
        TaskSpec(key=k, step="render", role="render", entry="x:y", weight=weight, params={"spec": {"prompt": k}})
        for k in keys
    ]
    job_id, _ = farm.ledger.submit(JobSpec(**{"recipe": "tests", "title": "test", "spec": {}, **more}), graph)
    farm.desk.ask(farm.desk.dispatcher.poke())
    return job_id


def cap(farm: InProcessFarm, seconds: float, *thresholds: tuple[float, Action], **more: Any) -> str:
    given = tuple(Threshold(at=at, action=action) for at, action in thresholds)
    spec = {"tenant": "studio", "scope": Scope.TENANT, **more}
    return farm.ledger.set_budget(BudgetSpec(cap_nano=nano_of(seconds, RATE), thresholds=given, **spec)).id


def joined(farm: InProcessFarm, **facts: Any) -> WorkerFacts:
    worker = replace(farm.facts(), **facts)
    farm.desk.join(worker)
    return worker


def lease(farm: InProcessFarm, worker: WorkerFacts, request: str = "r") -> Order | None:
    return farm.desk.lease(worker.id, f"{request} {worker.id}")


def beat(farm: InProcessFarm, worker: WorkerFacts, order: Order) -> dict[str, str]:
    who = {"task_id": order.task_id, "attempt_id": order.attempt_id, "epoch": order.epoch}
    return farm.desk.beat(worker.id, [Beat(**who, stage="denoise", done=1, total=10)])  # type: ignore[arg-type]


def interrupted(farm: InProcessFarm, worker: WorkerFacts, order: Order) -> None:
    facts = {"checkpoint": f"studio/attempts/{order.attempt_id}/checkpoint-1"}
    report = Report(
        task_id=order.task_id, attempt_id=order.attempt_id, epoch=order.epoch, worker_id=worker.id,
        tenant=order.tenant, outcome=Outcome.INTERRUPTED, facts=facts,
    )  # fmt: skip
    assert farm.desk.report(report) == "accepted"


def holds(farm: InProcessFarm, job_id: str, key: str = "a") -> list[Hold]:
    task = next(t for t in farm.ledger.tasks(job_id) if t["key"] == key)
    now_us = farm.clock.now_us()
    seen = farm.ledger.view(
        lambda c: reasons.snapshot(c, task["id"], now_us=now_us, ratios={}, farm_runs=True, sight=Sight())
    )
    return [hold for hold in why(seen).holds if hold.what is Predicate.BUDGET]


def test_a_task_without_room_stops_at_its_heartbeat_waits_and_goes_on_when_the_cap_is_raised(
    farm: InProcessFarm,
) -> None:
    cap(farm, 40)
    worker, job = joined(farm), submit(farm, "a")
    order = lease(farm, worker)
    assert order is not None
    for _ in range(9):
        advance(farm, 3)
        assert beat(farm, worker, order) == {}
    advance(farm, 3)
    assert beat(farm, worker, order) == {order.attempt_id: "budget"}
    interrupted(farm, worker, order)
    (task,) = farm.ledger.tasks(job)
    assert (task["state"], task["reason"]) == (State.SUSPENDED.value, "budget")
    [hold] = holds(farm, job)
    assert hold.text.startswith("the budget of tenant has no room for it")
    assert hold.remedy == "farm budget set tenant --cap USD"
    assert lease(farm, worker, "again") is None
    cap(farm, 400)
    assert holds(farm, job) == []
    farm.desk.ask(farm.desk.dispatcher.poke())
    again = lease(farm, worker, "raised")
    assert again is not None
    assert again.task_id == order.task_id
    assert farm.ledger.flaws() == []


def test_a_task_whose_stage_is_silent_for_long_is_told_so_much_sooner(farm: InProcessFarm) -> None:
    cap(farm, 40)
    worker, _ = joined(farm), submit(farm, "known", "a")
    drawn = lease(farm, worker, "first")
    assert drawn is not None
    who = {"task_id": drawn.task_id, "attempt_id": drawn.attempt_id, "epoch": drawn.epoch}
    receipt = Receipt(**who, files=(), facts={"gap_s": {"denoise": 8.0}})  # type: ignore[arg-type]
    put_receipt(farm.store, drawn.tenant, receipt)
    done = Report(**who, worker_id=worker.id, tenant=drawn.tenant, outcome=Outcome.SUCCEEDED)  # type: ignore[arg-type]
    assert farm.desk.report(done) == "accepted"
    order = lease(farm, worker)
    assert order is not None
    for _ in range(6):
        advance(farm, 3)
        assert beat(farm, worker, order) == {}
    advance(farm, 3)
    assert beat(farm, worker, order) == {order.attempt_id: "budget"}


def test_what_a_budget_holds_keeps_nobody_else_waiting(farm: InProcessFarm) -> None:
    cap(farm, 1, scope=Scope.SHOW, subject="poor")
    worker = joined(farm)
    poor = submit(farm, *(f"p{n}" for n in range(300)), show="poor", tier="interactive")
    other = submit(farm, "a", show="rich", tier="batch")
    asked: list[int] = []
    lease_all = farm.ledger.lease_all

    def counted(term: int, asks: Any, **more: Any) -> Any:
        asked.append(len(asks))
        return lease_all(term, asks, **more)

    farm.ledger.lease_all = counted  # type: ignore[method-assign]
    order = lease(farm, worker)
    assert order is not None
    assert order.job_id == other
    assert len(asked) <= 2, "each task of a poor show was tried"
    assert farm.ledger.job(poor).counts == {State.READY: 300}


def test_a_small_task_passes_a_large_one_for_which_there_is_no_room(farm: InProcessFarm) -> None:
    cap(farm, 20)
    worker = joined(farm)
    large = submit(farm, "large", weight=500.0, tier="interactive")
    small = submit(farm, "small", weight=1.0)
    order = lease(farm, worker)
    assert order is not None
    assert order.job_id == small
    assert farm.ledger.job(large).counts == {State.READY: 1}


def test_work_on_hold_by_a_threshold_is_not_looked_at_and_why_names_it(farm: InProcessFarm) -> None:
    job = submit(farm, "a")
    cap(farm, 0, (1.0, Action.HOLD))
    assert farm.ledger.jobs_with_ready_tasks() == []
    [hold] = holds(farm, job)
    assert "lets nothing start (hold)" in hold.text


def test_what_runs_when_a_budget_comes_is_counted_and_stopped_too(farm: InProcessFarm) -> None:
    worker, _ = joined(farm), submit(farm, "a")
    order = lease(farm, worker)
    assert order is not None
    advance(farm, 5)
    cap(farm, 2)
    advance(farm, 1)
    assert beat(farm, worker, order) == {order.attempt_id: "budget"}


def test_a_cap_that_is_lowered_stops_what_runs_at_the_next_look(farm: InProcessFarm) -> None:
    cap(farm, 400)
    worker, _ = joined(farm), submit(farm, "a")
    order = lease(farm, worker)
    assert order is not None
    advance(farm, 5)
    cap(farm, 2)
    advance(farm, 1)
    assert beat(farm, worker, order) == {order.attempt_id: "budget"}
    interrupted(farm, worker, order)
    assert farm.ledger.flaws() == []


def purse(cap: int, spent: int = 0, reserved: int = 0, acting: Action | None = None) -> Purse:
    return Purse(id="b", cap_nano=cap, spent_nano=spent, reserved_nano=reserved, acting=acting)


@pytest.mark.parametrize(
    ("above", "found"),
    [
        pytest.param([purse(100)], 30, id="all that it wants"),
        pytest.param([purse(100), purse(25)], 25, id="the last of one"),
        pytest.param([purse(100, 0, 75)], None, id="waits for what others may give back"),
        pytest.param([purse(100, 90)], None, id="not even what it likely costs"),
        pytest.param([purse(100, 0, 0, Action.NOTIFY)], 30, id="a notice stops nothing"),
        pytest.param([purse(100, 0, 0, Action.HOLD)], None, id="on hold"),
        pytest.param([purse(100, 0, 0, Action.FINISH)], None, id="finishing"),
        pytest.param([purse(100), purse(10)], None, id="one of two"),
    ],
)
def test_what_a_task_is_granted(above: list[Purse], found: int | None) -> None:
    got = granted(above, Need(likely_nano=20, wanted_nano=30))
    assert (None if isinstance(got, Purse) else got) == found


def test_one_that_runs_is_given_what_is_left_and_ends_past_a_cap_that_finishes() -> None:
    assert extended([purse(100, 90)], more_nano=30, least_nano=5) == 10
    assert isinstance(extended([purse(100, 96)], more_nano=30, least_nano=5), Purse)
    assert extended([purse(100, 200, 0, Action.FINISH)], more_nano=30, least_nano=5) == 30


def test_thresholds_are_reached_by_what_is_spent_or_because_something_had_to_stop() -> None:
    assert reached(DEFAULT, spent_nano=79, cap_nano=100) == []
    assert [t.action for t in reached(DEFAULT, spent_nano=80, cap_nano=100)] == [Action.NOTIFY]
    assert [t.action for t in reached(DEFAULT, spent_nano=10, cap_nano=100, full=True)] == [Action.NOTIFY, Action.HOLD]
    far = [Threshold(at=1.2, action=Action.CANCEL)]
    assert reached(far, spent_nano=110, cap_nano=100, full=True) == []


def test_a_month_is_one_of_the_calendar() -> None:
    assert month(from_iso("2026-12-31T23:59:59+00:00")) == (
        from_iso("2026-12-01T00:00:00+00:00"),
        from_iso("2027-01-01T00:00:00+00:00"),
    )


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"currency": "EUR"}, "currency"),
        ({"cap_nano": -1}, "cap_usd"),
        ({"subject": "x"}, "subject"),
        ({"scope": Scope.SHOW}, "subject"),
        ({"thresholds": DEFAULT * 9}, "thresholds"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_budget_that_is_none_is_refused_with_its_field(wrong: dict[str, Any], field: str) -> None:
    good = {"tenant": "studio", "scope": Scope.TENANT, "cap_nano": 1, "period": Period.TOTAL}
    with pytest.raises(InvalidInput) as found:
        BudgetSpec(**{**good, **wrong})
    assert found.value.field == field


@pytest.mark.parametrize("at", [0.0, -1.0, float("nan"), 11.0])
def test_a_threshold_is_a_part_of_the_cap(at: float) -> None:
    with pytest.raises(InvalidInput, match="threshold"):
        Threshold(at=at, action=Action.HOLD)
