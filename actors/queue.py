"""Ready tasks in the dispatcher's memory: the heads of jobs, read again when a job changed, and who gets the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.contract import WorkerFacts
from cluster.ledger.ledger import Ledger
from cluster.schedule import Candidate, UseMeter, ranked

WINDOW = 64  # ready tasks of one job that are looked at


@dataclass(slots=True)
class _Heads:
    seq: int
    row: Any
    tasks: list[Any] = field(default_factory=list)


class Queue:
    """Owned by one dispatcher, used on its event loop. `read` blocks on the ledger: call it in a thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._heads: dict[str, _Heads] = {}
        self._use = UseMeter()

    def read(self) -> bool:
        """Reads the heads of jobs that changed since the last look. Whether anything is new."""
        rows = {row.id: row for row in self._ledger.jobs_with_ready_tasks()}
        for job_id in [j for j in self._heads if j not in rows]:
            del self._heads[job_id]
        stale = [i for i, row in rows.items() if i not in self._heads or self._heads[i].seq != row.seq]
        if stale:
            found: dict[str, list[Any]] = {}
            for task in self._ledger.ready_tasks(stale, WINDOW):
                found.setdefault(task.job_id, []).append(task)
            for job_id in stale:
                self._heads[job_id] = _Heads(rows[job_id].seq, rows[job_id], found.get(job_id, []))
        return bool(stale)

    def best(
        self, worker: WorkerFacts, *, fits: Callable[[Any], bool], now_s: float, now_us: int
    ) -> Sequence[Candidate]:
        """What the worker may run, best first: one head per job. `fits` looks at a ready task's row."""
        return ranked(self._candidates(worker, fits), shares={}, use=self._use.at(now_s), now_us=now_us)

    def waiting(self, tier: str) -> list[Any]:
        """The ready tasks of a tier, as rows, that are in memory."""
        return [task for heads in self._heads.values() if heads.row.tier == tier for task in heads.tasks]

    def drop(self, candidate: Candidate) -> None:
        """It was leased, or somebody else has it."""
        heads = self._heads.get(candidate.job_id)
        if heads is not None:
            heads.tasks = [t for t in heads.tasks if t.id != candidate.task_id]

    def given(self, candidate: Candidate, *, now_s: float) -> None:
        """A lease of it was given: its show and tier have used so much."""
        self._use.add(show=candidate.show, tier=candidate.tier, seconds=candidate.predicted_s, now_s=now_s)

    def _candidates(self, worker: WorkerFacts, fits: Callable[[Any], bool]) -> list[Candidate]:
        found = []
        for heads in self._heads.values():
            task = next((t for t in heads.tasks if fits(t)), None)
            if task is not None:
                found.append(
                    Candidate(
                        task_id=task.id,
                        job_id=task.job_id,
                        epoch=task.epoch,
                        show=f"{heads.row.tenant}/{heads.row.show}",
                        tier=heads.row.tier,
                        priority=heads.row.priority,
                        deadline_us=heads.row.deadline_us,
                        ready_us=task.changed_us,
                        predicted_s=task.weight,
                        resident=task.model is not None and task.model in worker.models,
                    )
                )
        return found
