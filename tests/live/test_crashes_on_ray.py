"""Twelve cases of the crash sweep on real Ray: the golden job ends with the same content whatever breaks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from cluster import faults
from cluster.accelerators import Fleet
from cluster.errors import Unavailable
from cluster.faults import Action, Fault
from cluster.ledger.audit import violations
from cluster.ledger.ledger import Ledger
from cluster.runtime import private_ray
from cluster.settings import Settings
from cluster.states import JobState
from tests.chaos import golden

if TYPE_CHECKING:
    from actors.fleet import Fleets

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
T = TypeVar("T")
TIMES = {"heartbeat_s": 0.3, "lease_s": 1.2, "lease_wait_s": 1.0, "checkpoint_s": 0.01}


def fault(point: str, action: Action, nth: int = 1, *, follows: bool = False) -> Fault:
    return Fault(point=point, action=action, nth=nth, follows=follows)


CASES = (
    (fault("worker.report", Action.KILL, 2),),
    (fault("worker.report", Action.AFTER),),
    (fault("worker.report", Action.TWICE),),
    (fault("worker.lease", Action.AFTER, 2),),
    (fault("ledger.lease", Action.KILL_AFTER),),
    (fault("ledger.commit", Action.KILL_AFTER, 2),),
    (fault("ledger.expand", Action.KILL),),
    (fault("ledger.transaction", Action.BEFORE, 12),),
    (fault("dispatcher.tick", Action.KILL, 3),),
    (fault("store.put_once", Action.KILL_AFTER, 2),),
    (fault("store.verify", Action.BEFORE),),
    (fault("worker.report", Action.KILL), fault("dispatcher.adopt", Action.KILL, follows=True)),
)


@pytest.fixture(scope="module")
def ray_is_up() -> Iterator[None]:
    with private_ray(gpus=0, code_dir=Path(__file__).parents[2]):
        yield


def name_of(plan: tuple[Fault, ...]) -> str:
    return " then ".join(f"{one.point} {one.action}" for one in plan)


@pytest.mark.parametrize("plan", CASES, ids=name_of)
def test_the_golden_job_survives_on_ray(ray_is_up: None, tmp_path: Path, plan: tuple[Fault, ...]) -> None:
    import ray  # after it was told how to authenticate

    from actors.fleet import DISPATCHER, Fleets

    settings = Settings(home=tmp_path, faults=faults.dumps(plan), **TIMES)  # type: ignore[arg-type]
    ledger = Ledger(settings.ledger)
    fleets = Fleets(settings)
    wait_for(lambda: started(fleets), 200)
    try:
        fleets.want(Fleet(name="quick", role="finish", num_workers=2, engine="tests.chaos.golden:make"))
        job_id, _ = ledger.submit(golden.job(), golden.graph())
        wait_for(lambda: ledger.job(job_id).over, 200)
        fleets.stop()
        wait_for(lambda: not ledger.open_workers(), 30)
        assert ledger.job(job_id).state is JobState.SUCCEEDED
        assert golden.digest_of_tasks(ledger.tasks(job_id)) == golden.digest(golden.expected())
        assert ledger.flaws() == []
        assert violations(ledger.log(), injected=[], orders_per_worker=1, quiet=True) == []
        assert faults.struck(settings.faults_dir) == len(plan)
    finally:
        fleets.stop()
        ray.kill(ray.get_actor(DISPATCHER, namespace="reelfarm"), no_restart=True)
        ledger.close()


def test_a_dead_worker_is_replaced_though_ray_broke_the_watch_over_it(
    ray_is_up: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray  # after it was told how to authenticate

    from actors import fleet

    breaks = [2]

    def break_twice() -> frozenset[str]:
        if breaks[0]:
            breaks[0] -= 1
            raise RuntimeError("GCS is just starting again")
        return frozenset()

    monkeypatch.setattr(fleet, "draining_nodes", break_twice)
    monkeypatch.setattr(fleet, "BROKE_S", 0.1)
    settings = Settings(home=tmp_path, **TIMES)  # type: ignore[arg-type]
    ledger = Ledger(settings.ledger)
    fleets = fleet.Fleets(settings)
    wait_for(lambda: started(fleets), 200)
    try:
        fleets.want(Fleet(name="quick", role="finish", num_workers=1, engine="tests.chaos.golden:make"))
        (first,) = wait_for(lambda: ledger.open_workers() if not breaks[0] else [], 120)
        os.kill(first["facts"]["pid"], signal.SIGKILL)
        wait_for(lambda: {worker["id"] for worker in ledger.open_workers()} - {first["id"]}, 120)
    finally:
        fleets.stop()
        ray.kill(ray.get_actor(fleet.DISPATCHER, namespace="reelfarm"), no_restart=True)
        ledger.close()


def started(fleets: Fleets) -> bool:
    """A dispatcher that is killed at its start comes back, and one of the test before goes in its own time."""
    with suppress(Unavailable):
        fleets.start()
        return True
    return False


def wait_for(ready: Callable[[], T], seconds: float) -> T:
    """What it was that held."""
    ends_s = time.monotonic() + seconds
    while not (seen := ready()):
        assert time.monotonic() < ends_s, "the farm did not get there in time"
        time.sleep(0.05)
    return seen
