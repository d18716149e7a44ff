"""The reference model of a task's life: rows as tuples, rules as functions, nothing imported from the farm.

It is written from section 4 of the design, not from the code, so that each can convict the other. A `World` holds what
is durable (the ledger and the receipts in the store) and which attempts a worker still works on. A dispatcher has
nothing durable, so its crash between two steps changes no world: every step here may be the first of a new one.

Times have no place in it: a lease may expire, and a back-off end, at any moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

DONE = ("succeeded", "eaten")
ENDED = ("succeeded", "eaten", "stale", "canceled", "dead")
OPEN = ("pending", "ready", "running", "backoff", "suspended", "in_review")
BUDGET = {"infra": 20, "bug": 3, "input": 1, "quality": 3}

ALLOWED = {
    "pending": {"ready", "suspended", "canceled", "eaten"},
    "ready": {"pending", "running", "succeeded", "in_review", "suspended", "canceled", "eaten"},
    "running": {"pending", "succeeded", "in_review", "backoff", "ready", "dead", "suspended", "canceled"},
    "backoff": {"pending", "ready", "succeeded", "in_review", "suspended", "canceled", "eaten"},
    "in_review": {"succeeded", "ready", "dead", "stale", "canceled"},
    "suspended": {"ready", "pending", "canceled", "eaten"},
    "succeeded": {"stale", "ready", "pending"},
    "eaten": {"stale", "ready", "pending"},
    "stale": {"canceled", "ready", "pending"},
    "dead": {"succeeded", "in_review", "eaten", "canceled", "ready", "pending"},
    "canceled": {"ready", "pending"},
    "absent": {"pending", "ready"},
}
"""Which state may follow which: READY and BACKOFF to SUCCEEDED or IN_REVIEW when the answer is found. `absent` is
a child that its parent has not expanded yet."""


class Attempt(NamedTuple):
    state: str
    generation: int
    inputs: tuple[int, ...]  # generations of the inputs that it was leased with
    works: bool  # a process is at it, whatever the ledger thinks
    uploaded: bool  # its receipt is in the store
    committed: bool


class Task(NamedTuple):
    state: str
    epoch: int = 0
    generation: int = 0
    attempts: tuple[Attempt | None, ...] = ()  # by epoch; None where the epoch grew without a lease
    failures: tuple[tuple[str, int], ...] = ()
    answer: int | None = None  # epoch of the attempt whose receipt stands
    gate: int | None = None  # its answer waits for a person; None too once another task of its gate is approved


class World(NamedTuple):
    tasks: tuple[Task, ...]
    held: frozenset[int] = frozenset()  # jobs
    verbs: int = 0  # what people have done, to bound an exploration
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """What is fixed: the inputs of each task, its job, and for a child the task that expands into it."""

    needs: tuple[tuple[int, ...], ...]
    job: tuple[int, ...]
    parent: tuple[int | None, ...]
    gates: tuple[int | None, ...] = ()

    def gate(self, task: int) -> int | None:
        return self.gates[task] if self.gates else None

    def first(self) -> World:
        tasks = []
        for t, (needs, parent) in enumerate(zip(self.needs, self.parent, strict=True)):
            here = Task("pending" if needs else "ready", gate=self.gate(t))
            tasks.append(Task("absent") if parent is not None else here)
        return World(tuple(tasks))

    def dependants(self, task: int) -> Iterator[int]:
        return (t for t, needs in enumerate(self.needs) if task in needs)

    def expands(self, task: int) -> bool:
        return task in self.parent


class Refused(Exception):
    """The world has no such step."""


class Model:
    """Steps of a world. Each returns (new world, answer) and raises Refused where there is no such step."""

    def __init__(self, shape: Shape, *, budget: dict[str, int] = BUDGET) -> None:
        self.shape, self.budget = shape, budget

    # What workers do

    def lease(self, w: World, t: int, epoch: int) -> tuple[World, bool]:
        task = w.tasks[t]
        if task.state != "ready" or task.epoch != epoch or self.shape.job[t] in w.held:
            return w, False
        inputs = tuple(w.tasks[i].generation for i in self.shape.needs[t])
        new = Attempt("running", task.generation, inputs, works=True, uploaded=False, committed=False)
        task = task._replace(state="running", epoch=epoch + 1, attempts=(*task.attempts, new))
        return _with(w, t, task), True

    def upload(self, w: World, t: int, epoch: int) -> World:
        return with_attempt(w, t, epoch, works=False, uploaded=True)

    def crash(self, w: World, t: int, epoch: int) -> World:
        return with_attempt(w, t, epoch, works=False)._replace(crashes=w.crashes + 1)

    def commit(self, w: World, t: int, epoch: int) -> tuple[World, str]:
        task, attempt = w.tasks[t], _attempt(w, t, epoch)
        own = task.epoch == epoch and task.generation == attempt.generation
        live = own and task.state == "running" and attempt.state == "running"
        adopted = own and attempt.state == "lost" and task.state in ("ready", "dead")
        if not live and not adopted:
            return w, "duplicate" if attempt.committed else "superseded"
        w = with_attempt(w, t, epoch, committed=True, state="succeeded" if live else "lost")
        for child, parent in enumerate(self.shape.parent):
            if parent == t:
                w = _with(w, child, Task(self._waiting(w, child), gate=self.shape.gate(child)))
        return self.moved(w, t, "succeeded" if task.gate is None else "in_review", answer=epoch), "accepted"

    def fail(self, w: World, t: int, epoch: int, failure: str) -> tuple[World, str]:
        return self._ends(w, t, epoch, "failed", failure, again="backoff")

    def interrupt(self, w: World, t: int, epoch: int) -> tuple[World, str]:
        return self._ends(w, t, epoch, "interrupted", None, again="ready")

    def lose(self, w: World, t: int, epoch: int) -> tuple[World, str]:
        return self._ends(w, t, epoch, "lost", "infra", again="ready")

    def backoff_over(self, w: World, t: int) -> World:
        if w.tasks[t].state != "backoff":
            raise Refused
        return self.moved(w, t, "ready")

    # What people do

    def hold_job(self, w: World, job: int, held: bool) -> World:
        return w._replace(held=w.held | {job} if held else w.held - {job}, verbs=w.verbs + 1)

    def hold(self, w: World, t: int) -> World:
        return self._verb(w, t, ("pending", "ready", "backoff", "running"), "suspended")

    def release(self, w: World, t: int) -> World:
        return self._verb(w, t, ("suspended",), self._waiting(w, t))

    def cancel(self, w: World, t: int) -> World:
        return self._verb(w, t, (*OPEN, "dead", "stale"), "canceled")

    def eat(self, w: World, t: int) -> World:
        return self._verb(w, t, ("dead", "ready", "pending", "backoff", "suspended"), "eaten")

    def reopen(self, w: World, t: int) -> World:
        task = w.tasks[t]
        if self.shape.expands(t) and task.answer is not None:
            raise Refused
        fresh = task._replace(generation=task.generation + 1, failures=(), answer=None)
        if task.state not in ENDED:
            raise Refused
        return self._verb(_with(w, t, fresh), t, ENDED, self._waiting(w, t))

    def approve(self, w: World, t: int) -> World:
        return self._verb(w, t, ("in_review",), "succeeded")

    def reject(self, w: World, t: int) -> World:
        """Another take, until the budget of such failures is spent."""
        task = w.tasks[t]
        if task.state != "in_review":
            raise Refused
        w, dead = self._failed(w, t, "quality")
        if dead:
            return self._verb(w, t, ("in_review",), "dead")
        fresh = w.tasks[t]._replace(generation=task.generation + 1, answer=None)
        return self._verb(_with(w, t, fresh), t, ("in_review",), "ready")

    def cancel_job(self, w: World, job: int) -> tuple[World, int]:
        count = 0
        for t, task in enumerate(w.tasks):
            if self.shape.job[t] == job and task.state in OPEN:
                w, count = self.cancel(w, t), count + 1
        return w, count

    # What follows

    def _verb(self, w: World, t: int, states: tuple[str, ...], new: str) -> World:
        task = w.tasks[t]
        if task.state not in states:
            raise Refused
        if task.state == "running":
            w = with_attempt(w, t, task.epoch, state="canceled")
        return self.moved(w._replace(verbs=w.verbs + 1), t, new)

    def _ends(self, w: World, t: int, epoch: int, how: str, failure: str | None, *, again: str) -> tuple[World, str]:
        task, attempt = w.tasks[t], _attempt(w, t, epoch)
        if task.state != "running" or task.epoch != epoch or attempt.state != "running":
            return w, "duplicate" if attempt.state == how else "superseded"
        w = with_attempt(w, t, epoch, state=how)
        if failure is not None:
            w, dead = self._failed(w, t, failure)
            again = "dead" if dead else again
        return self.moved(w, t, again), "accepted"

    def _failed(self, w: World, t: int, failure: str) -> tuple[World, bool]:
        """Counted; whether it was one too many."""
        counts = dict(w.tasks[t].failures)
        counts[failure] = counts.get(failure, 0) + 1
        counted = w.tasks[t]._replace(failures=tuple(sorted(counts.items())))
        return _with(w, t, counted), counts[failure] >= self.budget[failure]

    def moved(self, w: World, t: int, new: str, *, answer: int | None = None) -> World:
        task = w.tasks[t]
        was_done = task.state in DONE
        w = _with(w, t, task._replace(state=new, answer=task.answer if answer is None else answer))
        for d in self.shape.dependants(t):
            child = w.tasks[d]
            if new in DONE and not was_done and child.state == "pending" and not self._unmet(w, d):
                w = self.moved(w, d, "ready")
            elif was_done and new not in DONE and child.state != "absent":
                if child.state == "running":
                    w = with_attempt(w, d, child.epoch, state="superseded")
                w = fenced(w, d)
                if child.state in (*DONE, "in_review"):
                    w = self.moved(w, d, "stale")
                elif child.state in ("ready", "backoff", "running"):
                    w = self.moved(w, d, "pending")
        if new == "succeeded" and task.gate is not None:
            w = self._open_gate(w, t)
        return w

    def _open_gate(self, w: World, t: int) -> World:
        """One of its tasks is approved: the others need nobody's approval any more."""
        for s, other in enumerate(w.tasks):
            if s != t and other.gate == w.tasks[t].gate and self.shape.job[s] == self.shape.job[t]:
                w = _with(w, s, other._replace(gate=None))
                if other.state == "in_review":
                    w = self.moved(w, s, "succeeded")
        return w

    def _unmet(self, w: World, t: int) -> bool:
        return any(w.tasks[i].state not in DONE for i in self.shape.needs[t])

    def _waiting(self, w: World, t: int) -> str:
        return "pending" if self._unmet(w, t) else "ready"


def violations(shape: Shape, w: World) -> list[str]:
    """Names of the invariants that this world breaks."""
    broken = list[str]()
    for task, needs in zip(w.tasks, shape.needs, strict=True):
        broken += _flaws(task, tuple((w.tasks[i].state, w.tasks[i].generation) for i in needs))
    return broken


@cache
def _flaws(task: Task, inputs: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    broken = []
    live = [e for e, a in enumerate(task.attempts, 1) if a is not None and a.state == "running"]
    if live != ([task.epoch] if task.state == "running" else []):
        broken.append("one live lease per task")
    if len(task.attempts) != task.epoch:
        broken.append("an epoch for each lease")
    commits = [a.generation for a in task.attempts if a is not None and a.committed]
    if len(commits) != len(set(commits)):
        broken.append("one committed receipt per task generation")
    met = all(state in DONE for state, _ in inputs)
    if task.state in ("ready", "backoff", "running", "succeeded", "in_review") and not met:
        broken.append("no dependant before its inputs")
    if task.state == "pending" and met:
        broken.append("what waits, waits for something")
    if task.state in ("succeeded", "in_review"):
        answer = task.attempts[task.answer - 1] if task.answer else None
        if answer is None or not answer.uploaded:
            broken.append("success has a receipt")
        elif answer.inputs != tuple(generation for _, generation in inputs):
            broken.append("no answer is older than its inputs")
    if task.state == "in_review" and task.gate is None:
        broken.append("who waits for a person has a gate")
    if task.state == "absent" and task != Task("absent"):
        broken.append("expansion once")
    return tuple(broken)


def broken_by(before: World, after: World) -> list[str]:
    """Names of the invariants that this step breaks."""
    broken = []
    for old, new in zip(before.tasks, after.tasks, strict=True):
        if new is old:
            continue
        if new.state != old.state and new.state not in ALLOWED[old.state]:
            broken.append("allowed moves only")
        if new.epoch < old.epoch or new.generation < old.generation:
            broken.append("epochs grow")
        for a, b in zip(old.attempts, new.attempts, strict=False):
            if a is not b and a is not None and a.state != "running" and (b is None or b.state != a.state):
                broken.append("terminal attempts are for ever")
        if old.state == "canceled" and new.state != "canceled" and new.generation == old.generation:
            broken.append("cancel is monotonic")
        if old.state != "absent" and new.state == "absent":
            broken.append("expansion once")
    return broken


def fenced(w: World, t: int) -> World:
    """The epoch of a task grows without a lease, so that no attempt of it that was lost is adopted."""
    task = w.tasks[t]
    return _with(w, t, task._replace(epoch=task.epoch + 1, attempts=(*task.attempts, None)))


def _attempt(w: World, t: int, epoch: int) -> Attempt:
    found = w.tasks[t].attempts[epoch - 1]
    if found is None:
        raise Refused
    return found


def _with(w: World, t: int, task: Task) -> World:
    return w._replace(tasks=(*w.tasks[:t], task, *w.tasks[t + 1 :]))


def with_attempt(
    w: World,
    t: int,
    epoch: int,
    *,
    state: str | None = None,
    works: bool | None = None,
    uploaded: bool = False,
    committed: bool = False,
) -> World:
    task, attempt = w.tasks[t], _attempt(w, t, epoch)
    attempt = Attempt(
        state or attempt.state,
        attempt.generation,
        attempt.inputs,
        attempt.works if works is None else works,
        attempt.uploaded or uploaded,
        attempt.committed or committed,
    )
    return _with(w, t, task._replace(attempts=(*task.attempts[: epoch - 1], attempt, *task.attempts[epoch:])))
