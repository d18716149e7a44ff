"""What a batch says while it runs: plain lines for the log of a job, a bar on a terminal."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Protocol, TextIO

EVERY_S = 5.0
"""In a log, counts are said at most so often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Lines of a batch by how far they are."""

    total: int
    made: int = 0
    failed: int = 0
    running: int = 0
    queued: int = 0

    @property
    def over(self) -> int:
        return self.made + self.failed

    def __str__(self) -> str:
        said = [f"{self.over} of {self.total} lines are over"]
        named = {"failed": self.failed, "running": self.running, "queued": self.queued}
        said += [f"{count} {name}" for name, count in named.items() if count]
        rest = self.total - self.over - self.running - self.queued
        return ", ".join([*said, *([f"{rest} not submitted yet"] if rest else [])])


class Display(Protocol):
    def say(self, text: str) -> None: ...

    def count(self, counts: Counts) -> None: ...

    def close(self) -> None: ...


class Lines:
    """ "1:05  12 of 60 lines are over, 2 running": no line is ever taken back."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._began_s, self._said_s = out, time.monotonic(), float("-inf")

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began_s), 60)
        print(f"{minutes}:{seconds:02}  {clean(text)}", file=self._out, flush=True)

    def count(self, counts: Counts) -> None:
        if counts.over == counts.total or time.monotonic() - self._said_s >= EVERY_S:
            self._said_s = time.monotonic()
            self.say(str(counts))

    def close(self) -> None:
        """Nothing moves here."""


class Bar:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(highlight=False, emoji=False, markup=False)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("", total=None)
        self._progress.start()

    def say(self, text: str) -> None:
        self._progress.console.print(clean(text))

    def count(self, counts: Counts) -> None:
        self._progress.update(self._task, total=counts.total, completed=counts.over, description=str(counts))

    def close(self) -> None:
        self._progress.stop()


def display() -> Display:
    return Bar() if sys.stdout.isatty() else Lines(sys.stdout)


def clean(text: str) -> str:
    """What came from a farm or a file, on one line that cannot steer a terminal."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)[:400]
