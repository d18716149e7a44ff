"""What is kept no longer, and a tenant who goes: the checker finds the rest whole, and can go on from it."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Connection, select, update

from cluster.budgets import BudgetSpec
from cluster.budgets import Scope as Over
from cluster.errors import DamagedLedger, NotFound
from cluster.ledger import budgets, erasure, history, inventory, money, remains, retention, schema
from cluster.ledger.hooks import HookSpec
from cluster.ledger.keys import KeySpec, Scope
from cluster.ledger.leases import Answer
from cluster.ledger.replay import SUMMARY
from cluster.states import Move, State
from tests.ledger_desk import LedgerDesk, brief, file, task


def full_of_events(desk: LedgerDesk) -> str:
    """A job that failed once, expanded, was opened again, took an answer, and is over; another used its gate."""
    desk.run(desk.submit(task("known")), "known")
    job = desk.submit(task("e", expands=True), task("known"), task("g", gate="s"), task("h", gate="s"), title="secret")
    desk.fail(desk.lease(job, "e"), message="secret")
    desk.clock.advance(60)
    desk.ledger.backoff_over(desk.term)
    desk.run(job, "e", children=[task("child", "known")])
    desk.run(job, "child")
    desk.run(job, "g")
    desk.move(job, "g", Move.APPROVE)
    desk.run(job, "h")
    desk.move(job, "known", Move.REOPEN)
    desk.run(job, "known")
    desk.move(job, "child", Move.REOPEN)
    desk.run(job, "child")
    assert desk.ledger.job(job).over
    return job


def summed(desk: LedgerDesk, job: str) -> bool:
    desk.clock.advance(10)
    return desk.ledger.sum_up(job, before_us=desk.clock.now_us())


def test_a_summary_takes_the_place_of_the_events_and_the_checker_goes_on_from_it(desk: LedgerDesk) -> None:
    job = full_of_events(desk)
    before = desk.ledger.job(job)
    assert len(desk.ledger.view(lambda c: retention.unsummed(c, desk.clock.now_us() + 1))) == 2
    assert summed(desk, job)
    assert not summed(desk, job)
    assert desk.kinds(job) == [SUMMARY, "task.cached"]
    assert desk.ledger.job(job) == before
    desk.check()
    later = desk.submit(task("g", gate="s"))
    assert desk.state(later, "g") is State.SUCCEEDED  # what was approved in the job of the summary
    desk.move(job, "child", Move.REOPEN)
    desk.run(job, "child")
    desk.check()
    assert [e.seq for e in desk.ledger.events(job, after=before.seq)] == list(range(before.seq + 1, before.seq + 6))
    desk.ledger.sum_up(later, before_us=desk.clock.now_us() + 1)
    desk.check()


def test_the_checker_convicts_what_happens_after_a_summary(desk: LedgerDesk) -> None:
    job = full_of_events(desk)
    assert summed(desk, job)
    desk.move(job, "child", Move.REOPEN)
    desk.run(job, "child")
    events = schema.events.c
    desk.ledger.database.transaction(
        lambda c: c.execute(
            update(schema.events).where(events.job_id == job, events.kind == "task.lease").values(epoch=1)
        )
    )
    assert any("epochs grow" in flaw for flaw in desk.ledger.flaws())


def test_whose_the_bill_is_stays_known_after_a_summary(desk: LedgerDesk) -> None:
    job = full_of_events(desk)
    assert summed(desk, job)
    lines = schema.cost_lines
    desk.ledger.database.transaction(
        lambda c: c.execute(update(lines).where(lines.c.job_id == job).values(show="another"))
    )
    assert any("every show pays for its own" in flaw for flaw in desk.ledger.flaws())


def test_events_that_convict_the_farm_are_kept(desk: LedgerDesk) -> None:
    job = full_of_events(desk)
    events = schema.events.c
    desk.ledger.database.transaction(
        lambda c: c.execute(update(schema.events).where(events.job_id == job).values(epoch=1))
    )
    kinds = desk.kinds(job)
    with pytest.raises(DamagedLedger, match="epochs grow"):
        summed(desk, job)
    assert desk.kinds(job) == kinds


def test_a_job_that_is_open_again_is_not_summed_up(desk: LedgerDesk) -> None:
    job = full_of_events(desk)
    desk.move(job, "child", Move.REOPEN)
    assert not summed(desk, job)
    assert SUMMARY not in desk.kinds(job)


def test_what_attempts_said_goes_and_their_rows_stay_as_the_bill_does(desk: LedgerDesk) -> None:
    job = full_of_events(desk)
    cost, ids = desk.ledger.spent(), [a["id"] for a in desk.ledger.attempts(job)]
    assert desk.ledger.attempts(job)[0]["message"] == "secret"
    assert desk.ledger.forget_attempts(desk.clock.now_us()) == 1
    desk.clock.advance(1)
    assert desk.ledger.forget_attempts(desk.clock.now_us()) == 1
    assert desk.ledger.forget_attempts(desk.clock.now_us()) == 0
    assert {(a["facts"], a["message"]) for a in desk.ledger.attempts(job)} == {(None, None)}
    assert ([a["id"] for a in desk.ledger.attempts(job)], desk.ledger.spent()) == (ids, cost)
    desk.check()
    assert summed(desk, job)
    desk.check()


def test_what_attempts_taught_cost_and_left_is_known_when_what_they_said_is_gone(desk: LedgerDesk) -> None:
    job = desk.submit(task("whole"), task("part"))
    desk.run(job, "whole", seconds=10)
    half, last = desk.run_in_two(job, "part")
    desk.clock.advance(1)
    now_us, ids = desk.clock.now_us(), [half.attempt_id, last.attempt_id]

    def known(c: Connection) -> list[object]:
        costs = money.spent_for(c, last.attempt_id), money.spent_on(c, [last.task_id])
        return [history.samples(c), costs, remains.over(c, ids, before_us=now_us)]

    before = desk.ledger.view(known)
    assert desk.ledger.forget_attempts(now_us) == 1
    assert desk.ledger.view(known) == before


def test_an_attempt_that_was_lost_and_found_made_what_is_left(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    found = desk.lease(job, "a")
    desk.clock.advance(1)
    desk.lose(found)
    assert desk.commit(found) is Answer.ACCEPTED
    desk.clock.advance(1)
    now_us = desk.clock.now_us()
    assert desk.ledger.view(lambda c: remains.over(c, [found.attempt_id], before_us=now_us)) == {found.attempt_id: True}
    assert desk.ledger.forget_attempts(now_us) == 1
    assert desk.ledger.forget_attempts(now_us) == 0
    assert [a["receipt_key"] for a in desk.ledger.attempts(job)] == [desk.task(job, "a")["receipt_key"]]
    desk.check()


def words(desk: LedgerDesk) -> str:
    """Everything that the ledger says, but for its keys to what it says."""
    tables = [t for t in schema.metadata.sorted_tables if t.name not in ("shows", "workers", "worker_events")]
    return desk.ledger.view(
        lambda c: json.dumps([str(tuple(row)) for table in tables for row in c.execute(select(table))])
    )


def test_of_a_tenant_who_goes_nothing_is_left_but_the_bill(desk: LedgerDesk) -> None:
    theirs = {"tenant": "rival", "title": "secret", "request": {"metadata": {"who": "secret"}}, "spec": {"x": "secret"}}
    params = {"spec": {"prompt": "secret", "seed": 7}}
    job = desk.submit(task("a", params=params), task("b", params=params, entry="a.b:d"), **theirs)
    desk.run(job, "a", files=[file("secret")], result={"title": "secret"})
    desk.lease(job, "b", worker="w2")
    desk.ledger.submit_film(brief(**theirs, idempotency_key="secret"), [task("c", params=params)])
    _, secret = desk.ledger.create_key(KeySpec(tenant="rival", name="secret", scopes=(Scope.READ,)))
    desk.ledger.create_hook(
        HookSpec(tenant="rival", name="secret", url="https://secret.example/", topics=("film completed",))
    )
    ours = full_of_events(desk)
    desk.clock.advance(3)
    was = desk.ledger.view(lambda c: erasure.holding(c, "rival"))
    assert (was.jobs, was.films, was.keys, was.webhooks, was.assets) == (2, 1, 1, 1, 1)
    before = desk.ledger.view(lambda c: erasure.holding(c, "studio"))
    for erased in desk.ledger.close_tenant("rival"):
        desk.ledger.erase_job(erased)
        desk.ledger.erase_job(erased)
    desk.ledger.forget_tenant("rival")
    left = desk.ledger.view(lambda c: erasure.holding(c, "rival"))
    assert (left.jobs, left.films, left.keys, left.webhooks, left.assets) == (0, 0, 0, 0, 0)
    assert left.nano > was.nano > 0  # what ran when it was stopped is booked
    assert desk.kinds(job)[-1] == erasure.ERASED
    assert desk.ledger.authenticate(secret) is None
    assert desk.ledger.view(lambda c: erasure.holding(c, "studio")) == before
    assert "secret" in words(desk)  # of another tenant
    desk.ledger.erase_job(ours)
    assert "secret" not in words(desk)
    desk.check()
    with pytest.raises(NotFound):
        desk.ledger.erase_job("job_none")


def test_budgets_of_a_tenant_who_goes_go_with_them(desk: LedgerDesk) -> None:
    gone, stays = (
        desk.ledger.set_budget(BudgetSpec(tenant=tenant, scope=Over.TENANT, cap_nano=10**9))
        for tenant in ("rival", "studio")
    )
    desk.ledger.forget_tenant("rival")
    assert [budget.id for budget in desk.ledger.budgets()] == [stays.id]
    logs = [desk.ledger.view(lambda c, of=of: budgets.history(c, of.id)) for of in (gone, stays)]
    assert [len(log) for log in logs] == [0, 1]
    desk.check()


def test_assets_of_nobody_are_forgotten_with_the_tenant_alone(desk: LedgerDesk) -> None:
    for tenant in ("studio", "rival"):
        desk.run(desk.submit(task("a"), tenant=tenant), "a", files=[file("x")])
    desk.ledger.forget_tenant("rival")
    names = [(tenant, file("x")["sha256"]) for tenant in ("studio", "rival")]
    assert list(desk.ledger.view(lambda c: inventory.known(c, names))) == names[:1]
