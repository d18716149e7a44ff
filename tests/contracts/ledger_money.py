"""Every nano-dollar: chains of intervals, splits, waste, clocks that are set."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.budgets import BudgetSpec, Scope
from cluster.errors import FailureClass
from cluster.ledger.holdings import SILENT_US
from cluster.ledger.leases import Answer
from cluster.states import Move
from tests.ledger_desk import HOUR, LedgerDesk, file, task

S1 = 1_000_000
"""Nano-dollars of one second of a worker."""


def test_held_time_is_load_busy_idle_or_wasted_and_nothing_else(desk: LedgerDesk) -> None:
    desk.join("w3", spawned_s_ago=30)
    job = desk.submit(task("a"), task("b"))
    desk.clock.advance(5)
    a = desk.lease(job, "a", worker="w3")
    desk.clock.advance(7)
    desk.commit(a)
    b = desk.lease(job, "b", worker="w3")
    desk.clock.advance(11)
    desk.fail(b)
    desk.clock.advance(13)
    desk.ledger.leave(desk.term, "w3")
    mine = {k: desk.spent(k, worker_id="w3") for k in ("load", "busy", "idle", "wasted")}
    assert mine == {"load": 30 * S1, "busy": 7 * S1, "idle": 18 * S1, "wasted": 11 * S1}
    assert desk.ledger.spent(worker_id="w3").held_s == 66.0
    desk.check()


def test_occupants_of_one_worker_share_its_time_to_the_nano(desk: LedgerDesk) -> None:
    desk.join("w3", rate=3_600_000_000 * 7)
    job = desk.submit(*(task(k) for k in "abc"))
    leased = [desk.lease(job, k, worker="w3") for k in "abc"]
    desk.clock.advance(0.000001)
    for one in leased:
        desk.commit(one)
    shares = sorted(desk.spent("busy", attempt_id=x.attempt_id) for x in leased)
    assert shares == [2, 2, 3]
    desk.check()


def test_a_worker_of_four_accelerators_holds_four_seconds_a_second(desk: LedgerDesk) -> None:
    desk.join("w4", num_accelerators=4)
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a", worker="w4")
    desk.clock.advance(10)
    desk.commit(leased)
    spent = desk.ledger.spent(task_id=leased.task_id)
    assert (spent.held_s, spent.nano) == (40.0, 10 * S1)
    desk.check()


def went_on(desk: LedgerDesk, job: str, key: str | None) -> None:
    """The task commits, from the checkpoint `key` if there is one."""
    leased = desk.lease(job, "a")
    desk.ledger.commit(
        desk.term, **leased.who, receipt_key=f"studio/attempts/{leased.attempt_id}/receipt.json", files=[file("x")],
        result={}, facts={"resumed_from": key},
    )  # fmt: skip


@pytest.mark.parametrize("saved", [True, False], ids=["with a checkpoint", "without one"])
@pytest.mark.parametrize("end", ["canceled", "dead", "opened again", "begun anew", "gone on from"])
def test_what_was_interrupted_is_waste_until_a_commit_goes_on_from_its_checkpoint(
    desk: LedgerDesk, end: str, saved: bool
) -> None:
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")
    key = f"studio/attempts/{leased.attempt_id}/checkpoint-1"
    desk.clock.advance(4)
    desk.interrupt(leased, checkpoint=key if saved else None)
    assert (desk.spent("wasted"), desk.spent("busy")) == (4 * S1, 0)
    match end:
        case "canceled":
            desk.ledger.cancel_job(job)
        case "dead":
            desk.fail(desk.lease(job, "a"), FailureClass.INPUT)
        case "opened again":
            desk.ledger.cancel_job(job)
            desk.move(job, "a", Move.REOPEN)
            went_on(desk, job, None)
        case "begun anew":
            went_on(desk, job, None)
        case _:
            went_on(desk, job, key)
    used = saved and end == "gone on from"
    assert (desk.spent("wasted"), desk.spent("busy")) == ((0, 4 * S1) if used else (4 * S1, 0))
    desk.check()


def test_nothing_is_taken_back_but_by_a_new_line(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")
    desk.clock.advance(4)
    desk.lose(leased)
    desk.commit(leased)
    from sqlalchemy import select

    from cluster.ledger.schema import cost_lines

    lines = desk.ledger.database.transaction(
        lambda c: c.execute(
            select(cost_lines.c.kind, cost_lines.c.nano, cost_lines.c.note)
            .where(cost_lines.c.attempt_id == leased.attempt_id)
            .order_by(cost_lines.c.id)
        ).all()
    )
    assert [tuple(line) for line in lines] == [
        ("busy", 4 * S1, None),
        ("busy", -4 * S1, "lost"),
        ("wasted", 4 * S1, "lost"),
        ("wasted", -4 * S1, "adopted"),
        ("busy", 4 * S1, "adopted"),
    ]


@pytest.mark.parametrize("jump_s", [HOUR, -HOUR, 7 * 24 * HOUR], ids=["forward", "back", "a-week-of-sleep"])
def test_a_clock_that_is_set_bills_nobody(desk: LedgerDesk, jump_s: float) -> None:
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")
    desk.clock.advance(5)
    desk.clock.jump(jump_s)
    desk.clock.advance(5)
    assert desk.commit(leased) is Answer.ACCEPTED
    assert desk.spent("busy") == 10 * S1
    desk.check()


def test_a_thread_that_was_stopped_between_looks_at_two_clocks_bills_nobody(
    desk: LedgerDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")
    desk.clock.advance(5)
    look, stops_s = desk.clock.now_us, iter([0.0, 10.0])  # the report's own look at the time, and the watch's

    def stopped_after() -> int:
        now_us = look()
        desk.clock.advance(next(stops_s, 0.0))
        return now_us

    monkeypatch.setattr(desk.clock, "now_us", stopped_after)
    assert desk.commit(leased) is Answer.ACCEPTED
    assert desk.spent("busy") == 5 * S1
    assert list(stops_s) == []
    desk.check()


def test_a_clock_set_back_while_no_dispatcher_looked_makes_no_negative_bill(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")
    desk.clock.advance(5)
    desk.clock.jump(-HOUR)
    fresh = desk.ledger.__class__(desk.ledger.database.url, clock=desk.clock, durable=False)
    fresh.interrupt(fresh.take_term(), **leased.who, facts={"checkpoint": "x"})
    fresh.close()
    assert desk.spent("busy") == 0
    desk.check()


def asleep(desk: LedgerDesk) -> str:
    """A job that had run for ten seconds when the machine fell asleep, for eight hours; the dispatcher was heard of."""
    job = desk.submit(task("a"))
    desk.lease(job, "a")
    desk.ledger.say_alive(desk.term)
    desk.clock.advance(10)
    desk.clock.jump(8 * HOUR)
    return job


WIDE = BudgetSpec(tenant="studio", scope=Scope.TENANT, cap_nano=10_000 * S1)
PEOPLE: dict[str, Callable[[LedgerDesk, str], object]] = {
    "cancel": lambda desk, job: desk.ledger.cancel_job(job),
    "delete": lambda desk, job: desk.ledger.delete_job(job),
    "erase": lambda desk, job: desk.ledger.erase_job(job),
    "move": lambda desk, job: desk.move(job, "a", Move.HOLD),
    "budget": lambda desk, job: desk.ledger.set_budget(WIDE),
}


@pytest.mark.parametrize("person", PEOPLE.values(), ids=PEOPLE.keys())
def test_a_person_who_is_quicker_than_the_dispatcher_bills_nobody_for_a_sleep(
    desk: LedgerDesk, person: Callable[[LedgerDesk, str], object]
) -> None:
    job = asleep(desk)
    person(desk, job)
    billed = desk.ledger.spent(job_id=job).nano
    assert 10 * S1 <= billed <= SILENT_US / 1e6 * S1
    desk.ledger.backoff_over(desk.term)
    after = desk.submit(task("b"))
    leased = desk.lease(after, "b", worker="w1" if desk.task(job, "a")["state"] != "running" else "w2")
    desk.clock.advance(HOUR)
    assert desk.commit(leased) is Answer.ACCEPTED
    assert desk.ledger.spent(job_id=after).nano == HOUR * S1
    desk.check()


def test_work_is_billed_until_a_person_ends_it_no_further_than_a_dispatcher_was_heard_of(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"))
    desk.ledger.say_alive(desk.term)
    a, b = desk.lease(job, "a"), desk.lease(job, "b")
    desk.clock.advance(10)
    desk.move(job, "a", Move.HOLD)
    desk.clock.advance(2 * SILENT_US / 1e6)
    desk.move(job, "b", Move.HOLD)
    spent = desk.ledger.spent_by_task(job)
    assert (spent[a.task_id].nano, spent[b.task_id].nano) == (5 * S1, SILENT_US // 1_000_000 * S1 - 5 * S1)
    desk.check()


def test_a_worker_that_comes_back_was_held_all_the_while(desk: LedgerDesk) -> None:
    desk.ledger.leave(desk.term, "w1")
    desk.clock.advance(60)
    desk.join("w1")
    desk.join("w1")
    assert desk.spent("idle", worker_id="w1") == 60 * S1
    assert "w1" in {row["id"] for row in desk.ledger.open_workers()}
    desk.check()


def test_costs_of_tasks_and_of_nobody_are_the_costs_of_shows(desk: LedgerDesk) -> None:
    one, two = desk.submit(task("a"), show="one"), desk.submit(task("b"), show="two")
    a, b = desk.lease(one, "a", worker="w1"), desk.lease(two, "b", worker="w2")
    desk.clock.advance(3)
    desk.commit(a)
    desk.clock.advance(2)
    desk.fail(b, FailureClass.INPUT)
    desk.ledger.leave(desk.term, "w1")
    by_task = {**desk.ledger.spent_by_task(one), **desk.ledger.spent_by_task(two)}
    assert {k: v.nano for k, v in by_task.items()} == {a.task_id: 3 * S1, b.task_id: 5 * S1}
    shows = {s: desk.ledger.spent(show=s).nano for s in ("one", "two", "farm")}
    assert shows == {"one": 3 * S1, "two": 5 * S1, "farm": 2 * S1}
    assert desk.ledger.unbalanced_workers() == []
    desk.check()
