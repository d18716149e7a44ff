"""Tokens, bytes kept and bytes that leave: counted once, billed once, whatever is asked again."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest
from sqlalchemy import Connection, select, text

from cluster.clock import to_datetime
from cluster.ledger import meters, recount
from cluster.ledger.meters import Leaving, Metered
from cluster.ledger.schema import cost_lines
from cluster.ledger.tokens import Counts, Meter, minute_of
from cluster.rates import ANY_MODEL, GIB, GIB_MONTH, NANO, Price, RateCard
from tests.ledger_desk import HOUR, LedgerDesk, file, task

MIB = 1 << 20


def price(item: str, usd: float, *, model: str | None = None, since: date = date(2026, 1, 1)) -> Price:
    return Price(item=item, model=model, nano=round(usd * NANO), since=since, card="t")


CARD = RateCard(
    version="t",
    rates=(),
    prices=(
        price("storage", 0.5),
        price("egress", 0.25),
        price("prompt", 1, model=ANY_MODEL),
        price("completion", 3, model=ANY_MODEL),
    ),
)


def metered(desk: LedgerDesk) -> list[tuple[str, str, int | None, str | None, int]]:
    c = cost_lines.c
    query = select(c.kind, c.show, c.quantity, c.unit, c.nano).where(c.worker_id.is_(None)).order_by(c.id)
    return [tuple(row) for row in desk.ledger.view(lambda connection: connection.execute(query).all())]


def counted(desk: LedgerDesk) -> dict[Metered, tuple[int, int]]:
    return desk.ledger.view(meters.read)


def sent(desk: LedgerDesk, num_bytes: int, *, show: str = "default", source: str = "a") -> None:
    leaving = Leaving(tenant="studio", show=show, minute_us=minute_of(desk.clock.now_us()))
    desk.ledger.book_egress(source, [(leaving, num_bytes)])


def chatted(desk: LedgerDesk, counts: Counts, *, model: str = "m", source: str = "a") -> None:
    mine = Meter(
        key_id="k", tenant="studio", show="default", model=model, price_class="spot",
        minute_us=minute_of(desk.clock.now_us()),
    )  # fmt: skip
    desk.ledger.book_tokens(source, [(mine, counts)])


def test_what_leaves_is_billed_once_however_often_it_is_told(desk: LedgerDesk) -> None:
    for total in (MIB, MIB, 3 * MIB, 2 * MIB):
        sent(desk, total)
    sent(desk, MIB, source="b")
    sent(desk, GIB, show="trailer")
    for _ in range(2):
        desk.ledger.bill_meters(CARD)
    assert metered(desk) == [
        ("egress", "default", 4 * MIB, "bytes", 976_563),
        ("egress", "trailer", GIB, "bytes", NANO // 4),
    ]
    sent(desk, 4 * MIB)  # what was told late
    desk.ledger.bill_meters(CARD)
    assert counted(desk)[Metered("studio", "default", "egress")] == (5 * MIB, 5 * MIB)
    assert metered(desk)[2:] == [("egress", "default", MIB, "bytes", 244_141)]
    desk.check()


def test_tokens_are_lines_of_what_was_read_and_what_was_made(desk: LedgerDesk) -> None:
    chatted(desk, Counts(requests=1, prompt_tokens=2_000, completion_tokens=500))
    chatted(desk, Counts(requests=1, prompt_tokens=1_000), source="b")
    desk.ledger.bill_meters(CARD)
    assert metered(desk) == [
        ("tokens", "default", 3_000, "tokens", 3_000_000),
        ("tokens", "default", 500, "tokens", 1_500_000),
    ]
    desk.check()


def test_a_line_is_of_one_hour_and_comes_when_its_time_is_over(desk: LedgerDesk) -> None:
    desk.clock.advance(HOUR - desk.clock.now_us() / 1e6 % HOUR)
    desk.ledger.bill_meters(CARD, every_s=HOUR)
    for _ in range(4):
        sent(desk, MIB)
        desk.clock.advance(HOUR / 2)
        desk.ledger.bill_meters(CARD, every_s=HOUR)
    lines = [(kind, quantity) for kind, _, quantity, *_ in metered(desk)]
    assert lines == [("egress", 2 * MIB), ("egress", 2 * MIB)]
    desk.check()


def test_what_is_kept_is_counted_from_the_moment_it_is_made(desk: LedgerDesk) -> None:
    desk.ledger.bill_meters(CARD)
    job, other = desk.submit(task("a"), task("b")), desk.submit(task("c"), show="trailer")
    desk.run(job, "a", seconds=10, files=[file("a") | {"size_bytes": 6 * MIB}])
    desk.clock.advance(20)
    desk.run(job, "b", seconds=10, files=[file("b") | {"size_bytes": MIB // 4}, file("a")])
    desk.run(other, "c", seconds=2, files=[file("c") | {"size_bytes": MIB}, file("a")])
    desk.clock.advance(8)
    desk.ledger.bill_meters(CARD)
    assert counted(desk)[Metered("studio", "default", "storage")] == (6 * 40 + 2, 6 * 40 + 2)
    desk.clock.advance(2)
    desk.ledger.bill_meters(CARD)
    whole = 6 * 42 + 3  # the half of a MiB-second of before, and a half
    assert counted(desk)[Metered("studio", "default", "storage")] == (whole, whole)
    assert counted(desk)[Metered("studio", "trailer", "storage")] == (10, 10)
    assert {line[3] for line in metered(desk)} == {"MiB-seconds"}
    desk.check()


def test_a_gib_kept_for_a_month_costs_what_the_card_says(desk: LedgerDesk) -> None:
    desk.ledger.bill_meters(CARD)
    job = desk.submit(task("a"))
    desk.run(job, "a", files=[file("a") | {"size_bytes": GIB}])
    desk.clock.advance(730 * HOUR)
    desk.ledger.bill_meters(CARD)
    assert metered(desk) == [("storage", "default", GIB_MONTH, "MiB-seconds", NANO // 2)]


@pytest.mark.parametrize("jump_s", [HOUR, -HOUR, 30 * 24 * HOUR], ids=["forward", "back", "a-month-of-sleep"])
def test_a_clock_that_is_set_bills_for_what_is_kept_no_more_and_no_less(desk: LedgerDesk, jump_s: float) -> None:
    desk.ledger.bill_meters(CARD)
    for name, jumped_s in (("a", 0.0), ("b", jump_s), ("c", -jump_s)):
        desk.ledger.name_asset("studio", {**file(name), "size_bytes": MIB, "show": "default"})
        desk.clock.advance(10)
        desk.clock.jump(jumped_s)
        desk.ledger.backoff_over(desk.term)
        desk.clock.advance(10)
        desk.ledger.bill_meters(CARD)
    assert counted(desk)[Metered("studio", "default", "storage")] == (20 * (1 + 2 + 3), 20 * (1 + 2 + 3))
    desk.check()


def test_what_was_counted_before_the_dispatcher_saw_the_clock_set_is_counted_once(desk: LedgerDesk) -> None:
    desk.ledger.bill_meters(CARD)
    desk.ledger.name_asset("studio", {**file("a"), "size_bytes": MIB, "show": "default"})
    desk.clock.jump(HOUR)
    desk.ledger.bill_meters(CARD)
    desk.ledger.backoff_over(desk.term)
    desk.clock.advance(10)
    desk.ledger.bill_meters(CARD)
    assert counted(desk)[Metered("studio", "default", "storage")] == (3610, 3610)
    desk.check()


def test_what_has_no_price_is_said_and_billed_when_it_has_one(desk: LedgerDesk) -> None:
    chatted(desk, Counts(requests=1, prompt_tokens=7))
    sent(desk, MIB)
    bare = replace(CARD, prices=tuple(p for p in CARD.prices if p.item == "egress"))
    found = desk.ledger.bill_meters(bare)
    assert found.num_lines == 1
    assert "no price for prompt tokens of m" in found.gaps[0].line()
    assert counted(desk)[Metered("studio", "default", "prompt", "m", "spot")] == (7, 0)
    desk.check()
    assert desk.ledger.bill_meters(CARD).gaps == ()
    assert counted(desk)[Metered("studio", "default", "prompt", "m", "spot")] == (7, 7)
    desk.check()


def test_what_has_no_price_keeps_nothing_else_from_being_billed(
    desk: LedgerDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.ledger.meters.MOST_ROWS", 2)
    for model in ("free", "free", "free", "m", "m", "m", "free"):
        chatted(desk, Counts(requests=1, prompt_tokens=7), model=model)
        sent(desk, MIB)
        desk.clock.advance(24 * HOUR)
    fourth = to_datetime(desk.clock.now_us()).date() - timedelta(days=4)
    own = (price("prompt", 1, model="m"), price("completion", 3, model="m"), price("egress", 0.25, since=fourth))
    found = desk.ledger.bill_meters(replace(CARD, prices=own))
    assert counted(desk)[Metered("studio", "default", "prompt", "m", "spot")] == (21, 21)
    assert counted(desk)[Metered("studio", "default", "egress")] == (7 * MIB, 4 * MIB)
    assert len({gap.line() for gap in found.gaps}) == 4 * 2 + 3  # both items of a model, on each of its days
    desk.check()
    assert desk.ledger.bill_meters(CARD).gaps == ()
    assert all(billed == total for total, billed in counted(desk).values())
    desk.check()


def test_a_price_counts_from_its_date_on(desk: LedgerDesk) -> None:
    card = replace(CARD, prices=(*CARD.prices, price("egress", 5, since=date(2099, 1, 1))))
    sent(desk, GIB)
    desk.ledger.bill_meters(card)
    assert [nano for *_, nano in metered(desk)] == [NANO // 4]


SPOILED = {
    "a line is gone": "DELETE FROM cost_lines WHERE kind = 'egress'",
    "a line twice": "INSERT INTO cost_lines (at_us, kind, tenant, show, from_us, to_us, held_us, nano, price_class,"
    " rate_card, quantity, unit, price_nano) SELECT at_us, kind, tenant, show, from_us, to_us, held_us, nano,"
    " price_class, rate_card, quantity, unit, price_nano FROM cost_lines WHERE kind = 'storage'",
    "a price that is none": "UPDATE cost_lines SET nano = nano + 1 WHERE item = 'prompt'",
    "another show": "UPDATE cost_lines SET show = 'other' WHERE kind = 'egress'",
    "more than was counted": "UPDATE egress_minutes SET num_bytes = 1",
    "nothing counted": "UPDATE cost_lines SET quantity = NULL WHERE kind = 'egress'",
}


@pytest.mark.parametrize("statement", SPOILED.values(), ids=SPOILED.keys())
def test_a_bill_that_is_not_its_meter_is_found(desk: LedgerDesk, statement: str) -> None:
    desk.ledger.bill_meters(CARD)
    desk.run(desk.submit(task("a")), "a", files=[file("a") | {"size_bytes": GIB}])
    chatted(desk, Counts(requests=1, prompt_tokens=2_000))
    sent(desk, MIB)
    desk.clock.advance(HOUR)
    assert desk.ledger.bill_meters(CARD).num_lines == 3
    desk.check()

    def look(connection: Connection) -> list[str]:
        connection.execute(text(statement))
        return recount.flaws(recount.read_books(connection))

    found = desk.ledger.database.transaction(look)
    assert found
    assert all(flaw.startswith("meters balance: ") for flaw in found)
