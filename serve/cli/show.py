"""The live display of a running job: a header, a row for each task, what is waited for, what is left, what it cost."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cluster.clock import Clock
from cluster.states import DONE, ENDED, State
from serve.cli import wording
from serve.cli.board import Board
from serve.cli.summary import summary
from serve.finished import Finished
from serve.watch import TaskView, Update

REFRESH_HZ = 8
NARROW = 64
BROKEN = frozenset({State.DEAD, State.NOT_COMPATIBLE})


@dataclass(frozen=True, kw_only=True, slots=True)
class Glyphs:
    """Signs that stand in front of rows. Colours are the terminal's own sixteen: they read on dark and on light."""

    done: str
    failed: str
    waiting: str
    next: str
    retrying: str
    spin: str
    full: str
    half: str
    rest: str


FINE = Glyphs(
    done="✓", failed="✗", waiting="·", next="○", retrying="↻", spin="⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", full="━", half="╸", rest="━"
)
PLAIN = Glyphs(done="+", failed="x", waiting=".", next="o", retrying="~", spin="|/-\\", full="=", half=">", rest="-")


def glyphs_for(encoding: str) -> Glyphs:
    return FINE if encoding.lower().replace("-", "").startswith("utf") else PLAIN


class LiveShow:
    """Draws the board again several times a second while the job goes on; the last picture stays."""

    def __init__(self, console: Console, board: Board, clock: Clock) -> None:
        self._console, self._board, self._clock = console, board, clock
        self._live = Live(
            console=console,
            get_renderable=self._picture,
            refresh_per_second=REFRESH_HZ,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def start(self) -> None:
        self._live.start()

    def waits(self, line: str, pid: int | None) -> None:
        self._board.waits = line

    def goes_on(self) -> None:
        self._board.waits = None

    def update(self, update: Update) -> None:
        self._board.take(update)

    def finished(self, finished: Finished) -> None:
        self.close()
        self._console.print(summary(finished, self._board, glyphs_for(self._console.encoding).full))

    def failed(self, error: BaseException) -> None:
        """The line on standard error says it all."""

    def close(self) -> None:
        self._board.over = True
        with contextlib.suppress(OSError):  # a terminal that has been closed
            self._live.stop()

    def _picture(self) -> RenderableType:
        return Picture(self._board, self._clock.now_us())


@dataclass(frozen=True, slots=True)
class Picture:
    """The board at one instant, laid out for the width and height that there are."""

    board: Board
    now_us: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> list[RenderableType]:
        glyphs = glyphs_for(options.encoding)
        parts: list[RenderableType] = [*self._header(options.max_width)]
        if self.board.update is not None:
            tasks = self.board.update.tasks
            room = len(tasks) if self.board.over else max(3, options.size.height - 9)
            shown, hidden = fitting(tasks, room)
            parts += [Text(), self._rows(shown, options.max_width, glyphs)]
            if hidden:
                parts.append(Text(f"    {hidden}", style="dim"))
        parts += self._footer(glyphs)
        return [Padding(Group(*parts), (1, 1, 0, 1))]

    def _header(self, width: int) -> list[Text]:
        board = self.board
        headline = wording.clean(board.headline, 3 * max(20, width - 4)) or "a film from a script"
        lines = [Text(board.title, style="bold"), Text(headline)] if board.title else [Text(headline, style="bold")]
        return [*lines, Text(wording.clean(board.facts), style="dim")]

    def _rows(self, tasks: Sequence[TaskView], width: int, glyphs: Glyphs) -> Table:
        table = Table.grid(padding=(0, 1), expand=True)
        bar_width = 12 if width < 110 else 28
        wide = width >= NARROW
        table.add_column(width=1)
        table.add_column(no_wrap=True, min_width=6)
        if wide:
            table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
            table.add_column(width=bar_width, no_wrap=True)
        table.add_column(width=8, no_wrap=True)
        table.add_column(width=6, justify="right", no_wrap=True)
        for task in tasks:
            took_s = self.board.seconds_of(task, self.now_us)
            cells = [self._sign(task, glyphs), Text(wording.name_of(task), style=_style(task))]
            if wide:
                cells += [Text(wording.purpose_of(task), style="dim"), _bar(task, bar_width, glyphs)]
            cells += [self._doing(task), Text(wording.seconds(took_s) if took_s is not None else "", style="dim")]
            table.add_row(*cells)
        return table

    def _sign(self, task: TaskView, glyphs: Glyphs) -> Text:
        if task.state in DONE:
            return Text(glyphs.done, style="green")
        if task.state in BROKEN:
            return Text(glyphs.failed, style="bold red")
        if task.state is State.RUNNING and not self.board.over:
            return Text(glyphs.spin[self.now_us * REFRESH_HZ // 1_000_000 % len(glyphs.spin)], style="bold cyan")
        if task.state is State.BACKOFF:
            return Text(glyphs.retrying, style="magenta")
        return Text(glyphs.next if task.state is State.READY else glyphs.waiting, style="dim")

    def _doing(self, task: TaskView) -> Text:
        if task.id in self.board.kept:
            return Text("kept", style="green")
        if task.state in DONE:
            return Text()
        if task.state is State.RUNNING and task.stage == "denoise" and task.total:
            return Text(f"{task.done}/{task.total}", style="cyan")
        style = "cyan" if task.state is State.RUNNING else "red" if task.state in BROKEN else "dim"
        return Text(wording.doing(task), style=style)

    def _footer(self, glyphs: Glyphs) -> list[Text]:
        board, update = self.board, self.board.update
        lines = []
        if phase := board.phase(self.now_us):
            spin = glyphs.spin[self.now_us * REFRESH_HZ // 1_000_000 % len(glyphs.spin)]
            lines += [Text(), Text.assemble((f"{spin} ", "bold cyan"), phase)]
        if update is not None and not board.over and not board.stopping:
            elapsed = f"{wording.watch((self.now_us - board.began_us) / 1e6)} so far"
            left = "putting the files in place" if update.job.over else wording.left(update.eta_s)
            cost = f"cost {wording.dollars(update.cost_usd)}"
            lines += [Text(), Text(" · ".join([elapsed, left, cost]), style="bold")]
        return lines


def fitting(tasks: Sequence[TaskView], room: int) -> tuple[list[TaskView], str]:
    """The tasks that matter most, in their order, at most `room` of them; and a line about the others."""
    if len(tasks) <= room:
        return list(tasks), ""

    def weight(at: int) -> tuple[int, int]:
        state = tasks[at].state
        if state is State.RUNNING or state in BROKEN or state is State.BACKOFF:
            return 0, at
        return (1, at) if state not in ENDED else (2, -at)  # what comes next, then what was done last

    chosen = sorted(sorted(range(len(tasks)), key=weight)[: room - 1])
    rest = [task for at, task in enumerate(tasks) if at not in set(chosen)]
    done = sum(task.state in ENDED for task in rest)
    said = [f"{done} done" if done else "", f"{len(rest) - done} waiting" if len(rest) > done else ""]
    return [
        tasks[at] for at in chosen
    ], f"and {wording.plural(len(rest), 'more task')}: {', '.join(filter(None, said))}"


def _style(task: TaskView) -> str:
    if task.state in BROKEN:
        return "bold red"
    return "bold" if task.state is State.RUNNING else "" if task.state in DONE else "dim"


def _bar(task: TaskView, width: int, glyphs: Glyphs) -> Text:
    """The denoise steps of a take, or whatever the running step counts; a finished take stays full."""
    if task.state is State.RUNNING and task.total:
        part = 1.0 if task.stage in ("decode", "upload") else task.done / task.total
    elif task.state in DONE and task.role == "render":
        part = 1.0
    else:
        return Text()
    halves = round(min(1.0, part) * width * 2)
    full, half = divmod(halves, 2)
    style = "green" if task.state in DONE else "cyan"
    bar = Text(glyphs.full * full + glyphs.half * half, style=style)
    return bar.append(glyphs.rest * (width - full - half) if glyphs is PLAIN else "", style="dim")
