"""The farm on real Ray with an engine of milliseconds: pinning, names, replaced workers, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.accelerators import Fleet
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from cluster.states import JobState
from serve.local import Farm
from serve.watch import Watch
from tests.standing_farm import until

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]
QUICK = "tests.quick_engine:make"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with Farm(home=tmp_path_factory.mktemp("home"), gpus=2) as running:
        running.fleets.want(
            Fleet(
                name="pinned", role="render", accelerator="GPU", accelerators_per_worker=1, num_workers=2, engine=QUICK
            )
        )
        running.fleets.want(Fleet(name="plain", role="finish", num_threads=3, engine=QUICK))
        until(lambda: len(running.fleets.desk.workers()) == 3, timeout_s=200)
        yield running


def submit(farm: Farm, *tasks: TaskSpec) -> str:
    job_id, _ = farm.ledger.submit(JobSpec(recipe="tests", title="test", spec={}), tasks)
    farm.fleets.desk.poke()
    return job_id


def task(key: str, role: str = "render", **params: Any) -> TaskSpec:
    return TaskSpec(key=key, step="take", role=role, entry="x:y", params={"key": key, **params})


def finish(farm: Farm, job_id: str, on_look: Callable[[], None] = lambda: None) -> JobState:
    watch = Watch(farm.ledger, job_id, progress=farm.fleets.desk.progress, num_workers=farm.fleets.num_workers)
    for _ in watch:
        on_look()
    return farm.ledger.job(job_id).state


def test_each_worker_sees_exactly_its_own_accelerator_and_its_threads(farm: Farm) -> None:
    job_id = submit(farm, *(task(f"t{n}") for n in range(12)), task("cpu", "finish"))
    assert finish(farm, job_id) is JobState.SUCCEEDED
    farm_workers = {w["id"]: w for w in farm.ledger.workers()}
    pinned = [w for w in farm_workers.values() if w["fleet"] == "pinned"]
    plain = next(w for w in farm_workers.values() if w["fleet"] == "plain")
    seen = [w["facts"]["visible"] for w in pinned]
    assert sorted(seen) == ["0", "1"]
    assert [w["facts"]["accelerators"] for w in pinned] == [{"GPU": [v]} for v in seen]
    assert plain["facts"]["visible"] == ""
    assert plain["facts"]["threads"] == "3"
    assert plain["facts"]["accelerators"] == {}
    assert farm.ledger.unbalanced_workers() == []


def test_actors_carry_speaking_names_in_ray(farm: Farm) -> None:
    import ray  # after the farm has set how Ray authenticates

    names = set(ray.util.list_named_actors())
    assert "dispatcher" in names
    assert {name.split("/")[0] for name in names if "/" in name} == {"pinned", "plain"}


def test_a_killed_worker_is_replaced_and_its_task_runs_again(farm: Farm, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job_id = submit(farm, task("slow", gate=str(gate)))
    killed: list[int] = []

    def kill_once() -> None:
        pid_file = tmp_path / "pid"
        if not killed and pid_file.exists():
            killed.append(int(pid_file.read_text(encoding="utf-8")))
            os.kill(killed[0], signal.SIGKILL)
            gate.touch()

    assert finish(farm, job_id, kill_once) is JobState.SUCCEEDED
    attempts = farm.ledger.attempts(job_id)
    assert [a["state"] for a in attempts] == ["lost", "succeeded"]
    until(lambda: not psutil.pid_exists(killed[0]))


def test_a_killed_dispatcher_comes_back_and_the_job_goes_on(farm: Farm) -> None:
    import ray

    job_id = submit(farm, *(task(f"d{n}", nap_s=0.2) for n in range(10)))
    ray.kill(ray.get_actor("dispatcher", namespace="reelfarm"), no_restart=False)
    assert finish(farm, job_id) is JobState.SUCCEEDED
    assert len([e for e in farm.ledger.events(job_id) if e.kind == "task.commit"]) == 10


def test_a_farm_of_a_program_that_imported_ray_first_works_and_leaves_no_process_behind(tmp_path: Path) -> None:
    marker = f"reelfarm-test-{os.getpid()}"
    script = (
        "import ray, sys; from serve.local import Farm\n"
        "with Farm(home=sys.argv[1], gpus=0) as farm: print('up', flush=True)\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    env |= {"REELFARM_TEST_MARKER": marker, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=env, capture_output=True, timeout=200)
    assert done.stdout == b"up\n", done.stderr.decode()
    assert done.returncode == 0
    until(lambda: not any(_carries(process, marker) for process in psutil.process_iter()), timeout_s=120)


def _carries(process: psutil.Process, marker: str) -> bool:
    try:
        return process.environ().get("REELFARM_TEST_MARKER") == marker
    except psutil.Error:
        return False
