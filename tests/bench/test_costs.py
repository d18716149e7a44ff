"""What `farm cost` takes with 100,000 cost lines of 1,000 films in the ledger, on SQLite and on PostgreSQL.

python -m pytest tests/bench/test_costs.py -s
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, text

from cluster.ledger.costs import By, Span, costs
from cluster.ledger.schema import cost_lines
from tests.ledger_desk import LedgerDesk, task

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
LINES, FILMS, SHOTS = 100_000, 1_000, 8
HOUR_US = 3_600_000_000


def fill(desk: LedgerDesk) -> None:
    whose = []
    for number in range(FILMS):
        show = f"show-{number % 20}"
        job = desk.submit(*(task(f"sh{n}0.t1", step="render", model="m") for n in range(SHOTS)), show=show)
        whose += [(job, show, row["id"]) for row in desk.ledger.tasks(job)]
    now_us = desk.clock.now_us()

    def lines() -> Iterator[dict[str, object]]:
        for n in range(LINES):
            job, show, task_id = whose[n % len(whose)]
            yield {
                "at_us": now_us, "kind": ("busy", "busy", "busy", "wasted")[n % 4], "tenant": f"t{n % 4}", "show": show,
                "job_id": job, "task_id": task_id, "attempt_id": f"att_{n}", "worker_id": f"w{n % 2 + 1}",
                "from_us": now_us - n * HOUR_US // 100, "to_us": now_us - n * HOUR_US // 100 + 1, "held_us": 1,
                "nano": n, "accelerator": "cpu", "price_class": "spot", "rate_card": "t", "note": "lost",
            }  # fmt: skip

    made = lines()
    while part := list(islice(made, 5_000)):
        desk.ledger.database.transaction(lambda c, part=part: c.execute(insert(cost_lines), part))  # type: ignore[misc]


def measure(name: str, desk: LedgerDesk) -> None:
    fill(desk)
    if not desk.ledger.database.is_sqlite:
        desk.ledger.database.transaction(lambda c: c.execute(text("ANALYZE")))
    for span in (Span(), Span(tenant="t1")):
        for by in By:

            def look(connection: Connection, by: By = by, span: Span = span) -> int:
                return costs(connection, by, span).total.nano

            began_s = time.monotonic()
            nano = desk.ledger.view(look)
            took_s = time.monotonic() - began_s
            assert nano == sum(range(LINES) if span.tenant is None else range(1, LINES, 4))
            print(f"{name:>10}  by {by.value:<6} {'one tenant' if span.tenant else 'all':<10}  {took_s:.2f} s")
    desk.close()


def test_costs_of_a_hundred_thousand_lines_on_sqlite(tmp_path: Path) -> None:
    measure("SQLite", LedgerDesk(f"sqlite:///{tmp_path / 'ledger.db'}"))


def test_costs_of_a_hundred_thousand_lines_on_postgresql(postgresql_url: str) -> None:
    measure("PostgreSQL", LedgerDesk(postgresql_url))
