"""What the dispatcher does about workers that die, hang, fail or drain, and about work that cannot wait."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.contract import Beat, Bench, Json, Made, MadeFile, Order, Outcome, Report, WorkerFacts
from actors.preemption import Running, victims
from actors.watchdog import Bounds
from actors.worker import Worker
from cluster.assets import Receipt, ReceiptFile, checkpoint_key
from cluster.errors import DamagedCheckpoint, FailureClass, StoreUnavailable, WorkerLost
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from cluster.states import JobState, State
from cluster.store.directory import DirectoryStore
from cluster.store.port import put_receipt
from tests.farm import InProcessFarm, in_process_farm


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcessFarm]:
    monkeypatch.setattr("actors.dispatcher.REAP_S", 60.0)  # these read at once what became of a lost attempt
    with in_process_farm(tmp_path) as running:
        yield running


def task(key: str = "a", *needs: str, **more: Any) -> TaskSpec:
    return TaskSpec(**{"key": key, "step": "render", "role": "render", "entry": "x:y", "needs": needs, **more})


def submit(farm: InProcessFarm, *tasks: TaskSpec, tier: str = "normal") -> str:
    job_id, _ = farm.ledger.submit(JobSpec(recipe="tests", title="test", spec={}, tier=tier), tasks)
    farm.desk.ask(farm.desk.dispatcher.poke())
    return job_id


def only(farm: InProcessFarm, job_id: str) -> Any:
    (row,) = farm.ledger.tasks(job_id)
    return row


def joined(farm: InProcessFarm, **facts: Any) -> WorkerFacts:
    worker = replace(farm.facts(), **facts)
    farm.desk.join(worker)
    return worker


def leased(farm: InProcessFarm, worker: WorkerFacts) -> Order:
    order = farm.desk.lease(worker.id, f"request-of-{worker.id}")
    assert order is not None
    return order


def beat(farm: InProcessFarm, order: Order, stage: str, done: int = 1, **more: Any) -> dict[str, str]:
    (worker_id,) = [a["worker_id"] for a in farm.ledger.attempts(order.job_id) if a["id"] == order.attempt_id]
    heard = Beat(
        task_id=order.task_id, attempt_id=order.attempt_id, epoch=order.epoch, stage=stage, done=done, total=10, **more
    )
    return farm.desk.beat(worker_id, [heard])


def die(farm: InProcessFarm, stage: str, **facts: Any) -> Order:
    """A new worker leases, gets to `stage` and dies."""
    worker = joined(farm, **facts)
    order = leased(farm, worker)
    beat(farm, order, stage)
    farm.desk.leave(worker.id, died=True)
    return order


def report(farm: InProcessFarm, worker: WorkerFacts, order: Order, failure: FailureClass) -> None:
    farm.desk.report(
        Report(
            task_id=order.task_id, attempt_id=order.attempt_id, epoch=order.epoch, worker_id=worker.id,
            tenant=order.tenant, outcome=Outcome.FAILED, failure=failure.value, code="x", message="broken",
        )
    )  # fmt: skip


class Steps:
    """An engine of `total` steps with a checkpoint after each. `at(n)` is called after the n-th, and may stop it."""

    def __init__(self, total: int = 6, at: Callable[[int, Bench], None] = lambda n, bench: None) -> None:
        self.total, self.at = total, at
        self.made: list[tuple[str, int]] = []

    def start(self) -> Json:
        return {}

    def run(self, bench: Bench) -> Made:
        n = 0
        for saved in bench.resume():
            if not saved.isdigit():
                bench.refuse(DamagedCheckpoint("not a number"))
                continue
            n = int(saved)
            break
        bench.progress("denoise", n, self.total)
        while n < self.total:
            n += 1
            self.made.append((bench.order.key, n))
            bench.checkpoint(str(n).encode(), n)
            self.at(n, bench)
            bench.progress("denoise", n, self.total)
        path = bench.scratch / "take.txt"
        path.write_text(bench.order.key, encoding="utf-8")
        return Made(files=(MadeFile(name="take.txt", path=path, media_type="text/plain"),))

    def close(self) -> None:
        return


def until_told(n: int, bench: Bench) -> None:
    """The first attempt does not get over its third step until it is told to stop."""
    while n == 3 and bench.order.epoch == 1:
        bench.progress("denoise", n, 8)
        threading.Event().wait(0.01)


def in_background(worker: Worker) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:
            raised.append(error)

    worker.start()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, raised


# Checkpoints


def test_a_task_whose_worker_died_goes_on_from_its_furthest_checkpoint(farm: InProcessFarm) -> None:
    job_id = submit(farm, task())
    order = die(farm, "denoise")
    for n in (2, 10, 9):
        farm.store.put_once(checkpoint_key("studio", order.attempt_id, n), str(n).encode())
    engine = Steps(total=12)
    farm.work_until_over(job_id, farm.worker(engine))
    assert engine.made == [("a", 11), ("a", 12)]
    facts = farm.ledger.attempts(job_id)[-1]["facts"]
    assert facts["resumed_from"] == checkpoint_key("studio", order.attempt_id, 10)


def test_a_damaged_checkpoint_is_counted_and_the_one_before_it_is_used(farm: InProcessFarm) -> None:
    job_id = submit(farm, task())
    order = die(farm, "denoise")
    farm.store.put_once(checkpoint_key("studio", order.attempt_id, 3), b"3")
    farm.store.put_once(checkpoint_key("studio", order.attempt_id, 5), b"\x00 damaged")
    engine = Steps()
    farm.work_until_over(job_id, farm.worker(engine))
    assert engine.made == [("a", 4), ("a", 5), ("a", 6)]
    facts = farm.ledger.attempts(job_id)[-1]["facts"]
    assert facts["refused_checkpoints"] == ["not a number"]
    assert facts["resumed_from"] == checkpoint_key("studio", order.attempt_id, 3)


def test_a_store_that_takes_no_checkpoints_costs_no_work(farm: InProcessFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    put_once = farm.store.put_once

    def refuse_checkpoints(key: str, data: bytes) -> None:
        if "checkpoint" in key:
            raise StoreUnavailable("away")
        put_once(key, data)

    monkeypatch.setattr(farm.store, "put_once", refuse_checkpoints)
    job_id = submit(farm, task())
    farm.work_until_over(job_id, farm.worker(Steps()))
    assert farm.ledger.job(job_id).state is JobState.SUCCEEDED
    assert "checkpoint" not in farm.ledger.attempts(job_id)[-1]["facts"]


def test_what_a_checkpoint_of_a_lost_attempt_kept_was_not_wasted(farm: InProcessFarm) -> None:
    job_id = submit(farm, task())
    worker = joined(farm)
    order = leased(farm, worker)
    threading.Event().wait(0.4)  # its time is what is booked
    farm.store.put_once(checkpoint_key("studio", order.attempt_id, 5), b"5")
    heard = Beat(
        task_id=order.task_id, attempt_id=order.attempt_id, epoch=1, stage="denoise", done=5, total=6, kept_s=0.2
    )
    farm.desk.beat(worker.id, [heard])
    farm.desk.leave(worker.id, died=True)
    lost = farm.ledger.spent(job_id=job_id, kind="wasted")
    farm.work_until_over(job_id, farm.worker(Steps()))
    wasted = farm.ledger.spent(job_id=job_id, kind="wasted")
    assert lost.held_s - wasted.held_s == pytest.approx(0.2, abs=0.01)
    assert wasted.held_s > 0
    assert farm.ledger.unbalanced_workers() == []


# Workers that die


def test_a_task_that_takes_three_workers_with_it_in_one_stage_is_poison(farm: InProcessFarm) -> None:
    job_id = submit(farm, task())
    for _ in range(3):
        assert only(farm, job_id)["state"] == State.READY
        die(farm, "decode")
    dead = only(farm, job_id)
    assert (dead["state"], dead["failures"]) == (State.DEAD, {"poison": 3})


def test_workers_that_die_in_different_stages_are_not_poisoned(farm: InProcessFarm) -> None:
    job_id = submit(farm, task())
    for stage in ("decode", "encode", "decode", "encode"):
        die(farm, stage)
    assert (only(farm, job_id)["state"], only(farm, job_id)["failures"]) == (State.READY, {"poison": 1})


def test_a_worker_that_was_lost_with_its_node_is_not_counted_as_poison(farm: InProcessFarm) -> None:
    job_id = submit(farm, task())
    for _ in range(4):
        worker = joined(farm)
        beat(farm, leased(farm, worker), "decode")
        farm.desk.leave(worker.id)
    assert (only(farm, job_id)["state"], only(farm, job_id)["failures"]) == (State.READY, {"infra": 4})


def test_the_third_trial_runs_alone_on_its_node(farm: InProcessFarm) -> None:
    job_id = submit(farm, task())
    for _ in range(2):
        die(farm, "decode")
    others = submit(farm, task("b", params={"n": 1}), task("c", params={"n": 2}))
    neighbour = joined(farm)
    busy = farm.desk.lease(neighbour.id, "r1")  # the oldest first: the suspect, alone on a quiet node
    assert busy is not None
    assert busy.job_id == job_id
    assert farm.desk.lease(joined(farm).id, "r2") is None
    elsewhere = farm.desk.lease(joined(farm, node="another").id, "r3")
    assert elsewhere is not None
    assert elsewhere.job_id == others


def test_a_task_that_failed_on_a_worker_goes_to_another_one_if_there_is_one(farm: InProcessFarm) -> None:
    job_id = submit(farm, task())
    first, second = joined(farm), joined(farm, node="another")
    order = leased(farm, first)
    report(farm, first, order, FailureClass.BUG)
    farm.wait_for(lambda: only(farm, job_id)["state"] == State.READY)
    assert farm.desk.lease(first.id, "again") is None
    farm.desk.leave(second.id)
    assert farm.desk.lease(first.id, "and again") is not None


# Workers that hang


def test_an_attempt_that_shows_no_progress_is_stuck_and_its_worker_is_condemned(tmp_path: Path) -> None:
    with in_process_farm(tmp_path, stuck_s=0.2, stuck_least_s=0.1) as farm:
        job_id = submit(farm, task())
        worker = joined(farm)
        order = leased(farm, worker)

        def alive_but_idle() -> bool:
            beat(farm, order, "denoise", 3)  # the heart beats, nothing moves
            return bool(only(farm, job_id)["state"] == State.READY)

        farm.wait_for(alive_but_idle)
        assert "no progress" in farm.desk.ask(farm.desk.dispatcher.condemned())[worker.id]
        assert [a["state"] for a in farm.ledger.attempts(job_id)] == ["stuck"]
        farm.desk.leave(worker.id, died=True)
        assert farm.desk.ask(farm.desk.dispatcher.condemned()) == {}
        assert farm.ledger.unbalanced_workers() == []


def test_the_bound_of_a_stage_is_learnt_from_its_longest_pauses() -> None:
    bounds = Bounds(cold_s=900, least_s=5)
    for pause_s in (1.0, 2.0):
        bounds.learn("render", "m", {"denoise": pause_s, "decode": 0.1})
    assert bounds.bound_s("render", "m", "denoise") == 900
    bounds.learn("render", "m", {"denoise": 1.5, "decode": 0.1})
    assert bounds.bound_s("render", "m", "denoise") == 20
    assert bounds.bound_s("render", "m", "decode") == 5
    assert bounds.bound_s("render", "other", "denoise") == 900


# Workers that fail, or shall go


def test_a_worker_that_fails_three_jobs_in_a_row_is_taken_out_of_service(farm: InProcessFarm) -> None:
    def broken(n: int, bench: Bench) -> None:
        raise RuntimeError("a broken accelerator")

    jobs = [submit(farm, task(params={"n": n})) for n in range(3)]
    worker = farm.worker(Steps(at=broken))
    thread, raised = in_background(worker)
    farm.wait_for(lambda: not thread.is_alive())
    assert isinstance(raised[0], WorkerLost)
    assert "three" not in str(raised[0])
    assert "3 failures of different jobs in a row" in str(raised[0])
    assert all(only(farm, job_id)["state"] != State.RUNNING for job_id in jobs)
    (row,) = farm.ledger.workers()
    assert row["ended_us"] is not None


@pytest.mark.parametrize("failure", [FailureClass.INPUT, FailureClass.INFRA])
def test_bad_input_and_a_store_that_is_away_say_nothing_about_the_worker(
    farm: InProcessFarm, failure: FailureClass
) -> None:
    worker = joined(farm)
    for n in range(3):
        submit(farm, task(params={"n": n}))
        order = farm.desk.lease(worker.id, f"r{n}")
        assert order is not None
        report(farm, worker, order, failure)
    assert farm.ledger.draining() == {}


def test_a_drained_worker_saves_what_it_runs_and_leaves_and_another_goes_on(farm: InProcessFarm) -> None:
    engine = Steps(at=until_told)
    job_id = submit(farm, task())
    worker = farm.worker(engine)
    thread, raised = in_background(worker)
    farm.wait_for(lambda: len(engine.made) == 3)
    assert farm.ledger.drain(worker.facts.id, reason="the operator drains it")
    farm.wait_for(lambda: not thread.is_alive())
    assert raised == []
    first = farm.ledger.attempts(job_id)[0]
    assert (first["state"], only(farm, job_id)["failures"]) == ("interrupted", {})
    farm.work_until_over(job_id, farm.worker(engine))
    assert engine.made == [("a", n) for n in range(1, 7)]
    assert farm.ledger.attempts(job_id)[-1]["facts"]["resumed_from"] == first["facts"]["checkpoint"]
    assert farm.ledger.spent(job_id=job_id, kind="wasted").nano == 0


# Interactive work


def test_interactive_work_stops_batch_work_at_its_next_step_and_both_end(tmp_path: Path) -> None:
    with in_process_farm(tmp_path, preempt_pays_s=0) as farm:
        engine = Steps(total=8, at=lambda n, bench: until_told(n, bench) if bench.order.key == "film" else None)
        batch = submit(farm, task("film"), tier="batch")
        thread, _ = in_background(worker := farm.worker(engine))
        farm.wait_for(lambda: ("film", 3) in engine.made)
        clip = submit(farm, task("clip", params={"n": 1}), tier="interactive")
        farm.wait_for(lambda: farm.ledger.job(batch).over)
        worker.stop()
        thread.join(10)
        film, its_clip = ([(key, n) for n in range(1, 9)] for key in ("film", "clip"))
        assert engine.made == [*film[:3], *its_clip, *film[3:]]
        assert [a["state"] for a in farm.ledger.attempts(batch)] == ["interrupted", "succeeded"]
        assert farm.ledger.job(clip).state is JobState.SUCCEEDED


RENDER = ("render", "m")


def running(name: str, left_s: float = 60, **more: Any) -> Running:
    return Running(**{"attempt_id": name, "requirement": RENDER, "preemptible": True, "left_s": left_s, **more})


@pytest.mark.parametrize(
    ("waiting", "idle", "attempts", "expected"),
    [
        pytest.param(1, 0, [running("short", 20), running("long", 90)], ["long"], id="the one with most left"),
        pytest.param(2, 1, [running("a"), running("b")], ["a"], id="an idle worker takes one"),
        pytest.param(1, 0, [running("a", stopping=True), running("b")], [], id="one is about to be free"),
        pytest.param(1, 0, [running("a", 3), running("b")], [], id="one ends by itself"),
        pytest.param(1, 0, [running("a", preemptible=False)], [], id="no batch work"),
        pytest.param(1, 0, [running("a", requirement=("render", "other"))], [], id="another model"),
        pytest.param(0, 0, [running("a")], [], id="nobody waits"),
    ],
)
def test_preemption_takes_as_few_as_it_must(
    waiting: int, idle: int, attempts: list[Running], expected: list[str]
) -> None:
    assert victims(Counter({RENDER: waiting}), Counter({RENDER: idle}), attempts, pays_s=5) == expected


# Lost replies


def test_a_lease_whose_reply_never_reached_the_dispatcher_s_memory_runs_out_all_the_same(tmp_path: Path) -> None:
    with in_process_farm(tmp_path, lease_s=0.3) as farm:
        job_id = submit(farm, task())
        worker = joined(farm)
        (row,) = farm.ledger.tasks(job_id)
        term = farm.desk.dispatcher._term
        assert farm.ledger.lease(term, row["id"], epoch=0, worker_id=worker.id, request_id="r") is not None
        farm.wait_for(lambda: only(farm, job_id)["state"] == State.READY)
        assert [a["state"] for a in farm.ledger.attempts(job_id)] == ["lost"]


def test_a_damaged_receipt_of_a_lost_attempt_stops_nothing_else(tmp_path: Path) -> None:
    with in_process_farm(tmp_path, lease_s=0.3) as farm:
        job_id = submit(farm, task(), task("b", params={"n": 1}))
        worker = joined(farm)
        for request in ("r1", "r2"):
            order = farm.desk.lease(worker.id, request)
            assert order is not None
            farm.store.put_once(f"studio/attempts/{order.attempt_id}/receipt.json", b"{damaged")
        farm.wait_for(lambda: {t["state"] for t in farm.ledger.tasks(job_id)} == {State.READY})


def test_nobody_pays_for_the_hours_after_a_farm_was_killed(farm: InProcessFarm) -> None:
    job_id = submit(farm, task())
    worker = joined(farm)
    leased(farm, worker)
    farm.desk.ask(farm.desk.dispatcher.tick())  # the last that is heard of it
    threading.Event().wait(0.3)
    farm.desk = farm.new_dispatcher()
    farm.desk.leave(worker.id)
    (row,) = farm.ledger.workers()
    alive_us = farm.ledger.last_alive()
    assert alive_us is not None
    assert row["ended_us"] <= alive_us
    assert farm.ledger.spent(worker_id=worker.id).held_s == pytest.approx((alive_us - row["spawned_us"]) / 1e6)
    assert [a["state"] for a in farm.ledger.attempts(job_id)] == ["lost"]
    assert farm.ledger.flaws() == []


def test_leases_run_out_though_a_tick_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_process_farm(tmp_path, lease_s=0.3) as farm:
        job_id = submit(farm, task())
        leased(farm, joined(farm))
        lose, broken, lost = farm.ledger.lose, [True], threading.Event()

        def break_once(term: int) -> None:
            if broken:
                broken.pop()
                raise RuntimeError("nobody foresaw this")

        def lose_it(*args: Any, **more: Any) -> Any:
            lost.set()
            return lose(*args, **more)

        monkeypatch.setattr(farm.ledger, "backoff_over", break_once)
        monkeypatch.setattr(farm.ledger, "lose", lose_it)
        ticking = asyncio.run_coroutine_threadsafe(farm.desk.dispatcher.run(0.05), farm.loop)
        assert lost.wait(30), "the lease of a worker that is gone never ran out"
        ticking.cancel()
        farm.wait_for(lambda: only(farm, job_id)["state"] == State.READY)


# A store that is away


class HangingStore(DirectoryStore):
    """Answers nobody who reads until it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.answers = threading.Event()

    def get(self, key: str) -> bytes:
        assert self.answers.wait(60)
        return super().get(key)


def test_a_store_that_hangs_holds_up_no_tick_and_nobody_pays_for_a_dead_worker(tmp_path: Path) -> None:
    store = HangingStore(tmp_path / "store")
    with in_process_farm(tmp_path, lease_s=0.3, store=store) as farm:
        job_id = submit(farm, task())
        worker = joined(farm)
        leased(farm, worker)
        farm.wait_for(lambda: farm.ledger.workers()[0]["ended_us"] is not None)
        assert only(farm, job_id)["state"] == State.RUNNING
        store.answers.set()
        farm.wait_for(lambda: only(farm, job_id)["state"] == State.READY)
        (row,) = farm.ledger.workers()
        assert farm.ledger.spent(worker_id=worker.id).held_s == (row["ended_us"] - row["spawned_us"]) / 1e6
        assert [a["state"] for a in farm.ledger.attempts(job_id)] == ["lost"]
        assert farm.ledger.flaws() == []


def test_who_tells_of_a_dead_worker_does_not_wait_for_a_store_that_hangs(tmp_path: Path) -> None:
    store = HangingStore(tmp_path / "store")
    with in_process_farm(tmp_path, store=store) as farm:
        job_id = submit(farm, task())
        worker = joined(farm)
        leased(farm, worker)
        farm.desk.leave(worker.id, died=True)
        assert farm.ledger.workers()[0]["ended_us"] is not None
        assert only(farm, job_id)["state"] == State.RUNNING
        store.answers.set()
        farm.wait_for(lambda: only(farm, job_id)["state"] == State.READY)
        assert farm.ledger.flaws() == []


def test_nobody_pays_for_a_dead_worker_while_the_store_is_away(
    farm: InProcessFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(key: str) -> bytes:
        raise StoreUnavailable("away")

    job_id = submit(farm, task())
    worker = joined(farm)
    order = leased(farm, worker)
    blob = farm.store.put_blob("studio", b"done", media_type="text/plain")
    file = ReceiptFile.of("take.txt", blob)
    put_receipt(
        farm.store,
        "studio",
        Receipt(attempt_id=order.attempt_id, task_id=order.task_id, epoch=order.epoch, files=(file,)),
    )
    with monkeypatch.context() as patch:
        patch.setattr(farm.store, "get", away)
        farm.desk.leave(worker.id, died=True)
        assert farm.ledger.workers()[0]["ended_us"] is not None
    farm.desk.leave(worker.id, died=True)
    assert only(farm, job_id)["state"] == State.SUCCEEDED
    assert farm.ledger.flaws() == []
