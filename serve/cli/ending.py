"""How a command ends: signals, what it started, one line and an exit code. Nothing is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from cluster.errors import FarmError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 3.0
LONGEST_STOP_S = 40.0
PR_SET_CHILD_SUBREAPER = 36
READER_GONE = 128 + signal.SIGPIPE


class Ending:
    """The first SIGINT, SIGTERM or SIGHUP stops the work as Ctrl-C does; the second ends everything at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.on_stop: Callable[[], None] = lambda: None  # called inside a signal handler: may only set flags
        self.at_once: Callable[[], None] = lambda: None  # last words before a hard end
        self._watchdog: threading.Timer | None = None
        self.settled = False  # the result is delivered: a signal only hurries the cleaning up

    def watch(self) -> None:
        """Takes the signals, also from a library that took them. What was ignored stays so (nohup, a shell's `&`)."""
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._asked)

    def adopt(self) -> None:
        """Orphans of what we start become our children (Linux), so that `sweep` finds them all."""
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def sweep(self, grace_s: float = GRACE_S) -> int:
        """Waits for the processes that we started, then kills what is left. Returns how many it killed."""
        until_s = time.monotonic() + grace_s
        while (left := descendants()) and time.monotonic() < until_s:
            time.sleep(0.02)
        killed = len(left)
        until_s = time.monotonic() + GRACE_S
        while left and time.monotonic() < until_s:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
            left = descendants()
        _reap()
        return killed

    def rest(self) -> None:
        """The clean end is done: nothing has to be forced any more."""
        if self._watchdog is not None:
            self._watchdog.cancel()

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, as shells have it."""
        return 128 + (self.signum or signal.SIGINT)

    def _asked(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            self._end_at_once()
        self.signum = signum
        self.on_stop()
        self._watchdog = threading.Timer(LONGEST_STOP_S, self._end_at_once)
        self._watchdog.daemon = True
        self._watchdog.start()
        if not self.settled:
            raise KeyboardInterrupt

    def _end_at_once(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.at_once()
        self.sweep(grace_s=0.0)
        os._exit(0 if self.settled else self.exit_code)


def exit_code_of(error: BaseException) -> int:
    """2 for the user's mistake, 1 for ours."""
    return error.exit_code if isinstance(error, FarmError) else 1


def _reap() -> None:
    """Takes the ended children off the process table: the init of a container may not."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


def descendants(root: int | None = None) -> list[int]:
    """Pids of all processes below `root` (this process) that have not ended."""
    children: dict[int, list[int]] = {}
    ended = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text(encoding="latin-1").rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue  # it has gone meanwhile
        children.setdefault(int(parent), []).append(int(entry.name))
        if state in "ZX":
            ended.add(int(entry.name))
    found, ahead = [], [root or os.getpid()]
    while ahead:
        below = children.get(ahead.pop(), [])
        found += below
        ahead += below
    return [pid for pid in found if pid not in ended]
