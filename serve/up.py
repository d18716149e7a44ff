"""A standing farm of a FARM_HOME, seen from outside: where it is, how it is started, and how it is ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from cluster import disk, farm_lock
from cluster.errors import Unavailable
from cluster.runtime import child_environment
from cluster.settings import Settings

RECORD = "up.json"
KEY = "key"
"""In FARM_HOME, readable by its owner alone: the first key of the farm."""
ENDING = "ending"
LOOK_S = 0.1
START_S = 600.0
END_S = 90.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Up:
    """What the farm says of itself. `phase`: what it does while it starts; "" once it is ready, and while it ends."""

    pid: int
    phase: str = ""
    url: str = ""
    dashboard: str = ""
    prometheus: str = ""
    key_file: str = ""
    ray_token_file: str = ""
    trouble: tuple[str, ...] = ()
    """Fleets that have no workers, and why: everything else works."""
    failed: str = ""
    """Why it ended before it was ready."""

    @property
    def ready(self) -> bool:
        return bool(self.url) and not self.phase

    @property
    def key(self) -> str:
        return Path(self.key_file).read_text().strip()


def here(settings: Settings) -> Up | None:
    """The farm that stands on this FARM_HOME, ready or not; None if there is none."""
    if not farm_lock.is_held(settings.home):
        return None
    found = _read(settings.home)
    return found if found is not None and found.pid == farm_lock.holder(settings.home) else None


def ends(home: Path) -> bool:
    """Whether the farm that stands here has begun to end."""
    up = _read(home)  # it stays when the farm is gone, and others may stand on its home then
    return up is not None and up.phase == ENDING and farm_lock.is_held(home) and up.pid == farm_lock.holder(home)


def url_of(host: str, port: int) -> str:
    """Where a farm that listens at `host` is asked from its own machine."""
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104  # it is compared, not bound


def say(home: Path, up: Up) -> None:
    """By the farm itself, in one piece."""
    with disk.whole_file(home / RECORD) as file:
        file.write_text(json.dumps(asdict(up)))


def start(settings: Settings, arguments: list[str], on_phase: Callable[[str], None]) -> Up:
    """Starts a farm in a process group of its own, and returns when it is ready; one that somebody else is starting is
    waited for. Raises Unavailable."""
    home, logs = settings.home, settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    found = here(settings)
    if found is not None and found.phase == ENDING:
        on_phase("waiting for the farm before it to end")
        _wait_for_the_end(settings, found)
        found = None
    if found is not None:
        return _ready(home, found.pid, lambda: here(settings) is not None, on_phase)
    if farm_lock.is_held(home):
        raise Unavailable(
            f"a farm (pid {farm_lock.holder(home)}) is at work on {home}", field="FARM_HOME",
            remedy="try again when it has ended",
        )  # fmt: skip
    (home / RECORD).unlink(missing_ok=True)
    with (logs / "farm.log").open("ab") as log:
        child = _spawned(arguments, log)
    try:
        return _ready(home, child.pid, lambda: child.poll() is None, on_phase)
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
        raise


def _ready(home: Path, pid: int, lives: Callable[[], bool], on_phase: Callable[[str], None]) -> Up:
    ends_s, phase, log = time.monotonic() + START_S, "", f"its log is {home / 'logs' / 'farm.log'}"
    while time.monotonic() < ends_s:
        lived, up = lives(), _read(home)
        if up is not None and up.pid == pid:
            if up.phase and up.phase != phase:
                on_phase(phase := up.phase)
            if up.failed:
                raise Unavailable(up.failed, remedy=log)
            if up.ready:
                return up
        if not lived:
            raise Unavailable("the farm ended while it started", remedy=log)
        time.sleep(LOOK_S)
    raise Unavailable(f"the farm was not ready after {START_S:.0f} s", remedy=log)


def stop(settings: Settings, up: Up, *, at_once: bool = False, on_late: Callable[[], None] = lambda: None) -> None:
    """Drains the farm, or kills it `at_once`, and returns when it has ended. What it drew goes on from its checkpoint.

    Raises Unavailable if it did not end in time.
    """
    signum = signal.SIGKILL if at_once else signal.SIGTERM
    with suppress(ProcessLookupError):
        (os.killpg if at_once else os.kill)(up.pid, signum)
    _wait_for_the_end(settings, up, on_late)


def _wait_for_the_end(settings: Settings, up: Up, on_late: Callable[[], None] = lambda: None) -> None:
    ends_s, late_s = time.monotonic() + END_S, time.monotonic() + 2.0
    while farm_lock.is_held(settings.home):
        if time.monotonic() > ends_s:
            raise Unavailable(
                f"the farm (pid {up.pid}) has not ended in {END_S:.0f} s", remedy="farm down --now kills it"
            )
        if time.monotonic() > late_s:
            late_s = ends_s
            on_late()
        time.sleep(LOOK_S)


def _spawned(arguments: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "serve.host", *arguments],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        env=child_environment(Path(__file__).resolve().parent.parent),
    )  # fmt: skip


def _read(home: Path) -> Up | None:
    try:
        said = json.loads((home / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return Up(**{**said, "trouble": tuple(said["trouble"])})
