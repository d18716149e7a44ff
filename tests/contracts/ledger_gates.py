"""Gates: an answer that a person has to approve before anything is built on it."""

from __future__ import annotations

import pytest

from cluster.errors import IllegalMove
from cluster.states import Move, State
from tests.ledger_desk import LedgerDesk, file, task

SHOT = {"spec": {"prompt": "a boat", "seed": 7}}
OTHER = {"spec": {"prompt": "a boat", "seed": 8}}


def film(desk: LedgerDesk, *keys: str) -> str:
    """Two takes of one shot, of which one has to be approved, and the cut of the first."""
    takes = [task("t1", params=SHOT, gate="shot"), task("t2", params=OTHER, gate="shot")]
    return desk.submit(*(t for t in takes if not keys or t.key in keys), task("cut", "t1"))


def test_a_take_behind_a_gate_waits_for_a_person_and_what_is_built_on_it_with_it(desk: LedgerDesk) -> None:
    job = film(desk)
    desk.run(job, "t1")
    assert desk.states(job) == {"t1": "in_review", "t2": "ready", "cut": "pending"}
    assert desk.move(job, "t1", Move.APPROVE) is State.SUCCEEDED
    assert desk.state(job, "cut") is State.READY
    with pytest.raises(IllegalMove, match="cannot approve"):
        desk.move(job, "t1", Move.APPROVE)
    desk.check()


def test_one_approved_take_frees_the_others_of_its_gate_whether_they_are_done_or_not(desk: LedgerDesk) -> None:
    first, second = film(desk), film(desk)
    desk.run(first, "t2")
    desk.run(first, "t1")
    desk.move(first, "t2", Move.APPROVE)
    assert desk.states(first) == {"t1": "succeeded", "t2": "succeeded", "cut": "ready"}
    assert sorted(desk.kinds(first)[-2:]) == ["task.deps_met", "task.waive"]
    assert [desk.task(first, key)["gate"] for key in ("t1", "t2")] == [None, "shot"]
    assert desk.states(second) == {"t1": "in_review", "t2": "in_review", "cut": "pending"}  # nobody approved these
    late = film(desk)
    assert desk.states(late) == {"t1": "succeeded", "t2": "succeeded", "cut": "ready"}  # for t2 is approved
    desk.check()


def test_a_rejected_take_is_drawn_again_with_another_seed_and_is_dead_when_its_budget_is_spent(
    desk: LedgerDesk,
) -> None:
    job, seeds = film(desk, "t1"), list[int]()
    for _ in range(3):
        desk.run(job, "t1", files=[file(f"clip {len(seeds)}")])
        seeds.append(desk.task(job, "t1")["params"]["spec"]["seed"])
        desk.move(job, "t1", Move.REJECT)
    assert len(set(seeds)) == 3
    dead = desk.task(job, "t1")
    assert (dead["state"], dead["generation"], dead["failures"]) == ("dead", 2, {"quality": 3})
    assert "3 times" in dead["reason"]
    desk.move(job, "t1", Move.REOPEN)
    desk.run(job, "t1")
    desk.move(job, "t1", Move.APPROVE)
    assert desk.states(job) == {"t1": "succeeded", "cut": "ready"}
    desk.check()


def test_an_answer_is_approved_once_and_one_that_is_made_again_is_looked_at_again(desk: LedgerDesk) -> None:
    first = film(desk, "t1")
    desk.run(first, "t1")
    waiting = film(desk, "t1")
    assert desk.state(waiting, "t1") is State.IN_REVIEW
    assert "task.cache_gate" in desk.kinds(waiting)
    desk.move(waiting, "t1", Move.APPROVE)
    assert desk.state(first, "t1") is State.IN_REVIEW
    assert desk.state(film(desk, "t1"), "t1") is State.SUCCEEDED
    desk.move(waiting, "t1", Move.REOPEN)
    desk.run(waiting, "t1", files=[file("other pixels")])
    assert desk.state(waiting, "t1") is State.IN_REVIEW
    assert desk.state(film(desk, "t1"), "t1") is State.IN_REVIEW
    desk.check()


def test_who_waits_for_the_answer_of_another_job_reviews_it_alone(desk: LedgerDesk) -> None:
    plain, gated = desk.submit(task("t1", params=SHOT)), film(desk, "t1")
    leased = desk.lease(plain, "t1")
    assert desk.try_lease(gated, "t1") is None
    desk.commit(leased)
    assert (desk.state(plain, "t1"), desk.state(gated, "t1")) == (State.SUCCEEDED, State.IN_REVIEW)
    desk.check()


def test_a_lost_attempt_that_is_adopted_stops_before_the_gate(desk: LedgerDesk) -> None:
    job = film(desk, "t1")
    leased = desk.lease(job, "t1")
    desk.lose(leased)
    assert desk.commit(leased) == "accepted"
    assert desk.state(job, "t1") is State.IN_REVIEW
    desk.ledger.cancel_job(job)
    assert desk.states(job) == {"t1": "canceled", "cut": "canceled"}
    desk.check()
