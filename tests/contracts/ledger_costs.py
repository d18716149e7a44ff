"""What was spent, on what: however it is summed, it is the same sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Connection, text

from cluster.errors import FailureClass
from cluster.ledger import balance
from cluster.ledger.costs import By, Costs, Group, Span, costs
from cluster.ledger.meters import Leaving
from cluster.ledger.tokens import Counts, Meter, minute_of
from cluster.rates import GIB, NANO
from cluster.states import Move
from tests.contracts.ledger_meters import CARD
from tests.ledger_desk import HOUR, LedgerDesk, brief, file, task

S1 = 1_000_000
"""Nano-dollars of one second of a worker."""
Named = Mapping[str, Group]


def spec(num_frames: int, fps: str = "24") -> dict[str, Any]:
    return {"num_frames": num_frames, "spec": {"num_frames": num_frames, "fps": fps}}


def summed(desk: LedgerDesk, by: By, **span: Any) -> Costs:
    return desk.ledger.view(lambda c: costs(c, by, Span(**span)))


def named(desk: LedgerDesk, by: By, **span: Any) -> Named:
    return {group.name: group for group in summed(desk, by, **span).groups}


def a_film(desk: LedgerDesk) -> str:
    """Two takes of a shot, of which one is in the film; five seconds of work, one of them in vain. Returns its id."""
    take = {"step": "render", "model": "house-video"}
    graph = [
        task("sh010.t1", **take), task("sh010.t2", **take),
        task("conform", "sh010.t1", step="conform", role="finish"),
    ]  # fmt: skip
    film, _ = desk.ledger.submit_film(brief(show="feature", title="Boats"), graph)
    job = next(job.id for job in desk.ledger.jobs() if job.show == "feature")
    lost = desk.lease(job, "sh010.t1")
    desk.clock.advance(1)
    desk.fail(lost, FailureClass.INFRA)
    desk.clock.advance(60)
    desk.ledger.backoff_over(desk.term)
    desk.run(job, "sh010.t1", seconds=2, result=spec(48))
    desk.run(job, "sh010.t2", seconds=1, result=spec(72))
    desk.run(job, "conform", seconds=1)
    return film


def test_a_film_costs_what_its_takes_cost_and_brings_what_is_in_it(desk: LedgerDesk) -> None:
    film = a_film(desk)
    one = named(desk, By.FILM)[film]
    assert (one.title, one.nano, one.held_us) == ("Boats", 5 * S1, 5 * S1)
    assert dict(one.nano_by_kind) == {"busy": 4 * S1, "wasted": S1}
    assert (one.finished_s, one.accepted_s) == (5, 2)
    shots = named(desk, By.SHOT)
    assert {n.partition("/")[2]: g.nano for n, g in shots.items() if g.title} == {"sh010": 4 * S1, "conform": S1}
    assert named(desk, By.MODEL)["house-video"].nano == 4 * S1
    assert summed(desk, By.SHOW).wasted == {"infra": S1}
    desk.check()


def test_a_cache_hit_is_told_where_it_saved(desk: LedgerDesk) -> None:
    a_film(desk)
    again = desk.submit(task("sh010.t1", step="render", model="house-video"), show="again")
    assert desk.states(again) == {"sh010.t1": "succeeded"}
    one = named(desk, By.SHOW)["studio/again"]
    assert (one.nano, one.hits, one.saved_nano, one.saved_s) == (0, 1, 2 * S1, 2.0)
    assert (one.finished_s, one.accepted_s) == (2, 2)
    assert sum(group.saved_nano for group in named(desk, By.FLEET).values()) == 2 * S1


def test_a_take_that_waits_at_its_gate_is_finished_and_not_accepted(desk: LedgerDesk) -> None:
    job = desk.submit(task("sh010.t1", step="render", gate="sh010"), task("conform", "sh010.t1", step="conform"))
    desk.run(job, "sh010.t1", seconds=3, result=spec(24))
    assert (summed(desk, By.SHOW).total.finished_s, summed(desk, By.SHOW).total.accepted_s) == (1, 0)
    desk.move(job, "sh010.t1", Move.APPROVE)
    desk.run(job, "conform")
    assert summed(desk, By.SHOW).total.accepted_s == 1


def test_a_take_of_a_film_that_was_never_cut_is_finished_and_not_accepted(desk: LedgerDesk) -> None:
    job = desk.submit(task("sh010.t1", step="render"), task("conform", "sh010.t1", step="conform", role="finish"))
    desk.run(job, "sh010.t1", seconds=3, result=spec(24))
    assert (summed(desk, By.SHOW).total.finished_s, summed(desk, By.SHOW).total.accepted_s) == (1, 0)
    desk.run(job, "conform")
    assert summed(desk, By.SHOW).total.accepted_s == 1


def test_a_still_plays_no_time_and_an_older_revision_counts_no_more(desk: LedgerDesk) -> None:
    still = desk.submit(task("still", step="render"))
    desk.run(still, "still", result=spec(1))
    assert summed(desk, By.SHOW).total.finished_s == 0


def everything(desk: LedgerDesk) -> None:
    """Work, waste, loading, idleness, tokens, bytes that are kept and that leave, on two days."""
    desk.ledger.bill_meters(CARD)
    desk.join("w3", spawned_s_ago=7)
    a_film(desk)
    minute_us = minute_of(desk.clock.now_us())
    desk.ledger.book_egress("a", [(Leaving(tenant="studio", show="feature", minute_us=minute_us), GIB)])
    meter = Meter(key_id="k", tenant="studio", show="chats", model="m", price_class="spot", minute_us=minute_us)
    desk.ledger.book_tokens("a", [(meter, Counts(requests=1, prompt_tokens=1_000_000, completion_tokens=1_000_000))])
    desk.clock.advance(24 * HOUR)
    other = desk.submit(task("x"), tenant="other")
    desk.run(other, "x", seconds=4, files=[file("x") | {"size_bytes": GIB}])
    desk.clock.advance(HOUR)
    for worker in ("w1", "w2", "w3"):
        desk.ledger.leave(desk.term, worker)
    desk.ledger.bill_meters(CARD)


@pytest.mark.parametrize("by", By)
def test_however_it_is_summed_it_is_what_the_lines_say(desk: LedgerDesk, by: By) -> None:
    everything(desk)
    whole = summed(desk, by)
    booked = desk.ledger.spent()
    assert (whole.total.nano, whole.total.held_us / 1e6) == (booked.nano, booked.held_s)
    kinds = ("busy", "wasted", "load", "idle", "tokens", "storage", "egress")
    assert {kind: whole.total.nano_by_kind[kind] for kind in kinds} == {kind: desk.spent(kind) for kind in kinds}
    assert whole.total.nano_by_kind.keys() == set(kinds)
    assert [group.nano for group in whole.groups if by is not By.DAY] == sorted(
        (group.nano for group in whole.groups if by is not By.DAY), reverse=True
    )
    assert summed(desk, by, tenant="other").total.nano == desk.ledger.spent(tenant="other").nano
    assert summed(desk, by, show="chats").total.nano == 4 * NANO
    desk.check()


def test_days_come_in_their_order_and_a_span_ends_before_its_end(desk: LedgerDesk) -> None:
    everything(desk)
    days = summed(desk, By.DAY).groups
    assert [day.name for day in days] == ["2026-09-21", "2026-09-22"]
    night = 1_790_035_200_000_000
    before, after = summed(desk, By.SHOW, until_us=night).total, summed(desk, By.SHOW, since_us=night).total
    assert [before.nano, after.nano] == [day.nano for day in days]
    assert summed(desk, By.SHOW, tenant="studio", since_us=night).total.nano < after.nano


def test_a_balance_says_what_balances(desk: LedgerDesk) -> None:
    everything(desk)
    found = desk.ledger.view(balance.balance)
    assert found.flaws == ()
    assert (found.sums["wasted"], found.sums["tokens"], found.sums["egress"]) == (
        "0.001000000", "4.000000000", "0.250000000",
    )  # fmt: skip
    assert f"{found.num_lines} cost lines balance: " in found.said


SPOILED = {
    "ledger balanced: w3": "UPDATE cost_lines SET nano = nano + 1 WHERE kind = 'load' AND worker_id = 'w3'",
    "held time balanced: w1": "UPDATE cost_lines SET held_us = held_us - 1 WHERE kind = 'idle' AND worker_id = 'w1'",
    "waste is what the log says: att": "UPDATE cost_lines SET kind = 'busy' WHERE kind = 'wasted'",
    "every show pays for its own: studio/else": "UPDATE cost_lines SET show = 'else' WHERE kind = 'busy'"
    " AND tenant = 'studio'",
    "meters balance: egress for studio/feature": "DELETE FROM cost_lines WHERE kind = 'egress'",
    "meters balance: storage for other/default": "UPDATE cost_lines SET quantity = quantity + 1 WHERE kind = 'storage'",
    "meters balance: completion of m for studio/chats": "DELETE FROM cost_lines WHERE item = 'completion'",
}


@pytest.mark.parametrize(("said", "statement"), SPOILED.items(), ids=SPOILED.keys())
def test_a_wrong_line_is_found_and_whose_it_is(desk: LedgerDesk, said: str, statement: str) -> None:
    everything(desk)

    def look(connection: Connection) -> balance.Balance:
        assert balance.balance(connection).flaws == ()
        connection.execute(text(statement))
        return balance.balance(connection)

    assert any(flaw.startswith(said) for flaw in desk.ledger.database.transaction(look).flaws)
