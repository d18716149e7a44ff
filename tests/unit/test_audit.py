"""The checker: for each invariant a log that breaks exactly it, and the logs of a real ledger break none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from cluster.errors import FailureClass
from cluster.ledger.audit import Line, Log, violations
from cluster.ledger.events import Event, WorkerEvent
from cluster.ledger.replay import INVARIANTS, Injected
from cluster.states import MOVES, Move, State
from tests.ledger_desk import LedgerDesk, task

SECOND = 1_000_000
HOUR_NANO = 3_600_000_000  # a second costs 1,000,000


@dataclass
class Tape:
    """Writes a log: each call is a second later. Attempts are called by task and epoch: `a1`."""

    events: list[Event] = field(default_factory=list)
    workers: list[WorkerEvent] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    now_s: int = 0
    state: dict[str, State] = field(default_factory=dict)
    epoch: dict[str, int] = field(default_factory=dict)
    since_s: int = 0

    def say(self, kind: str, **more: Any) -> None:
        self.now_s += 1
        fields: dict[str, Any] = {"task_id": None, "attempt_id": None, "epoch": None, "from_state": None}
        fields |= {"to_state": None, "data": {}, **more}
        seq = len(self.events) + 1
        self.events.append(Event(job_id="j", seq=seq, at_us=self.now_s * SECOND, kind=kind, **fields))

    def create(self, key: str, *needs: str, **data: Any) -> None:
        self.state[key], self.epoch[key] = (State.PENDING if needs else State.READY), 0
        data = {"key": key, "needs": list(needs), **data}
        self.say("task.created", task_id=key, epoch=0, to_state=self.state[key].value, data=data)

    def move(self, key: str, how: Move, *, end: str | None = None, attempt: str | None = None, **data: Any) -> None:
        old = self.state[key]
        new = self.state[key] = MOVES[old, how]
        if how is Move.LEASE:
            self.epoch[key] += 1
            data = {"worker": "w", **data}
            self.bill("idle", None)
        attempt = attempt or f"{key}{self.epoch[key]}"
        if old is State.RUNNING:
            self.bill("busy" if end == "succeeded" else "wasted", attempt)
        data = {"key": key, "generation": 0, **({"attempt": end} if end else {}), **data}
        self.say(
            f"task.{how}", task_id=key, attempt_id=attempt, epoch=self.epoch[key],
            from_state=old.value, to_state=new.value, data=data,
        )  # fmt: skip

    def lease(self, key: str, **more: Any) -> None:
        self.move(key, Move.LEASE, **more)

    def commit(self, key: str, *, attempt: str | None = None, end: str | None = "succeeded", **more: Any) -> None:
        receipt = f"s/attempts/{attempt or f'{key}{self.epoch[key]}'}/receipt.json"
        self.move(key, Move.COMMIT, end=end, attempt=attempt, **{"receipt": receipt, **more})

    def lose(self, key: str, *, end: str | None = "lost", **more: Any) -> None:
        self.move(key, Move.EXPIRE, end=end, **{"failure": "infra", **more})

    def worker(self, kind: str, **data: Any) -> None:
        self.now_s += 1
        event = WorkerEvent(worker_id="w", seq=len(self.workers) + 1, at_us=self.now_s * SECOND, kind=kind, data=data)
        self.workers.append(event)

    def bill(self, kind: str, attempt: str | None) -> None:
        """The worker's time until now, at a rate of 1,000,000 a second."""
        held_us = (self.now_s + 1 - self.since_s) * SECOND
        who = "studio" if attempt else "farm"
        self.lines.append(
            Line(
                kind=kind,
                tenant=who,
                attempt_id=attempt,
                worker_id="w",
                from_us=self.since_s * SECOND,
                to_us=(self.now_s + 1) * SECOND,
                held_us=held_us,
                nano=held_us,
                note=None,
                show="default" if attempt else "farm",
            )
        )
        self.since_s = self.now_s + 1

    @property
    def log(self) -> Log:
        return Log(events=self.events, workers=self.workers, lines=self.lines)


def begun() -> Tape:
    """A worker is here, and two tasks, the second after the first."""
    tape = Tape()
    tape.worker("worker.join", spawned_us=0, nano_per_hour=HOUR_NANO, num_accelerators=0)
    tape.say("job.created", data={"tenant": "studio", "show": "default"})
    tape.create("a")
    tape.create("b", "a")
    return tape


def fine() -> Tape:
    """Two tasks run one after the other, the first at its second try."""
    tape = begun()
    tape.lease("a")
    tape.lose("a")
    tape.lease("a")
    tape.commit("a")
    tape.move("b", Move.DEPS_MET)
    tape.lease("b")
    tape.commit("b")
    tape.worker("worker.leave")
    return tape


def gap() -> Tape:
    tape = fine()
    tape.events[-1] = replace(tape.events[-1], seq=99)
    return tape


def a_move_that_is_none() -> Tape:
    tape = begun()
    tape.move("a", Move.HOLD)
    tape.events[-1] = replace(tape.events[-1], to_state="canceled")
    tape.state["a"] = State.CANCELED
    return tape


def an_epoch_again() -> Tape:
    tape = begun()
    tape.lease("a")
    tape.lose("a")
    tape.epoch["a"] = 0
    tape.lease("a", attempt="other")
    tape.lose("a", attempt="other")
    return tape


def two_at_once() -> Tape:
    tape = begun()
    tape.lease("a")
    tape.lose("a", end=None)
    tape.lease("a")
    return tape


def a_failed_attempt_that_commits() -> Tape:
    tape = begun()
    tape.lease("a")
    tape.lose("a", end="interrupted")
    tape.commit("a", end=None, adopted=True)
    tape.lines.pop()  # which was wasted
    return tape


def two_answers() -> Tape:
    tape = begun()
    tape.lease("a")
    tape.lose("a")
    tape.lease("a", attempt="a2")
    tape.lose("a")
    tape.move("a", Move.CACHE_HIT)
    tape.move("a", Move.REOPEN)
    tape.move("a", Move.CACHE_HIT)
    return tape


def a_receipt_of_another() -> Tape:
    tape = begun()
    tape.lease("a")
    tape.commit("a", receipt="s/attempts/a7/receipt.json")
    return tape


def too_early() -> Tape:
    tape = begun()
    tape.move("b", Move.DEPS_MET)
    tape.lease("b")
    return tape


def a_child_twice() -> Tape:
    tape = begun()
    tape.lease("a")
    tape.create("c", by="a1")
    tape.create("c", by="a1")
    tape.commit("a")
    return tape


def a_child_of_a_lost_attempt() -> Tape:
    tape = begun()
    tape.lease("a")
    tape.create("c", by="a1")
    tape.lose("a")
    return tape


def canceled_and_leased() -> Tape:
    tape = begun()
    tape.say("job.cancel")
    tape.lease("a")
    return tape


def held_and_leased() -> Tape:
    tape = begun()
    tape.say("job.held")
    tape.lease("a")
    return tape


def drained_and_leased() -> Tape:
    tape = begun()
    tape.worker("worker.drain")
    tape.lease("a")
    return tape


def leased_to_one_that_is_gone() -> Tape:
    tape = begun()
    tape.worker("worker.leave")
    tape.lease("a")
    return tape


def two_orders_on_one_worker() -> Tape:
    tape = begun()
    tape.create("c")
    tape.lease("a")
    tape.lease("c")
    tape.lines.pop()
    return tape


def failures(count: int, failure: str, *, last: Move, stages: tuple[str, ...] = ()) -> Tape:
    tape = begun()
    for n in range(count):
        tape.lease("a")
        how = last if n == count - 1 else Move.EXPIRE
        tape.move("a", how, end="lost", failure=failure, stage=stages[n] if stages else None)
    return tape


def a_bill_too_many() -> Tape:
    tape = fine()
    tape.lines.append(tape.lines[-1])
    return tape


def a_bill_that_is_missing() -> Tape:
    tape = fine()
    del tape.lines[2]
    return tape


def lost_work_that_is_billed_as_busy() -> Tape:
    tape = fine()
    tape.lines[1] = replace(tape.lines[1], kind="busy")
    return tape


def work_that_another_show_pays() -> Tape:
    tape = fine()
    tape.lines[1] = replace(tape.lines[1], show="other")
    return tape


def one_that_waits() -> Tape:
    tape = begun()
    tape.now_s += 100
    tape.lease("a")
    return tape


def left_running() -> Tape:
    tape = fine()
    tape.create("c")
    return tape


def a_worker_that_never_left() -> Tape:
    tape = fine()
    tape.workers.pop()
    return tape


def behind_a_gate() -> Tape:
    tape = begun()
    tape.create("t1", gate="shot")
    tape.create("t2", gate="shot")
    tape.lease("t1")
    return tape


def committed_through_a_gate() -> Tape:
    tape = behind_a_gate()
    tape.commit("t1")
    return tape


def an_answer_that_nobody_approved() -> Tape:
    tape = behind_a_gate()
    tape.move("t1", Move.GATE, end="succeeded", receipt="s/attempts/t11/receipt.json")
    tape.move("t2", Move.CACHE_HIT, attempt="t11")
    return tape


CASES: dict[str, tuple[str, Callable[[], Tape], dict[str, Any]]] = {
    "a number is missing": (INVARIANTS[0], gap, {}),
    "no such move": (INVARIANTS[1], a_move_that_is_none, {}),
    "an epoch is used again": (INVARIANTS[2], an_epoch_again, {}),
    "two leases at once": (INVARIANTS[3], two_at_once, {}),
    "an interrupted attempt is adopted": (INVARIANTS[4], a_failed_attempt_that_commits, {}),
    "two answers": (INVARIANTS[5], two_answers, {}),
    "the receipt of another attempt": (INVARIANTS[5], a_receipt_of_another, {}),
    "leased before its input": (INVARIANTS[6], too_early, {}),
    "a child twice": (INVARIANTS[7], a_child_twice, {}),
    "a child of an attempt that was lost": (INVARIANTS[7], a_child_of_a_lost_attempt, {}),
    "leased after the cancel": (INVARIANTS[8], canceled_and_leased, {}),
    "leased on hold": (INVARIANTS[9], held_and_leased, {}),
    "leased to a worker that drains": (INVARIANTS[9], drained_and_leased, {}),
    "leased to a worker that left": (INVARIANTS[9], leased_to_one_that_is_gone, {}),
    "two orders at once": (INVARIANTS[9], two_orders_on_one_worker, {"orders_per_worker": 1}),
    "a budget overdrawn": (INVARIANTS[9], lambda: failures(3, "bug", last=Move.EXPIRE), {}),
    "dead too early": (INVARIANTS[10], lambda: failures(2, "bug", last=Move.DIE), {}),
    "dead of three deaths in different stages": (
        INVARIANTS[10],
        lambda: failures(3, "poison", last=Move.DIE, stages=("denoise", "decode", "denoise")),
        {},
    ),
    "dead though nothing was planted": (
        INVARIANTS[10],
        lambda: failures(3, "bug", last=Move.DIE),
        {"injected": [Injected(task_id="a", failure=FailureClass.BUG)] * 2},
    ),
    "alive though a death was planted": (
        INVARIANTS[10],
        fine,
        {"injected": [Injected(task_id="a", failure=FailureClass.INPUT)]},
    ),
    "a line too many": (INVARIANTS[11], a_bill_too_many, {}),
    "a line that is missing": (INVARIANTS[11], a_bill_that_is_missing, {}),
    "lost work that is not waste": (INVARIANTS[15], lost_work_that_is_billed_as_busy, {}),
    "a task waits for ever": (INVARIANTS[12], one_that_waits, {"patience_s": 60.0}),
    "a task is left": (INVARIANTS[13], left_running, {"quiet": True}),
    "a worker is left": (INVARIANTS[13], a_worker_that_never_left, {"quiet": True}),
    "the bill of another show": (INVARIANTS[16], work_that_another_show_pays, {}),
    "a take that nobody looked at": (INVARIANTS[14], committed_through_a_gate, {}),
    "an answer that nobody looked at": (INVARIANTS[14], an_answer_that_nobody_approved, {}),
}


@pytest.mark.parametrize(("invariant", "tape", "asked"), CASES.values(), ids=CASES)
def test_a_log_that_breaks_one_invariant_is_convicted_of_it_alone(
    invariant: str, tape: Callable[[], Tape], asked: dict[str, Any]
) -> None:
    assert {found.partition(":")[0] for found in violations(tape().log, **asked)} == {invariant}


def test_every_invariant_has_a_log_that_breaks_it() -> None:
    assert {invariant for invariant, _, _ in CASES.values()} == set(INVARIANTS)


STRICT: dict[str, Any] = {"orders_per_worker": 1, "patience_s": 60.0, "quiet": True, "injected": []}


def test_a_log_in_which_all_is_well_breaks_none() -> None:
    assert violations(fine().log, **STRICT) == []


def test_an_adopted_attempt_may_commit_after_it_was_lost() -> None:
    tape = begun()
    tape.lease("a")
    tape.lose("a")
    lost = tape.lines[-1]
    tape.lines += [
        replace(lost, nano=-lost.nano, held_us=-lost.held_us, note="adopted"),
        replace(lost, kind="busy", note="adopted"),
    ]
    tape.commit("a", end=None, adopted=True)
    assert violations(tape.log) == []


def test_an_approved_take_frees_the_others_of_its_gate() -> None:
    tape = behind_a_gate()
    tape.move("t1", Move.GATE, end="succeeded", receipt="s/attempts/t11/receipt.json")
    tape.move("t1", Move.APPROVE, attempt="t11")
    tape.lease("t2")
    tape.commit("t2")
    assert violations(tape.log) == []


@pytest.fixture
def desk(sqlite_url: str) -> Iterator[LedgerDesk]:
    desk = LedgerDesk(sqlite_url)
    yield desk
    desk.close()


def test_a_real_ledger_with_a_hard_life_breaks_none(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("script", "a", expands=True))
    first = desk.lease(job, "a")
    desk.clock.advance(2.0)
    desk.lose(first)
    assert desk.commit(first) == "accepted"
    desk.run(job, "script", children=[task("shot", "script"), task("film", "shot", "script")])
    shot = desk.lease(job, "shot")
    desk.clock.advance(1.5)
    desk.fail(shot)
    desk.clock.advance(3.0)
    desk.ledger.backoff_over(desk.term)
    desk.run(job, "shot")
    desk.run(job, "film")
    for worker in ("w1", "w2"):
        desk.ledger.leave(desk.term, worker)
    assert violations(desk.ledger.log(), **STRICT) == []


def test_the_dead_of_a_real_ledger_are_those_whose_faults_were_planted(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"))
    desk.fail(desk.lease(job, "a"), FailureClass.INPUT)
    planted = [Injected(task_id=desk.task(job, "a")["id"], failure=FailureClass.INPUT)]
    assert violations(desk.ledger.log(), injected=planted) == []
    assert len(violations(desk.ledger.log(), injected=[])) == 1


def test_a_worker_s_log_tells_when_it_was_here(desk: LedgerDesk) -> None:
    desk.ledger.drain("w1", reason="mending")
    for _ in range(2):
        desk.ledger.leave(desk.term, "w1")
    desk.join("w1")
    kinds = [e.kind for e in desk.ledger.log().workers if e.worker_id == "w1"]
    assert kinds == ["worker.join", "worker.drain", "worker.leave", "worker.join"]
