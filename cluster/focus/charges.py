"""From cost lines to charges of one hour each: nothing is lost on the way, to the nano-dollar. Pure.

A line that spans hours is split by the time that it has in each, largest remainder first. Lines that book an attempt
again (their `note` says why) are laid over the same hours in the proportions of the lines that they mean, so that what
was taken back vanishes. Only where the month of an hour was closed before they were booked do they stand as
corrections, on the bill of the month in which they were; so does the time of a worker of which nobody had known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from cluster.focus.lines import NOTHING, Amounts, Charge, Line, Period, month_of
from cluster.rates import HOUR_US, split

WHOLE = 10**12
"""The parts of an allocation sum to it."""
Hours = dict[int, Amounts]
"""Amounts by the first instants of hours."""


def charges(lines: Iterable[Line], period: Period) -> Iterator[Charge]:
    """The charges of `period`: its hours, and what was booked in it to correct hours of months that were closed.

    `lines` come by worker, those of one worker by (from_us, id). Where an attempt was booked again, all its lines have
    to be among them, also those outside the period. Periods that adjoin leave nothing out and hold nothing twice.
    """
    for _, own in groupby(lines, key=lambda line: line.worker_id):
        yield from _Chain(period).charges(own)


class _Chain:
    """The lines of one worker in the order of time. It holds the hours that may still change, and no others."""

    def __init__(self, period: Period) -> None:
        self._period = period
        self._open_us = self._looked_us = 0  # the hours before the first are told
        self._hours: dict[int, dict[tuple[Any, ...], tuple[Line, Amounts]]] = defaultdict(dict)
        self._measured: dict[int, dict[str, Amounts]] = defaultdict(dict)  # by hour and attempt
        self._again: dict[str, list[Line]] = defaultdict(list)  # what books an attempt again

    def charges(self, lines: Iterable[Line]) -> Iterator[Charge]:
        for line in lines:
            if line.from_us >= self._looked_us + HOUR_US:
                self._looked_us = _hour(line.from_us)
                yield from self._tell(line.from_us)
            if line.note is not None and line.attempt_id is not None:
                self._again[line.attempt_id].append(line)
                continue
            parts = _by_time(line)
            yield from self._lay(line, parts)
            if line.attempt_id is not None:
                for hour_us, part in parts.items():
                    own = self._measured[hour_us]
                    own[line.attempt_id] = own.get(line.attempt_id, NOTHING).plus(part)
        yield from self._tell(None)

    def _tell(self, until_us: int | None) -> Iterator[Charge]:
        """What can change no more, now that all lines which begin before `until_us` are here; None: all are."""
        for attempt_id, lines in list(self._again.items()):
            if until_us is None or max(line.to_us for line in lines) <= until_us:
                yield from self._book_again(attempt_id, sorted(lines, key=lambda line: line.id))
                del self._again[attempt_id]
        firsts = [line.from_us for lines in self._again.values() for line in lines]
        if until_us is not None:
            firsts.append(until_us)
            self._open_us = _hour(min(firsts))
        for hour_us in sorted(h for h in self._hours if until_us is None or h < self._open_us):
            yield from self._charges_of(hour_us)

    def _charges_of(self, hour_us: int) -> Iterator[Charge]:
        self._measured.pop(hour_us, None)
        found = [(line, amounts) for line, amounts in self._hours.pop(hour_us).values() if any(amounts)]
        if not self._period.holds(hour_us):
            return
        origins: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for place, (line, _) in enumerate(found):
            if line.worker_id is not None:
                origins[_origin(line)].append(place)
        ratios: dict[int, int] = {}
        for places in origins.values():
            parts = split(WHOLE, [max(0, found[place][1].held_us) for place in places])
            ratios.update(zip(places, parts, strict=True))
        for place, (line, amounts) in enumerate(found):
            yield Charge(
                hour_us=hour_us,
                of=line,
                amounts=amounts,
                month_us=month_of(hour_us),
                correction=False,
                ratio=ratios.get(place),
            )

    def _book_again(self, attempt_id: str, lines: Sequence[Line]) -> Iterator[Charge]:
        """What a line takes back is taken where it stands; what it books instead is booked there."""
        measured = {h: own[attempt_id] for h, own in self._measured.items() if attempt_id in own}
        stands: dict[str, Hours] = defaultdict(dict, {"busy": dict(measured)})
        before, taken = NOTHING, Hours()
        for line in lines:
            own = stands[line.kind]
            if line.amounts == before.negated():
                parts = {h: part.negated() for h, part in taken.items()}
            else:
                parts = _spread(line.amounts, own if any(map(any, own.values())) else measured) or _by_time(line)
            before, taken = line.amounts, parts
            for hour_us, part in parts.items():
                own[hour_us] = own.get(hour_us, NOTHING).plus(part)
            yield from self._lay(line, parts)

    def _lay(self, line: Line, parts: Hours) -> Iterator[Charge]:
        """Into its hours; corrections of months that are closed stand alone."""
        key = _key(line)
        for hour_us, part in parts.items():
            if line.note is not None and month_of(hour_us) < (month_us := month_of(line.booked_us)):
                if any(part) and self._period.holds(line.booked_us):
                    yield Charge(hour_us=hour_us, of=line, amounts=part, month_us=month_us, correction=True)
                continue
            hour = self._hours[hour_us]
            first, sum_ = hour.get(key, (line, NOTHING))
            hour[key] = (first, sum_.plus(part))


def _hour(at_us: int) -> int:
    return at_us // HOUR_US * HOUR_US


def _key(line: Line) -> tuple[Any, ...]:
    """What becomes one charge in an hour: beside the worker, all that may differ."""
    meter = (line.item, line.model, line.price_class, line.rate_card, line.price_nano)
    return (line.kind, line.tenant, line.show, line.job_id, line.task_id, line.attempt_id, *meter)


def _origin(line: Line) -> tuple[Any, ...]:
    """Of what an allocated charge is a part: all that the parts have in common."""
    return (line.tenant, line.show, line.role, line.recipe, line.model, line.price_class, line.rate_card)


def _by_time(line: Line) -> Hours:
    """By the time that the line has in each hour."""
    first_us, last_us = _hour(line.from_us), _hour(max(line.from_us, line.to_us - 1))
    if first_us == last_us:
        return {first_us: line.amounts}
    times = {
        h: Amounts(*[min(h + HOUR_US, line.to_us) - max(h, line.from_us)] * 3)
        for h in range(first_us, last_us + HOUR_US, HOUR_US)
    }
    return _spread(line.amounts, times)


def _spread(amounts: Amounts, weights: Mapping[int, Amounts]) -> Hours:
    """Each of the amounts by its own weights; of one that weighs nothing anywhere, by the held time."""
    if not weights:
        return {}
    held = [abs(weight.held_us) for weight in weights.values()]
    columns = []
    for amount, own in zip(amounts, zip(*weights.values(), strict=True), strict=True):
        by = [abs(weight) for weight in own]
        columns.append(split(amount, by if any(by) else held))
    return dict(zip(weights, (Amounts(*parts) for parts in zip(*columns, strict=True)), strict=True))
