"""The table of metrics: how names are made, who uses them, and that nothing else is used."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.contract import ShotSpec
from cluster.errors import Unavailable
from cluster.ledger.jobs import JobSpec
from cluster.metrics import TABLE, Kind, Meters, Source, labelled
from serve import prometheus
from tests.debian_prometheus import require_prometheus
from tests.farm import in_process_farm
from tests.ledger_desk import task
from tests.picture_engine import PictureEngine

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
OF_PROMETHEUS = {"up": {"job", "instance"}}
ADDED = {"job", "instance"}
"""Labels that a scrape adds to every series."""


def expressions() -> Iterator[tuple[str, str, str]]:
    """(where, expression, legend) of every dashboard and alert."""
    for file in BOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{file.stem}: {panel['title']}", target["expr"], target["legendFormat"]
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values())


EXPRESSIONS = list(expressions())


def test_who_reads_the_bill_reads_what_was_taken_back_too():
    """A line that is booked again counts twice in the one counter, and once in the other."""
    gross = [where for where, expr, _ in EXPRESSIONS if "farm_cost_usd_total" in expr and "_reversed_" not in expr]
    assert gross == []


def labels_of(name: str) -> set[str]:
    return OF_PROMETHEUS[name] if name in OF_PROMETHEUS else set(TABLE[name].label_names) | ADDED


def strange(expr: str, legend: str = "") -> list[str]:
    """What a query names that is not of the table: metrics, their labels, labels of sums and of the legend."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    names = set(re.findall(r"\b(?:(?:ray_)?farm_\w+|ray_\w+|up)\b", bare))
    found = [name for name in names if name not in TABLE and name not in OF_PROMETHEUS]
    known = names - set(found)
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", bare):
        if name in known:
            found += [f"{name}{{{x}}}" for x in re.findall(r"(\w+)\s*[=!]", matchers) if x not in labels_of(name)]
    usable = set[str]().union(*(labels_of(name) for name in known))
    for summed in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", bare):
        found += [label for label in re.findall(r"\w+", summed) if label not in usable]
    shown = re.findall(r"\{\{\s*(?:\$labels\.)?([A-Za-z]\w*)\s*\}\}", legend)
    return found + [label for label in shown if label not in usable] + ([] if names else ["no metric at all"])


@pytest.mark.parametrize(("where", "expr", "legend"), EXPRESSIONS, ids=[where for where, _, _ in EXPRESSIONS])
def test_dashboards_and_alerts_use_only_names_and_labels_of_the_table(where: str, expr: str, legend: str):
    assert strange(expr, legend) == []


@pytest.mark.parametrize(
    ("expr", "legend"),
    [
        ("rate(farm_costs_usd_total[5m])", ""),
        ('farm_jobs{status="queued"}', ""),
        ("sum by (show) (farm_jobs)", ""),
        ("sum(farm_jobs)", "{{tenant}}"),
        ("ray_farm_leases", ""),
        ("ray_actors", ""),
        ("42", ""),
    ],
)
def test_a_name_or_label_that_the_table_lacks_is_found(expr: str, legend: str):
    assert strange(expr, legend) != []


def test_names_say_their_kind_and_unit_and_labels_are_closed():
    for name, metric in TABLE.items():
        if metric.source is not Source.RAY:
            assert re.fullmatch(r"farm_[a-z]+(_[a-z]+)*", name), name
            assert name.endswith("_total") is (metric.kind is Kind.COUNTER), name
        assert not set(metric.label_names) & {"job", "task", "attempt", "worker", "prompt", "seed", "user", "id"}, name
        for label in metric.labels:
            assert bool(label.values) != bool(label.bound), f"{name}: {label.name}"
    assert labelled(TABLE["farm_leases_total"], {"role": "cook", "tier": "batch"}) == ("other", "batch")
    with pytest.raises(AssertionError):
        labelled(TABLE["farm_leases_total"], {"role": "render"})


@pytest.mark.parametrize("name", [name for name, metric in TABLE.items() if metric.source is not Source.RAY])
def test_every_metric_of_the_table_is_said_by_the_code(name: str):
    said = "\n".join(
        file.read_text() for folder in ("actors", "serve") for file in sorted((ROOT / folder).rglob("*.py"))
    )
    assert f'"{name}"' in said or f'"{name.removesuffix("_total")}"' in said


def test_of_what_ray_says_prometheus_keeps_what_the_table_names_under_its_names():
    told = prometheus.config(target="127.0.0.1:1", key_file=Path("k"), nodes_file=Path("n"), every_s=15)
    rename, keep, drop = told["scrape_configs"][1]["metric_relabel_configs"]
    assert re.fullmatch(rename["regex"], "ray_farm_leases_total")[1] == "farm_leases_total"  # type: ignore[index]
    kept = [name for name in (*TABLE, "ray_node_disk_free", "ray_actors") if re.fullmatch(keep["regex"], name)]
    assert kept == list(TABLE)
    labels = {label for metric in TABLE.values() for label in metric.label_names} | {*ADDED, "WorkerId"}
    assert not [label for label in labels if re.fullmatch(drop["regex"], label)]


def test_the_prometheus_of_farm_up_has_the_configuration_of_deploy_with_its_own_places(tmp_path: Path):
    told = prometheus.config(
        target="127.0.0.1:8123", key_file=tmp_path / "key", nodes_file=tmp_path / "nodes.json", every_s=0.5
    )
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    farm, ray = told["scrape_configs"]
    assert farm["static_configs"] == [{"targets": ["127.0.0.1:8123"]}]
    assert farm["authorization"] == {"credentials_file": str(tmp_path / "key")}
    assert ray["file_sd_configs"] == [{"files": [str(tmp_path / "nodes.json")], "refresh_interval": "500ms"}]
    assert ray["metric_relabel_configs"] == shipped["scrape_configs"][1]["metric_relabel_configs"]
    assert told["global"] == {"scrape_interval": "500ms", "evaluation_interval": "500ms"}


def test_a_machine_without_prometheus_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="not installed") as refused:
        prometheus.program()
    assert "apt install prometheus" in refused.value.line()


def test_dispatcher_and_worker_count_what_they_do(tmp_path: Path):
    spec = ShotSpec(
        prompt="a boat", seed=3, num_frames=9, fps=Fraction(8), width_px=64, height_px=64, num_steps=4, guidance_scale=1
    ).to_json()
    with in_process_farm(tmp_path) as farm:
        worker = farm.worker(PictureEngine(side_px=32), models=("house-video",))
        mine, desks = worker._meters, farm.desk.dispatcher._meters
        drawn = task("a", model="house-video", params={"spec": spec})
        job, _ = farm.ledger.submit(JobSpec(recipe="tests", title="test", spec={}, tier="batch"), [drawn])
        farm.work_until_over(job, worker)
        [made] = farm.ledger.tasks(job)
        assert desks.counted("farm_leases_total", role="render", tier="batch") == 1
        assert desks.counted("farm_queue_wait_seconds_total", role="render", tier="batch") > 0
        assert desks.counted("farm_attempts_total", role="render", outcome="succeeded") == 1
        assert desks.gauges("farm_leases")["render",] == 0
        assert mine.counted("farm_denoise_steps_total", model="house-video") == 4
        assert mine.counted("farm_frames_total", model="house-video") == 9
        assert mine.counted("farm_content_seconds_total", model="house-video") == 9 / 8
        assert mine.counted("farm_upload_bytes_total") == sum(file["size_bytes"] for file in made["files"])
        spent = farm.ledger.attempts(job)[0]["facts"]["seconds"]
        for stage in ("denoise", "decode", "upload"):
            counted = mine.counted("farm_stage_seconds_total", model="house-video", stage=stage)
            assert counted == pytest.approx(spent[stage], abs=0.001)
        assert mine.gauges("farm_checkpoint_age_seconds") == {("house-video",): 0.0}


def test_a_failure_is_counted_by_whose_fault_it_is(tmp_path: Path):
    with in_process_farm(tmp_path) as farm:
        broken = PictureEngine()  # it wants a spec that is not there
        job, _ = farm.ledger.submit(JobSpec(recipe="tests", title="test", spec={}), [task("a", params={"spec": {}})])
        farm.work_until_over(job, farm.worker(broken))
        counted = farm.desk.dispatcher._meters
        failed = counted.counted("farm_attempts_total", role="render", outcome="failed")
        assert failed == len(farm.ledger.attempts(job)) > 0
        assert counted.counted("farm_failures_total", role="render", failure="bug") == failed


def test_meters_refuse_what_is_not_theirs_to_say():
    meters = Meters()
    for wrong in ("farm_cost_usd_total", "farm_leases"):
        with pytest.raises(AssertionError):
            meters.count(wrong)
    meters.count("farm_upload_bytes_total", 0)
    meters.count("farm_upload_bytes_total", -5)
    assert meters.counted("farm_upload_bytes_total") == 0


def promtool(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    program = require_prometheus().with_name("promtool")
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, timeout=60, check=False)


def test_promtool_takes_the_rules_the_configuration_and_every_query(tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("secret")
    told = prometheus.config(target="127.0.0.1:8000", key_file=key, nodes_file=tmp_path / "n.json", every_s=15)
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(told))
    queries: list[dict[str, Any]] = [
        {"record": f"query:{n}", "expr": re.sub(r"\$__\w+", "5m", expr)} for n, (_, expr, _) in enumerate(EXPRESSIONS)
    ]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": queries}]}))
    for what, file in (
        ("rules", DEPLOY / "prometheus" / "alerts.yml"),
        ("rules", tmp_path / "queries.yml"),
        ("config", tmp_path / "prometheus.yml"),
    ):
        checked = promtool("check", what, str(file))
        assert checked.returncode == 0, checked.stdout + checked.stderr
