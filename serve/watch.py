"""Watching a job: its numbered events, the moving progress of its running tasks, what is left and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from actors.contract import Json
from cluster.clock import to_datetime
from cluster.errors import Unavailable
from cluster.ledger.events import Event
from cluster.ledger.jobs import Job
from cluster.ledger.ledger import Ledger
from cluster.rates import cost_until, usd
from cluster.states import ENDED, JobState, State
from cluster.timing import Ahead, learned, left_s

POLL_S = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskView:
    """A task, as somebody watches it."""

    id: str
    key: str
    step: str
    role: str
    state: State
    stage: str = ""
    done: int = 0
    total: int = 0
    reason: str | None = None
    about: str = ""  # what it makes, as a person would say it: the prompt of a take
    since_us: int = 0  # when it came into this state
    failures: int = 0  # of all its attempts in this generation

    @property
    def fraction(self) -> float:
        if self.state in ENDED or self.state is State.IN_REVIEW:
            return 1.0
        return self.done / self.total if self.total and self.stage == "denoise" else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """One look at a job: the events since the last look, and how it stands now."""

    job: Job
    state: JobState
    events: tuple[Event, ...]
    tasks: tuple[TaskView, ...]
    cost_usd: Decimal
    eta_s: float | None  # None while nothing is known
    title: str | None = None  # of the film, once its script is there
    queue_position: int | None = None  # jobs that are likely to begin first, where there is a queue

    def task(self, task_id: str | None) -> TaskView | None:
        return next((t for t in self.tasks if t.id == task_id), None)


OnUpdate = Callable[[Update], None]


class Watch:
    """Iterates over the updates of a job until it has ended; the last update is of the ended job."""

    def __init__(
        self,
        ledger: Ledger,
        job_id: str,
        *,
        progress: Callable[[str], list[Json]],
        num_workers: Callable[[], dict[str, int]],
        expected: Callable[[], list[Ahead]] = list,
    ) -> None:
        self._ledger, self._job_id = ledger, job_id
        self._progress, self._num_workers, self._expected = progress, num_workers, expected
        self._ratios = learned(ledger.durations())
        self._seen = 0

    def __iter__(self) -> Iterator[Update]:
        while True:
            update = self._look()
            yield update
            if update.job.over:
                return
            time.sleep(POLL_S)

    def _look(self) -> Update:
        job = self._ledger.job(self._job_id)
        events = self._ledger.events(self._job_id, after=self._seen)
        self._seen = events[-1].seq if events else self._seen
        rows = self._ledger.tasks(self._job_id)
        try:
            running: list[Json] = [] if job.over else self._progress(self._job_id)
        except Unavailable:
            running = []  # the dispatcher is coming back
        moving = {p["task_id"]: p for p in running}
        views = tuple(view_of(row, moving.get(row["id"])) for row in rows)
        ahead = [
            Ahead(step=view.step, role=view.role, predicted_s=row["weight"], fraction=view.fraction)
            for view, row in zip(views, rows, strict=True)
            if view.state not in ENDED
        ]
        if any(row["expands"] and row["state"] not in ENDED for row in rows):
            ahead += self._expected()
        eta_s = left_s(ahead, ratios=self._ratios, workers=self._num_workers()) if ahead else 0.0
        return Update(
            job=job,
            state=job.state,
            events=tuple(events),
            tasks=views,
            cost_usd=self._cost(),
            eta_s=eta_s,
            title=title_of(job, rows),
        )

    def _cost(self) -> Decimal:
        """What is booked, and what the running attempts hold since their start."""
        nano = self._ledger.spent(job_id=self._job_id).nano
        running = [a for a in self._ledger.attempts(self._job_id) if a["state"] == "running"]
        if running:
            rates = {w["id"]: w["nano_per_hour"] for w in self._ledger.workers()}
            now_us = self._ledger.clock.now_us()
            nano += sum(cost_until(rates.get(a["worker_id"], 0), max(0, now_us - a["started_us"])) for a in running)
        return usd(nano)


def as_json(update: Update) -> list[dict[str, Any]]:
    """One object per event, for logs and scripts."""
    lines = []
    for event in update.events:
        task = update.task(event.task_id)
        line: dict[str, Any] = {
            "at": to_datetime(event.at_us).isoformat(),
            "job": event.job_id,
            "seq": event.seq,
            "event": event.kind,
            "cost_usd": f"{update.cost_usd:.6f}",
        }
        if task:
            line |= {"task": task.key, "step": task.step}
        if event.to_state:
            line["state"] = event.to_state
        if event.attempt_id:
            line["attempt"] = event.attempt_id
        lines.append(line | {k: event.data[k] for k in ("reason", "title") if k in event.data})
    return lines


def title_of(job: Job, rows: Sequence[Any]) -> str | None:
    """From a script that came with the brief, or from the one that was written."""
    given = job.spec.get("script")
    written = (row["result"] for row in rows if row["step"] == "script")
    return next((str(d["title"]) for d in (given, *written) if isinstance(d, dict) and d.get("title")), None)


def view_of(row: Mapping[Any, Any], moving: Json | None) -> TaskView:
    spec = row["params"].get("spec")
    return TaskView(
        id=row["id"],
        key=row["key"],
        step=row["step"],
        role=row["role"],
        state=State(row["state"]),
        stage=moving["stage"] if moving else "",
        done=moving["done"] if moving else 0,
        total=moving["total"] if moving else 0,
        reason=row["reason"],
        about=str(spec.get("prompt", "")) if isinstance(spec, dict) else "",
        since_us=row["changed_us"],
        failures=sum((row["failures"] or {}).values()),
    )
