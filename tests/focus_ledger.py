"""Ledgers for exports of costs: the months of a small farm, with everything that can stand in a cost line."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert

from cluster.clock import to_datetime
from cluster.errors import FailureClass
from cluster.ledger.schema import cost_lines
from cluster.rates import GIB, GIB_MONTH, HOUR_US, MILLION
from tests.ledger_desk import LedgerDesk, task

NOVEMBER_US = 1_761_955_200_000_000
"""2025-11-01T00:00Z"""
DECEMBER_US = NOVEMBER_US + 30 * 24 * HOUR_US
JANUARY_US = DECEMBER_US + 31 * 24 * HOUR_US


def small_farm(url: str) -> LedgerDesk:
    """Hours around the ends of October and of November: work over midnight, failures in a month and after it was
    closed, idle and load time, four accelerators shared by two, chats, stored and sent bytes. An attempt of November is
    adopted in January. Nobody works there any more."""
    desk = LedgerDesk(url, start_us=NOVEMBER_US - 2 * HOUR_US)
    desk.join("gpu", num_accelerators=4, rate=11_600_000_001, spawned_s_ago=600)
    keys = ("sh010.t1", "sh020.t1", "sh020.t2", "conform")
    job = desk.submit(*(task(key, model="house-video") for key in keys), show="comet")
    other = desk.submit(task("sh010.t1"), task("sh020.t1"), tenant="rival", show="tide")
    over = desk.lease(job, "sh010.t1", worker="gpu")
    beside = desk.lease(job, "sh020.t1", worker="gpu")
    desk.clock.advance(1.7 * 3600)
    desk.commit(beside)
    again = desk.lease(job, "sh020.t2", worker="gpu")
    desk.clock.advance(1.1 * 3600 + 0.000123)
    desk.lose(over)  # at 00:48, before October is closed
    lost = desk.lease(other, "sh010.t1", worker="w1")
    desk.clock.advance(2.5 * 3600)
    desk.commit(again)
    desk.lose(lost)  # in the month
    leave(desk, "gpu", "w1", "w2")
    until(desk, DECEMBER_US - HOUR_US // 2)
    for worker in ("w3", "w4"):
        desk.join(worker)
    late = desk.lease(job, "conform", worker="w3")
    saved = desk.lease(other, "sh020.t1", worker="w4")
    desk.clock.advance(2 * 3600)
    desk.fail(late, FailureClass.INPUT)  # November is closed by then
    desk.lose(saved)
    leave(desk, "w3", "w4")
    until(desk, JANUARY_US + 6 * HOUR_US)
    desk.commit(saved)  # adopted, in the year after
    book_meters(desk)
    until(desk, JANUARY_US + 12 * HOUR_US)
    return desk


def leave(desk: LedgerDesk, *workers: str) -> None:
    for worker in workers:
        desk.ledger.leave(desk.term, worker)


def until(desk: LedgerDesk, at_us: int) -> None:
    desk.clock.advance((at_us - desk.clock.now_us()) / 1e6)


def book_meters(desk: LedgerDesk) -> None:
    """A chat at the end of November, what lay in the store over midnight, what was sent."""
    hour_us = DECEMBER_US - HOUR_US
    chat = {"kind": "tokens", "unit": "tokens", "model": "house-writer", "from_us": hour_us, "to_us": hour_us + MILLION}
    counted: list[dict[str, Any]] = [
        chat | {"item": "prompt", "quantity": 1234, "price_nano": 150_000_000, "nano": 185_100},
        chat | {"item": "completion", "quantity": 77, "price_nano": 0, "nano": 0},
        {
            "kind": "storage", "unit": "MiB-seconds", "quantity": GIB_MONTH // 7, "price_nano": 23_000_000,
            "nano": 3_285_714, "from_us": hour_us - HOUR_US // 3, "to_us": hour_us + 2 * HOUR_US,
        },
        {
            "kind": "egress", "unit": "bytes", "quantity": GIB // 3, "price_nano": 90_000_000, "nano": 30_000_000,
            "from_us": hour_us, "to_us": hour_us + 60 * MILLION,
        },
    ]  # fmt: skip
    bare = dict.fromkeys(("job_id", "task_id", "attempt_id", "worker_id", "accelerator", "note", "item", "model"))
    rows = [
        bare | {"tenant": "studio", "show": "comet", "held_us": 0, "price_class": "list", "rate_card": "test"} | one
        | {"at_us": one["to_us"] + 60 * MILLION} for one in counted
    ]  # fmt: skip
    desk.ledger.database.transaction(lambda c: c.execute(insert(cost_lines), rows))


def day(at_us: int) -> str:
    """As `--from` and `--to` want it."""
    return f"{to_datetime(at_us):%Y-%m-%dT%HZ}"
