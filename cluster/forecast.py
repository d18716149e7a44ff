"""What work is likely to take and to cost before anything of it runs, and how that comes about. Pure.

Tasks are taken as independent: the spread of their sum grows with the root of their number. What does grow with the
number is the error of the pace, for it is the same for all of them; the more samples, the smaller it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cluster.rates import HOUR_US
from cluster.timing import RECENT, Pace, Paces


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Tasks of which one takes as long as the other."""

    step: str
    role: str
    model: str | None
    shape: str | None  # of `timing.shape_of`
    predicted_s: float  # of each
    num_tasks: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """Workers of one kind and price; none of them: this is what the last one was, or would be."""

    role: str
    model: str | None
    accelerator: str
    num_accelerators: int  # of each worker; 0: a cpu
    price_class: str
    rate_card: str
    nano_per_hour: int  # of a whole worker
    num_workers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Before:
    """What the workers of a role have to do before they begin with this."""

    running_s: float = 0.0  # predicted, of what runs now
    num_running: int = 0
    ready_s: float = 0.0  # predicted, of what comes first


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """The median, and what 19 of 20 stay below. Of seconds, or of nano-dollars."""

    p50: float
    p95: float

    def times(self, factor: float) -> Span:
        return Span(p50=self.p50 * factor, p95=self.p95 * factor)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The tasks of one kind: who does them, at what pace, and what they come to."""

    kind: Kind
    pace: Pace
    crew: Crew
    elapsed_s: Span  # of all of them, spread over the crew
    held_s: Span  # accelerator-seconds, worker-seconds on a cpu
    nano: Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """`wait_s` None: nobody is here who could begin."""

    steps: tuple[Step, ...]
    wait_s: Span | None
    elapsed_s: Span  # from the beginning of the first task to the end of the last
    held_s: Span
    nano: Span


def forecast(kinds: Sequence[Kind], *, paces: Paces, crews: Iterable[Crew], unknown: Crew, before: Before) -> Forecast:
    """Of work whose kinds follow one another. `before` is of the first role; `unknown` does what nobody ever did."""
    there = list(crews)
    steps = tuple(_step(kind, paces, _crew(kind, there, unknown)) for kind in kinds)
    return Forecast(
        steps=steps,
        wait_s=_wait(steps[0], before) if steps else None,
        elapsed_s=total([step.elapsed_s for step in steps]),
        held_s=total([step.held_s for step in steps]),
        nano=total([step.nano for step in steps]),
    )


def total(parts: Sequence[Span]) -> Span:
    """Of independent parts: medians add up, and so do the squares of what lies above them."""
    p50 = sum(part.p50 for part in parts)
    return Span(p50=p50, p95=p50 + math.sqrt(sum((part.p95 - part.p50) ** 2 for part in parts)))


def _step(kind: Kind, paces: Paces, crew: Crew) -> Step:
    pace = paces.of(kind.step, kind.model, kind.shape, kind.predicted_s, accelerator=crew.accelerator)
    all_s = _of_many(kind, pace, kind.num_tasks)
    return Step(
        kind=kind,
        pace=pace,
        crew=crew,
        elapsed_s=_of_many(kind, pace, math.ceil(kind.num_tasks / max(1, crew.num_workers))),
        held_s=all_s.times(max(1, crew.num_accelerators)),
        nano=all_s.times(crew.nano_per_hour * 1e6 / HOUR_US),
    )


def _of_many(kind: Kind, pace: Pace, count: int) -> Span:
    """Seconds of so many tasks, one after the other. The median of a sum is near the sum of means, not of medians; how
    busy a machine is now says little of a hundred tasks."""
    above = pace.p95 - pace.p50
    if pace.num_samples == 0:
        return Span(p50=pace.p50, p95=pace.p95).times(kind.predicted_s * count)
    p50 = pace.p50 if count == 1 else pace.mean * count
    spread = above * math.sqrt(count + count * (count - 1) / pace.num_samples)
    passes = (1 + (pace.drift - 1) * min(1.0, RECENT / max(1, count))) / pace.drift
    return Span(p50=p50, p95=p50 + spread).times(kind.predicted_s * passes)


def _crew(kind: Kind, crews: Sequence[Crew], unknown: Crew) -> Crew:
    """All that may do it, as if they were like the most numerous of them, or the dearest of equally many."""
    able = [one for one in crews if one.role == kind.role and kind.model in (None, one.model)]
    like = max(able, key=lambda one: (one.num_workers, one.nano_per_hour), default=unknown)
    return replace(like, num_workers=sum(one.num_workers for one in able))


def _wait(first: Step, before: Before) -> Span | None:
    """What runs is half done on average; what comes first is taken to go at the pace of this."""
    num_workers, pace = first.crew.num_workers, first.pace
    if num_workers == 0:
        return None
    if before.ready_s == 0 and before.num_running < num_workers:
        return Span(p50=0.0, p95=0.0)
    p50 = (before.running_s / 2 + before.ready_s) * pace.p50 / num_workers
    return Span(p50=p50, p95=(before.running_s + before.ready_s) * pace.p95 / num_workers)
