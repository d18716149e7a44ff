"""How long things take: predictions from what was measured, and the time that is left. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIN_SAMPLES = 3
LENGTHENS = ("width_px", "height_px", "num_frames", "num_steps", "num_shots")
"""Of all that is asked of a task: what decides how long it takes, as far as is known."""


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


def shape_of(asked: Mapping[str, Any]) -> str | None:
    """Tasks of one step, model and shape take equally long. `asked` are its params, or the spec in them."""
    found = [f"{name}={asked[name]}" for name in LENGTHENS if asked.get(name) is not None]
    return " ".join(found) or None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """An attempt that succeeded."""

    step: str
    model: str | None
    shape: str | None  # of `shape_of`
    predicted_s: float
    actual_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Actual over predicted seconds: mean, median, and what 19 of 20 stay below. No samples: nothing was learned."""

    mean: float = 1.0
    p50: float = 1.0
    p95: float = 3.0
    num_samples: int = 0


class Paces:
    """What attempts have taught, as narrowly as there are a few of them: by shape, else by model and step."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        ratios: dict[tuple[str | None, ...], list[float]] = defaultdict(list)
        for one in samples:
            if one.predicted_s > 0:
                for kind in ((one.step, one.model), (one.step, one.model, one.shape)):
                    ratios[kind].append(one.actual_s / one.predicted_s)
        self._by_kind = {kind: _pace(found) for kind, found in ratios.items() if len(found) >= MIN_SAMPLES}

    def of(self, step: str, model: str | None, shape: str | None) -> Pace:
        known = self._by_kind
        return known.get((step, model, shape)) or known.get((step, model)) or Pace()


def _pace(ratios: Sequence[float]) -> Pace:
    twentieths = statistics.quantiles(ratios, n=20, method="inclusive")
    return Pace(
        mean=statistics.fmean(ratios), p50=statistics.median(ratios), p95=twentieths[-1], num_samples=len(ratios)
    )


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
