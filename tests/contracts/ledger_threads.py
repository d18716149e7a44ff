"""Many threads at one ledger, and two dispatchers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from cluster.errors import StaleTerm
from cluster.ledger.leases import Answer
from cluster.ledger.ledger import Ledger
from tests.ledger_desk import LedgerDesk, brief, task

T = TypeVar("T")
NUM = 8


def at_once(work: Callable[[int], T], num: int = NUM) -> list[T]:
    start = Barrier(num, timeout=60)

    def one(n: int) -> T:
        start.wait()
        return work(n)

    with ThreadPoolExecutor(num) as pool:
        return list(pool.map(one, range(num)))


def test_one_of_many_retried_submits_makes_the_job(desk: LedgerDesk) -> None:
    answers = at_once(lambda _: desk.ledger.submit(brief(idempotency_key="k"), [task("a"), task("b", "a")]))
    assert len({job for job, _ in answers}) == 1
    assert [created for _, created in answers].count(True) == 1
    assert len(desk.ledger.jobs()) == 1
    desk.check()


def test_one_of_many_workers_gets_the_task(desk: LedgerDesk) -> None:
    for n in range(NUM):
        desk.join(f"many-{n}")
    job = desk.submit(task("a"))
    leases = at_once(lambda n: desk.try_lease(job, "a", worker=f"many-{n}", epoch=0))
    assert len([one for one in leases if one is not None]) == 1
    desk.check()


def test_one_request_asked_at_once_gets_one_lease(desk: LedgerDesk) -> None:
    job = desk.submit(*(task(f"t{n}") for n in range(NUM)))
    leases = at_once(lambda n: desk.lease(job, f"t{n}", request="the-same", epoch=0))
    assert len({one.attempt_id for one in leases}) == 1
    assert len(desk.ledger.running()) == 1
    desk.check()


def test_one_of_many_equal_reports_is_accepted(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")
    answers = at_once(lambda _: desk.commit(leased))
    assert sorted(answers) == [Answer.ACCEPTED, *[Answer.DUPLICATE] * (NUM - 1)]
    desk.check()


def test_work_of_many_threads_adds_up(desk: LedgerDesk) -> None:
    for n in range(NUM):
        desk.join(f"many-{n}")

    def film(n: int) -> str:
        job = desk.submit(task("a"), task("b", "a"), task("c", "a"), show="shared")
        for key in "abc":
            leased = desk.try_lease(job, key, worker=f"many-{n}")
            if leased is not None:
                desk.commit(leased)
        desk.ledger.cancel_job(job)
        return job

    jobs = at_once(film)
    assert len(set(jobs)) == NUM
    assert all(desk.ledger.job(job).over for job in jobs)
    desk.check()


def test_of_two_dispatchers_only_the_newer_writes(desk: LedgerDesk) -> None:
    job = desk.submit(*(task(f"t{n}") for n in range(12)))
    tasks = desk.ledger.tasks(job)
    both = [desk.ledger, Ledger(desk.ledger.database.url, clock=desk.clock, durable=False)]
    terms = at_once(lambda n: both[n].take_term(), 2)
    assert len(set(terms)) == 2

    def give(n: int) -> int:
        given = 0
        for row in tasks:
            try:
                request = f"{n}-{row['key']}"
                got = both[n].lease(terms[n], row["id"], epoch=0, worker_id=f"w{n + 1}", request_id=request)
                given += got is not None
            except StaleTerm:
                assert terms[n] == min(terms)
        return given

    given = at_once(give, 2)
    assert given[terms.index(min(terms))] == 0
    assert given[terms.index(max(terms))] == 12
    both[1].close()
    desk.check()
