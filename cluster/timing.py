"""How long things take: predictions from what was measured, and the time that is left. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIN_SAMPLES = 3
MOST_SAMPLES = 100
"""Of a kind: older ones tell of another machine."""
RECENT = 5
"""So many attempts say how busy a machine is now."""
MOST_DRIFT = 8.0
Kind = tuple[str | None, ...]
"""(step, model), or (step, model, shape)."""
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
    accelerator: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Actual over predicted seconds: mean, median, and what 19 of 20 stay below. No samples: nothing was learned."""

    mean: float = 1.0
    p50: float = 1.0
    p95: float = 3.0
    num_samples: int = 0
    drift: float = 1.0  # the part of it which the newest attempts alone tell of, and which may pass


class Paces:
    """What attempts have taught, as narrowly as there are a few of them: of the accelerator, else of all; and of those
    by shape, else by step and model.

    `samples` come newest first. A machine that is shared is slower now than it was: what the newest attempts of a step
    and model took, each against its own shape, counts for all of its shapes (`_drifts`). For a shape that nobody has
    seen, seconds grow in a straight line with what was predicted, from a base that all shapes share.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        ratios: dict[Kind, list[float]] = defaultdict(list)
        known = [one for one in samples if one.predicted_s > 0]
        kinds = {one.accelerator for one in known}
        self._own = {a: Paces(one for one in known if one.accelerator == a) for a in kinds} if len(kinds) > 1 else {}
        for one in known:
            for kind in ((one.step, one.model), (one.step, one.model, one.shape)):
                if len(ratios[kind]) < MOST_SAMPLES:
                    ratios[kind].append(one.actual_s / one.predicted_s)
        self._base = {kind: statistics.median(r) for kind, r in ratios.items() if len(r) >= MIN_SAMPLES}
        self._ratios = {kind: ratios[kind] for kind in self._base}
        self._drift, self._spread = self._drifts(known)
        self._lines = self._fitted(known)

    def of(
        self,
        step: str,
        model: str | None,
        shape: str | None,
        predicted_s: float = 0.0,
        *,
        accelerator: str | None = None,
    ) -> Pace:
        """Of a task that was predicted to take so long, on such an accelerator."""
        if accelerator in self._own:
            own = self._own[accelerator].of(step, model, shape, predicted_s)
            if own.num_samples:
                return own
        kind: Kind = (step, model, shape)
        base = self._base.get(kind)
        if base is None:
            kind = (step, model)
            line = self._lines.get(kind)
            base = self._base.get(kind)
            if base is not None and line is not None and predicted_s > 0:
                base = max(line[0] + line[1] * predicted_s, 0.0) / predicted_s or base
        if base is None:
            return Pace()
        ratios, spread = self._ratios[kind], self._spread.get(kind, [])
        drift = self._drift.get((step, model), 1.0)
        p50 = base * drift
        above = _p95(ratios) / statistics.median(ratios)
        if len(spread) >= MIN_SAMPLES:  # either it was chance all the time, or the machine was as busy as it was
            above = min(above, _p95(spread))
        mean = statistics.fmean(ratios) / statistics.median(ratios)
        return Pace(mean=p50 * mean, p50=p50, p95=p50 * max(1.0, above), num_samples=len(ratios), drift=drift)

    def _drifts(self, known: Sequence[Sample]) -> tuple[dict[Kind, float], dict[Kind, list[float]]]:
        """By step and model, how much slower its newest attempts were than their shapes are; and by kind, what each
        attempt took against what would have been said of it then."""
        against: dict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        spread: dict[Kind, list[float]] = defaultdict(list)
        for one in reversed(known):
            group, kind = (one.step, one.model), (one.step, one.model, one.shape)
            base = self._base.get(kind)
            if base:
                slower = one.actual_s / one.predicted_s / base
                then = _typical(against[group])
                for of in (group, kind):
                    spread[of].append(slower / then)
                against[group].append(slower)
        return {group: _typical(some) for group, some in against.items()}, spread

    def _fitted(self, known: Sequence[Sample]) -> dict[Kind, tuple[float, float]]:
        """By step and model (seconds of nothing, seconds by predicted second): least squares through the shapes."""
        points: dict[Kind, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for one in known[:MOST_SAMPLES]:
            points[one.step, one.model][one.predicted_s].append(one.actual_s)
        found = {}
        for kind, by_predicted in points.items():
            if len(by_predicted) >= 2:
                medians = [statistics.median(some) for some in by_predicted.values()]
                slope, base = statistics.linear_regression(list(by_predicted), medians)
                found[kind] = (base, slope) if slope > 0 else (statistics.fmean(medians), 0.0)
        return found


def _typical(slower: Sequence[float]) -> float:
    return min(max(statistics.median(slower), 1 / MOST_DRIFT), MOST_DRIFT) if len(slower) >= MIN_SAMPLES else 1.0


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


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
