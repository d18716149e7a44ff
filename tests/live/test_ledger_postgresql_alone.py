"""What only a server can do: two at once at an empty database, a connection that breaks in the middle of a commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from cluster.errors import DamagedLedger, LedgerUnavailable
from cluster.ledger.leases import Answer
from cluster.ledger.ledger import Ledger
from cluster.ledger.schema import metadata
from cluster.states import Move, State
from tests.contracts.ledger_threads import at_once
from tests.ledger_desk import Leased, LedgerDesk, brief, task


@pytest.fixture
def desk(postgresql_url: str) -> Iterator[LedgerDesk]:
    desk = LedgerDesk(postgresql_url)
    yield desk
    desk.close()


def break_commits(desk: LedgerDesk, times: int, *, before: bool = False) -> Callable[[], int]:
    """The next commits lose their connection: after the server has done them, or before it hears of them."""
    dialect: Any = desk.ledger.database.engine.dialect
    do_commit, left = dialect.do_commit, [times]

    def lossy(connection: Any) -> None:
        if left[0] == 0:
            do_commit(connection)
            return
        left[0] -= 1
        if not before:
            do_commit(connection)
        connection.dbapi_connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    dialect.do_commit = lossy
    return lambda: left[0]


def test_many_open_an_empty_database_at_once(empty_postgresql_url: str) -> None:
    ledgers = at_once(lambda _: Ledger(empty_postgresql_url), 4)
    with ledgers[0].database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    for ledger in ledgers:
        ledger.close()


def test_a_ledger_of_a_newer_version_is_refused(empty_postgresql_url: str) -> None:
    ledger = Ledger(empty_postgresql_url)
    with ledger.database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DamagedLedger, match="newer version"):
        ledger.database.migrate()
    ledger.close()


@pytest.mark.parametrize("before", [False, True], ids=["done", "not-done"])
def test_a_submit_whose_commit_nobody_heard_of_makes_one_job(desk: LedgerDesk, before: bool) -> None:
    left = break_commits(desk, 2, before=before)
    job, created = desk.ledger.submit(brief(), [task("a")])
    assert (created, left()) == (True, 0)
    assert [j.id for j in desk.ledger.jobs()] == [job]
    desk.check()


@pytest.mark.parametrize("before", [False, True], ids=["done", "not-done"])
def test_a_lease_and_a_report_whose_commit_nobody_heard_of_happen_once(desk: LedgerDesk, before: bool) -> None:
    job = desk.submit(task("a"))
    task_id = desk.task(job, "a")["id"]
    left = break_commits(desk, 1, before=before)
    got = desk.ledger.lease(desk.term, task_id, epoch=0, worker_id="w1", request_id="r")
    assert got is not None
    assert left() == 0
    row = got[0]
    leased = Leased(task_id=task_id, attempt_id=row["attempt_id"], epoch=row["epoch"], row=row)
    assert leased.epoch == 1
    desk.clock.advance(3)
    break_commits(desk, 1, before=before)
    assert desk.commit(leased) is (Answer.ACCEPTED if before else Answer.DUPLICATE)
    assert desk.state(job, "a") is State.SUCCEEDED
    desk.check()


def test_a_verb_of_a_person_whose_commit_nobody_heard_of_is_not_repeated(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    desk.run(job, "a")
    task_id = desk.task(job, "a")["id"]
    break_commits(desk, 1)
    with pytest.raises(LedgerUnavailable, match="during a commit") as unknown:
        desk.ledger.move_task(task_id, Move.REOPEN, reason="again")
    assert unknown.value.remedy == "look whether it was done before you repeat it"
    assert desk.task(job, "a")["generation"] == 1
    desk.check()


def test_connections_that_the_server_ends_lose_nothing(desk: LedgerDesk, postgresql: str) -> None:
    def end_all_connections() -> None:
        with psycopg.connect(postgresql.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'ledgers'")

    def submit(n: int) -> set[str]:
        accepted = set()
        for m in range(9):
            if m % 3 == n % 3:
                end_all_connections()  # the other threads are in the middle of something
            while True:
                try:
                    job, _ = desk.ledger.submit(brief(idempotency_key=f"{n}-{m}"), [task(f"t{n}-{m}")])
                except LedgerUnavailable:
                    continue
                accepted.add(job)
                break
        return accepted

    accepted = set[str]().union(*at_once(submit, 4))
    assert len(accepted) == 36
    assert {j.id for j in desk.ledger.jobs(limit=100)} == accepted
    desk.check()


def test_a_server_that_is_gone_is_a_ledger_that_does_not_answer() -> None:
    with pytest.raises(LedgerUnavailable, match="does not answer"):
        Ledger("postgresql+psycopg://postgres@127.0.0.1:9/x")
