"""A real Prometheus scrapes a farm at work over real HTTP: at every scrape it reads what the ledger said then."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import uvicorn

from cluster.ledger.keys import Scope
from cluster.metrics import TABLE, Source
from serve import host, prometheus
from tests.debian_prometheus import require_prometheus
from tests.front_desk import Working
from tests.picture_engine import PictureEngine
from tests.scraping import EVERY_S, Scraped
from tests.standing_farm import until
from tests.unit.test_metrics_table import EXPRESSIONS

pytestmark = [pytest.mark.live, pytest.mark.timeout(1500)]
WORK_S = float(os.environ.get("REELFARM_METRICS_S", "12"))
"""How long it works; 600 by hand."""


@pytest.fixture
def scraped(tmp_path: Path) -> Iterator[Scraped[Working]]:
    require_prometheus()
    farm, listening = Working(tmp_path, PictureEngine(side_px=32)), socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(farm.desk.app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        key = tmp_path / "key"
        key.write_text(farm.desk.key(Scope.OPERATE))
        target = f"127.0.0.1:{listening.getsockname()[1]}"
        told = prometheus.config(target=target, key_file=key, nodes_file=tmp_path / "none.json", every_s=EVERY_S)
        with prometheus.running(tmp_path, host._free_port(0), told) as url:
            yield Scraped(farm=farm, url=url, ledger=farm.desk.ledger)
    finally:
        server.should_exit = True
        thread.join(60)
        farm.close()


def test_at_every_scrape_prometheus_reads_what_the_ledger_said_then(scraped: Scraped[Working]):
    until(lambda: scraped.value('up{job="farm"}') == 1, timeout_s=120)
    seeds = count(1)

    def work() -> None:
        job_id = scraped.farm.desk.create(seed=next(seeds))["id"].replace("video_", "job_")
        until(lambda: scraped.ledger.job(job_id).over, timeout_s=120)

    scraped.follows_the_ledger(work, busy='farm_cost_usd_total{kind="busy"}', work_s=WORK_S)
    until(lambda: scraped.value('farm_jobs{state="succeeded"}') == scraped.submitted())
    every_query_is_answered(scraped)


def every_query_is_answered(scraped: Scraped[Working]) -> None:
    """Of dashboards and alerts; those of the ledger have an answer, where this farm has anything of the kind."""

    def found() -> dict[str, bool]:
        return {expr: bool(scraped.ask(re.sub(r"\$__\w+", "1h", expr))) for _, expr, _ in EXPRESSIONS}

    until(lambda: any("farm_cost_usd_total" in expr and there for expr, there in found().items()))
    empty = [expr for expr, there in found().items() if not there]
    print("\nno answer, as this farm has nothing of the kind:", *empty, sep="\n  ")
    named = {one["metric"]["__name__"] for one in scraped.ask('{__name__=~"farm_.*"}[1h]')}
    assert named
    assert named <= {name for name, metric in TABLE.items() if metric.source is Source.LEDGER}
