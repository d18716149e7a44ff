"""Every world that the model of a task's life can reach, breadth first, and which invariants break on the way.

The workers are alike, so a world keeps of them only how many are busy; what has ended for good is forgotten (see
`reduced`). Two jobs share nothing but the workers, and one job alone finds them free whenever it could find them free
beside another: so whatever one job can do wrong it does wrong alone, where more verbs of people can be afforded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cache

from tests.model import OPEN, Attempt, Model, Refused, Shape, Task, World, broken_by, violations, with_attempt

TWO_JOBS = Shape(needs=((), (0,), ()), job=(0, 0, 1), parent=(None, None, None))
ONE_JOB = Shape(needs=((), (0,)), job=(0, 0), parent=(None, None))
EXPANDING = Shape(needs=((), (), (1,)), job=(0, 0, 0), parent=(None, 0, 0))
GATED = Shape(needs=((), (), (0,)), job=(0, 0, 0), parent=(None, None, None), gates=(0, 0, None))
WORKERS = 2
SMALL = {"infra": 2, "bug": 2, "quality": 2}
"""Budgets of failures, so that a task dies within three epochs."""


def steps(m: Model, w: World, *, epochs: int, verbs: int, crashes: int) -> Iterator[World]:
    """Every world that one step of anybody makes of this one."""
    busy = sum(a is not None and a.works for task in w.tasks for a in task.attempts)
    for t, task in enumerate(w.tasks):
        if task.state == "ready" and busy < WORKERS and task.epoch < epochs:
            yield m.lease(w, t, task.epoch)[0]
        if task.state == "backoff":
            yield m.backoff_over(w, t)
        for epoch, attempt in enumerate(task.attempts, 1):
            if attempt is None:
                continue
            if attempt.works:
                yield m.upload(w, t, epoch)
                yield m.fail(with_attempt(w, t, epoch, works=False), t, epoch, "bug")[0]
                yield m.interrupt(with_attempt(w, t, epoch, works=False), t, epoch)[0]
                if w.crashes < crashes:
                    yield m.crash(w, t, epoch)
            if attempt.uploaded:  # a report comes late, twice, or never
                yield m.commit(w, t, epoch)[0]
            if attempt.state == "running":
                yield m.lose(w, t, epoch)[0]
        if w.verbs < verbs and task.epoch < epochs and task.generation < 1:
            for verb in (m.hold, m.release, m.cancel, m.eat, m.reopen, m.approve, m.reject):
                try:
                    yield verb(w, t)
                except Refused:
                    continue


GONE = Attempt("gone", 0, (), works=False, uploaded=False, committed=False)


@cache
def reduced(task: Task) -> Task:
    """The same task without what can make no difference any more.

    An attempt that has ended and is neither its task's answer nor free to be adopted is told "superseded" or
    "duplicate" whatever it reports, and moves nothing: all that is left of it is whether it keeps a worker busy.
    """
    kept = list[Attempt | None]()
    for epoch, a in enumerate(task.attempts, 1):
        own = a is not None and epoch == task.epoch and a.generation == task.generation
        adoptable = own and a is not None and a.state == "lost" and task.state in ("ready", "dead", "suspended")
        matters = a is None or a.state == "running" or epoch == task.answer or adoptable
        kept.append(a if matters or a is None else GONE._replace(works=a.works))
    gone = sorted((a for a in kept if a is not None and a.state == "gone"), reverse=True)
    attempts = tuple(gone.pop(0) if a is not None and a.state == "gone" else a for a in kept)
    return task._replace(attempts=attempts, failures=task.failures if task.state in OPEN else ())


def explored(
    m: Model, *, epochs: int, verbs: int, crashes: int, forget: bool = True
) -> tuple[int, int, dict[str, World]]:
    """(worlds, steps, the first world that breaks each invariant)."""
    first = m.shape.first()
    seen, queue, found, num_steps = {first}, deque([first]), dict[str, World](), 0
    while queue:
        world = queue.popleft()
        for after in steps(m, world, epochs=epochs, verbs=verbs, crashes=crashes):
            num_steps += 1
            if after is world:
                continue
            for name in broken_by(world, after):
                found.setdefault(name, after)
            small = after._replace(tasks=tuple(map(reduced, after.tasks))) if forget else after
            if small not in seen:
                seen.add(small)
                queue.append(small)
                for name in violations(m.shape, after):
                    found.setdefault(name, after)
    return len(seen), num_steps, found
