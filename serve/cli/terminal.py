"""The terminal of a running command: ours alone. What libraries print goes into a log file."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from cluster import logs

KEEP_LOGS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Terminal:
    """Where people read, and the file where everything else goes (None: nowhere could be written)."""

    out: TextIO
    err: TextIO
    log: Path | None


def take_over(logs_dir: Path) -> Terminal:
    """From now on file descriptors 1 and 2 are a log file, in this process and in those that it starts.

    Ray, engines and warnings may print what they like; only the returned streams reach the terminal.
    """
    out, err = _kept(sys.stdout), _kept(sys.stderr)
    try:
        log: Path | None = new_log(logs_dir)
    except OSError:
        log = None  # a farm that cannot write there says so itself
    sink = os.open(log or os.devnull, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(sink, descriptor)
    os.close(sink)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(1 if name == "stdout" else 2, "w", closefd=False))
    logs.set_up(stream=sys.stderr)
    return Terminal(out=out, err=err, log=log)


def new_log(logs_dir: Path) -> Path:
    """An empty log file of this process; the oldest beyond KEEP_LOGS go. Raises OSError."""
    logs_dir.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    log = logs_dir / f"farm-{stamp}-{os.getpid()}.log"
    os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    for old in sorted(logs_dir.glob("farm-*.log"))[:-KEEP_LOGS]:
        with contextlib.suppress(OSError):
            old.unlink()
    return log


def spare_log() -> Path:
    """A log file where FARM_HOME is not known or cannot be written. Raises OSError."""
    return new_log(Path(tempfile.gettempdir()) / f"reelfarm-{os.getuid()}" / "logs")


def _kept(stream: TextIO | None) -> TextIO:
    """A copy of `stream` that what we start does not inherit, so that a pipe ends when we do."""
    if stream is None:  # it was closed when we began
        return open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    return os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="replace")
