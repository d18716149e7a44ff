from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from actors.contract import WorkerFacts
from actors.queue import FEW, RECHECK_S, WINDOW, Queue
from cluster.schedule import Candidate
from cluster.states import State
from tests.ledger_desk import LedgerDesk, task


def worker(*models: str, role: str = "render", fleet: str = "f") -> WorkerFacts:
    return WorkerFacts(
        id="w1", fleet=fleet, role=role, models=models, node="n", accelerator="cpu", num_accelerators=0,
        price_class="on-demand", spawned_us=0,
    )  # fmt: skip


class Hand:
    """A queue on a ledger, and what a dispatcher does with it."""

    def __init__(self, desk: LedgerDesk) -> None:
        self.desk, self.queue = desk, Queue(desk.ledger)
        self.num_read: list[int] = []
        ready_tasks = desk.ledger.ready_tasks

        def counted(job_ids: Any, most: int) -> Any:
            self.num_read.append(len(job_ids))
            return ready_tasks(job_ids, most)

        desk.ledger.ready_tasks = counted  # type: ignore[method-assign]

    def look(self) -> bool:
        now_s = self.desk.clock.monotonic_s()
        return self.queue.take_in(self.queue.read(now_s), now_s=now_s, now_us=self.desk.clock.now_us())

    def best(self, who: WorkerFacts | None = None) -> list[Candidate]:
        return list(self.queue.best(who or worker(), fits=lambda _: True, now_us=self.desk.clock.now_us()))

    def take(self, who: WorkerFacts | None = None) -> Candidate:
        best = self.best(who)[0]
        self.queue.take(best, fleet="f", now_s=self.desk.clock.monotonic_s(), now_us=self.desk.clock.now_us())
        return best

    def lease(self) -> Candidate:
        best = self.take()
        assert self.desk.ask(best.task_id, epoch=best.epoch) is not None
        return best

    def key(self, candidate: Candidate) -> str:
        return str(self.desk.ledger.task(candidate.task_id)["key"])


@pytest.fixture
def hand(sqlite_url: str) -> Iterator[Hand]:
    desk = LedgerDesk(sqlite_url)
    yield Hand(desk)
    desk.close()


def test_a_worker_is_offered_what_it_can_run_though_other_work_comes_first(hand: Hand) -> None:
    hand.desk.submit(*(task(f"large{n}", model="large") for n in range(2 * WINDOW)), task("small", model="small"))
    hand.look()
    assert [hand.key(c) for c in hand.best(worker("small"))] == ["small"]
    assert [hand.key(c) for c in hand.best(worker("small", "large"))] == ["large0", "small"]
    assert hand.best(worker("small", role="write")) == []


def test_what_is_about_to_be_leased_is_offered_to_nobody_else(hand: Hand) -> None:
    hand.desk.submit(task("a"), task("b"))
    hand.look()
    assert [hand.key(hand.take()), hand.key(hand.take())] == ["a", "b"]
    assert hand.best() == []


def test_a_lease_that_failed_puts_its_job_back_as_the_ledger_says(hand: Hand) -> None:
    hand.desk.submit(task("a"))
    hand.look()
    hand.queue.missed(hand.take())
    assert hand.queue.is_low
    assert hand.look()
    assert hand.key(hand.take()) == "a"


def test_a_task_that_was_leased_while_a_look_was_under_way_is_not_offered_again(hand: Hand) -> None:
    hand.desk.submit(task("a"), task("b"))
    hand.look()
    hand.desk.submit(task("c"))
    seen = hand.queue.read(hand.desk.clock.monotonic_s())
    hand.lease()
    hand.queue.take_in(seen, now_s=hand.desk.clock.monotonic_s(), now_us=hand.desk.clock.now_us())
    assert hand.key(hand.take()) == "b"


def test_the_queues_own_leases_do_not_make_it_read_the_job_again(hand: Hand) -> None:
    for n in range(3):
        hand.desk.submit(*(task(f"j{n}t{m}") for m in range(5)))
    hand.look()
    for _ in range(6):
        hand.lease()
    hand.num_read.clear()
    assert not hand.look()
    assert hand.num_read == []
    hand.desk.clock.advance(RECHECK_S + 1)
    hand.look()
    assert hand.num_read == [1]  # of the three one is used up, and of one nothing was leased


def test_a_long_job_is_read_in_parts_and_to_its_end(hand: Hand) -> None:
    hand.desk.submit(*(task(f"t{n}") for n in range(2 * WINDOW + 5)))
    hand.look()
    given = []
    for _ in range(2 * WINDOW + 5):
        given.append(hand.key(hand.lease()))
        if hand.queue.is_low:
            hand.look()
    assert given == [f"t{n}" for n in range(2 * WINDOW + 5)]
    assert len(hand.num_read) <= 2 + (2 * WINDOW + 5) / (WINDOW - FEW)


def test_work_that_becomes_ready_while_a_job_has_more_is_seen_at_once(hand: Hand) -> None:
    hand.desk.submit(*(task(f"t{n}") for n in range(9)), task("late", "t0", role="write"))
    hand.look()
    t0 = hand.take()
    leased = hand.desk.ask(t0.task_id, epoch=0)
    assert leased is not None
    hand.desk.commit(leased)
    hand.look()
    assert [hand.key(c) for c in hand.best(worker(role="write"))] == ["late"]


def test_one_that_came_as_another_went_is_seen_a_little_later(hand: Hand) -> None:
    job = hand.desk.submit(task("a"), task("b"), task("c", "b", role="w"))
    hand.look()
    hand.desk.run(job, "b")  # it was ready and is not any more; now the other one is
    hand.desk.clock.advance(RECHECK_S + 1)
    hand.look()
    assert [hand.key(c) for c in hand.best(worker(role="w"))] == ["c"]


def test_a_new_priority_orders_at_once(hand: Hand) -> None:
    first, second = hand.desk.submit(task("a")), hand.desk.submit(task("b"))
    hand.look()
    assert hand.best()[0].job_id == first
    hand.desk.ledger.set_priority(second, priority=90)
    hand.look()
    assert hand.best()[0].job_id == second


def test_what_is_held_or_canceled_is_not_offered(hand: Hand) -> None:
    held, canceled = hand.desk.submit(task("a")), hand.desk.submit(task("b"))
    hand.look()
    hand.desk.ledger.set_held(held, True)
    hand.desk.ledger.cancel_job(canceled)
    hand.look()
    assert hand.best() == []
    hand.desk.ledger.set_held(held, False)
    hand.look()
    assert hand.key(hand.take()) == "a"


def test_shows_take_turns_by_their_share(hand: Hand) -> None:
    hand.desk.ledger.set_share("studio", "large", 3)
    for show in ("large", "small"):
        hand.desk.submit(*(task(f"{show}{n}", weight=10.0) for n in range(20)), show=show)
    hand.look()
    given = [hand.take().show for _ in range(16)]
    assert given.count("studio/large") == 12


def test_what_a_lost_lease_did_not_use_is_given_back(hand: Hand) -> None:
    for show in ("a", "b"):
        hand.desk.submit(*(task(f"{show}{n}", weight=100.0) for n in range(9)), show=show)
    hand.look()
    first, second = hand.lease(), hand.lease()
    assert {first.show, second.show} == {"studio/a", "studio/b"}
    hand.desk.clock.advance(1)
    hand.queue.settled(second.task_id, now_s=hand.desk.clock.monotonic_s())
    assert [hand.lease().show, hand.lease().show] == [second.show, first.show]


def test_a_task_becomes_due_while_it_waits_in_memory(hand: Hand) -> None:
    old = hand.desk.submit(task("old"), priority=0)
    hand.look()
    hand.desk.clock.advance(5 * 3600)
    hand.desk.submit(task("new"), priority=100)
    hand.look()
    assert hand.best()[0].job_id == old


def test_a_task_that_does_not_fit_hides_no_other_of_its_job(hand: Hand) -> None:
    job = hand.desk.submit(task("a"), task("b"))
    hand.look()
    not_a = hand.queue.best(worker(), fits=lambda t: t.key != "a", now_us=hand.desk.clock.now_us())
    assert [hand.key(c) for c in not_a] == ["b"]
    hand.queue.take(not_a[0], fleet="f", now_s=0.0, now_us=hand.desk.clock.now_us())
    assert hand.key(hand.take()) == "a"
    assert hand.desk.state(job, "a") is State.READY
