"""Job graphs, as a recipe plans them, and content keys. Pure: no database, no clock."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.assets import canonical_json
from cluster.errors import InvalidGraph, InvalidInput

MAX_TASKS = 20_000
ENTRY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
LONGEST = {"key": 128, "step": 64, "role": 32, "entry": 255, "model": 128, "gate": 64}
"""Characters of the names of a task: what every database holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """One task of a graph: what runs (`entry`), on which role, after which others.

    `key` is unique in its job and speaks to people ("sh010.t1"); `needs` names keys of the same job.
    `entry` is an import string, "package.module:function"; only JSON goes into `params`. What expands is never
    taken from an earlier answer, since an answer brings no children. Raises InvalidGraph for names and weights that no
    ledger holds.
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
    gate: str | None = None  # its answer waits for a person; of the tasks of a job with one gate, one approved will do

    def __post_init__(self) -> None:
        for name, longest in LONGEST.items():
            value = getattr(self, name)
            if name in ("model", "gate") and value is None:
                continue
            flaw = flaw_of_text(value, longest) if value else "is empty"
            if flaw:
                raise InvalidGraph(f"{name} of the task {str(self.key)[:40]!r} {flaw}", field=f"tasks.{name}")
        if not ENTRY.fullmatch(self.entry):
            raise InvalidGraph(
                f"entry {self.entry!r} of the task {self.key!r} names no step",
                field="tasks.entry",
                remedy="use package.module:function",
            )
        if not math.isfinite(self.weight) or self.weight < 0:
            raise InvalidGraph(f"weight of the task {self.key!r} must be 0 or more", field="tasks.weight")
        object.__setattr__(self, "needs", tuple(dict.fromkeys(self.needs)))

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
            "gate": self.gate,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskSpec:
        """Raises InvalidGraph for a document that is no task."""
        try:
            return cls(**{**data, "needs": tuple(data.get("needs", ()))})
        except (TypeError, AttributeError) as error:
            raise InvalidGraph(f"not a task: {error}", field="tasks") from error


def flaw_of_text(value: Any, longest: int) -> str | None:
    """Why a database would refuse or mangle `value` as a line of text of at most `longest` characters."""
    if not isinstance(value, str):
        return "is not text"
    if len(value) > longest:
        return f"is longer than {longest} characters"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        return "holds a control character or a lone surrogate"
    return None


def check_size(num_tasks: int) -> None:
    """Raises InvalidGraph for more than a job can have."""
    if num_tasks > MAX_TASKS:
        raise InvalidGraph(
            f"a job has at most {MAX_TASKS} tasks, this one would have {num_tasks}",
            field="tasks",
            remedy="split it into several jobs",
        )


def checked(tasks: Sequence[TaskSpec], *, existing: frozenset[str] = frozenset()) -> list[TaskSpec]:
    """`tasks` in an order in which every task follows what it needs.

    `existing` are keys that the job has already. Raises InvalidGraph for cycles, unknown or doubled keys, too many.
    """
    check_size(len(tasks) + len(existing))
    by_key: dict[str, TaskSpec] = {}
    for task in tasks:
        try:
            canonical_json(task.params)
        except (InvalidInput, RecursionError) as error:
            what = str(error) if isinstance(error, InvalidInput) else "nested too deeply"
            raise InvalidInput(f"params of the task {task.key!r}: {what}", field="tasks.params") from error
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


def content_key(
    *,
    entry: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, Sequence[str]],
    engine: str,
    model: str | None = None,
) -> str:
    """SHA-256 of all that was asked of a task; where and how it runs is not in it. Raises InvalidInput for no JSON.

    `inputs` maps the keys of needed tasks to the hashes of what they answered; `engine` names the major version of
    what answers, so that an upgrade which may change the answer changes the key.
    """
    asked = {"entry": entry, "params": params, "inputs": inputs, "engine": engine, "model": model}
    return hashlib.sha256(canonical_json(asked)).hexdigest()


def answer_hashes(files: Sequence[Mapping[str, Any]] | None, result: Any) -> list[str]:
    """What a dependant reads of a committed task: the content of its files, and its small facts."""
    hashes = [str(file["content_sha256"]) for file in files or ()]
    return [*hashes, f"result:{hashlib.sha256(canonical_json(result)).hexdigest()}"] if result else hashes


def with_new_seed(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """`params` of a new take: the seed of its shot, derived from the old one. None where no shot has a seed."""
    spec = params.get("spec")
    seed = spec.get("seed") if isinstance(spec, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(seed, int) or isinstance(seed, bool):
        return None
    return {**params, "spec": {**spec, "seed": new_seed(seed)}}


def new_seed(seed: int) -> int:
    """Of the take after the one that was drawn with `seed`, 0 to 2^31-1."""
    digest = hashlib.sha256(f"another take after {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF
