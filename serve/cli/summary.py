"""What stands on the terminal when a job has succeeded: the files, where the seconds went, the cost, how to play it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from serve.cli import replayed, wording
from serve.cli.board import Board
from serve.finished import Finished

MARKS = {
    "ray": "Ray is up",
    "engines": "engines are ready",
    "script": "the script is written",
    "first_denoise": "first denoise step",
    "last_clip": "last shot is drawn",
    "film": "all is joined",
    "delivered": "files are in place",
}
PLAYERS = ("mpv", "vlc", "ffplay")
BAR = 24


def summary(finished: Finished, board: Board, bar: str) -> RenderableType:
    """`bar` is the sign that bars are made of."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    path = Text(str(finished.path), style=f"bold link {finished.path.resolve().as_uri()}")
    table.add_row("film" if finished.path.name == "film.mp4" else "file", path)
    others = [file.name for file in finished.files if file != finished.path]
    if others:
        table.add_row("beside it", Text(wording.clean(", ".join(others))))
    done, _ = board.shots_done()
    kept = len(board.kept)
    if finished.path.name == "film.mp4":
        table.add_row("shots", f"{done}" + (f", {kept} of the tasks kept from an earlier run" if kept else ""))
    if finished.verdict is not None:
        style = "bold green" if finished.verdict.equal else "bold red"
        first, *more = replayed.lines(finished.verdict)
        table.add_row("replay", Group(Text(first, style=style), *(Text(line) for line in more)))
    table.add_row("cost", wording.dollars(finished.cost_usd))
    table.add_row("play it" if finished.path.suffix == ".mp4" else "see it", Text(how_to_play(finished.path)))
    table.add_row("time", waterfall(finished, bar))
    return Padding(Group(Text(wording.clean(finished.title, 200), style="bold green"), Text(), table), (1, 1, 1, 1))


def waterfall(finished: Finished, bar: str) -> RenderableType:
    """Where the seconds went: each mark with the time since the one before, in its place on a common scale."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    whole_s = max(finished.seconds, 0.001)
    table.add_row(Text("in all"), Text(wording.seconds(finished.seconds), style="bold"), Text())
    before_s = 0.0
    for name, at_s in sorted(finished.marks_s.items(), key=lambda mark: mark[1]):
        at_s = max(before_s, at_s)
        start, end = (min(BAR, round(BAR * second / whole_s)) for second in (before_s, at_s))
        line = Text(" " * start).append(bar * (end - start), style="cyan")
        table.add_row(
            Text(MARKS.get(name, name), style="dim"), Text(f"+{wording.seconds(at_s - before_s)}", style="dim"), line
        )
        before_s = at_s
    return table


def how_to_play(path: Path) -> str:
    """A command of this machine if there is a player, else the address for a browser."""
    if path.suffix == ".mp4":
        for player in PLAYERS:
            if shutil.which(player):
                return f"{player} {shlex.quote(str(path))}"
    return f"open {path.resolve().as_uri()} in a browser"
