"""The dispatcher and the worker in one process: real ledger, real store, real threads, no Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from actors.contract import Beat, Bench, Json, Made, MadeFile, Order, Outcome, Report, WorkerFacts
from actors.worker import Worker
from cluster import retention
from cluster.assets import Receipt, ReceiptFile
from cluster.clock import ManualClock
from cluster.errors import FarmError, InvalidSpec, OutOfMemory, StaleTerm, StoreUnavailable, Unavailable
from cluster.graph import TaskSpec
from cluster.ledger import schema
from cluster.ledger.jobs import JobSpec
from cluster.states import JobState, State
from cluster.store.port import put_receipt, verify_receipt
from tests.farm import InProcessFarm, LocalDesk, in_process_farm


class Engine:
    """Calls `work(bench)` and writes one small file that says what was asked."""

    def __init__(self, work: Callable[[Bench], None] = lambda bench: None, children: tuple[TaskSpec, ...] = ()) -> None:
        self.work, self.children = work, children
        self.orders: list[str] = []

    def start(self) -> Json:
        return {}

    def run(self, bench: Bench) -> Made:
        self.orders.append(bench.order.key)
        self.work(bench)
        path = bench.scratch / "take.txt"
        path.write_text(str(bench.order.params), encoding="utf-8")
        children = self.children if bench.order.key == "expand" else ()
        return Made(files=(MadeFile(name="take.txt", path=path, media_type="text/plain"),), children=children)

    def close(self) -> None:
        return


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[InProcessFarm]:
    with in_process_farm(tmp_path) as running:
        yield running


def task(key: str, *needs: str, **more: Any) -> TaskSpec:
    return TaskSpec(**{"key": key, "step": "render", "role": "render", "entry": "x:y", "needs": needs, **more})


def submit(farm: InProcessFarm, *tasks: TaskSpec) -> str:
    job_id, _ = farm.ledger.submit(JobSpec(recipe="tests", title="test", spec={}), tasks)
    farm.desk.ask(farm.desk.dispatcher.poke())
    return job_id


def by_key(farm: InProcessFarm, job_id: str) -> dict[str, Any]:
    return {row["key"]: row for row in farm.ledger.tasks(job_id)}


def joined(farm: InProcessFarm, desk: LocalDesk | None = None) -> WorkerFacts:
    worker = farm.facts()
    (desk or farm.desk).join(worker)
    return worker


def test_a_job_runs_in_the_order_of_its_graph_and_its_receipts_verify(farm: InProcessFarm) -> None:
    engine = Engine()
    job_id = submit(farm, task("c", "a", "b"), task("a"), task("b", "a"))
    farm.work_until_over(job_id, farm.worker(engine))
    assert engine.orders == ["a", "b", "c"]
    assert farm.ledger.job(job_id).state is JobState.SUCCEEDED
    for row in farm.ledger.tasks(job_id):
        verify_receipt(farm.store, Receipt.from_bytes(farm.store.get(row["receipt_key"])))
        assert farm.store.get(row["files"][0]["key"]) == b"{}"
    assert farm.ledger.unbalanced_workers() == []
    assert farm.ledger.spent(job_id=job_id).nano > 0


def test_an_expansion_adds_its_children_once(farm: InProcessFarm) -> None:
    job_id = submit(farm, task("expand", expands=True, cacheable=False))
    children = (task("one", params={"n": 1}), task("two", "one", params={"n": 2}))
    farm.work_until_over(job_id, farm.worker(Engine(children=children)))
    assert [row["key"] for row in farm.ledger.tasks(job_id)] == ["expand", "one", "two"]
    assert farm.ledger.job(job_id).state is JobState.SUCCEEDED


def test_the_same_question_is_not_rendered_twice(farm: InProcessFarm) -> None:
    engine = Engine()
    first = submit(farm, task("a", params={"seed": 1}))
    farm.work_until_over(first, farm.worker(engine))
    second = submit(farm, task("a", params={"seed": 1}), task("b", params={"seed": 2}))
    assert by_key(farm, second)["a"]["state"] == State.SUCCEEDED
    farm.work_until_over(second, farm.worker(engine))
    assert engine.orders == ["a", "b"]
    assert by_key(farm, second)["a"]["files"] == by_key(farm, first)["a"]["files"]


def test_bad_input_kills_a_task_at_once_and_says_why(farm: InProcessFarm) -> None:
    def refuse(bench: Bench) -> None:
        raise InvalidSpec("no such subject", field="prompt")

    engine = Engine(refuse)
    job_id = submit(farm, task("a"), task("b", "a"))
    farm.work_until_over(job_id, farm.worker(engine))
    assert engine.orders == ["a"]
    dead = by_key(farm, job_id)["a"]
    assert (dead["state"], dead["reason"]) == (State.DEAD, "prompt: no such subject")
    assert by_key(farm, job_id)["b"]["state"] == State.PENDING
    assert farm.ledger.job(job_id).state is JobState.FAILED


def test_a_defect_is_tried_three_times_and_running_out_of_memory_twice(farm: InProcessFarm) -> None:
    def broken(bench: Bench) -> None:
        raise OutOfMemory("no memory") if bench.order.key == "big" else RuntimeError("a defect")

    engine = Engine(broken)
    job_id = submit(farm, task("bug"), task("big", params={"big": True}))
    farm.work_until_over(job_id, farm.worker(engine))
    assert sorted(engine.orders) == ["big"] * 2 + ["bug"] * 3
    assert farm.ledger.spent(kind="wasted", job_id=job_id).nano > 0
    assert farm.ledger.spent(kind="busy", job_id=job_id).nano == 0
    assert farm.ledger.unbalanced_workers() == []


def test_a_store_that_is_away_costs_a_retry_and_no_work_is_lost(farm: InProcessFarm) -> None:
    failures = iter([True, False])

    def flaky(bench: Bench) -> None:
        if next(failures):
            raise StoreUnavailable("away")

    job_id = submit(farm, task("a"))
    farm.work_until_over(job_id, farm.worker(Engine(flaky)))
    assert farm.ledger.job(job_id).state is JobState.SUCCEEDED
    assert by_key(farm, job_id)["a"]["failures"] == {"infra": 1}


def test_the_same_request_gets_the_same_lease_again(farm: InProcessFarm) -> None:
    submit(farm, task("a"), task("b", params={"n": 2}))
    worker = joined(farm)
    first = farm.desk.lease(worker.id, "request-1")
    again = farm.desk.lease(worker.id, "request-1")
    other = farm.desk.lease(worker.id, "request-2")
    assert first is not None
    assert again is not None
    assert other is not None
    assert (again.attempt_id, again.epoch) == (first.attempt_id, first.epoch)
    assert other.task_id != first.task_id


def test_a_lost_worker_s_task_goes_to_another_and_its_late_report_is_ignored(tmp_path: Path) -> None:
    with in_process_farm(tmp_path, clock=(clock := ManualClock())) as farm:
        job_id = submit(farm, task("a"))
        lost = joined(farm)
        order = farm.desk.lease(lost.id, "r")
        assert order is not None
        engine = Engine()
        clock.advance(farm.settings.lease_s + 1)
        farm.wait_for(lambda: by_key(farm, job_id)["a"]["state"] == State.READY)
        farm.work_until_over(job_id, farm.worker(engine))
        committed = by_key(farm, job_id)["a"]
        assert committed["epoch"] == 2
        assert engine.orders == ["a"]
        blob = farm.store.put_blob("studio", b"stale", media_type="text/plain")
        late = Receipt(
            attempt_id=order.attempt_id, task_id=order.task_id, epoch=1, files=(ReceiptFile.of("take.txt", blob),)
        )
        key = put_receipt(farm.store, "studio", late)
        answer = farm.desk.report(report_of(order.task_id, order.attempt_id, 1, lost.id, key))
        assert answer == "superseded"
        assert by_key(farm, job_id)["a"]["files"] == committed["files"]


def test_an_attempt_that_was_lost_after_its_upload_is_found_by_its_receipt(tmp_path: Path) -> None:
    with in_process_farm(tmp_path, lease_s=0.3) as farm:
        job_id = submit(farm, task("a"))
        worker = joined(farm)
        order = farm.desk.lease(worker.id, "r")
        assert order is not None
        blob = farm.store.put_blob("studio", b"done", media_type="text/plain")
        file = ReceiptFile.of("take.txt", blob)
        put_receipt(
            farm.store,
            "studio",
            Receipt(attempt_id=order.attempt_id, task_id=order.task_id, epoch=order.epoch, files=(file,)),
        )
        farm.wait_for(lambda: farm.ledger.job(job_id).over)
        assert by_key(farm, job_id)["a"]["files"][0]["sha256"] == blob.sha256
        assert len(farm.ledger.attempts(job_id)) == 1


def test_a_replaced_dispatcher_can_write_nothing(farm: InProcessFarm) -> None:
    old = farm.desk
    job_id = submit(farm, task("a"))
    worker = joined(farm, old)
    farm.desk = farm.new_dispatcher()
    with pytest.raises(StaleTerm):
        old.lease(worker.id, "r")
    with pytest.raises(Unavailable, match="join"):
        farm.desk.lease(worker.id, "r")
    farm.desk.join(worker)
    assert farm.desk.lease(worker.id, "r") is not None
    assert by_key(farm, job_id)["a"]["epoch"] == 1


def test_a_new_dispatcher_leaves_running_work_alone(farm: InProcessFarm) -> None:
    job_id = submit(farm, task("a"))
    worker = joined(farm)
    order = farm.desk.lease(worker.id, "r")
    assert order is not None
    farm.desk = farm.new_dispatcher()
    farm.desk.ask(farm.desk.dispatcher.tick())
    assert by_key(farm, job_id)["a"]["state"] == State.RUNNING
    blob = farm.store.put_blob("studio", b"done", media_type="text/plain")
    receipt = Receipt(
        attempt_id=order.attempt_id, task_id=order.task_id, epoch=1, files=(ReceiptFile.of("take.txt", blob),)
    )
    key = put_receipt(farm.store, "studio", receipt)
    report = report_of(order.task_id, order.attempt_id, 1, worker.id, key)
    assert farm.desk.report(report) == "accepted"
    assert farm.desk.report(report) == "duplicate"
    assert farm.ledger.job(job_id).state is JobState.SUCCEEDED


def test_a_report_waits_in_the_journal_until_the_dispatcher_answers(farm: InProcessFarm, tmp_path: Path) -> None:
    class Deaf:
        """A desk whose report is heard the third time only."""

        def __init__(self, desk: LocalDesk) -> None:
            self.desk, self.calls, self.journals = desk, 0, []  # type: ignore[var-annotated]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.desk, name)

        def report(self, report: Report) -> str:
            self.calls += 1
            self.journals.append(len(list(tmp_path.glob("scratch/*/journal/*.json"))))
            if self.calls < 3:
                raise Unavailable("deaf")
            return self.desk.report(report)

    deaf = Deaf(farm.desk)
    job_id = submit(farm, task("a"))
    farm.work_until_over(job_id, farm.worker(Engine(), desk=deaf))
    assert deaf.journals == [1, 1, 1]
    assert farm.ledger.job(job_id).state is JobState.SUCCEEDED


def test_a_heart_beats_on_whatever_it_is_answered(farm: InProcessFarm) -> None:
    class Cross:
        """A desk that refuses the first heartbeat, which is nobody's absence."""

        def __init__(self, desk: LocalDesk) -> None:
            self.desk, self.refused, self.heard = desk, False, threading.Event()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.desk, name)

        def beat(self, worker_id: str, beats: Sequence[Beat]) -> dict[str, str]:
            if not self.refused:
                self.refused = True
                raise FarmError("the ledger refused a statement")
            self.heard.set()
            return self.desk.beat(worker_id, beats)

    cross = Cross(farm.desk)
    job_id = submit(farm, task("a"))
    farm.work_until_over(job_id, farm.worker(Engine(lambda bench: assert_set(cross.heard)), desk=cross))
    assert farm.ledger.job(job_id).state is JobState.SUCCEEDED


def assert_set(event: threading.Event) -> None:
    assert event.wait(30)


def test_a_cancelled_job_stops_its_worker_at_the_next_step(farm: InProcessFarm) -> None:
    started, stopped = threading.Event(), threading.Event()

    def endless(bench: Bench) -> None:
        try:
            while True:
                bench.progress("denoise", 1, 10)
                started.set()
                threading.Event().wait(0.01)
        finally:
            stopped.set()

    job_id = submit(farm, task("a"), task("b", "a"))
    worker, thread = run_in_background(farm, Engine(endless))
    assert started.wait(10)
    assert farm.desk.ask(farm.desk.dispatcher.cancel(job_id)) == 2
    assert stopped.wait(10)
    worker.stop()
    thread.join(10)
    assert farm.ledger.job(job_id).state is JobState.CANCELED
    assert [a["state"] for a in farm.ledger.attempts(job_id)] == ["canceled"]


def test_an_interrupted_attempt_uses_no_retry_and_goes_to_another_worker(farm: InProcessFarm) -> None:
    started = threading.Event()

    def endless(bench: Bench) -> None:
        while not bench.order.epoch > 1:
            bench.progress("denoise", 1, 10)
            started.set()
            threading.Event().wait(0.01)

    job_id = submit(farm, task("a"))
    worker, thread = run_in_background(farm, Engine(endless))
    assert started.wait(10)
    worker.interrupt("drained")
    thread.join(10)
    assert not thread.is_alive()
    row = by_key(farm, job_id)["a"]
    assert (row["state"], row["failures"]) == (State.READY, {})
    farm.work_until_over(job_id, farm.worker(Engine(endless)))
    assert [a["state"] for a in farm.ledger.attempts(job_id)] == ["interrupted", "succeeded"]


def test_an_interruption_between_a_lease_and_its_work_stops_that_work(
    farm: InProcessFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(bench: Bench) -> None:
        while True:
            bench.progress("denoise", 1, 10)

    worker = farm.worker(Engine(endless))

    def told_first(order: Order) -> None:
        worker.interrupt("its node goes away")
        worker.execute(order)

    monkeypatch.setattr(worker, "_execute", told_first)
    job_id = submit(farm, task("a"))
    worker.start()
    worker.run()
    assert [a["state"] for a in farm.ledger.attempts(job_id)] == ["interrupted"]


def test_an_idle_worker_that_is_drained_leaves_before_its_next_heartbeat(
    farm: InProcessFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def present() -> list[WorkerFacts]:
        return farm.desk.ask(farm.desk.dispatcher.workers())

    worker = farm.worker(Engine())
    monkeypatch.setattr(worker, "_heartbeat_s", 3600.0)
    worker.start()
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    farm.wait_for(lambda: [one.id for one in present()] == [worker.facts.id])
    assert farm.ledger.drain(worker.facts.id, reason="its node is needed")
    farm.wait_for(lambda: not thread.is_alive())
    assert present() == []


def test_progress_is_in_memory_and_never_an_event(farm: InProcessFarm) -> None:
    seen, go_on = threading.Event(), threading.Event()

    def half_way(bench: Bench) -> None:
        bench.progress("denoise", 5, 10)
        seen.set()
        assert go_on.wait(10)

    job_id = submit(farm, task("a"))
    worker, thread = run_in_background(farm, Engine(half_way))
    assert seen.wait(10)
    farm.wait_for(lambda: any(p["done"] == 5 for p in farm.desk.ask(farm.desk.dispatcher.progress(job_id))))
    go_on.set()
    farm.wait_for(lambda: farm.ledger.job(job_id).over)
    worker.stop()
    thread.join(10)
    assert [e.kind for e in farm.ledger.events(job_id)] == [
        "job.created",
        "task.created",
        "task.lease",
        "task.commit",
        "job.ended",
    ]


def run_in_background(farm: InProcessFarm, engine: Engine) -> tuple[Worker, threading.Thread]:
    worker = farm.worker(engine)
    worker.start()
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    return worker, thread


def report_of(task_id: str, attempt_id: str, epoch: int, worker_id: str, receipt_key: str) -> Report:
    return Report(
        task_id=task_id,
        attempt_id=attempt_id,
        epoch=epoch,
        worker_id=worker_id,
        tenant="studio",
        outcome=Outcome.SUCCEEDED,
        receipt_key=receipt_key,
    )


def test_children_that_the_job_cannot_take_kill_the_expansion_and_not_the_worker(farm: InProcessFarm) -> None:
    job_id = submit(farm, task("expand", expands=True, cacheable=False))
    circle = (task("one", "two"), task("two", "one"))
    farm.work_until_over(job_id, farm.worker(Engine(children=circle)))
    assert by_key(farm, job_id)["expand"]["state"] == State.DEAD
    assert "cycle" in by_key(farm, job_id)["expand"]["reason"]


# A tenant who goes while their work runs


def test_a_worker_outlives_the_tenant_for_whom_it_works(farm: InProcessFarm) -> None:
    started = threading.Event()

    def endless(bench: Bench) -> None:
        while bench.order.tenant == "studio":
            bench.progress("denoise", 1, 10)
            started.set()
            threading.Event().wait(0.01)

    job_id = submit(farm, task("a"))
    worker, thread = run_in_background(farm, Engine(endless))
    assert started.wait(10)
    retention.erase(farm.ledger, farm.store, "studio")
    later, _ = farm.ledger.submit(JobSpec(recipe="tests", title="test", spec={}, tenant="rival"), [task("b")])
    farm.wait_for(lambda: farm.ledger.job(later).over)
    worker.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert [row["ended_us"] is None for row in farm.ledger.workers()] == [False]
    assert [a["state"] for a in farm.ledger.attempts(job_id)] == ["canceled"]
    assert farm.ledger.flaws() == []


def test_what_was_uploaded_for_a_tenant_who_has_gone_is_thrown_away(farm: InProcessFarm) -> None:
    submit(farm, task("a"))
    worker = joined(farm)
    order = farm.desk.lease(worker.id, "r")
    assert order is not None
    blob = farm.store.put_blob("studio", b"done", media_type="text/plain")
    file = ReceiptFile.of("take.txt", blob)
    receipt = Receipt(attempt_id=order.attempt_id, task_id=order.task_id, epoch=order.epoch, files=(file,))
    key = put_receipt(farm.store, "studio", receipt)
    retention.erase(farm.ledger, farm.store, "studio")
    assert farm.desk.report(report_of(order.task_id, order.attempt_id, order.epoch, worker.id, key)) == "superseded"
    assert farm.ledger.flaws() == []


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_attempt_that_the_ledger_has_forgotten_is_told_to_stop(farm: InProcessFarm, outcome: Outcome) -> None:
    job_id = submit(farm, task("a"), task("b", params={"n": 1}))
    worker = joined(farm)
    orders = [farm.desk.lease(worker.id, request) for request in ("r1", "r2")]
    farm.ledger.cancel_job(job_id)
    farm.ledger.database.transaction(lambda c: c.execute(delete(schema.attempts)))  # as a backup that is older
    reported = orders[0]
    assert reported is not None
    late = Receipt(attempt_id=reported.attempt_id, task_id=reported.task_id, epoch=reported.epoch, files=())
    report = report_of(
        reported.task_id, reported.attempt_id, reported.epoch, worker.id, put_receipt(farm.store, "studio", late)
    )
    assert farm.desk.report(replace(report, outcome=outcome)) == "superseded"
    farm.desk.leave(worker.id, died=True)
    assert [row["ended_us"] is None for row in farm.ledger.workers()] == [False]
    farm.desk.ask(farm.desk.dispatcher.tick())
    assert farm.ledger.flaws() == []


# Bytes that the store has lost


@pytest.mark.parametrize("lost", ["gone", "damaged"])
def test_an_input_that_the_store_has_lost_is_made_again(farm: InProcessFarm, lost: str) -> None:
    def reads(bench: Bench) -> None:
        if bench.order.key == "b":
            bench.fetch("a", "take.txt")

    engine = Engine(reads)
    first = submit(farm, task("a"))
    farm.work_until_over(first, farm.worker(engine))
    path = farm.home / "store" / by_key(farm, first)["a"]["files"][0]["key"]
    path.unlink()
    if lost == "damaged":
        path.write_bytes(b"spoilt")
    second = submit(farm, task("a"), task("b", "a", params={"n": 2}))
    assert by_key(farm, second)["a"]["state"] == State.SUCCEEDED
    farm.work_until_over(second, farm.worker(engine))
    assert engine.orders == ["a", "b", "a", "b"]
    assert farm.ledger.job(second).state is JobState.SUCCEEDED
    assert farm.ledger.flaws() == []
