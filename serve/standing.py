"""How far a job is, said truly: its status, its progress by weighted stages, its place in the queue, what is left.

What is committed comes from the ledger, where a running task is from the dispatcher's memory. While the dispatcher is
away, what is committed is all that is said: progress may then fall, and it does when an attempt is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.contract import STORE_AWAY, Json
from cluster.ledger.outcomes import Backlog, Outcome
from cluster.states import DONE, ENDED, JobState, State

STAGES = {"encode": (0.00, 0.03), "denoise": (0.03, 0.82), "decode": (0.85, 0.12), "upload": (0.97, 0.03)}
"""Of a take: where a stage begins and how much of the whole it is, as measured on the house model."""
UNNAMED = (0.0, 0.9)
"""Of a step whose stages have no names here: all but the upload."""
STATUS = {
    JobState.QUEUED: "queued",
    JobState.SUSPENDED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.FAILING: "in_progress",
    JobState.IN_REVIEW: "in_progress",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELED: "cancelled",
}
"""The words of OpenAI's clients, which stop polling at any that is neither queued nor in_progress."""
MIN_POLL_MS, MAX_POLL_MS = 1000, 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    status: str
    progress: int  # 0 to 100; 100 is completed, and nothing else
    queue_position: int | None = None  # jobs that are likely to begin first; None: it does not wait
    eta_s: float | None = None  # until it is done; None: not known

    @property
    def over(self) -> bool:
        return self.status not in ("queued", "in_progress")

    @property
    def poll_after_ms(self) -> int:
        """When it is worth asking again. A client of OpenAI keeps the first answer for the whole of its wait."""
        return min(MAX_POLL_MS, max(MIN_POLL_MS, round((self.eta_s or 0.0) * 100)))


def standing(
    outcome: Outcome,
    moving: Sequence[Json],
    *,
    backlog: Backlog | None,
    place: int | None,
    ratios: Mapping[str, float],
    now_us: int,
    ahead_s: float = 0.0,
) -> Standing:
    """Of one job. `moving` is what the dispatcher says of its running tasks, `place` where it stands in `backlog`;
    `ahead_s` are the predicted seconds of tasks that it is going to bring. Who waits for a person has no ETA.
    """
    status = STATUS[outcome.job.state]
    if status == "completed":
        return Standing(status=status, progress=100, eta_s=0.0)
    heard = {one["task_id"]: one for one in moving}
    done = {task["id"]: fraction(task, heard.get(task["id"])) for task in outcome.tasks}
    whole = (sum(task["weight"] for task in outcome.tasks) + ahead_s) or 1.0
    part = sum(task["weight"] * done[task["id"]] for task in outcome.tasks) / whole
    progress = min(99, math.floor(100 * part + 1e-9))
    if status not in ("queued", "in_progress"):
        return Standing(status=status, progress=progress)
    waits = place if status == "queued" else None
    eta_s = None
    if backlog is not None and not outcome.job.held and not outcome.job.counts.get(State.IN_REVIEW):
        left_s = [_left_s(task, done[task["id"]], ratios, now_us) for task in outcome.tasks]
        eta_s = _wait_s(outcome, backlog, waits) if waits is not None else 0.0
        if eta_s is not None:
            eta_s += sum(left_s) + ahead_s
    return Standing(status=status, progress=progress, queue_position=waits, eta_s=eta_s)


def fraction(task: Mapping[str, Any], heard: Json | None) -> float:
    """The part of a task that is done, 0 to 1."""
    state = State(task["state"])
    if state in DONE or state is State.IN_REVIEW:
        return 1.0
    if state is not State.RUNNING or heard is None or not heard["stage"]:
        return 0.0
    stage = heard["stage"].removeprefix(STORE_AWAY)
    begins, lasts = STAGES.get(stage, UNNAMED)
    part = min(1.0, heard["done"] / max(1, heard["total"])) if stage == heard["stage"] else 0.0
    return float(begins + lasts * part)


def _left_s(task: Mapping[str, Any], done: float, ratios: Mapping[str, float], now_us: int) -> float:
    """By its own pace, once it has one; else as predicted."""
    if State(task["state"]) in ENDED or task["state"] == State.IN_REVIEW.value:
        return 0.0
    ran_s = max(0.0, (now_us - task["changed_us"]) / 1e6)
    if done > 0.1:
        return float(ran_s / done * (1.0 - done))
    predicted_s = float(task["weight"] * ratios.get(task["step"], 1.0))
    return max(0.0, predicted_s - ran_s) if task["state"] == State.RUNNING.value else predicted_s


def _wait_s(outcome: Outcome, backlog: Backlog, place: int) -> float | None:
    """Until its first task begins: what runs is half done on average, what waits is of average length."""
    role = next((task["role"] for task in outcome.tasks if task["state"] not in ENDED), None)
    num_workers = backlog.num_workers.get(role or "", 0)
    if role is None or not num_workers:
        return None
    each_s = backlog.ready_s.get(role, 0.0) / max(1, backlog.num_ready.get(role, 0))
    return (backlog.running_s.get(role, 0.0) / 2 + place * each_s) / num_workers
