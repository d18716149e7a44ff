"""What the displays remember of a job between two updates: who started when, how long it took, what was kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.states import DONE, State
from serve.cli.wording import LOADING, clean, name_of, plural, seconds

if TYPE_CHECKING:
    from serve.watch import TaskView, Update


@dataclass(slots=True)
class Board:
    """Takes updates in, answers questions about them. `began_us` is when the command began."""

    headline: str  # what was asked: a logline or a prompt
    facts: str  # and how: "4 shots of 2 s, standard, seed 7"
    began_us: int
    update: Update | None = None
    asks: str | None = None  # where the farm is, if the command has none of its own
    waits: str | None = None  # for another farm, as a person is told
    stopping: bool = False
    over: bool = False  # nothing moves any more
    started_us: dict[str, int] = field(default_factory=dict)
    took_s: dict[str, float] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)  # answered by an earlier run
    roles_seen: set[str] = field(default_factory=set)

    def take(self, update: Update) -> None:
        for event in update.events:
            task = update.task(event.task_id)
            if task is None:
                continue
            if event.kind == "task.lease":
                self.started_us[task.id] = event.at_us
                self.roles_seen.add(task.role)
            elif event.kind == "task.commit" and task.id in self.started_us:
                self.took_s[task.id] = (event.at_us - self.started_us[task.id]) / 1e6
            elif event.kind == "task.cache_hit":
                self.kept.add(task.id)
        self.update = update

    @property
    def opening(self) -> str:
        return f"the farm at {self.asks} is asked" if self.asks else "the farm is starting"

    @property
    def title(self) -> str | None:
        return clean(self.update.title) if self.update and self.update.title else None

    def seconds_of(self, task: TaskView, now_us: int) -> float | None:
        """How long the task took, or runs by now; None if it has not begun."""
        if task.state is State.RUNNING:
            return max(0.0, (now_us - self.started_us.get(task.id, task.since_us)) / 1e6)
        return self.took_s.get(task.id)

    def phase(self, now_us: int) -> str | None:
        """What the farm waits for while no task moves; None while one does."""
        if self.over:
            return None
        if self.stopping:
            return "stopping, what is finished is kept (Ctrl-C again ends it at once)"
        if self.waits:
            return self.waits
        if self.update is None:
            return f"{self.opening}, {seconds((now_us - self.began_us) / 1e6)}"
        tasks = self.update.tasks
        if self.update.job.over:
            return None
        if any(task.state is State.RUNNING for task in tasks):
            return None
        again = next((task for task in tasks if task.state is State.BACKOFF), None)
        if again is not None:
            why = f": {clean(again.reason, 200)}" if again.reason else ""
            return f"{name_of(again)} will be tried again{why}"
        first = next((task for task in tasks if task.state is State.READY), None)
        waiting = [task for task in tasks if task.state is State.IN_REVIEW]
        if first is None and waiting:
            more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
            name = f"{self.update.job.id}/{waiting[0].key}"
            return f"{name_of(waiting[0])}{more} wait for a person: farm approve {name}, or farm reject, elsewhere"
        if first is None:
            return None
        waited = seconds((now_us - first.since_us) / 1e6)
        if self.update.queue_position:
            return f"{name_of(first)} waits, {plural(self.update.queue_position, 'job')} before it, {waited}"
        if self.asks or first.role in self.roles_seen:
            return f"{name_of(first)} waits for a worker, {waited}"
        return f"{LOADING.get(first.role, f'the {first.role} worker is loading')}, {waited}"

    def shots_done(self) -> tuple[int, int]:
        """(shots that are drawn, shots that are known)."""
        shots = [task for task in self.update.tasks if task.role == "render"] if self.update else []
        return sum(task.state in DONE for task in shots), len(shots)

    def what_is_kept(self) -> str:
        """For somebody who stopped it: what is left of the work, and how to go on."""
        done, known = self.shots_done()
        if done:
            return f"stopped; {done} of {known} shots are drawn and kept, the same command goes on from there"
        written = self.update and any(t.step == "script" and t.state in DONE for t in self.update.tasks)
        if written:
            return "stopped; the script is kept, the same command goes on from there"
        return "stopped before anything was finished; the same command starts again"
