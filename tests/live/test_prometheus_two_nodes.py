"""A real Prometheus scrapes a real farm of two nodes: what it reads is what the ledger says, sample by sample.

`REELFARM_METRICS_S=600` in the environment keeps the farm at work for ten minutes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest

from cluster.ledger.keys import KeySpec, Scope
from cluster.ledger.ledger import Ledger
from cluster.ledger.schema import attempts
from cluster.metrics import TABLE, Source
from cluster.settings import Settings
from serve import host, prometheus
from serve.local import CODE_DIR
from tests.debian_prometheus import require_prometheus
from tests.scraping import EVERY_S, Scraped
from tests.several_nodes import several_nodes
from tests.standing_farm import until
from tests.unit.test_metrics_table import EXPRESSIONS

pytestmark = [pytest.mark.live, pytest.mark.timeout(1500)]
WORK_S = float(os.environ.get("REELFARM_METRICS_S", "120"))
FLEETS = """fleets:
  - {name: pictures, role: render, model: house-video, num_workers: 2, accelerator: GPU, accelerators_per_worker: 1,
     engine: "tests.standing_farm:pictures", price_class: on-demand}
"""


@pytest.fixture
def scraped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scraped[httpx.Client]]:
    """HTTP, supervisor and workers on two nodes of Ray, and Prometheus on what Ray says of them."""
    require_prometheus()
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    monkeypatch.setenv("PYTHONPATH", str(CODE_DIR))
    home = tmp_path / "home"
    home.mkdir()
    (home / "fleets.yaml").write_text(FLEETS)
    settings = Settings(home=home, fleets=home / "fleets.yaml")
    ledger = Ledger(settings.ledger)
    secret = ledger.create_key(KeySpec(tenant=settings.tenant, name="test", scopes=(Scope.GENERATE, Scope.READ)))[1]
    try:
        with several_nodes(1, 1, include_dashboard=False) as cluster:
            import ray
            from ray._private.metrics_agent import PrometheusServiceDiscoveryWriter

            nodes = PrometheusServiceDiscoveryWriter(cluster.address, str(tmp_path))  # what Ray's dashboard runs
            nodes.write()
            port = host._free_port(0)  # only now: each node of Ray takes many
            with host._http(settings, port) as supervisor:
                key = host._key(settings, home / host.METRICS_KEY, "prometheus", Scope.OPERATE)
                nodes_file = Path(nodes.get_target_file_name())
                told = prometheus.config(
                    target=f"127.0.0.1:{port}", key_file=key, nodes_file=nodes_file, every_s=EVERY_S
                )
                with prometheus.running(home, host._free_port(0), told) as url:
                    headers = {"Authorization": f"Bearer {secret}"}
                    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
                        until(lambda: len(ledger.workers()) == 2, timeout_s=300)
                        yield Scraped(farm=client, url=url, ledger=ledger)
                ray.get(supervisor.drain.remote(10.0), timeout=60)
    finally:
        ledger.close()


def test_prometheus_reads_what_the_ledger_says_at_every_scrape(scraped: Scraped[httpx.Client]):
    until(lambda: scraped.value('up{job="farm"}') == 1 and scraped.value('up{job="ray"}') >= 2, timeout_s=120)
    seeds = count(1)

    def work() -> None:
        made = [scraped.farm.post("/v1/videos", json={"prompt": "a red boat", "seed": next(seeds)}) for _ in range(2)]
        assert [one.status_code for one in made] == [200, 200], made[0].text
        for one in made:
            job_id = one.json()["id"].replace("video_", "job_")
            until(lambda job_id=job_id: scraped.ledger.job(job_id).over, timeout_s=120)  # type: ignore[misc]

    scraped.follows_the_ledger(work, busy='farm_cost_usd_total{kind="busy",accelerator="GPU"}', work_s=WORK_S)
    the_processes_agree(scraped)
    dashboards_and_alerts_are_answered(scraped)
    nothing_is_there_that_the_table_does_not_name(scraped)


def the_processes_agree(scraped: Scraped[httpx.Client]) -> None:
    """What dispatcher and workers counted for themselves, by Ray's agents, is what the ledger has of it."""
    tried = scraped.all_of(attempts)
    done = [one for one in tried if one.state == "succeeded"]
    until(lambda: scraped.value("sum(farm_leases_total)") == len(tried), timeout_s=60)
    until(lambda: scraped.value('sum(farm_attempts_total{outcome="succeeded"})') == len(done), timeout_s=60)
    until(lambda: scraped.value("sum(farm_upload_bytes_total)") == uploaded(scraped.ledger), timeout_s=60)
    until(lambda: len(scraped.ask("sum by (instance) (farm_upload_bytes_total)")) == 2)  # both nodes worked
    until(lambda: scraped.value("sum(farm_frames_total)") > 0)
    until(lambda: [one["value"][1] for one in scraped.ask('sum(farm_leases{role="render"})')] == ["0"])


def uploaded(ledger: Ledger) -> int:
    """Bytes of all files of all receipts."""
    return sum(file["size_bytes"] for job in ledger.jobs(limit=100_000) for task in ledger.tasks(job.id)
               for file in task["files"] or ())  # fmt: skip


def dashboards_and_alerts_are_answered(scraped: Scraped[httpx.Client]) -> None:
    """By the real thing; what is empty is what this farm has none of: alerts, chats, accelerators, failures."""

    def empty() -> list[str]:
        return [where for where, expr, _ in EXPRESSIONS if not scraped.ask(re.sub(r"\$__\w+", "1h", expr))]

    there = ("Nodes", "Spent", "steps")
    until(lambda: not [where for where in empty() if any(word in where for word in there)], timeout_s=120)
    print("\nno answer, as there is nothing of the kind:", *empty(), sep="\n  ")


def nothing_is_there_that_the_table_does_not_name(scraped: Scraped[httpx.Client]) -> None:
    of_prometheus = r"up|scrape_.*|ALERTS.*"
    found = [one["metric"] for one in scraped.ask(f'{{__name__=~".+",__name__!~"{of_prometheus}"}}[1h]')]
    names = {one["__name__"] for one in found}
    assert names <= TABLE.keys()
    assert {TABLE[name].source for name in names} == set(Source)
    for one in found:
        labels = one.keys() - {"__name__", "instance", "job", "WorkerId"}
        assert labels == set(TABLE[one["__name__"]].label_names) - {"instance"}, one
