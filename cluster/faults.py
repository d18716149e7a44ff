"""Named places where a test may break the farm. Off in production: then a point costs one look at a variable.

    with faults.point("ledger.settle"):     # breaks before or after what stands in the block
        ...
    faults.call("worker.report", work)      # may also do the work twice, which must be as good as once
    @faults.at("store.get")                 # the same for every call of a function

A plan arms points by name, once each: a `Fault` strikes when its point is passed for the n-th time in a process, in one
process of the farm only (a file in a shared directory says who was first). Or by a seed, again and again: a `Chance`.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ParamSpec, TypeVar

from cluster.errors import InvalidSettings, LedgerUnavailable, StoreUnavailable, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

POINTS = {
    "ledger.transaction": "any transaction, between its last statement and its commit",
    "ledger.expand": "inside a commit: the children of an expansion are inserted",
    "ledger.settle": "inside a transaction: the time of a worker is priced and booked",
    "dispatcher.start": "a dispatcher takes its term, before it reads the ledger",
    "dispatcher.tick": "one round of the reaper: leases expire, back-offs end, new work is seen",
    "dispatcher.adopt": "a lost attempt is found by its receipt and committed",
    "worker.journal": "a report is written to the worker's journal, before anybody hears of it",
    "store.publish": "the bytes are written and get their final name",
    "assets.remove": "a blob that nobody needs, and that is claimed, is removed from the store",
    "webhooks.send": "a webhook is sent and answered",
}
"""Places that are passed once; what they stand around cannot be done twice by itself."""

CALLS = {
    "ledger.submit": "a job and its first tasks are committed",
    "ledger.term": "a dispatcher takes the next term",
    "ledger.join": "a worker's holding begins",
    "ledger.leave": "a worker's holding ends",
    "ledger.lease": "a task is given to a worker under the next epoch",
    "ledger.commit": "a verified receipt is committed, with its cost and its children",
    "ledger.fail": "a failed attempt is written down",
    "ledger.interrupt": "an interrupted attempt is written down",
    "ledger.lose": "an attempt whose lease ran out is written down",
    "ledger.backoff_over": "what has waited long enough becomes ready",
    "store.put_blob": "bytes are put at their content address",
    "store.put_once": "a write-once key is written: a receipt or a checkpoint",
    "store.get": "a key is read whole: a receipt or a checkpoint",
    "store.fetch": "an input is copied to the local disk",
    "store.verify": "a blob is read back before its receipt is committed",
    "worker.join": "a worker says that it is here",
    "worker.lease": "a worker asks for an order",
    "worker.dismiss": "a worker that stops calls off its waiting call for work",
    "worker.beat": "a worker renews its lease",
    "worker.report": "a worker says how an attempt ended",
    "worker.leave": "a worker says that it goes",
    "assets.mark": "blobs that nobody needs are marked",
    "assets.claim": "marked blobs are claimed, to be removed",
    "webhooks.claim": "what has to be sent is taken up by a deliverer",
    "webhooks.settle": "how a try of a webhook went is written down",
}
"""Calls that may be repeated: twice is as good as once."""


class Action(StrEnum):
    BEFORE = "before"  # raise, nothing was done
    AFTER = "after"  # raise, everything was done: the lost acknowledgement
    DELAY = "delay"
    HANG = "hang"
    KILL = "kill"  # SIGKILL before the work
    KILL_AFTER = "kill_after"  # SIGKILL after the work, before anybody hears of it
    TWICE = "twice"  # the work is done twice
    ECHO = "echo"  # done, and once more `seconds` later, beside what comes next


REPEATING = frozenset({Action.TWICE, Action.ECHO})
"""Actions of CALLS alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Strikes once. `follows`: its passings count only once the fault before it in the plan has struck."""

    point: str
    action: Action
    nth: int = 1  # strikes when the point is passed for the n-th time in a process
    seconds: float = 0.0  # of a delay, a hang or an echo
    follows: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Chance:
    """Strikes any passing with this probability. Equal seeds give equal draws to the n-th process that is armed."""

    point: str
    action: Action
    probability: float
    seed: int
    seconds: float = 0.0


AWAY = {"store": StoreUnavailable, "ledger": LedgerUnavailable}
"""What a fault raises, by the first part of its point's name, Unavailable for all others: the service is away."""


@dataclass(slots=True)
class _Armed:
    plan: tuple[Fault | Chance, ...]
    once_dir: Path
    number: int  # of this process among those that were armed
    passed: dict[str, int] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    dice: dict[int, random.Random] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def token(self, n: int) -> Path:
        return self.once_dir / f"struck-{n}"


_armed: _Armed | None = None


def arm(plan: Sequence[Fault | Chance], once_dir: Path) -> None:
    """Arms this process. `once_dir` is shared by all processes of the farm. Raises InvalidSettings."""
    global _armed
    for one in plan:
        if one.point not in POINTS and one.point not in CALLS:
            raise InvalidSettings(f"no point is called {one.point!r}", field="FARM_FAULTS")
        if one.action in REPEATING and one.point not in CALLS:
            raise InvalidSettings(f"{one.point} cannot be done twice", field="FARM_FAULTS")
    once_dir.mkdir(parents=True, exist_ok=True)
    number = 0
    while not _first(once_dir / f"process-{number}"):
        number += 1
    _armed = _Armed(tuple(plan), once_dir, number)


def arm_by(text: str, once_dir: Path) -> None:
    """Arms this process with a plan as `dumps` writes it; an empty one does nothing. Raises InvalidSettings."""
    if text:
        arm(loads(text), once_dir)


def disarm() -> None:
    global _armed
    _armed = None


def passed() -> dict[str, int]:
    """How often each point was passed since `arm`."""
    return dict(_armed.passed) if _armed else {}


def struck(once_dir: Path) -> int:
    """How many faults of the plan have struck so far, in all processes."""
    return len(list(once_dir.glob("struck-*")))


def struck_by_chance(once_dir: Path) -> dict[int, int]:
    """How often each chance of the plan has struck so far, in all processes, by its place in the plan."""
    return {int(path.name.rpartition("-")[2]): path.stat().st_size for path in once_dir.glob("chances-*")}


def dumps(plan: Sequence[Fault | Chance]) -> str:
    return json.dumps([asdict(one) for one in plan])


def loads(text: str) -> tuple[Fault | Chance, ...]:
    """Raises InvalidSettings."""
    try:
        return tuple(_entry(entry) for entry in json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidSettings(f"not a plan of faults: {error}", field="FARM_FAULTS") from error


def _entry(entry: dict[str, object]) -> Fault | Chance:
    kind = Chance if "probability" in entry else Fault
    return kind(**{**entry, "action": Action(str(entry["action"]))})  # type: ignore[arg-type]  # TypeError says what


@contextmanager
def point(name: str) -> Iterator[None]:
    """A boundary. Raises StoreUnavailable, LedgerUnavailable or Unavailable where a fault says so."""
    strike = _strike(name) if _armed is not None else None
    if strike is None:
        yield
        return
    if strike.action is Action.KILL:
        _die()
    if strike.action in (Action.DELAY, Action.HANG):
        time.sleep(strike.seconds)
    away = AWAY.get(name.partition(".")[0], Unavailable)
    if strike.action is Action.BEFORE:
        raise away(f"a fault was injected before {name}")
    yield
    if strike.action is Action.KILL_AFTER:
        _die()
    if strike.action is Action.AFTER:
        raise away(f"a fault was injected after {name}: done, but the answer was lost")


def call(name: str, work: Callable[[], T]) -> T:
    """`work()` behind a point, where doing it twice must be as good as once."""
    if _armed is None:
        return work()
    strike = _strike(name, repeating=True)
    if strike is None:
        with point(name):
            return work()
    answer = work()
    if strike.action is Action.TWICE:
        return work()
    echo = threading.Timer(strike.seconds, _hush(work))
    echo.daemon = True
    echo.start()
    return answer


def at(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Each call of the function is a `call` of this name."""

    def around(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def passing(*args: P.args, **kwargs: P.kwargs) -> T:
            if _armed is None:
                return function(*args, **kwargs)
            return call(name, lambda: function(*args, **kwargs))

        return passing

    return around


def _strike(name: str, *, repeating: bool = False) -> Fault | Chance | None:
    """What strikes this passing. `repeating` looks for what repeats a call, else for everything that does not."""
    armed = _armed
    assert armed is not None
    with armed.lock:
        if not repeating:
            armed.passed[name] = armed.passed.get(name, 0) + 1
        struck: Fault | Chance | None = None
        for n, one in enumerate(armed.plan):
            if one.point != name or (one.action in REPEATING) != repeating:
                continue
            if isinstance(one, Chance):
                dice = armed.dice.setdefault(n, random.Random(f"{one.seed}/{armed.number}/{n}"))
                if dice.random() < one.probability and struck is None:
                    struck = one
                    with (armed.once_dir / f"chances-{n}").open("a") as tally:
                        tally.write(".")
                continue
            if one.follows and not armed.token(n - 1).exists():
                continue
            armed.counts[n] = armed.counts.get(n, 0) + 1
            if armed.counts[n] == one.nth and struck is None and _first(armed.token(n)):
                struck = one
    return struck


def _first(token: Path) -> bool:
    try:
        os.close(os.open(token, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _hush(work: Callable[[], object]) -> Callable[[], None]:
    """An echo is nobody's call: what it raises goes nowhere."""

    def quietly() -> None:
        try:
            work()
        except Exception:  # whatever the echo meets, the caller has its answer
            return

    return quietly


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
