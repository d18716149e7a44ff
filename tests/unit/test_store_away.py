"""A store that is away: what was made is kept and put when it is back; who is told to stop does not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.contract import STORE_AWAY, Bench, Json, Made, MadeFile
from cluster.assets import Blob
from cluster.errors import StoreRefused
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from cluster.states import JobState, State
from cluster.store.directory import DirectoryStore
from tests.farm import InProcessFarm, in_process_farm


class Away(DirectoryStore):
    """Takes no blobs while it is away; it says when one was tried."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.back, self.tried = threading.Event(), threading.Event()

    def put_blob(self, tenant: str, source: Path | bytes, *, media_type: str, rehash: bool = False) -> Blob:
        if not self.back.is_set():
            self.tried.set()
            raise StoreRefused("the keys have expired", remedy="get new ones")
        return super().put_blob(tenant, source, media_type=media_type, rehash=rehash)


class Draws:
    """Each draw costs a lot: it is counted."""

    def __init__(self) -> None:
        self.num_drawn = 0

    def start(self) -> Json:
        return {}

    def run(self, bench: Bench) -> Made:
        self.num_drawn += 1
        path = bench.scratch / "take.txt"
        path.write_text("a take", encoding="utf-8")
        return Made(files=(MadeFile(name="take.txt", path=path, media_type="text/plain"),))

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[InProcessFarm]:
    with in_process_farm(tmp_path, store=Away(tmp_path / "store")) as farm:
        yield farm


def submitted(farm: InProcessFarm) -> str:
    task = TaskSpec(key="a", step="draw", role="render", entry="a.b:c", params={})
    return farm.ledger.submit(JobSpec(recipe="pipelines.recipes.clip", title="A take", spec={}), [task])[0]


def test_what_was_drawn_while_the_store_was_away_is_put_when_it_is_back(farm: InProcessFarm) -> None:
    store, engine, job_id = farm.store, Draws(), submitted(farm)
    assert isinstance(store, Away)
    stages: list[str] = []

    def comes_back() -> None:
        assert store.tried.wait(30)
        while not any(stage == f"{STORE_AWAY}upload" for stage in stages):
            stages.extend(one["stage"] for one in farm.desk.ask(farm.desk.dispatcher.progress(job_id)))
        stages.append(farm.ledger.job(job_id).state)
        store.back.set()

    other = threading.Thread(target=comes_back, daemon=True)
    other.start()
    farm.work_until_over(job_id, farm.worker(engine))
    other.join(timeout=30)
    (task,) = farm.ledger.tasks(job_id)
    assert (engine.num_drawn, task["state"], task["failures"]) == (1, State.SUCCEEDED, {})
    assert stages[-1] == JobState.RUNNING
    assert farm.store.get(task["files"][0]["key"]) == b"a take"


def test_a_worker_that_waits_for_the_store_stops_when_it_is_told_to(farm: InProcessFarm) -> None:
    store, engine, job_id = farm.store, Draws(), submitted(farm)
    assert isinstance(store, Away)

    def canceled() -> None:
        assert store.tried.wait(30)
        farm.desk.ask(farm.desk.dispatcher.cancel(job_id))

    other = threading.Thread(target=canceled, daemon=True)
    other.start()
    farm.work_until_over(job_id, farm.worker(engine))
    other.join(timeout=30)
    assert farm.ledger.job(job_id).state is JobState.CANCELED
    assert list(store.list("studio/assets/")) == []
