"""What a real Prometheus has scraped of a farm, held against the farm's ledger."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import httpx
import pytest
from sqlalchemy import func, select

from cluster.ledger.ledger import Ledger
from cluster.ledger.schema import cost_lines, jobs
from serve.scrape import FRESH_S
from tests.standing_farm import until

EVERY_S = 2.0
ROUNDED_S = 0.01
"""Prometheus moves the instants of its scrapes by a few milliseconds."""
SUBMITTED = 'farm_jobs_submitted_total{recipe="clip"}'
NET = "sum(farm_cost_usd_total) - sum(farm_cost_reversed_usd_total)"
Samples = list[tuple[float, float]]
"""(seconds since 1970, value)."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scraped(Generic[T]):
    farm: T
    url: str
    ledger: Ledger

    def ask(self, query: str) -> list[dict[str, Any]]:
        got = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=30).json()
        assert got["status"] == "success", got
        found: list[dict[str, Any]] = got["data"]["result"]
        return found

    def value(self, query: str) -> float:
        return sum(float(one["value"][1]) for one in self.ask(query))

    def samples(self, query: str) -> Samples:
        """All that were scraped of one series."""
        found = self.ask(f"{query}[1h]")
        assert len(found) <= 1, found
        return [(float(at_s), float(value)) for one in found for at_s, value in one["values"]]

    def all_of(self, table: Any) -> list[Any]:
        return self.ledger.view(lambda c: c.execute(select(table)).all())

    def booked(self, by_s: float = math.inf) -> float:
        """Dollars of work that are stamped with an instant until then."""
        lines = cost_lines.c
        nano = select(func.sum(lines.nano)).where(lines.nano > 0, lines.kind == "busy", lines.at_us <= by_s * 1e6)
        return (self.ledger.view(lambda c: c.scalar(nano)) or 0) / 1e9

    def submitted(self, by_s: float = math.inf) -> float:
        num = select(func.count()).where(jobs.c.created_us <= by_s * 1e6)
        return float(self.ledger.view(lambda c: c.scalar(num)))

    def follows_the_ledger(self, work: Callable[[], None], *, busy: str, work_s: float) -> None:
        """While `work` is done again and again, each scrape says no less than the ledger was seen to say before it, and
        no more than is stamped with an instant until its end."""
        truths = {busy: self.booked, SUBMITTED: self.submitted}
        seen: dict[str, Samples] = {query: [] for query in truths}
        ends_s = time.monotonic() + work_s
        while time.monotonic() < ends_s or len({value for _, value in self.samples(busy)}) < 2:
            assert time.monotonic() < ends_s + 300, "no scrape sees work that is paid"
            work()
            for query, truth in truths.items():
                said = truth()
                seen[query].append((time.time(), said))
        rests_s = time.time()
        until(lambda: self.samples(busy)[-1][0] > rests_s + FRESH_S + ROUNDED_S, timeout_s=120)
        for query, truth in truths.items():
            samples, took_s = self.samples(query), dict(self.samples('scrape_duration_seconds{job="farm"}'))
            for at_s, value in samples:
                least = [said for seen_s, said in seen[query] if seen_s <= at_s - FRESH_S - ROUNDED_S]
                most = truth(at_s + took_s[at_s] + ROUNDED_S)
                assert max(least, default=0.0) - 1e-9 <= value <= most + 1e-9
            assert all(later[1] >= sooner[1] for sooner, later in pairwise(samples))
            assert samples[-1][1] == pytest.approx(truth(), abs=1e-9)
            assert samples[-1][1] > samples[0][1]
        for net in (NET, "sum(farm_show_cost_usd)"):
            until(lambda net=net: self.value(net) == pytest.approx(self._net(), abs=1e-9))  # type: ignore[misc]

    def _net(self) -> float:
        return (self.ledger.view(lambda c: c.scalar(select(func.sum(cost_lines.c.nano)))) or 0) / 1e9
