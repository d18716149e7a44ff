"""What a collection may remove, and what a commit of the same files says to it."""

from __future__ import annotations

import pytest

from cluster.errors import IllegalMove, Unavailable
from cluster.ledger import inventory, retention
from cluster.ledger.leases import Answer
from cluster.ledger.outcomes import Sight
from cluster.states import Move, State
from tests.ledger_desk import LedgerDesk, file, task

SHA = file("x")["sha256"]
CLAIM_S = inventory.CLAIM_US / 1e6


def made(desk: LedgerDesk, key: str, **more: object) -> str:
    """A job that has committed the file x."""
    job = desk.submit(task(key), **more)
    desk.run(job, key, files=[file("x")])
    return job


def row(desk: LedgerDesk) -> tuple[int | None, int | None]:
    found = desk.ledger.view(lambda c: inventory.known(c, [("studio", SHA)]))["studio", SHA]
    return found.marked_us, found.swept_us


def marked(desk: LedgerDesk) -> int:
    """The mark of the file x, which nobody has committed for a second."""
    desk.clock.advance(1)
    now_us = desk.clock.now_us()
    assert desk.ledger.mark_assets("studio", [SHA], before_us=now_us) == 1
    return now_us


def test_a_commit_that_names_a_marked_file_is_refused_once_and_unmarks_it(desk: LedgerDesk) -> None:
    made(desk, "a")
    marked(desk)
    job = desk.submit(task("b"))
    leased = desk.lease(job, "b")
    assert desk.commit(leased, files=[file("x")]) is Answer.MARKED
    assert desk.state(job, "b") is State.RUNNING
    assert row(desk) == (None, None)
    assert desk.commit(leased, files=[file("x")]) is Answer.ACCEPTED
    desk.check()


def test_a_claimed_file_stays_claimed_while_it_may_be_removed(desk: LedgerDesk) -> None:
    made(desk, "a")
    since = marked(desk)
    assert desk.ledger.claim_assets("studio", {SHA: since}) == [SHA]
    claimed = row(desk)
    leased = desk.lease(desk.submit(task("b")), "b")
    for _ in range(3):
        assert desk.commit(leased, files=[file("x")]) is Answer.MARKED
        assert row(desk) == claimed
    with pytest.raises(Unavailable):
        desk.ledger.name_asset("studio", {**file("x"), "show": "default"})
    desk.clock.advance(CLAIM_S + 1)
    assert desk.commit(leased, files=[file("x")]) is Answer.MARKED
    assert row(desk) == (None, None)
    assert desk.commit(leased, files=[file("x")]) is Answer.ACCEPTED
    assert desk.ledger.drop_assets("studio") == 0


def test_who_names_a_stray_first_pays_for_it_and_says_what_it_is(desk: LedgerDesk) -> None:
    """A collection saw it between its put and its commit."""
    stray = {"sha256": SHA, "key": file("x")["key"], "size": 1, "media_type": inventory.STRAY_TYPE}
    assert desk.ledger.mark_strays("studio", [stray]) == 1
    for show in ("feature", "trailer"):
        leased = desk.lease(desk.submit(task(show), show=show), show)
        if show == "feature":
            assert desk.commit(leased, files=[file("x")]) is Answer.MARKED
        assert desk.commit(leased, files=[file("x")]) is Answer.ACCEPTED
        found = desk.ledger.view(lambda c: inventory.find(c, Sight(tenant="studio"), SHA))
        assert (found.show, found.media_type) == ("feature", file("x")["media_type"])
    desk.check()


def test_a_mark_that_was_seen_and_has_gone_since_cannot_be_claimed(desk: LedgerDesk) -> None:
    made(desk, "a")
    since = marked(desk)
    desk.ledger.name_asset("studio", {**file("x"), "show": "default"})
    assert desk.ledger.claim_assets("studio", {SHA: since}) == []
    assert row(desk) == (None, None)


def test_what_was_committed_since_a_look_began_is_not_marked(desk: LedgerDesk) -> None:
    made(desk, "a")
    desk.clock.advance(1)
    began_us = desk.clock.now_us()
    made(desk, "b")
    assert desk.ledger.mark_assets("studio", [SHA], before_us=began_us) == 0


def test_of_commits_in_one_transaction_only_those_that_name_a_marked_file_are_refused(desk: LedgerDesk) -> None:
    made(desk, "a")
    marked(desk)
    job = desk.submit(task("b"), task("c"))
    both = {key: desk.lease(job, key, worker=worker) for key, worker in (("b", "w1"), ("c", "w2"))}
    from cluster.ledger.leases import Commit

    commits = [
        Commit(
            **one.who, receipt_key=f"studio/attempts/{one.attempt_id}/receipt.json", files=files, result={}, facts={}
        )
        for one, files in ((both["b"], [file("x")]), (both["c"], [file("y")]))
    ]
    assert desk.ledger.commit_all(desk.term, commits) == [Answer.MARKED, Answer.ACCEPTED]
    assert desk.states(job) == {"b": "running", "c": "succeeded"}
    desk.check()


def test_the_row_of_what_was_removed_is_dropped_once_nobody_can_commit_what_he_saw_before(desk: LedgerDesk) -> None:
    made(desk, "a")
    desk.ledger.claim_assets("studio", {SHA: marked(desk)})
    assert desk.ledger.drop_assets("studio") == 0
    assert desk.ledger.view(lambda c: inventory.totals(c, Sight())) == (0, 0)
    desk.clock.advance(inventory.DROP_US / 1e6 + 1)
    assert desk.ledger.drop_assets("studio") == 1


def failed(desk: LedgerDesk, *keys: str) -> str:
    """A job whose first task is done and whose second was canceled."""
    job = desk.submit(*(task(key) for key in keys))
    desk.run(job, keys[0], files=[file("x")])
    desk.ledger.cancel_job(job)
    return job


def released(desk: LedgerDesk, *jobs: str) -> list[bool]:
    desk.clock.advance(10)
    return [desk.ledger.release_job(job, before_us=desk.clock.now_us()) for job in jobs]


def test_a_job_that_failed_long_ago_is_released_and_its_takes_answer_nothing_more(desk: LedgerDesk) -> None:
    lost, good = failed(desk, "a", "b"), made(desk, "c")
    desk.clock.advance(10)
    assert desk.ledger.view(lambda c: retention.expired(c, "studio", desk.clock.now_us())) == [lost]
    assert desk.ledger.view(lambda c: retention.expired(c, "studio", desk.clock.now_us() - 60_000_000)) == []
    assert released(desk, lost, good) == [True, False]
    assert desk.state(desk.submit(task("a")), "a") is State.READY
    assert desk.state(desk.submit(task("c")), "c") is State.SUCCEEDED
    with pytest.raises(IllegalMove, match="kept no longer"):
        desk.move(lost, "b", Move.REOPEN)
    desk.check()


def test_a_take_stays_as_long_as_one_of_the_jobs_that_use_it(desk: LedgerDesk) -> None:
    first = failed(desk, "a", "b")
    second = desk.submit(task("a"), task("c"))
    desk.ledger.cancel_job(second)
    assert released(desk, first) == [True]
    assert desk.state(desk.submit(task("a"), show="other"), "a") is State.SUCCEEDED
    third = desk.ledger.view(lambda c: retention.doomed_takes(c, "studio", [second]))
    assert third == set()


def test_what_live_jobs_and_takes_name_is_needed(desk: LedgerDesk) -> None:
    frame = file("frame")["sha256"]
    params = {"spec": {"prompt": "p", "seed": 7, "first_frame": frame}}
    job = desk.submit(task("a", params=params))
    desk.run(job, "a", files=[file("x")], result={"files": [file("y")]})
    everything = {SHA, file("y")["sha256"], frame}
    assert desk.ledger.view(lambda c: inventory.needed(c, "studio", "")) == (everything, None)
    assert desk.ledger.view(lambda c: inventory.needed_by_takes(c, "studio", "")) == (everything - {frame}, None)
    desk.ledger.delete_job(job)
    assert released(desk, job) == [True]
    assert desk.ledger.view(lambda c: inventory.needed(c, "studio", "")) == (set(), None)
    assert desk.ledger.view(lambda c: inventory.needed_by_takes(c, "studio", "")) == (set(), None)


def test_a_take_whose_bytes_are_lost_answers_nobody(desk: LedgerDesk) -> None:
    made(desk, "a")
    made(desk, "b")
    assert desk.state(desk.submit(task("a")), "a") is State.SUCCEEDED
    assert desk.ledger.forget_takes("rival", SHA) == 0
    assert desk.ledger.forget_takes("studio", file("y")["sha256"]) == 0
    assert desk.ledger.forget_takes("studio", SHA) == 2
    again = desk.submit(task("a"))
    assert desk.state(again, "a") is State.READY
    desk.run(again, "a", files=[file("x")])
    assert desk.state(desk.submit(task("a")), "a") is State.SUCCEEDED
    desk.check()
