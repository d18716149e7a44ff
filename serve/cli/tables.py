"""Jobs, tasks and workers as a person reads them: tables that fit the terminal. Pure, but for printing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text

from cluster.clock import to_datetime
from cluster.ledger.jobs import Job
from cluster.ledger.views import JobLine, TaskLine, WorkerLine
from cluster.rates import usd
from cluster.states import DONE, JobState, State
from cluster.timing import span
from cluster.why import Explanation
from serve.cli import wording
from serve.cli.wording import clean, dollars, plural, seconds, short_id, short_worker

STYLES = {
    JobState.RUNNING: "cyan",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "bold red",
    JobState.FAILING: "red",
    JobState.SUSPENDED: "magenta",
    State.RUNNING: "cyan",
    State.SUCCEEDED: "green",
    State.EATEN: "green",
    State.DEAD: "bold red",
    State.NOT_COMPATIBLE: "bold red",
    State.BACKOFF: "magenta",
    State.SUSPENDED: "magenta",
    State.STALE: "magenta",
}


def put(picture: RenderableType) -> None:
    """To standard output, as wide as the terminal is."""
    Console(file=sys.stdout, highlight=False, emoji=False, markup=False).print(picture)


def job_table(lines: Sequence[JobLine], *, now_us: int) -> RenderableType:
    if not lines:
        return Text("no jobs")
    table = Grid("JOB", "STATE", ">DONE", ">COST", ">AGE", "SHOW", "TITLE")
    for line in lines:
        job = line.job
        done = sum(job.counts.get(state, 0) for state in DONE)
        state = Text("held" if job.held and not job.over else job.state.value, style=_style(job))
        table.row(
            short_id(job.id),
            state,
            f"{done}/{job.num_tasks}",
            dollars(usd(line.nano)),
            span((now_us - job.created_us) / 1e6),
            clean(job.show),
            clean(job.title) or "(no title)",
        )
    return table


def task_table(lines: Sequence[TaskLine]) -> RenderableType:
    if not lines:
        return Text("no tasks")
    table = Grid("TASK", "STATE", "STEP", ">TRIES", ">TOOK", ">COST", "WORKER, OR WHY")
    for line in lines:
        worker = short_worker(line.worker_id) if line.worker_id else ""
        reason = clean(line.reason) if line.reason and line.state not in (State.READY, State.PENDING) else ""
        table.row(
            Text(clean(line.key), style="bold" if line.state is State.RUNNING else ""),
            Text(line.state.value, style=STYLES.get(line.state, "")),
            clean(line.step),
            str(line.num_attempts or ""),
            seconds(line.seconds) if line.seconds is not None else "",
            dollars(usd(line.nano)) if line.nano else "",
            reason or worker,
        )
    return table


def worker_table(lines: Sequence[WorkerLine], *, now_us: int) -> RenderableType:
    """Two lines for each: who it is and what it does; what it is."""
    if not lines:
        return Text("no workers")
    table = Grid("WORKER", "STATE", ">HELD", ">COST", "WITH WHAT, OR WHY")
    for line in lines:
        row = line.row
        held_us = (row.ended_us or now_us) - row.spawned_us
        idle = sum(n for kind, n in line.nano.items() if kind in ("idle", "load"))
        word, rest = state_of(line)
        table.row(
            short_worker(row.id),
            Text(word, style="cyan" if word == "busy" else ""),
            span(held_us / 1e6),
            dollars(usd(sum(line.nano.values()))),
            clean(rest),
        )
        holds = f"{row.num_accelerators} x {row.accelerator}" if row.num_accelerators else row.accelerator
        facts = [row.role, row.model or "", f"{holds} {row.price_class}", f"on {row.node[-8:]}"]
        facts += [f"idle for {dollars(usd(idle))}", f"since {_when(row.spawned_us)}"]
        table.note(clean(", ".join(filter(None, facts))))
    return table


def state_of(line: WorkerLine) -> tuple[str, str]:
    """busy, idle, draining or gone; and with what, or why."""
    row = line.row
    tasks = ", ".join(f"{short_id(job_id)}/{key}" for job_id, key in line.running)
    if row.ended_us is not None:
        return "gone", ""
    if row.drain_us is not None:
        return "draining", "; ".join(filter(None, [row.drain_reason or "", tasks]))
    return ("busy", tasks) if line.running else ("idle", "")


def job_card(
    job: Job,
    *,
    nano: dict[str, int],
    running: Iterable[TaskLine],
    files: Sequence[tuple[str, dict[str, object]]],
    now_us: int,
) -> RenderableType:
    """All about one job."""
    table = Card()
    state = Text(job.state.value, style=_style(job))
    if job.held:
        state.append(", on hold: it gets no new work", style="magenta")
    table.row("job", job.id)
    table.row("state", state)
    counts = ", ".join(f"{n} {s.value}" for s, n in job.counts.items() if n)
    table.row("tasks", f"{job.num_tasks}: {counts}")
    table.row("asked by", f"{clean(job.tenant)}, show {clean(job.show)}, {job.tier} {job.priority}")
    table.row("recipe", f"{job.recipe}, version {job.version}")
    table.row("submitted", f"{_when(job.created_us)}, {span((now_us - job.created_us) / 1e6)} ago")
    if job.ended_us is not None:
        table.row("ended", f"{_when(job.ended_us)}, after {span((job.ended_us - job.created_us) / 1e6)}")
    if job.deadline_us is not None:
        table.row("deadline", _when(job.deadline_us))
    parts = [f"{kind} {dollars(usd(n))}" for kind, n in nano.items() if n]
    table.row("cost", dollars(usd(sum(nano.values()))) + (f": {', '.join(parts)}" if parts else ""))
    for line in running:
        took = seconds(line.seconds or 0.0)
        table.row("runs", f"{clean(line.key)} on {short_worker(line.worker_id or '?')}, {took}")
    for _, file in files:
        size = wording.size(int(str(file.get("size_bytes", 0))))
        table.row("file", Text.assemble(clean(str(file.get("name"))), (f", {size}", "dim")))
    return Group(Text(clean(job.title, 200) or "(no title)", style="bold"), Text(), table)


def reasons(job_id: str, key: str, found: Explanation) -> RenderableType:
    """One task: its state, what holds it back, when that may be over, and what to do."""

    def short(remedy: str) -> Indented:
        return Indented(text=Text(remedy.replace(job_id, short_id(job_id)), style="cyan"), by=4)

    lines: list[RenderableType] = [Text.assemble((clean(key), "bold"), f" {clean(found.said)}")]
    for hold in found.holds:
        when = f" (about {span(hold.eta_s)})" if hold.eta_s is not None and len(found.holds) > 1 else ""
        lines.append(Indented(text=Text(f"- {clean(hold.text)}{when}"), by=2))
        if hold.remedy:
            lines.append(short(hold.remedy))
    if found.remedy:
        lines.append(short(found.remedy))
    if until := expected(found):
        lines.append(Text(f"  {until}", style="dim"))
    return Group(*lines)


def expected(found: Explanation) -> str:
    """When it starts, or ends, as far as anybody knows."""
    if found.state in DONE:
        return ""
    if found.waits_for_somebody:
        return "nothing happens until somebody acts"
    what = "it ends" if found.state is State.RUNNING else "it starts"
    if found.eta_s is None:
        return f"when {what} is not known"
    return f"{what} in about {span(found.eta_s)}" if found.eta_s >= 1.5 else f"{what} at any moment"


def summed(count: int, noun: str, by_state: dict[State, int]) -> str:
    """ "3 tasks (1 running, 2 ready)"."""
    parts = ", ".join(f"{n} {state.value}" for state, n in by_state.items())
    return f"{plural(count, noun)} ({parts})" if parts else plural(count, noun)


@dataclass(frozen=True, kw_only=True, slots=True)
class Indented:
    """A paragraph whose every line begins further right."""

    text: Text
    by: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for line in self.text.wrap(console, max(20, options.max_width - self.by)):
            line.pad_left(self.by)
            line.rstrip()
            yield line


class Card:
    """Names and what they are; what is long goes on below itself."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, Text]] = []

    def row(self, name: str, value: str | Text) -> None:
        self._rows.append((name, Text(value) if isinstance(value, str) else value))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        left = 2 + max(len(name) for name, _ in self._rows)
        for name, value in self._rows:
            for line in value.wrap(console, max(20, options.max_width - left)):
                line.rstrip()
                yield Text.assemble((name.ljust(left), "dim"), line)
                name = ""


class Grid:
    """Rows under headings; `>` in front of a heading means numbers. The last column takes the room that is left."""

    def __init__(self, *headings: str) -> None:
        self._right = [heading.startswith(">") for heading in headings]
        self._lines: list[list[Text] | Text] = [[Text(heading.removeprefix(">"), style="dim") for heading in headings]]

    def row(self, *cells: str | Text) -> None:
        self._lines.append([Text(cell) if isinstance(cell, str) else cell for cell in cells])

    def note(self, text: str) -> None:
        """A line of its own, of the row above."""
        self._lines.append(Text(f"  {text}", style="dim"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        rows = [line for line in self._lines if isinstance(line, list)]
        widths = [max(row[at].cell_len for row in rows) for at in range(len(self._right))]
        room = max(12, options.max_width - sum(widths[:-1]) - 2 * len(widths[:-1]))
        widths[-1] = min(widths[-1], room)
        for line in self._lines:
            if isinstance(line, Text):
                line.truncate(options.max_width, overflow="ellipsis")
                yield line
                continue
            for cell, width, right in zip(line, widths, self._right, strict=True):
                cell.truncate(width, overflow="ellipsis")
                cell.align("right" if right else "left", width)
            whole = Text("  ").join(line)
            whole.rstrip()
            yield whole


def _style(job: Job) -> str:
    return "magenta" if job.held and not job.over else STYLES.get(job.state, "")


def _when(us: int) -> str:
    return to_datetime(us).astimezone().strftime("%Y-%m-%d %H:%M:%S")
