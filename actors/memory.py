"""What a dispatcher remembers, and loses without harm: who is here, what runs, and what fits whom.

Times are on the monotonic clock of its process. The ledger is the truth; all of this is read from it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.contract import Beat, Json, WorkerFacts
from actors.preemption import Requirement, Running
from cluster.fit import Asked, Place, blocked, last_trial, unfit


@dataclass(slots=True, kw_only=True)
class Lease:
    """A running attempt."""

    task_id: str
    attempt_id: str
    epoch: int
    worker_id: str
    job_id: str
    tenant: str
    tier: str
    step: str
    role: str
    model: str | None
    weight: float
    alone: bool  # the last trial of a task that took two workers with it
    ends_s: float
    moved_s: float
    stage: str = ""
    stage_since_s: float = 0.0
    done_before: int = 0  # of the stage, when it was first heard of
    done: int = 0
    total: int = 0
    kept_s: float = 0.0
    resumed_from: str | None = None
    stop: str | None = None

    def hear(self, beat: Beat, now_s: float) -> None:
        if beat.stage != self.stage:
            self.stage_since_s, self.done_before = now_s, beat.done
        if (beat.stage, beat.done) != (self.stage, self.done):
            self.moved_s = now_s
        self.stage, self.done, self.total = beat.stage, beat.done, beat.total
        self.kept_s, self.resumed_from = beat.kept_s, beat.resumed_from

    def left_s(self, now_s: float) -> float:
        """Of its denoise, by its own pace; of the whole task, as predicted, before it has one."""
        if self.done <= self.done_before:
            return self.weight
        return (now_s - self.stage_since_s) / (self.done - self.done_before) * (self.total - self.done)

    def facts(self) -> Json:
        """What its last heartbeats said, for the row of an attempt that cannot report itself."""
        return {
            "stage": self.stage,
            "kept_s": round(self.kept_s, 3),
            **({"resumed_from": self.resumed_from} if self.resumed_from else {}),
        }


@dataclass(slots=True)
class Memory:
    """Workers by id, attempts by id. `planned` is what is about to be leased: (node, alone)."""

    leases: dict[str, Lease] = field(default_factory=dict)
    workers: dict[str, WorkerFacts] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    seen_s: dict[str, float] = field(default_factory=dict)
    dismissed: set[str] = field(default_factory=set)
    draining: dict[str, str] = field(default_factory=dict)  # why
    condemned: dict[str, str] = field(default_factory=dict)  # why
    failed_on: dict[str, Counter[str]] = field(default_factory=dict)  # by task: workers and nodes
    planned: list[tuple[str, bool]] = field(default_factory=list)

    def keep(self, row: Mapping[str, Any], *, now_s: float, lease_s: float) -> None:
        """A running attempt, under a full lease."""
        names = ("task_id", "attempt_id", "epoch", "worker_id", "job_id", "tenant", "tier", "step", "role", "model")
        self.leases[row["attempt_id"]] = Lease(
            **{name: row[name] for name in names},
            weight=row["weight"],
            alone=last_trial(row["failures"]),
            ends_s=now_s + lease_s,
            moved_s=now_s,
        )

    def forget(self, worker_id: str) -> None:
        for table in (self.workers, self.nodes, self.seen_s, self.draining, self.condemned):
            table.pop(worker_id, None)
        self.dismissed.discard(worker_id)

    def note_failure(self, lease: Lease) -> None:
        places = [lease.worker_id, *([self.nodes[lease.worker_id]] if lease.worker_id in self.nodes else [])]
        self.failed_on.setdefault(lease.task_id, Counter()).update(places)

    def takes_work(self, worker_id: str) -> bool:
        return worker_id not in self.dismissed and worker_id not in self.draining

    def idle(self) -> Counter[Requirement]:
        """How many workers wait, by what they can run."""
        busy = {lease.worker_id for lease in self.leases.values()}
        idle: Counter[Requirement] = Counter()
        for worker in self.workers.values():
            if worker.id not in busy and self.takes_work(worker.id):
                idle.update((worker.role, model) for model in (*worker.models, None))
        return idle

    def running(self, now_s: float) -> Iterable[Running]:
        """What runs, as preemption looks at it."""
        for lease in self.leases.values():
            yield Running(
                attempt_id=lease.attempt_id,
                requirement=(lease.role, lease.model),
                preemptible=lease.tier == "batch" and lease.stage == "denoise",
                left_s=lease.left_s(now_s),
                stopping=lease.stop is not None,
            )

    def _place(self, worker: WorkerFacts) -> Place:
        on_node = [x.alone for x in self.leases.values() if self.nodes.get(x.worker_id) == worker.node]
        on_node += [alone for node, alone in self.planned if node == worker.node]
        return Place(
            worker_id=worker.id,
            role=worker.role,
            models=worker.models,
            node=worker.node,
            draining=self.draining.get(worker.id),
            num_running_on_node=len(on_node),
            node_is_taken=any(on_node),
        )

    def fitting(self, worker: WorkerFacts) -> Callable[[Any], bool]:
        """Whether a ready task fits the worker now. Where it stands is looked up once there is a task at all, and tasks
        that have not failed yet are all alike."""
        place: list[Place] = []
        alike: dict[tuple[str, str | None], bool] = {}

        def fits(task: Any) -> bool:
            if not place:
                place.append(self._place(worker))
            if task.failures or task.id in self.failed_on:
                return self._fits(place[0], task)
            asked = (task.role, task.model)
            if asked not in alike:
                alike[asked] = self._fits(place[0], task)
            return alike[asked]

        return fits

    def _fits(self, place: Place, task: Any) -> bool:
        asked = Asked(
            role=task.role, model=task.model, failures=task.failures, failed_on=self.failed_on.get(task.id, {})
        )
        if unfit(asked, place) is not None:
            return False
        return not blocked(asked, place) or not self._elsewhere(asked, place)

    def _elsewhere(self, asked: Asked, place: Place) -> bool:
        """Whether another worker is here that could run it, and on which it has not failed."""
        return any(
            unfit(asked, other, elsewhere=True) is None
            for other in (self._place(w) for w in self.workers.values() if w.id != place.worker_id)
        )
