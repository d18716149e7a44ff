"""Job graphs, as a recipe plans them, and content keys. Pure: no database, no clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import InvalidGraph

MAX_TASKS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """One task of a graph: what runs (`entry`), on which role, after which others.

    `key` is unique in its job and speaks to people ("sh010.t1"); `needs` names keys of the same job.
    `entry` is an import string, "package.module:function"; only JSON goes into `params`.
    """

    key: str
    step: str
    role: str
    entry: str
    params: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    model: str | None = None  # id in the catalog; a worker that holds it fits
    weight: float = 1.0  # share of the job's progress, in predicted seconds
    expands: bool = False  # its report may carry children
    cacheable: bool = True  # the same question has the same answer, so a committed one is taken

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "step": self.step,
            "role": self.role,
            "entry": self.entry,
            "params": self.params,
            "needs": list(self.needs),
            "model": self.model,
            "weight": self.weight,
            "expands": self.expands,
            "cacheable": self.cacheable,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskSpec:
        return cls(**{**data, "needs": tuple(data.get("needs", ()))})


def checked(tasks: Sequence[TaskSpec], *, existing: frozenset[str] = frozenset()) -> list[TaskSpec]:
    """`tasks` in an order in which every task follows what it needs.

    `existing` are keys that the job has already. Raises InvalidGraph for cycles, unknown or doubled keys, too many.
    """
    if len(tasks) + len(existing) > MAX_TASKS:
        raise InvalidGraph(
            f"a job has at most {MAX_TASKS} tasks, this one would have {len(tasks) + len(existing)}",
            field="tasks",
            remedy="split it into several jobs",
        )
    by_key: dict[str, TaskSpec] = {}
    for task in tasks:
        if task.key in by_key or task.key in existing:
            raise InvalidGraph(f"two tasks have the key {task.key!r}", field="tasks")
        by_key[task.key] = task
    for task in tasks:
        for need in task.needs:
            if need not in by_key and need not in existing:
                raise InvalidGraph(f"task {task.key!r} needs {need!r}, which is not in the job", field="tasks")
    waiting = {t.key: sum(n in by_key for n in t.needs) for t in tasks}
    dependants: dict[str, list[str]] = {}
    for task in tasks:
        for need in task.needs:
            dependants.setdefault(need, []).append(task.key)
    ready = [k for k, n in waiting.items() if n == 0]
    order: list[TaskSpec] = []
    while ready:
        key = ready.pop()
        order.append(by_key[key])
        for child in dependants.get(key, ()):
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
    if len(order) < len(tasks):
        stuck = sorted(k for k, n in waiting.items() if n)[:5]
        raise InvalidGraph(f"the graph has a cycle through {', '.join(stuck)}", field="tasks")
    position = {t.key: i for i, t in enumerate(tasks)}
    level: dict[str, int] = {}
    for task in order:
        level[task.key] = 1 + max((level[n] for n in task.needs if n in by_key), default=-1)
    return sorted(order, key=lambda t: (level[t.key], position[t.key]))


def canonical(value: Any) -> bytes:
    """JSON with one spelling: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def content_key(*, entry: str, params: Mapping[str, Any], inputs: Mapping[str, Sequence[str]], engine: str) -> str:
    """SHA-256 of all that was asked of a task; where and how it runs is not in it.

    `inputs` maps the keys of needed tasks to the content hashes of their files; `engine` names the major version of
    what answers, so that an upgrade which may change the answer changes the key.
    """
    asked = {"entry": entry, "params": params, "inputs": inputs, "engine": engine}
    return hashlib.sha256(canonical(asked)).hexdigest()
