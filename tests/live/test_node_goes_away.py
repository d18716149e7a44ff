"""Ray on several nodes, and a spot notice: the workers of the node save what they run and leave, others take their
place elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.accelerators import Fleet
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from cluster.states import JobState
from serve.local import CODE_DIR, Farm
from serve.watch import Watch
from tests.several_nodes import several_nodes
from tests.standing_farm import until

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ids of two nodes with one pretended accelerator each, beside the head."""
    monkeypatch.setenv("PYTHONPATH", str(CODE_DIR))
    with several_nodes(0, 1, 1) as cluster:
        yield [node.node_id for node in cluster.worker_nodes]


def test_a_worker_leaves_a_node_that_goes_away_and_its_task_ends_on_another(
    two_nodes: list[str], tmp_path: Path
) -> None:
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.core.generated import autoscaler_pb2

    gate = tmp_path / "gate"
    with Farm(home=tmp_path / "home", gpus=2) as farm:
        fleet = Fleet(
            name="pinned", role="render", accelerator="GPU", accelerators_per_worker=1, engine="tests.quick_engine:make"
        )
        farm.fleets.want(fleet)
        task = TaskSpec(key="t", step="take", role="render", entry="x:y", params={"gate": str(gate)})
        job_id, _ = farm.ledger.submit(JobSpec(recipe="tests", title="test", spec={}), [task])
        drained: list[str] = []
        watch = Watch(farm.ledger, job_id, progress=farm.fleets.desk.progress, num_workers=farm.fleets.num_workers)
        for _ in watch:
            workers = {w["id"]: w for w in farm.ledger.workers()}
            attempts = farm.ledger.attempts(job_id)
            if not drained and attempts and (tmp_path / "pid").exists():
                drained.append(workers[attempts[0]["worker_id"]]["node"])
                GcsClient(address=ray.get_runtime_context().gcs_address).drain_node(
                    drained[0], autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION, "a spot notice", 2**62
                )
            elif len(attempts) > 1:
                gate.touch()
        assert farm.ledger.job(job_id).state is JobState.SUCCEEDED
        first, second = farm.ledger.attempts(job_id)
        workers = {w["id"]: w for w in farm.ledger.workers()}
        assert (first["state"], second["state"]) == ("interrupted", "succeeded")
        assert workers[first["worker_id"]]["node"] == drained[0]
        assert workers[second["worker_id"]]["node"] in set(two_nodes) - set(drained)
        until(lambda: not psutil.pid_exists(workers[first["worker_id"]]["facts"]["pid"]))


def test_a_farm_starts_a_ray_of_its_own_beside_one_that_runs_already(two_nodes: list[str]) -> None:
    script = (
        "from pathlib import Path; from cluster.runtime import private_ray\n"
        "with private_ray(gpus=0, code_dir=Path('.')): import ray; print(len(ray.nodes()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=CODE_DIR, capture_output=True, text=True, timeout=200)
    assert done.stdout == "1\n", done.stderr
