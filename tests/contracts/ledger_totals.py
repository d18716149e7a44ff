"""Totals over a whole ledger: for every database that a ledger can have."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, insert, select

from cluster.errors import FailureClass, LedgerUnavailable
from cluster.ledger import totals
from cluster.ledger.schema import cost_lines
from cluster.ledger.tokens import Counts, Meter
from cluster.ledger.totals import LATE_S, NEWEST, Bill
from cluster.states import JobState, State
from tests.ledger_desk import LedgerDesk, task

T = TypeVar("T")


def busy(bill: Bill, desk: LedgerDesk) -> tuple[int, int]:
    """Nano-dollars that were booked as busy, and what was taken back of them."""
    found = [sums for what, sums in bill.read(desk.ledger).items() if what.kind == "busy"]
    return sum(one.nano for one in found), sum(one.reversed_nano for one in found)


def test_the_bill_moves_along_with_its_lines_and_counts_each_of_them_once(desk: LedgerDesk) -> None:
    bill = Bill(lines_come_in_order=True)
    job = desk.submit(task("a"), task("b"))
    desk.run(job, "a", seconds=2)
    assert busy(bill, desk) == (2_000_000, 0)
    lost = desk.lease(job, "b")
    desk.clock.advance(3)
    desk.fail(lost, FailureClass.INFRA)
    assert busy(bill, desk) == (5_000_000, 3_000_000)
    assert busy(bill, desk) == busy(Bill(lines_come_in_order=True), desk) == (5_000_000, 3_000_000)


def test_a_line_that_is_committed_after_newer_ones_is_still_counted(desk: LedgerDesk) -> None:
    now_s = [0.0]
    bill = Bill(lines_come_in_order=False, now_s=lambda: now_s[0])
    desk.run(desk.submit(task("a")), "a", seconds=1)

    def one(connection: Any) -> dict[str, Any]:
        return dict(connection.execute(select(cost_lines).where(cost_lines.c.kind == "busy")).one()._mapping)

    line = desk.ledger.view(one)

    def book(number: int) -> None:
        desk.ledger.database.transaction(
            lambda c: c.execute(insert(cost_lines).values(**line | {"id": line["id"] + number}))
        )

    book(20)
    assert busy(bill, desk)[0] == 2_000_000
    now_s[0] += LATE_S / 2
    book(10)
    assert busy(bill, desk)[0] == 3_000_000
    now_s[0] += LATE_S
    assert busy(bill, desk)[0] == 3_000_000
    assert busy(bill, desk)[0] == 3_000_000


def test_a_look_that_fails_halfway_counts_nothing_twice(desk: LedgerDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "CHUNK", 1)
    desk.run(desk.submit(task("a")), "a", seconds=2)
    desk.run(desk.submit(task("b")), "b", seconds=3)
    newest, looks = desk.ledger.view(lambda c: c.execute(NEWEST).scalar_one()), count()

    class GoesAway:
        def view(self, look: Callable[[Connection], T]) -> T:
            if next(looks) == newest:  # the first is for that number, then there is one for each line
                raise LedgerUnavailable("the ledger is away")
            return desk.ledger.view(look)

    bill = Bill(lines_come_in_order=True)
    with pytest.raises(LedgerUnavailable):
        bill.read(GoesAway())
    assert busy(bill, desk) == (5_000_000, 0)


def test_what_meters_counted_is_summed_in_their_units(desk: LedgerDesk) -> None:
    desk.run(desk.submit(task("a")), "a")

    def metered(connection: Any) -> None:
        line = dict(connection.execute(select(cost_lines).where(cost_lines.c.kind == "busy")).one()._mapping)
        del line["id"]
        line |= {"kind": "egress", "worker_id": None, "accelerator": None, "held_us": 0, "unit": "bytes"}
        connection.execute(insert(cost_lines), [line | {"quantity": 700}, line | {"quantity": 300}])

    desk.ledger.database.transaction(metered)
    sums = Bill(lines_come_in_order=True).read(desk.ledger)
    assert [one.quantity for what, one in sums.items() if what.kind == "egress"] == [1000]


def test_what_stands_is_counted_without_the_rows_of_jobs_that_are_over(desk: LedgerDesk) -> None:
    desk.run(desk.submit(task("a")), "a")
    desk.submit(task("b"), task("c", "b"))
    failed = desk.submit(task("d"), recipe="other.recipe")
    desk.fail(desk.lease(failed, "d"), FailureClass.INPUT)
    minute = Meter(key_id="k", tenant="t", show="s", model="m", price_class="spot", minute_us=0)
    desk.ledger.book_tokens("x", [(minute, Counts(requests=2, prompt_tokens=5, completion_tokens=3))])
    desk.ledger.say_alive(desk.term)
    desk.ledger.drain("w2", reason="old")
    now = desk.ledger.view(totals.standing)
    film = "pipelines.recipes.film"
    assert now.jobs == {
        (film, JobState.SUCCEEDED): 1,
        (film, JobState.QUEUED): 1,
        ("other.recipe", JobState.FAILED): 1,
    }
    assert {state: n for state, n in now.tasks.items() if n} == {State.READY: 1, State.PENDING: 1}
    assert now.tokens["m"] == {"requests": 2, "prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 0}
    assert now.workers == {
        ("render", None, "cpu", "on-demand", False): 1,
        ("render", None, "cpu", "on-demand", True): 1,
    }
    assert (now.terms, now.alive_us, now.num_webhooks) == (1, desk.clock.now_us(), 0)


def test_a_long_look_sees_one_instant_and_keeps_nobody_from_writing(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    looked, wrote = threading.Event(), threading.Event()
    seen: list[int] = []

    def look(connection: Any) -> None:
        seen.append(len(connection.execute(select(cost_lines.c.id)).all()))
        looked.set()
        assert wrote.wait(60)
        seen.append(len(connection.execute(select(cost_lines.c.id)).all()))

    reader = threading.Thread(target=lambda: desk.ledger.view(look))
    reader.start()
    assert looked.wait(60)
    desk.run(job, "a")
    wrote.set()
    reader.join(60)
    assert seen[0] == seen[1] < len(desk.ledger.log().lines)
