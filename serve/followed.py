"""A job as its stream tells of it: the updates that displays read, from pieces that each tell what is new."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from actors.contract import Json
from cluster.clock import SystemClock, from_iso
from cluster.ledger.events import Event
from cluster.ledger.jobs import Job
from cluster.states import State
from serve.sse import Frame
from serve.watch import TaskView, Update

OF_EVENTS = frozenset({"seq", "at", "job", "event", "task", "attempt", "epoch", "from", "state"})


class Followed:
    """What was told by now. Instants are moved to the clock of this machine."""

    def __init__(self) -> None:
        self.seen = 0
        self._over = False
        self.said: Json = {}
        self.update: Update
        self.failures: dict[str, set[str | None]] = {}  # their classes, by the id of the task
        self._tasks: dict[str, TaskView] = {}
        self._clock = SystemClock()
        self._shift_us: int | None = None

    def take(self, frame: Frame) -> Update:
        said = self.said = json.loads(frame.data)
        shift_us = self._clock.now_us() - from_iso(said["now"])
        self._shift_us = shift_us if self._shift_us is None else min(shift_us, self._shift_us)
        self._tasks |= {row["id"]: self._task(row) for row in said["changed"]}
        ids = {task.key: task.id for task in self._tasks.values()}
        events = tuple(self._event(row, ids) for row in said["happened"])
        for event in events:
            if event.task_id is not None and "failure" in event.data:
                self.failures.setdefault(event.task_id, set()).add(event.data["failure"])
        self.seen = events[-1].seq if events else self.seen
        self._over = frame.event in ("completed", "failed", "cancelled")
        job = self._job()
        self.update = Update(
            job=job, state=job.state, events=events, tasks=tuple(self._tasks.values()),
            cost_usd=Decimal(said["cost_usd"]), eta_s=said["eta_s"], title=said["headline"],
            queue_position=said["queue_position"],
        )  # fmt: skip
        return self.update

    def over(self) -> bool:
        """The job is, and all of it is told."""
        return self._over

    def _us(self, text: str) -> int:
        return from_iso(text) + (self._shift_us or 0)

    def _job(self) -> Job:
        said = self.said
        same = ("tenant", "show", "recipe", "version", "title", "tier", "priority", "held")
        return Job(
            **{name: said[name] for name in same},
            id=said["job"],
            spec={},
            deadline_us=self._us(said["deadline"]) if said["deadline"] else None,
            seq=said["events"],
            num_tasks=said["tasks"],
            counts={State(state): n for state, n in said["counts"].items()},
            created_us=self._us(said["created"]),
            ended_us=self._us(said["ended"]) if said["ended"] else None,
        )

    def _task(self, row: Mapping[str, Any]) -> TaskView:
        same = ("id", "step", "role", "stage", "done", "total", "reason", "about", "failures")
        return TaskView(
            **{name: row[name] for name in same},
            key=row["task"],
            state=State(row["state"]),
            since_us=self._us(row["since"]),
        )

    def _event(self, row: Mapping[str, Any], ids: Mapping[str, str]) -> Event:
        return Event(
            job_id=row["job"],
            seq=row["seq"],
            at_us=self._us(row["at"]),
            kind=row["event"],
            task_id=ids.get(row.get("task") or ""),
            attempt_id=row.get("attempt"),
            epoch=row.get("epoch"),
            from_state=row.get("from"),
            to_state=row.get("state"),
            data={name: value for name, value in row.items() if name not in OF_EVENTS},
        )
