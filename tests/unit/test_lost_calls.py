"""Calls that are lost, answered in vain or made twice, in a farm of one process: what was paid for is kept, once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.contract import Beat, Bench, Made, Outcome, Report
from cluster import faults
from cluster.assets import Receipt, ReceiptFile, checkpoint_key
from cluster.clock import ManualClock
from cluster.errors import StaleTerm
from cluster.faults import Action, Fault
from cluster.graph import TaskSpec
from cluster.ledger.audit import violations
from cluster.ledger.jobs import JobSpec
from cluster.states import JobState, State
from cluster.store.port import put_receipt
from tests.chaos import golden
from tests.farm import InProcessFarm, in_process_farm


@pytest.fixture
def clock() -> ManualClock:
    """It stands: no lease runs out that the test does not let run out."""
    return ManualClock()


@pytest.fixture
def farm(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcessFarm]:
    monkeypatch.setattr("actors.dispatcher.REAP_S", 60.0)
    with in_process_farm(tmp_path, clock=clock) as running:
        yield running
    faults.disarm()


def submit(farm: InProcessFarm, *keys: str) -> str:
    tasks = [TaskSpec(key=k, step="script", role="render", entry="x:y", params={"seed": n}) for n, k in enumerate(keys)]
    job_id, _ = farm.ledger.submit(JobSpec(recipe="tests", title="test", spec={}), tasks)
    farm.desk.ask(farm.desk.dispatcher.poke())
    return job_id


def task(farm: InProcessFarm, job_id: str, key: str) -> Any:
    return next(t for t in farm.ledger.tasks(job_id) if t["key"] == key)


def wrong(farm: InProcessFarm) -> list[str]:
    return violations(farm.ledger.log())


class Heart(golden.GoldenEngine):
    """An engine and the desk of its worker: no task ends before a heartbeat was heard. A heart that wakes late, when
    all is done, does not beat at all."""

    def __init__(self, farm: InProcessFarm) -> None:
        super().__init__()
        self._desk, self._heard = farm.desk, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._desk, name)

    def beat(self, worker_id: str, beats: Sequence[Beat]) -> dict[str, str]:
        stops = self._desk.beat(worker_id, beats)
        self._heard.set()
        return stops

    def run(self, bench: Bench) -> Made:
        assert self._heard.wait(30)
        return super().run(bench)


@pytest.mark.parametrize("action", [Action.BEFORE, Action.AFTER, Action.TWICE])
@pytest.mark.parametrize("point", ["worker.join", "worker.lease", "worker.report", "worker.beat", "worker.leave"])
def test_a_call_of_a_worker_that_goes_wrong_once_changes_nothing(
    farm: InProcessFarm, tmp_path: Path, point: str, action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.worker.RETRY_AFTER_S", 0.01)
    heart = Heart(farm)
    job_id = submit(farm, "a", "b")
    faults.arm([Fault(point=point, action=action)], tmp_path / "faults")
    farm.work_until_over(job_id, farm.worker(heart, desk=heart))
    assert faults.struck(tmp_path / "faults") == 1
    assert farm.ledger.job(job_id).state is JobState.SUCCEEDED
    assert [a["state"] for a in farm.ledger.attempts(job_id)] == ["succeeded", "succeeded"]
    assert wrong(farm) == []


def test_a_journal_that_cannot_be_written_costs_no_report(farm: InProcessFarm, tmp_path: Path) -> None:
    job_id = submit(farm, "a")
    faults.arm([Fault(point="worker.journal", action=Action.BEFORE)], tmp_path / "faults")
    farm.work_until_over(job_id, farm.worker(golden.GoldenEngine()))
    assert [a["state"] for a in farm.ledger.attempts(job_id)] == ["succeeded"]


def test_a_lease_that_no_worker_heard_of_runs_out_although_its_worker_beats(
    farm: InProcessFarm, clock: ManualClock
) -> None:
    job_id = submit(farm, "a", "b")
    worker = farm.facts()
    farm.desk.join(worker)
    heard = farm.desk.lease(worker.id, "heard")
    unheard = farm.desk.lease(worker.id, "unheard")
    assert heard is not None
    assert unheard is not None
    beat = Beat(task_id=heard.task_id, attempt_id=heard.attempt_id, epoch=1, stage="denoise", done=1, total=2)
    for _ in range(2):
        clock.advance(farm.settings.lease_s * 0.6)
        farm.desk.beat(worker.id, [beat])
    farm.desk.ask(farm.desk.dispatcher.tick())
    assert {t["key"]: t["state"] for t in farm.ledger.tasks(job_id)} == {
        heard.key: State.RUNNING,
        unheard.key: State.READY,
    }


def test_a_report_whose_bytes_do_not_verify_is_not_committed(farm: InProcessFarm) -> None:
    job_id = submit(farm, "a")
    worker = farm.facts()
    farm.desk.join(worker)
    order = farm.desk.lease(worker.id, "r")
    assert order is not None
    blob = farm.store.put_blob("studio", b"as it was", media_type="text/plain")
    (farm.home / "store" / blob.key).write_bytes(b"as it is now")
    receipt = Receipt(
        attempt_id=order.attempt_id, task_id=order.task_id, epoch=1, files=(ReceiptFile.of("take.txt", blob),)
    )
    report = Report(
        task_id=order.task_id,
        attempt_id=order.attempt_id,
        epoch=1,
        worker_id=worker.id,
        tenant="studio",
        outcome=Outcome.SUCCEEDED,
        receipt_key=put_receipt(farm.store, "studio", receipt),
    )
    farm.desk.report(report)
    row = task(farm, job_id, "a")
    assert (row["state"], row["receipt_key"]) == (State.BACKOFF, None)
    assert wrong(farm) == []


def test_an_order_names_checkpoints_of_its_own_task_alone(farm: InProcessFarm, clock: ManualClock) -> None:
    job_id = submit(farm, "a", "b")
    worker = farm.facts()
    farm.desk.join(worker)
    orders = [farm.desk.lease(worker.id, f"r{n}") for n in range(2)]
    for order in orders:
        assert order is not None
        farm.store.put_once(checkpoint_key("studio", order.attempt_id, 1), order.key.encode())
    clock.advance(farm.settings.lease_s + 1)
    farm.wait_for(lambda: all(t["state"] == State.READY for t in farm.ledger.tasks(job_id)))
    other = farm.facts()
    farm.desk.join(other)
    again = [farm.desk.lease(other.id, f"again {n}") for n in range(2)]
    assert all(order is not None for order in again)
    saved = {o.key: [farm.store.get(key) for key in o.resume_from] for o in again if o is not None}
    assert saved == {"a": [b"a"], "b": [b"b"]}


def test_a_dispatcher_that_was_replaced_stops_by_itself(farm: InProcessFarm) -> None:
    old = farm.desk.dispatcher
    farm.desk = farm.new_dispatcher()
    with pytest.raises(StaleTerm):
        farm.desk.ask(asyncio.wait_for(old.run(0.01), timeout=30))


def test_an_error_over_one_lost_attempt_holds_up_neither_it_nor_another(
    farm: InProcessFarm, clock: ManualClock, tmp_path: Path
) -> None:
    job_id = submit(farm, "a", "b")
    worker = farm.facts()
    farm.desk.join(worker)
    assert farm.desk.lease(worker.id, "one") is not None
    assert farm.desk.lease(worker.id, "two") is not None
    faults.arm([Fault(point="store.get", action=Action.BEFORE)], tmp_path / "faults")
    clock.advance(farm.settings.lease_s + 1)
    farm.wait_for(lambda: all(t["state"] == State.READY for t in farm.ledger.tasks(job_id)))
    assert faults.struck(tmp_path / "faults") == 1
    assert [a["state"] for a in farm.ledger.attempts(job_id)] == ["lost", "lost"]


def test_a_failure_whose_report_is_lost_once_is_told_again(
    farm: InProcessFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.worker.RETRY_AFTER_S", 0.01)
    job_id, _ = farm.ledger.submit(golden.job(), [golden.doomed("input")])
    faults.arm([Fault(point="worker.report", action=Action.BEFORE)], tmp_path / "faults")
    farm.work_until_over(job_id, farm.worker(golden.GoldenEngine(), role="finish"))
    assert [(a["state"], a["failure"]) for a in farm.ledger.attempts(job_id)] == [("failed", "input")]


@pytest.mark.parametrize("point", ["store.put_blob", "store.put_once", "store.fetch"])
def test_a_store_that_errs_for_a_moment_costs_no_attempt(farm: InProcessFarm, tmp_path: Path, point: str) -> None:
    tasks = [
        TaskSpec(key="script", step="script", role="render", entry="x:y", params={"seed": 7, "nap_s": 0.0}),
        TaskSpec(key="expand", step="expand", role="render", entry="x:y", needs=("script",), expands=True),
    ]
    job_id, _ = farm.ledger.submit(JobSpec(recipe="tests", title="test", spec={}), tasks)
    faults.arm(
        [Fault(point=point, action=action, nth=n) for n, action in ((1, Action.BEFORE), (2, Action.AFTER))],
        tmp_path / "faults",
    )
    worker = farm.worker(golden.GoldenEngine())
    worker.start()
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    farm.wait_for(lambda: task(farm, job_id, "expand")["state"] == State.SUCCEEDED)
    worker.stop()
    thread.join(timeout=30)
    assert faults.struck(tmp_path / "faults") == 2
    assert {a["state"] for a in farm.ledger.attempts(job_id)} == {"succeeded"}
