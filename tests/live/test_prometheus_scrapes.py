"""A real Prometheus scrapes a farm at work over real HTTP: at every scrape it reads what the ledger said then."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import select

from cluster.ledger.keys import Scope
from cluster.ledger.ledger import Ledger
from cluster.ledger.schema import cost_lines, jobs
from cluster.metrics import TABLE, Source
from serve import host, prometheus
from tests.debian_prometheus import require_prometheus
from tests.front_desk import Working
from tests.picture_engine import PictureEngine
from tests.standing_farm import until
from tests.unit.test_metrics_table import EXPRESSIONS

pytestmark = [pytest.mark.live, pytest.mark.timeout(1500)]
WORK_S = float(os.environ.get("REELFARM_METRICS_S", "12"))
"""How long it works; 600 by hand."""
EVERY_S = 2.0
Samples = list[tuple[float, float]]
"""(seconds since 1970, value)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scraped:
    farm: Working
    url: str

    @property
    def ledger(self) -> Ledger:
        return self.farm.desk.ledger

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
        return [(float(at_s), float(value)) for one in found for at_s, value in one["values"]]

    def all_of(self, table: Any) -> list[Any]:
        return self.ledger.view(lambda c: c.execute(select(table)).all())


@pytest.fixture
def scraped(tmp_path: Path) -> Iterator[Scraped]:
    require_prometheus()
    farm, port = Working(tmp_path, PictureEngine(side_px=32)), host._free_port(0)
    server = uvicorn.Server(
        uvicorn.Config(farm.desk.app, host="127.0.0.1", port=port, log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        key = tmp_path / "key"
        key.write_text(farm.desk.key(Scope.OPERATE))
        told = prometheus.config(
            target=f"127.0.0.1:{port}", key_file=key, nodes_file=tmp_path / "none.json", every_s=EVERY_S
        )
        with prometheus.running(tmp_path, host._free_port(0), told) as url:
            yield Scraped(farm=farm, url=url)
    finally:
        server.should_exit = True
        thread.join(60)
        farm.close()


def test_at_every_scrape_prometheus_reads_what_the_ledger_said_then(scraped: Scraped):
    until(lambda: scraped.value('up{job="farm"}') == 1, timeout_s=120)
    ends_s, n = time.monotonic() + WORK_S, 0
    while time.monotonic() < ends_s:
        n += 1
        job_id = scraped.farm.desk.create(seed=n)["id"].replace("video_", "job_")
        until(lambda job_id=job_id: scraped.ledger.job(job_id).over, timeout_s=120)  # type: ignore[misc]
    lines, rows = scraped.all_of(cost_lines), scraped.all_of(jobs)

    def booked(at_s: float) -> float:
        return sum(x.nano for x in lines if x.nano > 0 and x.kind == "busy" and x.at_us <= at_s * 1e6) / 1e9

    def submitted(at_s: float) -> float:
        return float(sum(job.created_us <= at_s * 1e6 for job in rows))

    ended_s = max(line.at_us for line in lines) / 1e6
    busy = 'farm_cost_usd_total{kind="busy"}'
    until(lambda: scraped.samples(busy)[-1][0] > ended_s + EVERY_S, timeout_s=120)
    took_s = max(value for _, value in scraped.samples('scrape_duration_seconds{job="farm"}'))
    for query, truth in ((busy, booked), ('farm_jobs_submitted_total{recipe="clip"}', submitted)):
        samples = scraped.samples(query)
        for at_s, value in samples:  # told a second old at most, while it was scraped
            assert truth(at_s - EVERY_S) - 1e-9 <= value <= truth(at_s + took_s) + 1e-9
        assert all(later[1] >= sooner[1] for sooner, later in pairwise(samples))
        assert samples[-1][1] == pytest.approx(truth(samples[-1][0]), abs=1e-9)
        assert samples[-1][1] > samples[0][1]
    net = scraped.value("sum(farm_cost_usd_total) - sum(farm_cost_reversed_usd_total)")
    assert net == pytest.approx(sum(line.nano for line in lines) / 1e9, abs=1e-9)
    assert scraped.value("sum(farm_show_cost_usd)") == pytest.approx(net, abs=1e-9)
    assert scraped.value('farm_jobs{state="succeeded"}') == len(rows)
    print(f"\n{len(rows)} jobs, {len(lines)} lines, {len(scraped.samples(busy))} scrapes, ${net:.9f}")
    every_query_is_answered(scraped)


def every_query_is_answered(scraped: Scraped) -> None:
    """Of dashboards and alerts; those of the ledger have an answer, where this farm has anything of the kind."""
    asked = {expr: scraped.ask(re.sub(r"\$__\w+", "1h", expr)) for _, expr, _ in EXPRESSIONS}
    empty = [expr for expr, found in asked.items() if not found]
    print("no answer, as this farm has nothing of the kind:", *empty, sep="\n  ")
    assert any("farm_cost_usd_total" in expr and found for expr, found in asked.items())
    named = {one["metric"]["__name__"] for one in scraped.ask('{__name__=~"farm_.*"}')}
    assert named <= {name for name, metric in TABLE.items() if metric.source is Source.LEDGER}
