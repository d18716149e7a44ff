"""What a dispatcher watches, in memory: whether an attempt still moves, and whether a worker fails again and again."""

from __future__ import annotations

from collections.abc import Mapping

from actors.contract import SICK

MIN_SAMPLES = 3
TIMES_LONGEST = 10.0
"""An attempt is stuck after this many times the longest pause that its stage was ever seen to make."""
FAILURES_OF_A_SICK = 3


class Bounds:
    """How long an attempt may show no progress, by step, model and stage, learnt from attempts that succeeded.

    `cold_s` holds until a stage was seen MIN_SAMPLES times; no bound is below `least_s`.
    """

    def __init__(self, *, cold_s: float, least_s: float) -> None:
        self._cold_s, self._least_s = cold_s, least_s
        self._seen: dict[tuple[str, str | None, str], tuple[int, float]] = {}

    def learn(self, step: str, model: str | None, gaps_s: Mapping[str, float]) -> None:
        for stage, gap_s in gaps_s.items():
            count, longest_s = self._seen.get((step, model, stage), (0, 0.0))
            self._seen[step, model, stage] = (count + 1, max(longest_s, gap_s))

    def pause_s(self, step: str, model: str | None, stage: str) -> float:
        """The longest that the stage was seen to make; 0 while nothing is known of it."""
        return self._seen.get((step, model, stage), (0, 0.0))[1]

    def bound_s(self, step: str, model: str | None, stage: str) -> float:
        count, longest_s = self._seen.get((step, model, stage), (0, 0.0))
        if count < MIN_SAMPLES:
            return self._cold_s
        return max(self._least_s, TIMES_LONGEST * longest_s)


class Health:
    """Failures of each worker since it last did something well."""

    def __init__(self) -> None:
        self._failed: dict[str, dict[str, str]] = {}  # worker: job: what happened

    def failed(self, worker_id: str, job_id: str, line: str) -> str | None:
        """Why the worker is sick now, if it is: three failures of different jobs in a row."""
        jobs = self._failed.setdefault(worker_id, {})
        jobs[job_id] = line
        if len(jobs) < FAILURES_OF_A_SICK:
            return None
        return f"{SICK}{FAILURES_OF_A_SICK} failures of different jobs in a row, the last: {line}"

    def well(self, worker_id: str) -> None:
        self._failed.pop(worker_id, None)
