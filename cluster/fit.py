"""Whether a worker may run a ready task, and what holds the task back: one pure list of predicates.

The dispatcher asks it before a lease, `farm why` asks it for an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.errors import FailureClass

LAST_TRIAL = 2
"""A task that took this many workers with it runs alone on its node: the next one that dies makes it POISON."""
NOT_THE_WORKERS = (FailureClass.INPUT.value, FailureClass.QUALITY.value, FailureClass.LIMIT.value)
"""Failures that say nothing about the worker on which they happened."""
SICKENING = (FailureClass.BUG.value, FailureClass.RESOURCE.value)
"""Failures that make a worker sick when they come in a row. A store that is away is away for all of them."""
FAILURES_PER_NODE = 3
"""A task that failed this often on a node is tried on others first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A worker as a ready task sees it."""

    worker_id: str
    role: str
    models: tuple[str, ...]
    node: str
    draining: str | None = None  # why it gets no more work
    num_running_on_node: int = 0  # attempts of other tasks
    node_is_taken: bool = False  # by a last trial, which runs alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A ready task as a worker sees it."""

    role: str
    model: str | None
    failures: Mapping[str, int]  # by failure class, in this generation
    failed_on: Mapping[str, int]  # how often by worker id and by node


def last_trial(failures: Mapping[str, int]) -> bool:
    return failures.get(FailureClass.POISON.value, 0) >= LAST_TRIAL


def unfit(task: Asked, place: Place, *, elsewhere: bool = False) -> str | None:
    """Why this worker may not run this task now; None if it may.

    `elsewhere`: another worker is here that could run it and on which it has not failed. A worker or node where the
    task failed is avoided only then, for a laptop has no other one.
    """
    if task.role != place.role:
        return f"it is a {place.role} worker, not {task.role}"
    if task.model is not None and task.model not in place.models:
        return f"it does not hold {task.model}"
    if place.draining is not None:
        return f"it takes no more work: {place.draining}"
    if elsewhere and blocked(task, place):
        return "the task failed on it, or on its node, before"
    if place.node_is_taken:
        return "its node is kept for a task that took two workers with it"
    if last_trial(task.failures) and place.num_running_on_node:
        return "the task took two workers with it: it waits to run alone on a node"
    return None


def blocked(task: Asked, place: Place) -> bool:
    return place.worker_id in task.failed_on or task.failed_on.get(place.node, 0) >= FAILURES_PER_NODE
