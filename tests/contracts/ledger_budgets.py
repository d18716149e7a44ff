"""Budgets: what is reserved, spent and given back, what a threshold does, and how far past its cap a budget can go."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select, update

from cluster.budgets import Action, Budget, BudgetSpec, Period, Reserves, Scope, Threshold, is_near
from cluster.errors import FailureClass, LedgerUnavailable, OverBudget
from cluster.graph import TaskSpec
from cluster.ledger import budgets as rows
from cluster.ledger.hooks import BUDGET_REACHED, HookSpec
from cluster.ledger.jobs import Terms
from cluster.ledger.leases import Held
from cluster.ledger.meters import Leaving
from cluster.ledger.schema import budget_events
from cluster.rates import GIB
from cluster.states import Move, State
from cluster.timing import Paces, Sample
from tests.contracts.ledger_meters import CARD
from tests.ledger_desk import HOUR, LedgerDesk, brief, task

S1 = 1_000_000
"""Nano-dollars of one second of a worker."""
KNOWN = Paces([Sample(step="draw", model=None, shape=None, predicted_s=1.0, actual_s=1.0)] * 3)
TAKES_10 = Reserves(paces=KNOWN, slack_s=2.0, cold_s=900.0)
"""Tasks are known to take what was predicted; a heartbeat is 2 s."""


def cap(desk: LedgerDesk, seconds: float, *thresholds: tuple[float, Action], **more: Any) -> Budget:
    """Of the tenant, or of what `more` says, worth so many seconds of a worker."""
    given = tuple(Threshold(at=at, action=action) for at, action in thresholds)
    values = {"tenant": "studio", "scope": Scope.TENANT, **more}
    return desk.ledger.set_budget(BudgetSpec(cap_nano=round(seconds * S1), thresholds=given, **values))


def now(desk: LedgerDesk, budget: Budget) -> Budget:
    return next(b for b in desk.ledger.budgets() if b.id == budget.id)


def overshot(budget: Budget, spent_s: int, allowed_s: int) -> str:
    return f"no budget overshoots its bound: {budget.id} has spent {spent_s * S1} of {allowed_s * S1}"


def kinds(desk: LedgerDesk, budget: Budget) -> list[str]:
    return [row.kind for row in reversed(desk.ledger.view(lambda c: rows.history(c, budget.id)))]


def ask(desk: LedgerDesk, job: str, key: str, *, worker: str = "w1", reserves: Reserves = TAKES_10) -> Any:
    row = desk.task(job, key)
    request = f"{job} {key} {row['epoch']} {desk.clock.now_us()}"
    return desk.ledger.lease_all(desk.term, [(row["id"], row["epoch"], worker, request)], reserves=reserves)[0]


def leased(desk: LedgerDesk, job: str, key: str, **more: Any) -> dict[str, Any]:
    got = ask(desk, job, key, **more)
    assert isinstance(got, tuple), got
    return {"task_id": got[0]["id"], "attempt_id": got[0]["attempt_id"], "epoch": got[0]["epoch"]}


def commit(desk: LedgerDesk, who: dict[str, Any]) -> None:
    key = f"studio/attempts/{who['attempt_id']}/receipt.json"
    desk.ledger.commit(desk.term, **who, receipt_key=key, files=[], result={}, facts={})


def near(desk: LedgerDesk) -> list[str]:
    """Who may have spent what it reserved by the next heartbeat, as a dispatcher sees it."""
    return [
        row.attempt_id
        for row in desk.ledger.running()
        if is_near(
            row.reserved_nano, accrued_s=(desk.clock.now_us() - row.since_us) / 1e6, slack_s=TAKES_10.slack_s,
            nano_per_hour=row.nano_per_hour,
        )
    ]  # fmt: skip


def draws(key: str, seconds: float = 10.0) -> TaskSpec:
    return task(key, weight=seconds)


def test_a_lease_reserves_and_what_is_not_used_goes_back(desk: LedgerDesk) -> None:
    budget, job = cap(desk, 100), desk.submit(draws("a"), draws("b"))
    a = leased(desk, job, "a")
    assert (now(desk, budget).spent_nano, now(desk, budget).reserved_nano) == (0, 12 * S1)
    b = leased(desk, job, "b", worker="w2")
    desk.clock.advance(7)
    commit(desk, a)
    assert (now(desk, budget).spent_nano, now(desk, budget).reserved_nano) == (7 * S1, 12 * S1)
    desk.clock.advance(8)
    desk.ledger.lose(desk.term, **b, why="its lease ran out")
    assert (now(desk, budget).spent_nano, now(desk, budget).reserved_nano) == (22 * S1, 0)
    desk.check()


def test_of_work_that_nobody_knows_the_whole_time_limit_is_reserved(desk: LedgerDesk) -> None:
    budget, job = cap(desk, 5000), desk.submit(draws("a"))
    leased(desk, job, "a", reserves=Reserves(slack_s=2.0, cold_s=900.0))
    assert now(desk, budget).reserved_nano == 902 * S1


def test_a_farm_without_budgets_reserves_nothing(desk: LedgerDesk) -> None:
    job = desk.submit(draws("a"))
    leased(desk, job, "a")
    assert desk.ledger.attempts(job)[0]["reserved_nano"] is None
    assert desk.ledger.tend_budgets(desk.term) is None
    desk.check()


def test_budgets_nest_and_every_one_must_have_room(desk: LedgerDesk) -> None:
    film, _ = desk.ledger.submit_film(brief(show="trailer"), [draws("a"), draws("b")])
    job = film.replace("film_", "job_")
    whole, show = cap(desk, 1000), cap(desk, 500, scope=Scope.SHOW, subject="trailer")
    own = cap(desk, 13, scope=Scope.FILM, subject=film)
    other = cap(desk, 1, scope=Scope.SHOW, subject="another")
    leased(desk, job, "a")
    assert [now(desk, b).reserved_nano for b in (whole, show, own, other)] == [12 * S1, 12 * S1, 12 * S1, 0]
    refused = ask(desk, job, "b", worker="w2")
    assert isinstance(refused, Held)
    assert (refused.scope, refused.subject) == ("film", film)
    elsewhere = desk.submit(draws("c"), show="default")
    leased(desk, elsewhere, "c", worker="w2")
    desk.check()


def test_the_last_of_a_budget_goes_to_what_will_probably_fit(desk: LedgerDesk) -> None:
    """Where nobody else has reserved anything, for nothing could come back."""
    cap(desk, 12.5)
    job = desk.submit(draws("long", 30.0), draws("a"))
    slow = Reserves(paces=Paces([*[Sample(step="draw", model=None, shape=None, predicted_s=1.0, actual_s=s) for s in
                                   (1.0, 1.0, 1.0, 2.0)]]), slack_s=2.0)  # fmt: skip
    assert isinstance(ask(desk, job, "long", reserves=slow), Held)
    leased(desk, job, "a", reserves=slow)
    assert desk.ledger.attempts(job)[0]["reserved_nano"] == 12_500_000
    desk.check()


def test_what_costs_more_than_is_left_is_refused_at_submit(desk: LedgerDesk) -> None:
    cap(desk, 100, scope=Scope.SHOW, subject="trailer")
    terms = Terms(estimate={"nano": {"p50": 101 * S1, "p95": 300 * S1}})
    with pytest.raises(OverBudget, match=r"the show trailer is \$0.1000, \$0.1000 left; this is estimated at") as found:
        desk.ledger.submit(brief(show="trailer"), [draws("a")], terms)
    assert found.value.field == "show"
    assert "farm budget set show trailer --cap" in str(found.value.remedy)
    assert desk.ledger.submit(brief(show="trailer"), [draws("a")], Terms(estimate={"nano": {"p50": 99 * S1}}))[1]
    assert desk.ledger.submit(brief(show="elsewhere"), [draws("a")], terms)[1]


def test_a_task_that_nears_what_it_reserved_gets_more_or_stops(desk: LedgerDesk) -> None:
    budget, job = cap(desk, 20), desk.submit(draws("a"))
    a = leased(desk, job, "a")
    desk.clock.advance(10)
    assert desk.ledger.extend(desk.term, [a["attempt_id"]], TAKES_10) == {a["attempt_id"]: True}
    assert (now(desk, budget).spent_nano, now(desk, budget).reserved_nano) == (10 * S1, 8 * S1)
    desk.clock.advance(9)
    assert desk.ledger.extend(desk.term, [a["attempt_id"]], TAKES_10) == {a["attempt_id"]: False}
    desk.clock.advance(1)
    facts = {"checkpoint": "studio/attempts/x/checkpoint-4"}
    desk.ledger.interrupt(desk.term, **a, facts=facts, suspend="budget")
    assert (desk.state(job, "a"), desk.task(job, "a")["reason"]) == (State.SUSPENDED, "budget")
    assert (now(desk, budget).spent_nano, now(desk, budget).reserved_nano) == (20 * S1, 0)
    assert kinds(desk, budget) == ["budget.set", "budget.stop"]
    desk.check()


def test_work_that_hears_a_stop_late_is_stopped_sooner(desk: LedgerDesk) -> None:
    """It is known to be silent for 5 s: with a heartbeat of 2 s, it must be told 7 s before there is no more."""
    cap(desk, 30)
    a = leased(desk, desk.submit(draws("a")), "a")
    silent = replace(TAKES_10, pauses_s={a["attempt_id"]: 5.0})
    desk.clock.advance(5)
    assert desk.ledger.extend(desk.term, [a["attempt_id"]], silent) == {a["attempt_id"]: True}
    desk.clock.advance(19)
    assert desk.ledger.extend(desk.term, [a["attempt_id"]], silent) == {a["attempt_id"]: False}
    desk.clock.advance(7)
    desk.ledger.interrupt(desk.term, **a, facts={"checkpoint": "x"}, suspend="budget")
    desk.check()


def test_what_a_worker_that_is_cut_off_costs_after_it_had_to_stop_is_no_overshoot(desk: LedgerDesk) -> None:
    """It hears nothing, and its time is billed until its lease has run out; one that answers late has no excuse."""
    cap(desk, 24)
    job = desk.submit(draws("a"), draws("b"))
    a, b = leased(desk, job, "a"), leased(desk, job, "b", worker="w2")
    desk.clock.advance(11)
    assert set(desk.ledger.extend(desk.term, near(desk), TAKES_10).values()) == {False}
    desk.clock.advance(2)
    desk.ledger.interrupt(desk.term, **b, facts={"checkpoint": "x"}, suspend="budget")
    desk.clock.advance(28)
    desk.ledger.lose(desk.term, **a, why="its lease ran out")
    desk.check()
    desk.ledger.cancel_job(job)
    assert desk.ledger.forget_attempts(desk.clock.now_us() + 1) == 1
    desk.check()


def test_a_raised_cap_lets_go_on_what_was_stopped(desk: LedgerDesk) -> None:
    cap(desk, 12, (1.0, Action.HOLD))
    job = desk.submit(draws("a"), draws("b", 1.0))
    a = leased(desk, job, "a")
    desk.clock.advance(11)
    assert desk.ledger.extend(desk.term, [a["attempt_id"]], TAKES_10) == {a["attempt_id"]: False}
    desk.ledger.interrupt(desk.term, **a, facts={"checkpoint": "x"}, suspend="budget")
    assert desk.ledger.tend_budgets(desk.term) == 0  # on hold, although a second is left
    assert isinstance(ask(desk, job, "b"), Held)
    assert desk.ledger.jobs_with_ready_tasks() == []
    cap(desk, 40, (1.0, Action.HOLD))
    assert desk.state(job, "a") is State.READY
    assert len(desk.ledger.jobs_with_ready_tasks()) == 1
    leased(desk, job, "a")
    desk.check()


def test_what_a_person_put_on_hold_is_not_woken(desk: LedgerDesk) -> None:
    cap(desk, 100)
    job = desk.submit(draws("a"))
    desk.move(job, "a", Move.HOLD)
    assert desk.ledger.tend_budgets(desk.term) == 0
    assert desk.state(job, "a") is State.SUSPENDED


def test_what_was_stopped_goes_on_when_others_have_used_less(desk: LedgerDesk) -> None:
    cap(desk, 25)
    job = desk.submit(draws("a"), draws("b"))
    a, b = leased(desk, job, "a"), leased(desk, job, "b", worker="w2")
    desk.clock.advance(5)
    commit(desk, b)
    job2 = desk.submit(draws("c", 6.0))
    c = leased(desk, job2, "c", worker="w2")
    desk.clock.advance(6)
    assert desk.ledger.extend(desk.term, [a["attempt_id"]], TAKES_10) == {a["attempt_id"]: False}
    desk.ledger.interrupt(desk.term, **a, facts={"checkpoint": "x"}, suspend="budget")
    desk.ledger.fail(desk.term, **c, failure=FailureClass.INPUT, code="x", message="x", facts={})
    assert desk.ledger.tend_budgets(desk.term) == 1
    assert desk.state(job, "a") is State.READY
    desk.check()


@pytest.mark.parametrize("action", [Action.HOLD, Action.CANCEL])
def test_one_that_stops_for_what_others_have_reserved_reaches_no_cap(desk: LedgerDesk, action: Action) -> None:
    budget = cap(desk, 60, (0.5, Action.NOTIFY), (1.0, action))
    job = desk.submit(draws("a"), draws("b", 46.0), draws("c"))
    a, b = leased(desk, job, "a"), leased(desk, job, "b", worker="w2")
    desk.clock.advance(10)
    assert near(desk) == [a["attempt_id"]]
    assert desk.ledger.extend(desk.term, near(desk), TAKES_10) == {a["attempt_id"]: False}
    desk.clock.advance(1)
    desk.ledger.interrupt(desk.term, **a, facts={"checkpoint": "x"}, suspend="budget")
    commit(desk, b)
    assert (now(desk, budget).left_nano, now(desk, budget).acting) == (38 * S1, None)
    assert desk.ledger.tend_budgets(desk.term) == 1
    assert [desk.state(job, key) for key in "abc"] == [State.READY, State.SUCCEEDED, State.READY]
    a, c = leased(desk, job, "a"), leased(desk, job, "c", worker="w2")
    desk.clock.advance(10)
    commit(desk, a)
    commit(desk, c)
    assert (now(desk, budget).spent_nano, now(desk, budget).acting) == (42 * S1, Action.NOTIFY)
    assert kinds(desk, budget) == ["budget.set", "budget.stop", "budget.reached"]
    desk.check()


def test_the_last_of_many_that_stop_has_reached_the_cap(desk: LedgerDesk) -> None:
    budget = cap(desk, 30, (0.5, Action.NOTIFY), (1.0, Action.HOLD))
    job = desk.submit(draws("a"), draws("b", 16.0), draws("c"))
    a, b = leased(desk, job, "a"), leased(desk, job, "b", worker="w2")
    desk.clock.advance(10)
    assert desk.ledger.extend(desk.term, near(desk), TAKES_10) == {a["attempt_id"]: False}
    assert now(desk, budget).acting is None
    desk.clock.advance(2)
    desk.ledger.interrupt(desk.term, **a, facts={"checkpoint": "x"}, suspend="budget")
    desk.clock.advance(4)
    assert desk.ledger.extend(desk.term, near(desk), TAKES_10) == {b["attempt_id"]: False}
    assert now(desk, budget).acting is Action.HOLD
    desk.clock.advance(1)
    desk.ledger.interrupt(desk.term, **b, facts={"checkpoint": "x"}, suspend="budget")
    assert desk.ledger.tend_budgets(desk.term) == 0
    assert isinstance(ask(desk, job, "c"), Held)
    assert kinds(desk, budget).count("budget.reached") == 2
    desk.check()


def test_those_who_stop_at_once_have_reached_the_cap_though_each_has_a_heartbeat_left(desk: LedgerDesk) -> None:
    budget = cap(desk, 25, (1.0, Action.HOLD))
    job = desk.submit(draws("a"), draws("b"))
    leased(desk, job, "a"), leased(desk, job, "b", worker="w2")
    desk.clock.advance(10)
    assert set(desk.ledger.extend(desk.term, near(desk), TAKES_10).values()) == {False}
    assert (now(desk, budget).left_nano, now(desk, budget).acting) == (S1, Action.HOLD)


@pytest.mark.parametrize(
    ("waits", "acting"), [((), Action.HOLD), (("light",), None)], ids=["nothing else waits", "something lighter waits"]
)
def test_where_nothing_fits_in_what_came_back_the_cap_is_reached(
    desk: LedgerDesk, waits: tuple[str, ...], acting: Action | None
) -> None:
    budget = cap(desk, 31, (1.0, Action.HOLD))
    job = desk.submit(draws("a"), draws("b", 16.0), draws("c"), *(draws(key, 1.0) for key in waits))
    a, b = leased(desk, job, "a"), leased(desk, job, "b", worker="w2")
    desk.clock.advance(10)
    assert desk.ledger.extend(desk.term, near(desk), TAKES_10) == {a["attempt_id"]: False}
    desk.clock.advance(1)
    desk.ledger.interrupt(desk.term, **a, facts={"checkpoint": "x"}, suspend="budget")
    assert desk.ledger.tend_budgets(desk.term) == 1
    assert isinstance(ask(desk, job, "a"), Held)
    assert now(desk, budget).acting is None, "others may give some back"
    desk.clock.advance(4)
    commit(desk, b)
    assert isinstance(ask(desk, job, "c"), Held)
    assert now(desk, budget).acting is None, "only what began tells that the end has come"
    assert isinstance(ask(desk, job, "a"), Held)
    assert (now(desk, budget).left_nano, now(desk, budget).acting) == (5 * S1, acting)
    for key in waits:
        leased(desk, job, key)
    desk.check()


def test_a_new_month_begins_with_nothing_spent(desk: LedgerDesk) -> None:
    budget = cap(desk, 12, (0.5, Action.HOLD), period=Period.MONTH)
    job = desk.submit(draws("a"), draws("b"))
    a = leased(desk, job, "a")
    desk.clock.advance(6)
    commit(desk, a)
    assert isinstance(ask(desk, job, "b"), Held)
    left_s = (now(desk, budget).until_us or 0) / 1e6 - desk.clock.now_us() / 1e6
    desk.clock.advance(left_s - 1)
    desk.ledger.tend_budgets(desk.term)
    assert isinstance(ask(desk, job, "b"), Held)
    desk.clock.advance(1)
    desk.ledger.tend_budgets(desk.term)
    fresh = now(desk, budget)
    assert (fresh.spent_nano, fresh.acting) == (0, None)
    leased(desk, job, "b")
    assert kinds(desk, budget) == ["budget.set", "budget.reached", "budget.turn"]
    desk.check()


def test_a_month_that_a_wrong_clock_turned_is_turned_back(desk: LedgerDesk) -> None:
    budget = cap(desk, 12, (0.5, Action.HOLD), period=Period.MONTH)
    job = desk.submit(draws("a"), draws("b"))
    a = leased(desk, job, "a")
    desk.clock.advance(6)
    commit(desk, a)
    held = now(desk, budget)
    for jump_s in (31 * 24 * HOUR, -31 * 24 * HOUR):
        desk.clock.jump(jump_s)
        desk.ledger.tend_budgets(desk.term)
    assert now(desk, budget) == held
    assert isinstance(ask(desk, job, "b"), Held)
    assert kinds(desk, budget) == ["budget.set", "budget.reached", "budget.turn", "budget.turn", "budget.reached"]
    desk.check()


def test_who_asks_again_for_a_lease_turns_no_month(desk: LedgerDesk) -> None:
    budget, job = cap(desk, 100, period=Period.MONTH), desk.submit(draws("a"))
    desk.lease(job, "a", request="again")
    assert desk.ledger.leased_by_request("w1", "again") is not None
    assert kinds(desk, budget) == ["budget.set"]


def test_a_new_month_cancels_nothing_for_what_the_old_one_cost(desk: LedgerDesk) -> None:
    budget = cap(desk, 12, (0.3, Action.CANCEL), period=Period.MONTH)
    job = desk.submit(draws("a"), draws("b"))
    desk.clock.advance((now(desk, budget).until_us or 0) / 1e6 - desk.clock.now_us() / 1e6 - 6)
    a = leased(desk, job, "a")
    desk.clock.advance(5)
    commit(desk, a)
    assert now(desk, budget).acting is Action.CANCEL
    desk.clock.advance(2)
    assert desk.ledger.tend_budgets(desk.term) == 0
    assert desk.state(job, "b") is State.READY
    leased(desk, job, "b")
    desk.check()


def test_work_that_costs_nothing_never_nears_what_it_reserved(desk: LedgerDesk) -> None:
    desk.join("free", rate=0)
    cap(desk, 12)
    leased(desk, desk.submit(draws("a")), "a", worker="free")
    desk.clock.advance(3600)
    assert near(desk) == []
    desk.check()


def test_notify_is_told_once_to_those_who_listen_and_stops_nothing(desk: LedgerDesk) -> None:
    spec = HookSpec(tenant="studio", name="n", url="https://example.org", topics=(BUDGET_REACHED,))
    hook, _ = desk.ledger.create_hook(spec)
    desk.ledger.create_hook(HookSpec(tenant="studio", name="d", url="https://example.org", topics=("x y",)))
    budget, job = cap(desk, 100, (0.1, Action.NOTIFY)), desk.submit(*(draws(k) for k in "abc"))
    for key in "ab":
        who = leased(desk, job, key)
        desk.clock.advance(10)
        commit(desk, who)
    assert kinds(desk, budget) == ["budget.set", "budget.reached"]
    assert now(desk, budget).acting is Action.NOTIFY
    told = desk.ledger.claim_deliveries(limit=9, each=9, of_tenant=9, beside=(), lease_s=60.0)
    assert [(m.hook_id, m.topic, m.job_id) for m in told] == [(hook.id, BUDGET_REACHED, budget.id)]
    leased(desk, job, "c")


def test_finish_lets_end_what_runs_past_the_cap_and_starts_nothing(desk: LedgerDesk) -> None:
    budget = cap(desk, 30, (0.3, Action.FINISH))
    job = desk.submit(draws("a"), draws("b"), draws("c"))
    a, b = leased(desk, job, "a"), leased(desk, job, "b", worker="w2")
    desk.clock.advance(10)
    commit(desk, a)
    assert isinstance(ask(desk, job, "c"), Held)
    for _ in range(8):
        desk.clock.advance(3)
        assert desk.ledger.extend(desk.term, [b["attempt_id"]], TAKES_10) == {b["attempt_id"]: True}
    commit(desk, b)
    assert (desk.state(job, "b"), now(desk, budget).spent_nano) == (State.SUCCEEDED, 44 * S1)
    desk.check()


def test_finish_at_the_cap_itself_lets_end_what_runs_past_it(desk: LedgerDesk) -> None:
    budget = cap(desk, 12, (1.0, Action.FINISH))
    job = desk.submit(draws("a"), draws("b"))
    a = leased(desk, job, "a")
    for _ in range(8):
        desk.clock.advance(3)
        assert desk.ledger.extend(desk.term, [a["attempt_id"]], TAKES_10) == {a["attempt_id"]: True}
    commit(desk, a)
    assert (now(desk, budget).spent_nano, now(desk, budget).acting) == (24 * S1, Action.FINISH)
    assert kinds(desk, budget) == ["budget.set", "budget.reached"]
    assert isinstance(ask(desk, job, "b"), Held)
    desk.check()


def test_hold_lets_run_what_runs_as_far_as_the_cap(desk: LedgerDesk) -> None:
    cap(desk, 30, (0.3, Action.HOLD))
    job = desk.submit(draws("a"), draws("b"), draws("c"))
    a, b = leased(desk, job, "a"), leased(desk, job, "b", worker="w2")
    desk.clock.advance(10)
    commit(desk, a)
    assert isinstance(ask(desk, job, "c"), Held)
    assert desk.ledger.extend(desk.term, [b["attempt_id"]], TAKES_10) == {b["attempt_id"]: True}
    desk.clock.advance(9)
    assert desk.ledger.extend(desk.term, [b["attempt_id"]], TAKES_10) == {b["attempt_id"]: False}


def test_cancel_ends_all_that_is_open_in_the_scope_alone(desk: LedgerDesk) -> None:
    cap(desk, 100, (0.1, Action.CANCEL), scope=Scope.SHOW, subject="one")
    one, two = desk.submit(draws("a"), draws("b"), show="one"), desk.submit(draws("z"), show="two")
    open_too = desk.submit(draws("c"), show="one")
    who = leased(desk, one, "a")
    desk.clock.advance(10)
    commit(desk, who)
    assert desk.ledger.tend_budgets(desk.term) == 2
    assert (desk.state(one, "b"), desk.state(open_too, "c")) == (State.CANCELED, State.CANCELED)
    assert (desk.state(one, "a"), desk.state(two, "z")) == (State.SUCCEEDED, State.READY)
    with pytest.raises(OverBudget, match="cancel at its threshold"):
        desk.submit(draws("d"), show="one")
    desk.check()


def test_a_budget_counts_what_was_spent_before_it_and_what_runs(desk: LedgerDesk) -> None:
    job = desk.submit(draws("a"), draws("b"))
    who = leased(desk, job, "a")
    desk.clock.advance(4)
    commit(desk, who)
    b = leased(desk, job, "b")
    budget = cap(desk, 100)
    assert (budget.spent_nano, budget.reserved_nano) == (4 * S1, 0)
    desk.clock.advance(3)
    assert desk.ledger.extend(desk.term, [b["attempt_id"]], TAKES_10) == {b["attempt_id"]: True}
    assert (now(desk, budget).spent_nano, now(desk, budget).reserved_nano) == (7 * S1, 6 * S1)
    desk.check()
    desk.ledger.remove_budget("studio", budget.id)
    commit(desk, b)
    assert desk.ledger.budgets() == []
    desk.check()


def test_a_cap_that_is_lowered_takes_back_what_running_work_has_reserved(desk: LedgerDesk) -> None:
    """Also of the budget around it; what is left of the cap goes to those who run."""
    job = desk.submit(draws("a"), draws("b"), show="trailer")
    show = cap(desk, 5000, scope=Scope.SHOW, subject="trailer")
    whole, cold = cap(desk, 9000), Reserves(slack_s=2.0, cold_s=900.0)
    a = leased(desk, job, "a", reserves=cold)
    b = leased(desk, job, "b", worker="w2", reserves=cold)
    desk.clock.advance(10)
    assert near(desk) == []
    cap(desk, 24, scope=Scope.SHOW, subject="trailer")
    assert (now(desk, show).spent_nano, now(desk, show).reserved_nano) == (20 * S1, 4 * S1)
    assert (now(desk, whole).spent_nano, now(desk, whole).reserved_nano) == (20 * S1, 4 * S1)
    assert len(near(desk)) == 2
    assert set(desk.ledger.extend(desk.term, near(desk), TAKES_10).values()) == {False}
    desk.clock.advance(4)
    for who in (a, b):
        desk.ledger.interrupt(desk.term, **who, facts={"checkpoint": "x"}, suspend="budget")
    desk.check()


def test_a_budget_set_over_work_that_has_run_for_long_stops_it_and_is_not_blamed(desk: LedgerDesk) -> None:
    job = desk.submit(draws("a"))
    a = leased(desk, job, "a")
    desk.clock.advance(3600)
    budget = cap(desk, 1)
    assert budget.spent_nano == 3600 * S1
    assert desk.ledger.extend(desk.term, near(desk), TAKES_10) == {a["attempt_id"]: False}
    desk.clock.advance(2)
    desk.ledger.interrupt(desk.term, **a, facts={"checkpoint": "x"}, suspend="budget")
    assert now(desk, budget).spent_nano == 3602 * S1
    desk.check()


@pytest.mark.parametrize("first_s", [None, 1000], ids=["a first cap", "a cap that is lowered"])
def test_a_cap_below_what_is_spent_is_not_blamed_for_work_that_ends_before_it_is_told(
    desk: LedgerDesk, first_s: int | None
) -> None:
    if first_s is not None:
        cap(desk, first_s)
    job = desk.submit(draws("a"), draws("b"))
    a = leased(desk, job, "a")
    desk.clock.advance(500)
    budget = cap(desk, 100)
    desk.clock.advance(5)
    commit(desk, a)
    assert now(desk, budget).spent_nano == 505 * S1
    desk.check()


def test_a_cap_that_is_set_over_running_work_allows_it_one_heartbeat_alone(desk: LedgerDesk) -> None:
    """Whether it is told or not; and what an older version wrote down allows none."""
    leased(desk, desk.submit(draws("a")), "a")
    desk.clock.advance(500)
    budget = cap(desk, 100)
    desk.clock.advance(60)
    desk.ledger.extend(desk.term, near(desk), TAKES_10)
    assert desk.ledger.flaws() == [overshot(budget, 560, 502)]
    desk.ledger.database.transaction(lambda c: c.execute(delete(budget_events).where(budget_events.c.seq > 1)))
    assert desk.ledger.flaws() == [overshot(budget, 560, 510)]

    def as_before(connection: Connection) -> None:
        said = connection.execute(select(budget_events.c.data)).scalar_one()
        del said["slack_nano"]
        connection.execute(update(budget_events).values(data=said))

    desk.ledger.database.transaction(as_before)
    assert desk.ledger.flaws() == [overshot(budget, 560, 500)]


def test_what_is_metered_is_charged_past_a_cap_and_no_overshoot(desk: LedgerDesk) -> None:
    """Bytes that are kept cost what they cost: a cap bounds the time of workers alone."""
    budget, job = cap(desk, 12), desk.submit(draws("a"), draws("b", 1.0))
    a = leased(desk, job, "a")
    desk.clock.advance(8)
    desk.ledger.extend(desk.term, [a["attempt_id"]], TAKES_10)
    desk.clock.advance(2)
    desk.ledger.interrupt(desk.term, **a, facts={"checkpoint": "x"}, suspend="budget")
    hour = Leaving(tenant="studio", show="default", minute_us=desk.clock.now_us())
    desk.ledger.book_egress("replica", [(hour, 50 * GIB)])
    desk.clock.advance(3600)
    desk.ledger.bill_meters(CARD)
    assert now(desk, budget).spent_nano > 12 * S1
    assert isinstance(ask(desk, job, "b"), Held)
    desk.check()


def test_time_of_workers_past_its_bound_is_told(desk: LedgerDesk) -> None:
    budget, job = cap(desk, 12), desk.submit(draws("a"))
    leased(desk, job, "a")
    desk.clock.advance(60)
    desk.ledger.extend(desk.term, near(desk), TAKES_10)
    assert desk.ledger.flaws() == [overshot(budget, 60, 14)]


def test_fifty_jobs_at_once_with_estimates_too_low_stay_within_the_bound(desk: LedgerDesk) -> None:
    """One dollar; each task is believed to take 10 s and would take 60: three dollars. A heartbeat is 2 s, and four
    workers run under the cap, so it may be overshot by 8 s of a worker."""
    heartbeat_s, takes_s, workers = 2, 60, ["w1", "w2", "w3", "w4"]
    for more in workers[2:]:
        desk.join(more)
    budget = cap(desk, 1000)

    def submitted(n: int) -> str:
        while True:
            try:
                return desk.submit(draws(f"t{n}"), show=f"show{n % 3}")
            except LedgerUnavailable:  # too many at once for a slow machine: a client asks again
                continue

    with ThreadPoolExecutor(10) as pool:
        jobs = list(pool.map(submitted, range(50)))
    waiting = [(job, f"t{n}") for n, job in enumerate(jobs)]
    running: dict[str, tuple[str, dict[str, Any], int]] = {}
    stopped = finished = 0
    for second in range(0, 2000, heartbeat_s):
        for worker, (_, who, since) in list(running.items()):
            if second - since >= takes_s:
                commit(desk, who)
                finished += 1
                del running[worker]
        for attempt, goes_on in desk.ledger.extend(desk.term, near(desk), TAKES_10).items():
            if not goes_on:  # the worker hears it, and stops at a checkpoint before its next heartbeat
                worker, who = next((w, who) for w, (_, who, _) in running.items() if who["attempt_id"] == attempt)
                desk.clock.advance(1)
                desk.ledger.interrupt(desk.term, **who, facts={"checkpoint": "x"}, suspend="budget")
                stopped += 1
                del running[worker]
        for worker in workers:
            if worker not in running and waiting:
                got = ask(desk, *waiting[0], worker=worker)
                if isinstance(got, tuple):
                    who = {"task_id": got[0]["id"], "attempt_id": got[0]["attempt_id"], "epoch": got[0]["epoch"]}
                    running[worker] = (waiting.pop(0)[0], who, second)
        if not running:
            break
        desk.clock.advance(heartbeat_s)
    spent = now(desk, budget).spent_nano
    assert spent == desk.ledger.spent(tenant="studio").nano
    assert spent <= (1000 + heartbeat_s * len(workers)) * S1
    assert spent > 950 * S1, "the cap was hardly used"
    assert (finished > 10, stopped > 0, len(waiting) > 25) == (True, True, True)
    desk.check()
