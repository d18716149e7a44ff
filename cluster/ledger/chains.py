"""What attempts cost and what of it was wasted, by the log of events alone: no cost line is read here. Pure.

A worker's time is cut whenever somebody is given it or leaves it, priced as differences of one sum, and split between
those who had it. The checker holds the cost lines against this.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from cluster.ledger.events import WorkerEvent
from cluster.ledger.replay import Attempt
from cluster.rates import cost_until, split
from cluster.states import AttemptState

JOIN, END, BACK, LEASE, LEAVE, BOOKED = range(6)
"""What happens to a worker, in the order of one instant."""


@dataclass(slots=True)
class Bill:
    """Of one attempt. `wasted_nano` None: the log does not say what of it was kept."""

    nano: int = 0
    held_us: int = 0
    wasted_nano: int | None = 0


def bills(workers: Sequence[WorkerEvent], attempts: Mapping[str, Attempt]) -> dict[str, Bill]:
    """By attempt, of a log during which no clock was set."""
    events: dict[str, list[WorkerEvent]] = defaultdict(list)
    for e in workers:
        events[e.worker_id].append(e)
    of_worker: dict[str, list[tuple[str, Attempt]]] = defaultdict(list)
    for attempt_id, attempt in attempts.items():
        of_worker[attempt.worker_id].append((attempt_id, attempt))
    found = {attempt_id: Bill() for attempt_id in attempts}
    for worker_id, its_own in events.items():
        _chain(its_own, of_worker[worker_id], found)
    for attempt_id, bill in found.items():
        bill.wasted_nano = _wasted(attempts[attempt_id], bill.nano)
    return found


def _chain(events: Sequence[WorkerEvent], attempts: Sequence[tuple[str, Attempt]], found: Mapping[str, Bill]) -> None:
    overtaken = {e.data["at_us"]: e.data["edge_us"] for e in events if e.kind == "worker.overtaken"}
    changes: list[tuple[int, int, str]] = []
    beginnings = Counter(a.from_us for _, a in attempts)
    reached_us = 0
    for attempt_id, a in sorted(attempts, key=itemgetter(0)):  # as they were given out
        genuine = a.from_us >= reached_us and beginnings[a.from_us] > 1  # the clock came to this instant twice
        from_us = a.from_us if genuine else overtaken.get(a.from_us, a.from_us)
        to_us = a.to_us if a.to_us is None else overtaken.get(a.to_us, a.to_us)
        if to_us is None or to_us > from_us:  # else it held nothing
            changes.append((from_us, LEASE, attempt_id))
        if to_us is not None and to_us > from_us:
            changes.append((to_us, END, attempt_id))
        reached_us = max(reached_us, from_us, to_us or 0)
    comings = [e for e in events if e.kind == "worker.join"]
    if not comings:
        return
    changes += [(e.at_us, BACK if n else JOIN, "") for n, e in enumerate(comings)]
    changes += [(e.at_us, LEAVE, "") for e in events if e.kind == "worker.leave"]
    changes += [(e.at_us, BOOKED, "") for e in events if e.kind == "worker.booked"]
    began = {attempt_id: (a.from_us, attempt_id) for attempt_id, a in attempts}
    facts = comings[0].data
    rate, num, spawned_us = facts["nano_per_hour"], max(1, facts["num_accelerators"]), facts["spawned_us"]
    since_us, here = spawned_us, False
    occupants: list[str] = []
    for at_us, kind, attempt_id in sorted(changes):
        here = here or kind in (JOIN, BACK)
        if here and at_us > since_us:
            nano = cost_until(rate, at_us - spawned_us) - cost_until(rate, since_us - spawned_us)
            equal = [1] * len(occupants)
            if occupants:
                held = split((at_us - since_us) * num, equal)
                for who, share, held_us in zip(occupants, split(nano, equal), held, strict=True):
                    found[who].nano += share
                    found[who].held_us += held_us
            since_us = at_us
        if kind == LEAVE:
            here = False
        elif kind == LEASE:
            occupants = sorted([*occupants, attempt_id], key=began.__getitem__)
        elif kind == END:
            occupants.remove(attempt_id)


def _wasted(attempt: Attempt, nano: int) -> int | None:
    """What failed, was lost or was taken away is wasted, but for the part that a commit went on from."""
    if attempt.committed or attempt.state == AttemptState.RUNNING.value:
        return 0
    if attempt.state == AttemptState.INTERRUPTED.value:
        return 0 if attempt.resumed and attempt.kept else nano
    if not attempt.resumed:
        return nano
    held_us = (attempt.to_us or 0) - attempt.from_us
    if attempt.kept is None and attempt.state not in (AttemptState.CANCELED.value, AttemptState.SUPERSEDED.value):
        return None
    return nano - round(min(1.0, (attempt.kept or 0.0) * 1e6 / held_us) * nano) if held_us > 0 else nano
