"""Tasks and attempts as the log of events says, one event after the other, and what is wrong with them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.errors import FailureClass
from cluster.failures import judge
from cluster.graph import MAX_TASKS
from cluster.ledger.events import Event, WorkerEvent
from cluster.states import DONE, ENDED, MOVES, REOPENING, AttemptState, Move, State

INVARIANTS = (
    "events are numbered without gaps",
    "allowed moves only",
    "epochs grow",
    "one live lease per task",
    "terminal attempts are for ever",
    "one committed receipt per task generation",
    "no dependant before its inputs",
    "expansion once",
    "cancel is monotonic",
    "limits never exceeded",
    "dead by its faults alone",
    "ledger balanced",
    "no starvation",
    "nothing left over",
    "no take past its gate",
    "waste is what the log says",
    "every show pays for its own",
)
COMMITS = frozenset({Move.COMMIT, Move.GATE})
ANSWERS = COMMITS | {Move.CACHE_HIT, Move.CACHE_GATE}
SUMMARY = "job.summed"
"""The first event of a job that has been over for long: it stands for those which are kept no longer."""
MOVELESS = frozenset({"task.free", "task.cached"})
"""Events of tasks that move none."""
ADOPTABLE = AttemptState.LOST.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Injected:
    """A failure that a campaign planted: one attempt of this task fails with this class."""

    task_id: str
    failure: FailureClass


@dataclass(slots=True)
class _Task:
    job_id: str
    key: str
    needs: Sequence[str]
    state: State
    epoch: int
    ready_us: int
    generation: int = 0
    live: list[str] = field(default_factory=list)  # attempts that were leased and have not ended
    tried: list[str] = field(default_factory=list)  # all its attempts
    failures: dict[str, int] = field(default_factory=dict)
    poison_stage: object = None
    answers: Counter[int] = field(default_factory=Counter)  # by generation
    expansions: set[str] = field(default_factory=set)  # attempts that brought its children
    gate: str | None = None  # None too once another task of its gate is approved


@dataclass(slots=True)
class Attempt:
    task_id: str
    epoch: int
    worker_id: str
    from_us: int
    to_us: int | None = None
    state: str = AttemptState.RUNNING.value
    generation: int = 0
    committed: bool = False
    resumed: bool = False  # another attempt went on from its checkpoint
    kept: float | bool | None = None  # seconds that its checkpoint kept; of an interrupted one whether there is any


class Replay:
    """`take` each event, then ask; `broken` says what is wrong, each as "invariant: which task and how"."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.tasks: dict[str, _Task] = {}
        self.attempts: dict[str, Attempt] = {}
        self._by_key: dict[tuple[str, str], str] = {}
        self._last: Counter[str] = Counter()
        self._sizes: Counter[str] = Counter()
        self._held: set[str] = set()
        self._canceled: set[str] = set()
        self._waits: list[tuple[str, float]] = []
        self._gates: dict[tuple[str, str], list[_Task]] = defaultdict(list)
        self._approved: set[str] = set()  # attempts whose answer a person has approved
        self._passed: list[tuple[str, str]] = []  # tasks that took an answer through their gate, and of which attempt
        self._summed: dict[str, int] = {}  # jobs whose events up to this number are one summary now
        self._end_us = 0

    def _break(self, invariant: str, what: str) -> None:
        assert invariant in INVARIANTS
        self.broken.append(f"{invariant}: {what}")

    def take(self, e: Event) -> None:
        if e.kind == SUMMARY:
            return self._restore(e)
        if e.seq <= self._summed.get(e.job_id, 0):  # what was kept of them says nothing that is not in the summary
            return None
        self._last[e.job_id] += 1
        self._end_us = max(self._end_us, e.at_us)
        if e.seq != self._last[e.job_id]:
            self._break(INVARIANTS[0], f"{e.job_id} has {e.seq} after {self._last[e.job_id] - 1}")
            self._last[e.job_id] = e.seq
        match e.kind:
            case "job.cancel":
                self._canceled.add(e.job_id)
            case "job.held":
                self._held.add(e.job_id)
            case "job.approved":  # an answer, whatever becomes of its task
                self._approved.add(str(e.attempt_id))
            case "job.superseded":  # what it still makes is for its successor, whose gate holds it
                for key in e.data["keeps"]:
                    self.tasks[self._by_key[e.job_id, key]].gate = None
            case "job.released":
                self._held.discard(e.job_id)
            case "task.created":
                self._create(e)
            case kind if kind.startswith("task.") and kind not in MOVELESS:
                self._move(e, self.tasks[str(e.task_id)], Move(kind.removeprefix("task.")))

        return None

    def summary(self, job_id: str) -> dict[str, Any]:
        """All that later events, and those of other jobs, can be held against: what stands for the events so far."""
        tasks = {task_id: task for task_id, task in self.tasks.items() if task.job_id == job_id}
        gates = {id(task): gate for (job, gate), some in self._gates.items() for task in some if job == job_id}
        return {
            "upto": self._last[job_id],
            "held": job_id in self._held,
            "canceled": job_id in self._canceled,
            "tasks": {
                task_id: {
                    "key": task.key,
                    "needs": list(task.needs),
                    "state": task.state.value,
                    "epoch": task.epoch,
                    "generation": task.generation,
                    "answers": task.answers[task.generation],
                    "failures": task.failures,
                    "poison_stage": task.poison_stage,
                    "expansions": sorted(task.expansions),
                    "of_gate": gates.get(id(task)),
                    "gate": task.gate,
                    "ready_us": task.ready_us,
                }
                for task_id, task in tasks.items()
            },
            "attempts": {a: asdict(one) for a, one in self.attempts.items() if one.task_id in tasks},
            "approved": sorted(self._approved),
            "passed": [list(one) for one in self._passed],
        }

    def _restore(self, e: Event) -> None:
        self._summed[e.job_id] = self._last[e.job_id] = e.data["upto"]
        self._held |= {e.job_id} if e.data["held"] else set()
        self._canceled |= {e.job_id} if e.data["canceled"] else set()
        tried: dict[str, list[str]] = defaultdict(list)
        for attempt_id, one in e.data["attempts"].items():
            tried[one["task_id"]].append(attempt_id)
        for task_id, was in e.data["tasks"].items():
            task = _Task(
                e.job_id, was["key"], was["needs"], State(was["state"]), was["epoch"], was["ready_us"],
                generation=was["generation"], failures=dict(was["failures"]), poison_stage=was["poison_stage"],
                answers=Counter({was["generation"]: was["answers"]}), expansions=set(was["expansions"]),
                gate=was["gate"], tried=tried[task_id],
            )  # fmt: skip
            self.tasks[task_id] = task
            self._by_key[e.job_id, task.key] = task_id
            if was["of_gate"] is not None:
                self._gates[e.job_id, was["of_gate"]].append(task)
        self._sizes[e.job_id] = len(e.data["tasks"])
        for attempt_id, was in e.data["attempts"].items():  # older summaries say more: whether it was `left`
            self.attempts[attempt_id] = Attempt(**{name: value for name, value in was.items() if name != "left"})
        self._approved |= set(e.data["approved"])
        self._passed += [(key, attempt_id) for key, attempt_id in e.data["passed"]]

    def _create(self, e: Event) -> None:
        task_id, key = str(e.task_id), str(e.data["key"])
        if (e.job_id, key) in self._by_key:
            self._break("expansion once", f"{key} of {e.job_id} was created twice")
        self._by_key[e.job_id, key] = task_id
        task = _Task(e.job_id, key, e.data.get("needs", ()), State(str(e.to_state)), e.epoch or 0, e.at_us)
        self.tasks[task_id] = task
        if (gate := e.data.get("gate")) is not None:
            task.gate = gate
            self._gates[e.job_id, gate].append(task)
        self._sizes[e.job_id] += 1
        if self._sizes[e.job_id] == MAX_TASKS + 1:
            self._break("limits never exceeded", f"{e.job_id} has more than {MAX_TASKS} tasks")
        if task.state is State.READY:
            self._check_inputs(task, "was created ready")
        by = e.data.get("by")
        if by is not None:
            parent = self.attempts.get(by)
            if parent is None:
                self._break("expansion once", f"{key} was brought by {by}, which never ran")
            else:
                self.tasks[parent.task_id].expansions.add(by)

    def _move(self, e: Event, task: _Task, how: Move) -> None:
        old, new, epoch = State(str(e.from_state)), State(str(e.to_state)), e.epoch or 0
        if MOVES.get((old, how)) is not new or task.state is not old:
            self._break("allowed moves only", f"{task.key} was {task.state} and made {how} from {old} to {new}")
        if epoch < task.epoch or (how is Move.LEASE and epoch == task.epoch):
            self._break("epochs grow", f"{task.key} made {how} under {epoch} after {task.epoch}")
        if how in REOPENING:
            task.failures, task.poison_stage = {}, None
            self._canceled.discard(e.job_id)
        task.generation = e.data.get("generation", task.generation)
        if how is Move.LEASE:
            self._lease(e, task)
        if old is State.RUNNING and "attempt" in e.data:
            self._end(e, task)
        if how in ANSWERS:
            self._answer(e, task, how)
        if "failure" in e.data:
            self._count_failure(e, task, how)
        if new is State.SUCCEEDED and task.gate is not None:
            self._pass_gate(e, task, how)
        if new is State.READY and old is not State.READY:
            task.ready_us = e.at_us
        task.state, task.epoch = new, epoch

    def _lease(self, e: Event, task: _Task) -> None:
        attempt_id = str(e.attempt_id)
        if task.live:
            self._break("one live lease per task", f"{task.key} was leased while {task.live[0]} ran")
        if attempt_id in self.attempts:
            self._break("terminal attempts are for ever", f"{attempt_id} of {task.key} was leased twice")
        if e.job_id in self._canceled:
            self._break("cancel is monotonic", f"{task.key} was leased after its job was canceled")
        if e.job_id in self._held:
            self._break("limits never exceeded", f"{task.key} was leased while its job was on hold")
        self._check_inputs(task, "was leased")
        self._waits.append((task.key, (e.at_us - task.ready_us) / 1e6))
        worker_id = str(e.data.get("worker"))
        self.attempts[attempt_id] = Attempt(
            str(e.task_id), e.epoch or 0, worker_id, e.at_us, generation=task.generation
        )
        task.tried.append(attempt_id)
        task.live.append(attempt_id)

    def _end(self, e: Event, task: _Task) -> None:
        """The attempt that ran ends; later it is never anything else, but for a lost one that is adopted."""
        attempt = self.attempts.get(str(e.attempt_id))
        if attempt is None or attempt.state != AttemptState.RUNNING.value:
            found = "never ran" if attempt is None else f"had ended as {attempt.state}"
            self._break("terminal attempts are for ever", f"{e.attempt_id} of {task.key} {found}")
            return
        attempt.state, attempt.to_us = str(e.data["attempt"]), e.at_us
        attempt.kept = e.data.get("checkpoint", e.data.get("kept_s"))
        task.live.remove(str(e.attempt_id))

    def _answer(self, e: Event, task: _Task, how: Move) -> None:
        self._check_inputs(task, "was answered")
        task.answers[task.generation] += 1
        if task.answers[task.generation] == 2:
            self._break(
                "one committed receipt per task generation", f"{task.key} was answered twice as {task.generation}"
            )
        attempt = self.attempts.get(str(e.attempt_id))
        if how not in COMMITS or attempt is None:
            return
        attempt.committed = True
        if f"/attempts/{e.attempt_id}/" not in str(e.data.get("receipt")):
            self._break(
                "one committed receipt per task generation", f"{task.key} names the receipt {e.data.get('receipt')}"
            )
        good = AttemptState.SUCCEEDED.value if not e.data.get("adopted") else ADOPTABLE
        if attempt.state != good:
            self._break("terminal attempts are for ever", f"{task.key} committed {e.attempt_id}, {attempt.state}")
        if attempt.epoch != e.epoch:
            self._break("epochs grow", f"{task.key} committed the attempt of {attempt.epoch} under {e.epoch}")
        for saved in e.data.get("resumed_from", ()):
            if (earlier := self.attempts.get(saved)) is not None:
                earlier.resumed = True

    def _pass_gate(self, e: Event, task: _Task, how: Move) -> None:
        """By a person, or by an answer that a person has approved; then the others of the gate are free."""
        if how is Move.APPROVE:
            self._approved.add(str(e.attempt_id))
        elif how is Move.CACHE_HIT:
            self._passed.append((task.key, str(e.attempt_id)))
        else:
            self._break("no take past its gate", f"{task.key} made {how} before anybody approved it")
        for other in self._gates[e.job_id, str(task.gate)]:
            if other is not task:
                other.gate = None

    def gates(self) -> None:
        """Answers were approved before they passed a gate elsewhere; between jobs the order of events says nothing."""
        for key, attempt_id in self._passed:
            if attempt_id not in self._approved:
                self._break("no take past its gate", f"{key} took the answer of {attempt_id}, which nobody approved")

    def _count_failure(self, e: Event, task: _Task, how: Move) -> None:
        """Each class of failure has a budget; deaths count as poison as long as they come in one stage."""
        failure = FailureClass(e.data["failure"])
        if failure is FailureClass.POISON and e.data.get("stage") != task.poison_stage:
            task.failures.pop(failure.value, None)
            task.poison_stage = e.data.get("stage")
        verdict = judge(failure, task.failures)
        task.failures = verdict.counts
        what = f"{task.key} after {task.failures[failure.value]} failures of class {failure}"
        if verdict.dead and how is not Move.DIE:
            self._break("limits never exceeded", f"{what} goes on")
        if not verdict.dead and how is Move.DIE and failure is not FailureClass.LIMIT:  # which ends with the deadline
            self._break("dead by its faults alone", f"{what} is dead")

    def _check_inputs(self, task: _Task, what: str) -> None:
        for need in task.needs:
            given = self.tasks.get(self._by_key.get((task.job_id, need), ""))
            if given is None or given.state not in DONE:
                found = "is not there" if given is None else f"was {given.state}"
                self._break("no dependant before its inputs", f"{task.key} {what} when {need} {found}")

    def expansions(self) -> None:
        for task in self.tasks.values():
            bad = [a for a in task.expansions if not self.attempts[a].committed]
            if bad or len(task.expansions) > 1:
                self._break("expansion once", f"{task.key} brought children by {sorted(task.expansions)}")

    def workers(self, log: Sequence[WorkerEvent], orders_per_worker: int | None) -> None:
        """Orders went to workers that were here and took work. Equal instants prove nothing."""
        away: dict[str, list[tuple[int, int | None, str]]] = defaultdict(list)  # from, to, why
        for e in log:
            if e.kind == "worker.join" and not away[e.worker_id]:
                away[e.worker_id].append((0, e.at_us, "before it was here"))
            elif e.kind == "worker.join":
                since, _, why = away[e.worker_id].pop()
                away[e.worker_id].append((since, e.at_us, why))
            elif e.kind in ("worker.leave", "worker.drain"):
                away[e.worker_id].append((e.at_us, None, "after it left" if e.kind == "worker.leave" else "draining"))
        spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for attempt_id, a in self.attempts.items():
            for since, until, why in away.get(a.worker_id, ()):
                if since < a.from_us < (until if until is not None else a.from_us + 1):
                    self._break("limits never exceeded", f"{attempt_id} was given to {a.worker_id} {why}")
            spans[a.worker_id] += [(a.from_us, 1), (a.to_us if a.to_us is not None else self._end_us + 1, -1)]
        for worker_id, edges in spans.items() if orders_per_worker is not None else ():
            busy = 0
            for _, step in sorted(edges):
                busy += step
                if orders_per_worker is not None and busy > orders_per_worker:
                    self._break("limits never exceeded", f"{worker_id} had {busy} orders at once")
                    break

    def waits(self, patience_s: float) -> None:
        still = [(t.key, (self._end_us - t.ready_us) / 1e6) for t in self.tasks.values() if t.state is State.READY]
        for key, waited_s in [*self._waits, *still]:
            if waited_s > patience_s:
                self._break("no starvation", f"{key} waited {waited_s:.1f} s for a worker")

    def deaths(self, injected: Sequence[Injected]) -> None:
        expected, counts = set(), defaultdict[str, dict[str, int]](dict)
        for one in injected:
            verdict = judge(one.failure, counts[one.task_id])
            counts[one.task_id] = verdict.counts
            if verdict.dead:
                expected.add(one.task_id)
        for task_id, task in self.tasks.items():
            if (task.state is State.DEAD) != (task_id in expected):
                said = "should be dead" if task_id in expected else "should live"
                self._break("dead by its faults alone", f"{task.key} is {task.state} and {said}")

    def rest(self, log: Sequence[WorkerEvent]) -> None:
        for task in self.tasks.values():
            states = [self.tasks[self._by_key[task.job_id, need]].state for need in task.needs]
            waits = task.state is State.PENDING and any(s not in DONE and s in ENDED | {State.PENDING} for s in states)
            if task.state not in ENDED and not waits:
                self._break("nothing left over", f"{task.key} is {task.state}")
            self.broken += [f"nothing left over: {a} of {task.key} has not ended" for a in task.live]
        last = {e.worker_id: e.kind for e in log if e.kind in ("worker.join", "worker.leave")}
        for worker_id in [w for w, kind in last.items() if kind == "worker.join"]:
            self._break("nothing left over", f"{worker_id} has not left")
