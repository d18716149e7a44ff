"""Named places where a test may break the farm. Off in production: then `point` costs one look at a variable.

    with faults.point("store.put"):
        ...

A plan arms points by name: each fault strikes once, at the n-th time that the point is passed, in one process of the
farm only (a file in a shared directory says who was first).
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from cluster.errors import InvalidSettings, Unavailable

T = TypeVar("T")


class Action(StrEnum):
    BEFORE = "before"  # raise, nothing was done
    AFTER = "after"  # raise, everything was done: the lost acknowledgement
    DELAY = "delay"
    HANG = "hang"
    KILL = "kill"  # SIGKILL before the work
    KILL_AFTER = "kill_after"  # SIGKILL after the work, before anybody hears of it
    TWICE = "twice"  # the work is done twice (only where `call` stands)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    point: str
    action: Action
    nth: int = 1  # strikes when the point is passed for the n-th time in a process
    seconds: float = 0.0  # of a delay or hang


class FaultInjected(Unavailable):
    """What a fault raises: it looks like a service that is away."""

    code = "fault_injected"


@dataclass(slots=True)
class _Armed:
    faults: tuple[Fault, ...]
    once_dir: Path
    passed: dict[str, int]


_armed: _Armed | None = None


def arm(faults: Sequence[Fault], once_dir: Path) -> None:
    """Arms this process. `once_dir` is shared by all processes of the farm."""
    global _armed
    once_dir.mkdir(parents=True, exist_ok=True)
    _armed = _Armed(tuple(faults), once_dir, {})


def disarm() -> None:
    global _armed
    _armed = None


def passed() -> dict[str, int]:
    """How often each point was passed since `arm`."""
    return dict(_armed.passed) if _armed else {}


def dumps(faults: Sequence[Fault]) -> str:
    return json.dumps([asdict(f) for f in faults])


def loads(text: str) -> tuple[Fault, ...]:
    """Raises InvalidSettings."""
    try:
        return tuple(Fault(**{**entry, "action": Action(entry["action"])}) for entry in json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidSettings(f"not a plan of faults: {error}", field="FARM_FAULTS") from error


@contextmanager
def point(name: str) -> Iterator[None]:
    """A boundary. Raises FaultInjected where a fault says so."""
    fault = _struck(name) if _armed is not None else None
    if fault is None:
        yield
        return
    if fault.action is Action.KILL:
        _die()
    if fault.action in (Action.DELAY, Action.HANG):
        time.sleep(fault.seconds)
    if fault.action is Action.BEFORE:
        raise FaultInjected(f"{name}: broken before")
    yield
    if fault.action is Action.KILL_AFTER:
        _die()
    if fault.action is Action.AFTER:
        raise FaultInjected(f"{name}: done, but the answer was lost")


def call(name: str, work: Callable[[], T]) -> T:
    """`work()` behind a point, where doing it twice must be as good as once."""
    fault = _struck(name, peek=True) if _armed is not None else None
    if fault is not None and fault.action is Action.TWICE:
        _struck(name)
        work()
        return work()
    with point(name):
        return work()


def _struck(name: str, *, peek: bool = False) -> Fault | None:
    assert _armed is not None
    count = _armed.passed.get(name, 0) + 1
    if not peek:
        _armed.passed[name] = count
    for number, fault in enumerate(_armed.faults):
        if fault.point == name and fault.nth == count:
            token = _armed.once_dir / f"{number}-{name}-{fault.action}"
            if peek:
                return None if token.exists() else fault
            try:
                os.close(os.open(token, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return fault
    return None


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
