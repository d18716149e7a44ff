"""The real ledger driven against the model: every step is made in both, then answers, states and rows must agree.

One job of two tasks in a chain, one with a task that expands into a shot behind a gate and a film of it, one of two
takes of which one has to be approved. The steps are those of a farm in trouble: replies are lost, reports come late,
twice and out of order, leases expire under attempts that had uploaded, people hold, cancel, requeue, eat, approve and
reject in the middle, and a second dispatcher takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.errors import FailureClass, IllegalMove, StaleTerm
from cluster.failures import LONGEST_DELAY_S
from cluster.ledger.recount import Books, flaws, read_books
from cluster.states import Move, State
from tests.ledger_desk import HOUR, Leased, LedgerDesk, task
from tests.model import ENDED, OPEN, Model, Refused, Shape, World

KEYS = ("a", "b", "script", "shot", "film", "one", "other")
SHAPE = Shape(
    needs=((), (0,), (), (), (3, 2), (), ()),
    job=(0, 0, 1, 1, 1, 2, 2),
    parent=(None, None, None, 2, 2, None, None),
    gates=(None, None, None, 0, None, 1, 1),
)
CHILDREN = (task("shot", gate="shot"), task("film", "shot", "script"))
TASKS = st.integers(0, len(KEYS) - 1)
FAILURES = st.sampled_from([FailureClass.INFRA, FailureClass.BUG, FailureClass.INPUT])
VERBS: dict[Move, str] = {
    Move.HOLD: "hold",
    Move.RELEASE: "release",
    Move.CANCEL: "cancel",
    Move.EAT: "eat",
    Move.REOPEN: "reopen",
    Move.APPROVE: "approve",
    Move.REJECT: "reject",
}


class LedgerMachine(RuleBasedStateMachine):
    """A subclass names the database by `new_desk`."""

    new_desk: Callable[[], LedgerDesk]

    @initialize()
    def submit(self) -> None:
        self.desk = type(self).new_desk()
        self.model = Model(SHAPE)
        self.world: World = SHAPE.first()
        self.jobs = [
            self.desk.submit(task("a"), task("b", "a")),
            self.desk.submit(task("script", expands=True)),
            self.desk.submit(task("one", gate="one"), task("other", gate="one")),
        ]
        self.leased: dict[tuple[int, int], Leased] = {}
        self.requests: dict[tuple[int, int], str] = {}
        self.rows: dict[str, Any] = {}
        self.ended: dict[str, str] = {}
        self.old_term: int | None = None
        self.num = 0
        self._refresh()

    def teardown(self) -> None:
        if hasattr(self, "desk"):
            self.desk.close()

    # Steps

    @precondition(lambda self: any(t.state == "ready" for t in self.world.tasks))
    @rule(data=st.data(), worker=st.sampled_from(["w1", "w2"]), behind=st.integers(0, 3).map(lambda n: n == 3))
    def lease(self, data: st.DataObject, worker: str, behind: bool) -> None:
        ready = [t for t, row in enumerate(self.world.tasks) if row.state == "ready"]
        self._lease(data.draw(st.sampled_from(ready)), worker, behind)

    @rule(t=TASKS, worker=st.sampled_from(["w1", "w2"]))
    def lease_what_is_perhaps_not_ready(self, t: int, worker: str) -> None:
        if KEYS[t] in self.rows:
            self._lease(t, worker, behind=False)

    def _lease(self, t: int, worker: str, behind: bool) -> None:
        epoch = self.world.tasks[t].epoch - behind
        self.world, given = self.model.lease(self.world, t, epoch)
        self.num += 1
        leased = self._ask(t, epoch, worker, f"r{self.num}")
        assert (leased is not None) == given
        if leased is not None:
            assert leased.epoch == epoch + 1
            self.leased[t, leased.epoch] = leased
            self.requests[t, leased.epoch] = f"{worker} r{self.num}"

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), other=TASKS)
    def lease_again_because_the_reply_was_lost(self, data: st.DataObject, other: int) -> None:
        t, epoch = data.draw(st.sampled_from(sorted(self.leased)))
        attempt = self.world.tasks[t].attempts[epoch - 1]
        worker, request = self.requests[t, epoch].split()
        if attempt is not None and attempt.state == "running" and KEYS[other] in self.rows:
            again = self._ask(other, self.world.tasks[other].epoch, worker, request)
            assert again is not None
            assert again.attempt_id == self.leased[t, epoch].attempt_id

    def _ask(self, t: int, epoch: int, worker: str, request: str) -> Leased | None:
        return self.desk.ask(self.rows[KEYS[t]].id, epoch=epoch, worker=worker, request=request)

    @precondition(lambda self: any(t.state == "ready" for t in self.world.tasks))
    @rule(data=st.data())
    def run_one_to_its_end(self, data: st.DataObject) -> None:
        ready = [t for t, row in enumerate(self.world.tasks) if row.state == "ready"]
        t = data.draw(st.sampled_from(ready))
        self._lease(t, "w1", behind=False)
        epoch = self.world.tasks[t].epoch
        if (t, epoch) in self.leased:
            self._succeed(t, epoch)

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), seconds=st.sampled_from([0, 1, 7.25]))
    def report_success(self, data: st.DataObject, seconds: float) -> None:
        t, epoch, _ = self._some(data)
        self.desk.clock.advance(seconds)
        self._succeed(t, epoch)

    def _succeed(self, t: int, epoch: int) -> None:
        self.world = self.model.upload(self.world, t, epoch)
        self.world, answer = self.model.commit(self.world, t, epoch)
        children = CHILDREN if KEYS[t] == "script" else ()
        assert self.desk.commit(self.leased[t, epoch], children=children) == answer

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), failure=FAILURES)
    def report_failure(self, data: st.DataObject, failure: FailureClass) -> None:
        t, epoch, leased = self._some(data)
        self.world, answer = self.model.fail(self.world, t, epoch, failure.value)
        assert self.desk.fail(leased, failure) == answer

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), checkpoint=st.booleans())
    def report_interruption(self, data: st.DataObject, checkpoint: bool) -> None:
        t, epoch, leased = self._some(data)
        self.world, answer = self.model.interrupt(self.world, t, epoch)
        assert self.desk.interrupt(leased, **({"checkpoint": "x"} if checkpoint else {})) == answer

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        t, epoch, leased = self._some(data)
        self.world, answer = self.model.lose(self.world, t, epoch)
        assert self.desk.lose(leased) == answer

    @rule(enough=st.booleans())
    def wait(self, enough: bool) -> None:
        self.desk.clock.advance(LONGEST_DELAY_S if enough else 0.01)
        self._end_back_offs()

    def _end_back_offs(self) -> None:
        over = set(self.desk.ledger.backoff_over(self.desk.term))
        for t, key in enumerate(KEYS):
            if key in self.rows and self.rows[key].id in over:
                self.world = self.model.backoff_over(self.world, t)

    @rule(t=TASKS, how=st.sampled_from(list(VERBS)))
    def move_as_a_person(self, t: int, how: Move) -> None:
        if KEYS[t] not in self.rows:
            return
        try:
            world = getattr(self.model, VERBS[how])(self.world, t)
        except Refused:
            try:
                self.desk.ledger.move_task(self.rows[KEYS[t]].id, how, reason="a person asked")
            except IllegalMove:
                return
            raise AssertionError(f"{how} of {KEYS[t]}, {self.world.tasks[t].state}, was not refused") from None
        self.world = world
        self.desk.ledger.move_task(self.rows[KEYS[t]].id, how, reason="a person asked")

    @rule(job=st.integers(0, 2), states=st.sets(st.sampled_from(ENDED)))
    def requeue_a_job(self, job: int, states: set[str]) -> None:
        chosen = [t for t, row in enumerate(self.world.tasks) if SHAPE.job[t] == job and row.state in states]
        moved = 0
        for t in chosen:
            try:
                self.world, moved = self.model.reopen(self.world, t), moved + 1
            except Refused:
                continue
        asked = {State(s) for s in states}
        assert self.desk.ledger.move_tasks(self.jobs[job], Move.REOPEN, states=asked, reason="requeue") == moved

    @rule(job=st.integers(0, 2), really=st.integers(0, 3).map(lambda n: n == 3))
    def cancel_a_job(self, job: int, really: bool) -> None:
        if really:
            self.world, count = self.model.cancel_job(self.world, job)
            assert self.desk.ledger.cancel_job(self.jobs[job]) == count

    @rule(job=st.integers(0, 2), held=st.booleans())
    def hold_a_job(self, job: int, held: bool) -> None:
        self.world = self.model.hold_job(self.world, job, held)
        self.desk.ledger.set_held(self.jobs[job], held)

    @rule()
    def another_dispatcher_takes_over(self) -> None:
        self.old_term, self.desk.term = self.desk.term, self.desk.ledger.take_term()

    @precondition(lambda self: self.old_term is not None and self.leased)
    @rule(data=st.data())
    def the_old_dispatcher_commits(self, data: st.DataObject) -> None:
        _, _, leased = self._some(data)
        try:
            self.desk.commit(leased, term=self.old_term)
        except StaleTerm:
            return
        raise AssertionError("an old term wrote")

    @rule(seconds=st.sampled_from([HOUR, -HOUR]))
    def the_wall_clock_jumps(self, seconds: float) -> None:
        self._end_back_offs()
        self.desk.clock.jump(seconds)
        assert self.desk.ledger.backoff_over(self.desk.term) == []

    # What must hold after each

    @invariant()
    def ledger_and_model_agree_and_the_audit_finds_nothing(self) -> None:
        if not hasattr(self, "desk"):
            return
        books = self._refresh()
        for t, key in enumerate(KEYS):
            expected, row = self.world.tasks[t], self.rows.get(key)
            if row is None:
                assert expected.state == "absent"
                continue
            found = (row.state, row.epoch, row.generation)
            assert found == (expected.state, expected.epoch, expected.generation), key
            if expected.state in OPEN:
                assert row.failures == dict(expected.failures), key
        assert {j.id for j in books.jobs if j.held} == {self.jobs[job] for job in self.world.held}
        for attempt in books.attempts:
            if attempt.state != "running":
                assert self.ended.setdefault(attempt.id, attempt.state) == attempt.state, "terminal is for ever"
        assert flaws(books) == []

    def _some(self, data: st.DataObject) -> tuple[int, int, Leased]:
        """Any attempt there ever was, running ones more often."""
        running = [k for k in sorted(self.leased) if k[1] == self.world.tasks[k[0]].epoch]
        t, epoch = data.draw(st.sampled_from([*sorted(self.leased), *running, *running]))
        return t, epoch, self.leased[t, epoch]

    def _refresh(self) -> Books:
        books = self.desk.ledger.database.transaction(read_books)
        self.rows = {row.key: row for row in books.tasks.values()}
        return books
