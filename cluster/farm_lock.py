"""One farm at a time on a FARM_HOME: a lock on a file there, which the system gives back when its process ends.

Two private farms on one ledger would take the dispatcher's term from each other, and the workers of one would starve.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import Unavailable, UserMistake

NAME = "farm.lock"


@contextmanager
def held(home: Path, *, on_wait: Callable[[int | None], None] | None = None) -> Iterator[None]:
    """Holds the lock of `home`, a directory that is there, for the block.

    While another process has it: calls `on_wait` with its pid (None if that is not known) and waits; without `on_wait`
    raises Unavailable. Raises UserMistake when this process has it already, for that would wait for ever.
    """
    descriptor = _opened(home)
    try:
        if not _taken(descriptor):
            pid = _written(descriptor)
            if pid == os.getpid():
                raise UserMistake(
                    f"this program has a farm open on {home} already", field="FARM_HOME",
                    remedy="use that one, or give the second a home of its own",
                )  # fmt: skip
            if on_wait is None:
                raise Unavailable(
                    f"a farm{f' (pid {pid})' if pid else ''} is at work on {home}", field="FARM_HOME",
                    remedy="try again when it has ended",
                )  # fmt: skip
            on_wait(pid)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_held(home: Path) -> bool:
    """Whether a farm is at work on `home` now."""
    try:
        descriptor = os.open(home / NAME, os.O_RDONLY)
    except OSError:
        return False  # no farm has been here yet
    try:
        return not _taken(descriptor)
    finally:
        os.close(descriptor)


def holder(home: Path) -> int | None:
    """The pid of the farm that is at work on `home`, or was last; None if that is not known."""
    try:
        descriptor = os.open(home / NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        return _written(descriptor)
    finally:
        os.close(descriptor)


def _opened(home: Path) -> int:
    try:
        return os.open(home / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise Unavailable(
            f"cannot open {home / NAME}: {error.strerror}", field="FARM_HOME",
            remedy="set FARM_HOME to a directory that you may write",
        ) from error  # fmt: skip


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _written(descriptor: int) -> int | None:
    """The pid that its holder wrote; None if that is happening right now."""
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None
