"""Exports of costs on PostgreSQL: the same file as on SQLite, and nobody who writes waits for it."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import pytest

from cluster.focus.lines import Period
from cluster.rates import usd
from serve import exports
from tests.focus_ledger import DECEMBER_US, NOVEMBER_US, small_farm
from tests.unit.test_focus import export

pytestmark = pytest.mark.live


def test_an_export_is_of_one_instant_and_of_every_nano_dollar(postgresql_url: str) -> None:
    desk = small_farm(postgresql_url)
    exports.check(desk.ledger, export(Period(from_us=NOVEMBER_US, to_us=DECEMBER_US)))
    whole = usd(desk.ledger.spent().nano)
    reading = exports.pieces(desk.ledger, export())
    head = next(reading)
    desk.join("w9", spawned_s_ago=30)
    assert usd(desk.ledger.spent().nano) > whole
    rows = list(csv.DictReader(io.StringIO((head + b"".join(reading)).decode())))
    assert sum(Decimal(row["EffectiveCost"]) for row in rows) == whole
    desk.close()
