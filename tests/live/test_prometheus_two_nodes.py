"""A real Prometheus scrapes a real farm of two nodes: what it reads is what the ledger says, sample by sample.

`REELFARM_METRICS_S=600` in the environment keeps the farm at work for ten minutes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from cluster.ledger.keys import KeySpec, Scope
from cluster.ledger.ledger import Ledger
from cluster.ledger.schema import attempts, cost_lines, jobs
from cluster.metrics import TABLE, Source
from cluster.runtime import prepare_environment
from cluster.settings import Settings
from serve import host, prometheus
from serve.local import CODE_DIR
from tests.debian_prometheus import require_prometheus
from tests.standing_farm import until
from tests.unit.test_metrics_table import EXPRESSIONS

pytestmark = [pytest.mark.live, pytest.mark.timeout(1500)]
WORK_S = float(os.environ.get("REELFARM_METRICS_S", "120"))
EVERY_S = 2.0
FLEETS = """fleets:
  - {name: pictures, role: render, model: house-video, num_workers: 2, accelerator: GPU, accelerators_per_worker: 1,
     engine: "tests.standing_farm:pictures", price_class: on-demand}
"""
Samples = list[tuple[float, float]]
"""(seconds since 1970, value)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scraped:
    farm: httpx.Client
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
        [one] = self.ask(f"{query}[1h]")
        return [(float(at_s), float(value)) for at_s, value in one["values"]]


@pytest.fixture
def scraped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scraped]:
    """HTTP, supervisor and workers on two nodes of Ray, and Prometheus on what Ray says of them."""
    require_prometheus()
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    monkeypatch.setenv("PYTHONPATH", str(CODE_DIR))
    prepare_environment()
    import ray
    from ray._private.metrics_agent import PrometheusServiceDiscoveryWriter
    from ray.cluster_utils import Cluster

    home = tmp_path / "home"
    home.mkdir()
    (home / "fleets.yaml").write_text(FLEETS)
    settings = Settings(home=home, fleets=home / "fleets.yaml")
    ledger = Ledger(settings.ledger)
    secret = ledger.create_key(KeySpec(tenant=settings.tenant, name="test", scopes=(Scope.GENERATE, Scope.READ)))[1]
    port = host._free_port(0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, num_gpus=1)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, namespace="reelfarm", log_to_driver=False)
        nodes = PrometheusServiceDiscoveryWriter(cluster.address, str(tmp_path))  # what Ray's dashboard runs
        nodes.write()
        with host._http(settings, port) as supervisor:
            key = host._key(settings, home / host.METRICS_KEY, "prometheus", Scope.OPERATE)
            told = prometheus.config(
                target=f"127.0.0.1:{port}", key_file=key, nodes_file=Path(nodes.get_target_file_name()), every_s=EVERY_S
            )
            with prometheus.running(home, host._free_port(0), told) as url:
                headers = {"Authorization": f"Bearer {secret}"}
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
                    until(lambda: len(ledger.workers()) == 2, timeout_s=300)
                    yield Scraped(farm=client, url=url, ledger=ledger)
            ray.get(supervisor.drain.remote(10.0), timeout=60)
    finally:
        ray.shutdown()
        cluster.shutdown()
        ledger.close()


def test_prometheus_reads_what_the_ledger_says_at_every_scrape(scraped: Scraped):
    until(lambda: scraped.value('up{job="farm"}') == 1 and scraped.value('up{job="ray"}') >= 2, timeout_s=120)
    ends_s, n = time.monotonic() + WORK_S, 0
    while time.monotonic() < ends_s:
        n += 2
        made = [scraped.farm.post("/v1/videos", json={"prompt": "a red boat", "seed": n + i}) for i in range(2)]
        assert [one.status_code for one in made] == [200, 200], made[0].text
        for one in made:
            job_id = one.json()["id"].replace("video_", "job_")
            until(lambda job_id=job_id: scraped.ledger.job(job_id).over, timeout_s=120)
    lines, rows = all_of(scraped.ledger, cost_lines), all_of(scraped.ledger, jobs)

    def booked(at_s: float) -> float:
        return sum(x.nano for x in lines if x.nano > 0 and x.kind == "busy" and x.at_us <= at_s * 1e6) / 1e9

    def submitted(at_s: float) -> float:
        return float(sum(job.created_us <= at_s * 1e6 for job in rows))

    busy = 'farm_cost_usd_total{kind="busy",accelerator="GPU"}'
    last_s = max(line.at_us for line in lines) / 1e6
    until(lambda: scraped.samples(busy)[-1][0] > last_s + EVERY_S, timeout_s=60)
    for query, truth in ((busy, booked), ('farm_jobs_submitted_total{recipe="clip"}', submitted)):
        samples = scraped.samples(query)
        follows(samples, truth)
        assert samples[-1][1] == pytest.approx(truth(samples[-1][0]), abs=1e-9)
        assert samples[-1][1] > samples[0][1]
    net = scraped.value("sum(farm_cost_usd_total) - sum(farm_cost_reversed_usd_total)")
    assert net == pytest.approx(sum(line.nano for line in lines) / 1e9, abs=1e-9)
    assert scraped.value("sum(farm_show_cost_usd)") == pytest.approx(net, abs=1e-9)
    the_processes_agree(scraped)
    dashboards_and_alerts_are_answered(scraped)
    nothing_is_there_that_the_table_does_not_name(scraped)


def follows(samples: Samples, truth: Callable[[float], float]) -> None:
    """Each is what the ledger said when it was read, which is at most one scrape ago; so are all their rates."""
    for at_s, value in samples:
        assert truth(at_s - EVERY_S - 1.0) - 1e-9 <= value <= truth(at_s + 1.0) + 1e-9
    assert all(later[1] >= sooner[1] for sooner, later in pairwise(samples))


def the_processes_agree(scraped: Scraped) -> None:
    """What dispatcher and workers counted for themselves, by Ray's agents, is what the ledger has of it."""
    tried = all_of(scraped.ledger, attempts)
    done = [one for one in tried if one.state == "succeeded"]
    until(lambda: scraped.value("sum(farm_leases_total)") == len(tried), timeout_s=60)
    until(lambda: scraped.value('sum(farm_attempts_total{outcome="succeeded"})') == len(done), timeout_s=60)
    until(lambda: scraped.value("sum(farm_upload_bytes_total)") == uploaded(scraped.ledger), timeout_s=60)
    assert len(scraped.ask("sum by (instance) (farm_upload_bytes_total)")) == 2  # both nodes worked
    assert scraped.value("sum(farm_frames_total)") > 0
    assert scraped.value('sum(farm_leases{role="render"})') == 0


def uploaded(ledger: Ledger) -> int:
    """Bytes of all files of all receipts."""
    return sum(file["size_bytes"] for job in ledger.jobs(limit=100_000) for task in ledger.tasks(job.id)
               for file in task["files"] or ())  # fmt: skip


def dashboards_and_alerts_are_answered(scraped: Scraped) -> None:
    """By the real thing; what is empty is what this farm has none of: alerts, chats, accelerators, failures."""

    def empty() -> list[str]:
        return [where for where, expr, _ in EXPRESSIONS if not scraped.ask(re.sub(r"\$__\w+", "1h", expr))]

    there = ("Nodes", "Spent", "steps")
    until(lambda: not [where for where in empty() if any(word in where for word in there)], timeout_s=120)
    print("\nno answer, as there is nothing of the kind:", *empty(), sep="\n  ")


def nothing_is_there_that_the_table_does_not_name(scraped: Scraped) -> None:
    of_prometheus = r"up|scrape_.*|ALERTS.*"
    found = [one["metric"] for one in scraped.ask(f'{{__name__=~".+",__name__!~"{of_prometheus}"}}[1h]')]
    names = {one["__name__"] for one in found}
    assert names <= TABLE.keys()
    assert {TABLE[name].source for name in names} == set(Source)
    for one in found:
        labels = one.keys() - {"__name__", "instance", "job", "WorkerId"}
        assert labels == set(TABLE[one["__name__"]].label_names) - {"instance"}, one


def all_of(ledger: Ledger, table: Any) -> list[Any]:
    return ledger.view(lambda c: c.execute(select(table)).all())
