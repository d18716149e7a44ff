"""How long things take: predictions from what was measured, and the time that is left. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MIN_SAMPLES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead:
    """A task that is not over: its predicted seconds and the part of it that is done, 0 to 1."""

    step: str
    role: str
    predicted_s: float
    fraction: float = 0.0


def learned(samples: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Actual over predicted seconds by step: the median of (step, predicted, actual), once there are a few."""
    ratios: dict[str, list[float]] = {}
    for step, predicted_s, actual_s in samples:
        if predicted_s > 0:
            ratios.setdefault(step, []).append(actual_s / predicted_s)
    return {step: statistics.median(r) for step, r in ratios.items() if len(r) >= MIN_SAMPLES}


def left_s(ahead: Sequence[Ahead], *, ratios: Mapping[str, float], workers: Mapping[str, int]) -> float:
    """Seconds until all of `ahead` is done: each role's work spread over its workers, roles one after the other.

    A film's roles do follow each other (write, render, finish), so the sum is the truth, not a bound.
    """
    by_role: dict[str, float] = {}
    for task in ahead:
        rest_s = task.predicted_s * ratios.get(task.step, 1.0) * (1.0 - task.fraction)
        by_role[task.role] = by_role.get(task.role, 0.0) + rest_s
    return sum(rest_s / max(1, workers.get(role, 1)) for role, rest_s in by_role.items())


def span(value: float) -> str:
    """How long something is, in its largest unit: "12 s", "5 min", "3.2 h", "4 d"."""
    value = max(0.0, value)
    if value < 99.5:
        return f"{value:.0f} s"
    if value < 5400:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h" if value < 172_800 else f"{value / 86_400:.0f} d"
