"""`/metrics` with 100,000 jobs and their bill in the ledger: what a scrape takes, beside plain sums over all rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from prometheus_client import generate_latest
from sqlalchemy import func, insert, select

from cluster.ledger.schema import cost_lines, jobs
from serve.scrape import Scrape
from serve.service import Queue
from tests.ledger_desk import LedgerDesk, task

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]
NUM_JOBS = 100_000
LINES_OF_A_JOB = 4
BY = ("kind", "accelerator", "price_class", "tenant", "show", "note")


def test_a_scrape_of_a_hundred_thousand_jobs(tmp_path: Path) -> None:
    desk = LedgerDesk(f"sqlite:///{tmp_path}/ledger.db")
    for n in range(40):
        desk.run(desk.submit(task(f"t{n}"), show=f"show{n}"), f"t{n}")
    desk.ledger.database.transaction(fill)
    scrape = Scrape(desk.ledger, Queue(desk.ledger).look)
    first_s, later_s, plain_s = seconds(lambda: list(scrape.collect())), [], []
    for _ in range(5):
        scrape._until_s = float("-inf")
        later_s.append(seconds(lambda: list(scrape.collect())))
        plain_s.append(seconds(lambda: desk.ledger.view(plainly)))
    size = len(generate_latest(scrape.registry))
    print(
        f"\n/metrics, {NUM_JOBS:,} jobs, {NUM_JOBS * LINES_OF_A_JOB:,} lines: the first look of a process "
        f"{first_s:.2f} s, each later one {1e3 * median(later_s):.0f} ms, plain sums {1e3 * median(plain_s):.0f} ms "
        f"({median(plain_s) / median(later_s):.0f} times as long); {size:,} bytes"
    )
    assert median(later_s) < median(plain_s)
    desk.close()


def fill(connection: Any) -> None:
    """Copies of what is there, under other names."""
    some = [dict(row._mapping) for row in connection.execute(select(jobs))]
    lines = [dict(row._mapping) for row in connection.execute(select(cost_lines))]
    for line in lines:
        del line["id"]
    for first in range(0, NUM_JOBS, 10_000):
        numbers = range(first, first + 10_000)
        more = [some[n % len(some)] | {"id": f"job_{n}", "idempotency_key": None} for n in numbers]
        connection.execute(insert(jobs), more)
        connection.execute(insert(cost_lines), [lines[n % len(lines)] for n in numbers for _ in range(LINES_OF_A_JOB)])


def plainly(connection: Any) -> None:
    by = [cost_lines.c[name] for name in BY]
    connection.execute(select(*by, func.sum(cost_lines.c.nano), func.sum(cost_lines.c.held_us)).group_by(*by)).all()
    states = [jobs.c[name] for name in ("recipe", "n_dead", "n_canceled", "n_pending", "n_running", "n_ready")]
    connection.execute(select(*states, func.count(), func.sum(jobs.c.num_tasks)).group_by(*states)).all()


def seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s
