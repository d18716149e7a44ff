"""Leases, fences, reports: rules 1 to 6 and 10 of section 4 of the design. The fixture `desk` names the database."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from cluster.errors import FailureClass, InvalidGraph, NotFound, StaleEpoch, StaleTerm, WorkerLost
from cluster.failures import BUDGET, LONGEST_DELAY_S
from cluster.ledger import moves
from cluster.ledger.leases import Answer, Commit
from cluster.states import Move, State
from tests.ledger_desk import HOUR, Leased, LedgerDesk, file, task


def test_a_lease_raises_the_epoch_and_a_second_one_finds_nothing(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")
    assert (leased.epoch, desk.state(job, "a")) == (1, State.RUNNING)
    assert desk.try_lease(job, "a", worker="w2") is None
    assert desk.try_lease(job, "a", worker="w2", epoch=0) is None
    desk.check()


def test_a_lost_reply_gets_the_same_lease_again(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"))
    first = desk.lease(job, "a", request="r1")
    again = desk.lease(job, "b", request="r1")  # the dispatcher, new, would have given another task
    assert (again.task_id, again.attempt_id, again.epoch) == (first.task_id, first.attempt_id, first.epoch)
    assert desk.state(job, "b") is State.READY
    found = desk.ledger.leased_by_request("w1", "r1")
    assert found is not None
    assert found[0]["attempt_id"] == first.attempt_id
    desk.commit(first)
    assert desk.ledger.leased_by_request("w1", "r1") is None
    desk.check()


def test_a_worker_that_never_joined_or_has_left_gets_no_lease(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    desk.ledger.leave(desk.term, "w2")
    for worker in ("w2", "w9"):
        with pytest.raises(WorkerLost, match=worker):
            desk.try_lease(job, "a", worker=worker)
    assert desk.state(job, "a") is State.READY


def test_a_worker_that_drains_gets_no_lease_and_keeps_what_it_runs(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"))
    leased = desk.lease(job, "a", worker="w1")
    assert desk.ledger.drain("w1", reason="mending")
    assert desk.try_lease(job, "b", worker="w1") is None
    assert desk.commit(leased) is Answer.ACCEPTED
    assert desk.try_lease(job, "b", worker="w2") is not None
    desk.check()


def test_a_row_that_has_moved_since_it_was_read_is_not_written_over(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    task_id = desk.task(job, "a")["id"]
    old = desk.ledger.database.transaction(lambda c: moves.read(c, task_id))
    assert old is not None
    desk.lose(desk.lease(job, "a"))
    assert desk.state(job, "a") is State.READY

    def write(connection: Connection) -> None:
        moves.apply(connection, old, Move.HOLD, now_us=desk.clock.now_us())

    with pytest.raises(StaleEpoch, match="has moved on"):
        desk.ledger.database.transaction(write)
    assert desk.state(job, "a") is State.READY
    desk.check()


def test_a_commit_moves_the_task_and_names_what_it_made(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")
    assert desk.commit(leased, files=[file("clip")], result={"frames": 24}) is Answer.ACCEPTED
    row = desk.task(job, "a")
    assert (row["state"], row["attempt_id"], row["result"]) == ("succeeded", leased.attempt_id, {"frames": 24})
    assert row["files"] == [file("clip")]
    desk.check()


def test_a_report_that_comes_twice_is_a_duplicate(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"), task("c"), task("d"))
    a, b, c, d = (desk.lease(job, key) for key in "abcd")
    assert [desk.commit(a), desk.commit(a)] == [Answer.ACCEPTED, Answer.DUPLICATE]
    assert [desk.fail(b), desk.fail(b)] == [Answer.ACCEPTED, Answer.DUPLICATE]
    assert [desk.interrupt(c), desk.interrupt(c)] == [Answer.ACCEPTED, Answer.DUPLICATE]
    assert [desk.lose(d), desk.lose(d)] == [Answer.ACCEPTED, Answer.DUPLICATE]
    assert desk.task(job, "b")["failures"] == {"bug": 1}
    desk.check()


def test_reports_out_of_order_change_nothing(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"))
    a, b = desk.lease(job, "a"), desk.lease(job, "b")
    desk.commit(a)
    assert desk.fail(a) is Answer.SUPERSEDED
    desk.fail(b, FailureClass.INPUT)
    assert desk.commit(b) is Answer.SUPERSEDED
    assert desk.states(job) == {"a": "succeeded", "b": "dead"}
    assert desk.kinds(job).count("attempt.late_report") == 2
    desk.check()


def test_the_late_report_of_a_stale_attempt_is_written_down_and_moves_nothing(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    old = desk.lease(job, "a", worker="w1")
    desk.lose(old)
    new = desk.lease(job, "a", worker="w2")
    assert new.epoch == old.epoch + 1
    assert desk.commit(old) is Answer.SUPERSEDED
    assert (desk.state(job, "a"), desk.task(job, "a")["attempt_id"]) == (State.RUNNING, new.attempt_id)
    assert desk.commit(new) is Answer.ACCEPTED
    assert desk.commit(old) is Answer.SUPERSEDED
    assert desk.task(job, "a")["attempt_id"] == new.attempt_id
    assert desk.kinds(job).count("attempt.late_report") == 2
    desk.check()


def test_a_report_under_an_epoch_of_somebody_else_hurts_nobody(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"))
    a, b = desk.lease(job, "a"), desk.lease(job, "b")
    for who in ({**a.who, "epoch": 7}, {**a.who, "task_id": b.task_id}, {**a.who, "attempt_id": "att_none"}):
        with pytest.raises(NotFound):
            desk.ledger.interrupt(desk.term, **who, facts={})
    assert desk.states(job) == {"a": "running", "b": "running"}
    desk.check()


def test_a_lost_attempt_that_had_uploaded_is_adopted(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")
    desk.clock.advance(10)
    desk.lose(leased)
    assert desk.spent("wasted") == 10_000_000
    assert desk.commit(leased) is Answer.ACCEPTED
    assert desk.state(job, "a") is State.SUCCEEDED
    assert (desk.spent("wasted"), desk.spent("busy")) == (0, 10_000_000)
    assert desk.ledger.attempts(job)[0]["state"] == "lost"  # terminal attempts are for ever
    assert desk.commit(leased) is Answer.DUPLICATE
    desk.check()


def test_no_attempt_is_adopted_once_a_newer_lease_exists(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    old = desk.lease(job, "a")
    desk.lose(old)
    desk.fail(desk.lease(job, "a", worker="w2"))
    assert desk.state(job, "a") is State.BACKOFF
    assert desk.commit(old) is Answer.SUPERSEDED
    desk.check()


def test_the_last_attempt_of_a_dead_task_is_adopted_too(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    budget = BUDGET[FailureClass.INFRA]
    assert budget is not None
    for n in range(budget):
        assert desk.state(job, "a") is State.READY, n
        last = desk.lease(job, "a")
        desk.lose(last)
    assert desk.state(job, "a") is State.DEAD
    assert desk.ledger.job(job).over
    assert desk.commit(last) is Answer.ACCEPTED
    assert desk.state(job, "a") is State.SUCCEEDED
    desk.check()


@pytest.mark.parametrize("state", ["ready", "suspended", "dead"])
def test_no_attempt_is_adopted_once_an_input_was_opened_again(desk: LedgerDesk, state: str) -> None:
    job = desk.submit(task("a"), task("b", "a"))
    desk.run(job, "a")
    for _ in range(20 if state == "dead" else 1):
        old = desk.lease(job, "b")
        desk.lose(old)
    if state == "suspended":
        desk.move(job, "b", Move.HOLD)
    assert desk.state(job, "b") == state
    desk.move(job, "a", Move.REOPEN)
    if state == "suspended":
        desk.move(job, "b", Move.RELEASE)
    desk.run(job, "a")
    assert desk.commit(old) is Answer.SUPERSEDED
    assert desk.state(job, "b") == ("dead" if state == "dead" else "ready")
    desk.check()


def test_one_commit_per_generation(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    first = desk.run(job, "a")
    desk.move(job, "a", Move.REOPEN)
    row = desk.task(job, "a")
    assert (row["generation"], row["receipt_key"], row["files"], row["result"]) == (1, None, None, None)
    assert desk.commit(first) is Answer.DUPLICATE
    assert desk.state(job, "a") is State.READY
    second = desk.run(job, "a")
    assert second.epoch == first.epoch + 1
    desk.check()


def test_a_dispatcher_of_an_older_term_writes_nothing(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"))
    leased = desk.lease(job, "a")
    new_term = desk.ledger.take_term()
    assert new_term == desk.term + 1
    before = desk.ledger.events(job)
    with pytest.raises(StaleTerm):
        desk.commit(leased)
    with pytest.raises(StaleTerm):
        desk.fail(leased)
    with pytest.raises(StaleTerm):
        desk.lose(leased)
    with pytest.raises(StaleTerm):
        desk.interrupt(leased)
    with pytest.raises(StaleTerm):
        desk.try_lease(job, "b")
    with pytest.raises(StaleTerm):
        desk.ledger.backoff_over(desk.term)
    with pytest.raises(StaleTerm):
        desk.join("w3")
    with pytest.raises(StaleTerm):
        desk.ledger.leave(desk.term, "w1")
    assert desk.ledger.events(job) == before
    assert desk.commit(leased, term=new_term) is Answer.ACCEPTED


def test_each_class_of_failure_has_a_budget_of_its_own(desk: LedgerDesk) -> None:
    deaths = {FailureClass.INPUT: 1, FailureClass.RESOURCE: 2, FailureClass.BUG: 3, FailureClass.QUALITY: 3}
    job = desk.submit(*(task(f.value) for f in deaths))
    for failure, budget in deaths.items():
        for n in range(1, budget + 1):
            desk.fail(desk.lease(job, failure.value), failure)
            assert desk.state(job, failure.value) is (State.DEAD if n == budget else State.BACKOFF), (failure, n)
            desk.clock.advance(LONGEST_DELAY_S)
            desk.ledger.backoff_over(desk.term)
    desk.check()


def test_budgets_do_not_add_up(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    for failure in (FailureClass.BUG, FailureClass.RESOURCE, FailureClass.BUG, FailureClass.QUALITY):
        desk.fail(desk.lease(job, "a"), failure)
        desk.clock.advance(LONGEST_DELAY_S)
        desk.ledger.backoff_over(desk.term)
    assert desk.state(job, "a") is State.READY
    assert desk.task(job, "a")["failures"] == {"bug": 2, "resource": 1, "quality": 1}


def test_a_back_off_ends_when_its_time_is_over_and_not_before(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    for delay_s in (0.5, 1.0):  # it doubles with each failure of a class
        desk.fail(desk.lease(job, "a"))
        desk.clock.advance(delay_s * 0.9)
        assert desk.ledger.backoff_over(desk.term) == []
        desk.clock.advance(delay_s * 0.2)
        assert desk.ledger.backoff_over(desk.term) == [desk.task(job, "a")["id"]]
        assert desk.state(job, "a") is State.READY
    desk.check()


def test_a_limit_backs_off_until_the_deadline_and_then_the_task_is_dead(desk: LedgerDesk) -> None:
    free = desk.submit(task("a"))
    bound = desk.submit(task("b"), deadline_us=desk.clock.now_us() + 120_000_000)
    for _ in range(8):
        for job, key in ((free, "a"), (bound, "b")):
            if desk.state(job, key) is State.READY:
                desk.fail(desk.lease(job, key), FailureClass.LIMIT)
        desk.clock.advance(LONGEST_DELAY_S)
        desk.ledger.backoff_over(desk.term)
    assert (desk.state(free, "a"), desk.state(bound, "b")) == (State.READY, State.DEAD)


def test_an_interrupted_attempt_uses_no_retry(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    for _ in range(30):
        desk.interrupt(desk.lease(job, "a"), checkpoint="studio/attempts/x/checkpoint-3")
    row = desk.task(job, "a")
    assert (row["state"], row["failures"], row["epoch"]) == ("ready", {}, 30)
    desk.check()


def test_a_failure_of_quality_is_tried_again_with_a_seed_derived_from_the_old_one(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"))
    for key in ("a", "b"):
        before = desk.task(job, key)
        desk.fail(desk.lease(job, key), FailureClass.QUALITY)
        desk.clock.advance(LONGEST_DELAY_S)
        desk.ledger.backoff_over(desk.term)
        after = desk.task(job, key)
        assert after["params"]["spec"]["prompt"] == before["params"]["spec"]["prompt"]
        assert after["content_key"] not in (None, before["content_key"])
    seeds = [desk.task(job, key)["params"]["spec"]["seed"] for key in "ab"]
    assert seeds[0] == seeds[1] != 7
    event = next(e for e in desk.ledger.events(job) if e.kind == "task.retry_later")
    assert event.data["seed"] == seeds[0]
    desk.fail(desk.lease(job, "a"), FailureClass.BUG)
    assert desk.task(job, "a")["params"]["spec"]["seed"] == seeds[0]


def test_an_error_that_says_nul_or_a_lone_surrogate_is_a_report_all_the_same(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    assert desk.fail(desk.lease(job, "a"), message="bad \x00 byte \ud800" + "x" * 10_000) is Answer.ACCEPTED
    reason = desk.task(job, "a")["reason"]
    assert reason.startswith("bad � byte ?x")
    assert len(reason) == 4_000


def test_an_hour_long_jump_of_the_clock_decides_nothing(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"))
    running = desk.lease(job, "b")
    for hours in (1, -1, -1):
        desk.fail(desk.lease(job, "a"), FailureClass.INFRA)
        desk.clock.jump(hours * HOUR)
        assert desk.ledger.backoff_over(desk.term) == []
        desk.clock.advance(10)
        assert len(desk.ledger.backoff_over(desk.term)) == 1
    assert desk.state(job, "b") is State.RUNNING
    assert desk.commit(running) is Answer.ACCEPTED
    assert desk.spent("busy") == 30_000_000  # 30 s were held, whatever the wall clock says
    desk.check()


def test_a_back_off_written_by_a_clock_that_ran_ahead_ends_within_minutes(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    desk.clock.jump(HOUR)
    desk.ledger.backoff_over(desk.term)
    desk.fail(desk.lease(job, "a"))
    desk.ledger.close()
    desk.clock.jump(-HOUR)
    after = desk.ledger.__class__(desk.ledger.database.url, clock=desk.clock, durable=False)
    term = after.take_term()
    assert after.backoff_over(term) == [desk.task(job, "a")["id"]]
    after.close()


def test_only_what_expands_may_report_children(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")
    with pytest.raises(InvalidGraph, match="does not expand"):
        desk.commit(leased, children=[task("b")])
    assert desk.state(job, "a") is State.RUNNING
    desk.check()


def receipt_of(leased: Leased) -> str:
    return f"studio/attempts/{leased.attempt_id}/receipt.json"


def test_many_leases_of_one_transaction_are_each_as_good_as_one(desk: LedgerDesk) -> None:
    """Two want one task, two ask the same question, one asks twice, one has left, one comes too late."""
    same = {"params": {"spec": {"prompt": "a boat", "seed": 1}}}
    job = desk.submit(task("a"), task("b"), task("twin1", **same), task("twin2", **same), task("late"))
    ids = {key: desk.task(job, key)["id"] for key in ("a", "b", "twin1", "twin2", "late")}
    desk.run(job, "late")
    asks = [
        (ids["a"], 0, "w1", "r1"),
        (ids["a"], 0, "w2", "r2"),
        (ids["b"], 0, "w1", "r1"),  # the same call again: one request, one lease
        (ids["twin1"], 0, "w2", "r3"),
        (ids["twin2"], 0, "w1", "r4"),
        (ids["b"], 0, "nobody", "r5"),
        (ids["late"], 0, "w1", "r6"),
        ("", 0, "w1", "r7"),  # only asks for what it may have got before
    ]
    got = desk.ledger.lease_all(desk.term, asks)
    keys = [one[0]["key"] if isinstance(one, tuple) else type(one).__name__ for one in got]
    assert keys == ["a", "NoneType", "a", "twin1", "NoneType", "WorkerLost", "NoneType", "NoneType"]
    assert desk.states(job) == {
        "a": "running", "b": "ready", "twin1": "running", "twin2": "ready", "late": "succeeded"
    }  # fmt: skip
    again = desk.ledger.lease_all(desk.term, [("", 0, "w1", "r1"), (ids["b"], 0, "w2", "r3")])
    assert [one[0]["key"] for one in again if isinstance(one, tuple)] == ["a", "twin1"]
    desk.check()


def test_many_commits_of_one_transaction_are_each_as_good_as_one(desk: LedgerDesk) -> None:
    """Two inputs of one task, an answer that another waits for, one report twice, one that comes too late."""
    same = {"params": {"spec": {"prompt": "a boat", "seed": 1}}}
    job = desk.submit(task("a"), task("b"), task("both", "a", "b"), task("lost"), task("twin", **same))
    other = desk.submit(task("waits", **same), show="other")
    leased = {key: desk.lease(job, key) for key in ("a", "b", "lost", "twin")}
    desk.clock.advance(3)
    desk.lose(leased["lost"])
    desk.run(job, "lost")
    answers = desk.ledger.commit_all(
        desk.term,
        [
            Commit(**one.who, receipt_key=receipt_of(one), files=[file(one.task_id)], result={}, facts={})
            for one in (leased[key] for key in ("a", "b", "a", "lost", "twin"))
        ],
    )
    assert [a.value for a in answers] == ["accepted", "accepted", "duplicate", "superseded", "accepted"]
    assert desk.states(job)["both"] == "ready"
    assert desk.task(other, "waits")["receipt_key"] == receipt_of(leased["twin"])
    assert desk.kinds(job).count("task.deps_met") == 1
    desk.check()


def test_a_commit_that_is_refused_takes_nothing_of_the_others(desk: LedgerDesk) -> None:
    """They are all rolled back, for the dispatcher to send one by one."""
    job = desk.submit(task("a"), task("b"))
    a, b = desk.lease(job, "a"), desk.lease(job, "b")
    made = {"receipt_key": "studio/x", "files": [], "result": {}, "facts": {}}
    with pytest.raises(InvalidGraph, match="does not expand"):
        desk.ledger.commit_all(desk.term, [Commit(**a.who, **made), Commit(**b.who, **made, children=[task("c")])])
    assert desk.states(job) == {"a": "running", "b": "running"}
    assert desk.commit(a) is Answer.ACCEPTED
    desk.check()
