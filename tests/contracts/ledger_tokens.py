"""Tokens by the minute, and a key's allowance of them: for every database that a ledger can have."""

from __future__ import annotations

from dataclasses import replace

from cluster.ledger import tokens
from cluster.ledger.keys import Allowance, KeySpec
from cluster.ledger.tokens import Counts, Meter, Minute
from tests.ledger_desk import LedgerDesk

ONCE = Counts(requests=1, prompt_tokens=30, completion_tokens=12, cached_tokens=16)


def meter(desk: LedgerDesk, key_id: str = "key_1", **more: str) -> Meter:
    minute_us = tokens.minute_of(desk.clock.now_us())
    usual = {"tenant": "studio", "show": "default", "model": "m", "price_class": "spot"}
    return Meter(key_id=key_id, minute_us=minute_us, **{**usual, **more})


def look(desk: LedgerDesk, *, show: str | None = None, since_us: int = 0, limit: int = 99) -> list[Minute]:
    return desk.ledger.view(
        lambda c: tokens.minutes(c, tenant="studio", show=show, since_us=since_us, until_us=2**62, limit=limit)
    )


def allowance(desk: LedgerDesk, secret: str) -> Allowance:
    admitted = desk.ledger.authenticate(secret)
    assert admitted is not None
    assert admitted.tokens is not None
    return admitted.tokens


def test_totals_of_a_minute_are_booked_once_however_often_they_are_written(desk: LedgerDesk) -> None:
    mine = meter(desk)
    for totals in (ONCE, ONCE, ONCE + ONCE, ONCE):  # the last one was overtaken
        desk.ledger.book_tokens("replica-a", [(mine, totals)])
    desk.ledger.book_tokens("replica-b", [(mine, ONCE)])
    assert look(desk) == [Minute(minute_us=mine.minute_us, rows=((mine, ONCE + ONCE + ONCE),))]


def test_minutes_are_listed_for_a_tenant_or_a_show_a_page_at_a_time(desk: LedgerDesk) -> None:
    first = meter(desk)
    desk.ledger.book_tokens("a", [(first, ONCE), (meter(desk, tenant="other", key_id="key_2"), ONCE)])
    desk.clock.advance(120)
    second, of_show = meter(desk), meter(desk, show="trailer")
    desk.ledger.book_tokens("a", [(second, ONCE), (of_show, ONCE)])
    assert [[m for m, _ in minute.rows] for minute in look(desk)] == [[first], [second, of_show]]
    assert [minute.minute_us for minute in look(desk, limit=1)] == [first.minute_us]
    assert [minute.minute_us for minute in look(desk, since_us=first.minute_us + 1)] == [second.minute_us]
    assert [[m for m, _ in minute.rows] for minute in look(desk, show="trailer")] == [[of_show]]


def test_a_key_pays_for_its_tokens_and_its_allowance_fills_again(desk: LedgerDesk) -> None:
    key, secret = desk.ledger.create_key(KeySpec(tenant="studio", name="ci", tokens_per_minute=60))
    assert allowance(desk, secret) == Allowance(limit=60, left=60, wait_s=0.0, full_s=0.0)
    mine = meter(desk, key.id)
    for _ in range(2):  # the second time it is known
        desk.ledger.book_tokens("a", [(mine, ONCE)])
        assert allowance(desk, secret) == Allowance(limit=60, left=18, wait_s=0.0, full_s=42.0)
    desk.ledger.book_tokens("a", [(mine, ONCE + ONCE)])
    assert allowance(desk, secret) == Allowance(limit=60, left=0, wait_s=25.0, full_s=84.0)
    desk.clock.advance(24.5)
    assert allowance(desk, secret).left == 0
    desk.clock.advance(0.5)
    assert (allowance(desk, secret).left, allowance(desk, secret).wait_s) == (1, 0.0)
    desk.clock.jump(-86_400)  # the wall clock is set back: nobody waits a day for it
    assert allowance(desk, secret).wait_s <= 600


def test_a_key_without_a_limit_has_no_allowance(desk: LedgerDesk) -> None:
    key, secret = desk.ledger.create_key(KeySpec(tenant="studio", name="ci"))
    desk.ledger.book_tokens("a", [(replace(meter(desk), key_id=key.id), ONCE)])
    admitted = desk.ledger.authenticate(secret)
    assert admitted is not None
    assert (admitted.tokens, admitted.key.tokens_per_minute) == (None, None)
