"""Which batch attempts stop at their next denoise step because interactive work waits. Pure.

It pays only if the wait is longer than what stopping and going on again takes; what stops keeps its checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Requirement = tuple[str, str | None]
"""(role, model): what a task needs of a worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """An attempt that a worker of `requirement` runs."""

    attempt_id: str
    requirement: Requirement
    preemptible: bool  # batch work that is between two denoise steps, and can be saved there
    left_s: float  # predicted
    stopping: bool = False  # it was told to stop already


def victims(
    waiting: Mapping[Requirement, int], idle: Mapping[Requirement, int], running: Iterable[Running], *, pays_s: float
) -> list[str]:
    """Attempt ids to preempt: as many as interactive tasks wait beyond idle workers and those about to be free.

    `pays_s`: an attempt that ends sooner than this by itself is waited for.
    """
    attempts: dict[Requirement, list[Running]] = {}
    for one in running:
        attempts.setdefault(one.requirement, []).append(one)
    chosen: list[str] = []
    for requirement, count in waiting.items():
        mine = attempts.get(requirement, [])
        soon = sum(one.stopping or one.left_s < pays_s for one in mine)
        wanted = count - Counter(idle)[requirement] - soon
        able = [one for one in mine if one.preemptible and not one.stopping and one.left_s >= pays_s]
        able.sort(key=lambda one: (-one.left_s, one.attempt_id))
        chosen += [one.attempt_id for one in able[: max(0, wanted)]]
    return chosen
