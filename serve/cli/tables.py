"""Rows as a person reads them: tables that fit the terminal. Pure, but for printing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text

from cluster.states import DONE, JobState, State
from cluster.timing import span
from serve.cli import wording
from serve.cli.wording import clean, dollars, plural, seconds, short_id, short_worker
from serve.rows import AssetRow, JobCard, JobRow, JobWhy, ReasonRow, ShowRow, TaskRow, WorkerRow

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


def job_table(rows: Sequence[JobRow], *, now: datetime) -> RenderableType:
    if not rows:
        return Text("no jobs")
    table = Grid("JOB", "STATE", ">DONE", ">COST", ">AGE", "SHOW", "TITLE")
    for row in rows:
        done = sum(row.counts.get(state, 0) for state in DONE)
        table.row(
            short_id(row.job),
            Text("held" if _waits(row) else row.state.value, style=_style(row)),
            f"{done}/{row.tasks}",
            dollars(Decimal(row.cost_usd)),
            since(row.created, now),
            clean(row.show),
            clean(row.title) or "(no title)",
        )
    return table


def task_table(rows: Sequence[TaskRow]) -> RenderableType:
    if not rows:
        return Text("no tasks")
    table = Grid("TASK", "STATE", "STEP", ">TRIES", ">TOOK", ">COST", "WORKER, OR WHY")
    for row in rows:
        worker = short_worker(row.worker) if row.worker else ""
        reason = clean(row.reason) if row.reason and row.state not in (State.READY, State.PENDING) else ""
        cost = Decimal(row.cost_usd)
        table.row(
            Text(clean(row.task), style="bold" if row.state is State.RUNNING else ""),
            Text(row.state.value, style=STYLES.get(row.state, "")),
            clean(row.step),
            str(row.attempts or ""),
            seconds(row.seconds) if row.seconds is not None else "",
            dollars(cost) if cost else "",
            reason or worker,
        )
    return table


def worker_table(rows: Sequence[WorkerRow], *, now: datetime) -> RenderableType:
    """Two lines for each: who it is and what it does; what it is."""
    if not rows:
        return Text("no workers")
    table = Grid("WORKER", "STATE", ">HELD", ">COST", "WITH WHAT, OR WHY")
    for row in rows:
        idle = sum(Decimal(cost) for kind, cost in row.cost_by_kind_usd.items() if kind in ("idle", "load"))
        table.row(
            short_worker(row.worker),
            Text(row.state, style="cyan" if row.state == "busy" else ""),
            since(row.held_since, now if row.left is None else datetime.fromisoformat(row.left)),
            dollars(Decimal(row.cost_usd)),
            clean(_with_what(row)),
        )
        holds = f"{row.accelerators} x {row.accelerator}" if row.accelerators else row.accelerator
        facts = [row.role, row.model or "", f"{holds} {row.price_class}", f"on {row.node[-8:]}"]
        facts += [f"idle for {dollars(Decimal(idle))}", f"since {_when(row.held_since)}"]
        table.note(clean(", ".join(filter(None, facts))))
    return table


def _with_what(row: WorkerRow) -> str:
    """What it runs, or why it drains."""
    if row.left is not None:
        return ""
    others = [f"{row.others} of others"] if row.others else []
    tasks = ", ".join([*(f"{short_id(one.job)}/{one.task}" for one in row.running), *others])
    return "; ".join(filter(None, [row.drain_reason or "", tasks])) if row.state == "draining" else tasks


def show_table(rows: Sequence[ShowRow]) -> RenderableType:
    if not rows:
        return Text("no shows")
    table = Grid("SHOW", ">SHARE", ">JOBS", ">RUNNING", ">WAITING", ">SPENT", ">BUDGET LEFT", "TENANT")
    for row in rows:
        left = "-" if row.budget_left_usd is None else dollars(Decimal(row.budget_left_usd))
        counts = (str(row.jobs), str(row.running), str(row.waiting))
        table.row(clean(row.show), f"{row.share:g}", *counts, dollars(Decimal(row.spent_usd)), left, row.tenant)
    return table


def asset_table(rows: Sequence[AssetRow], *, now: datetime) -> RenderableType:
    if not rows:
        return Text("no files")
    table = Grid("ASSET", ">SIZE", "TYPE", ">AGE", "SHOW", "TENANT", "NEEDED")
    for row in rows:
        needed = "yes" if row.marked is None else f"not for {since(row.marked, now)}"
        kind = (row.asset[:16], wording.size(row.size_bytes), row.media_type)
        table.row(*kind, since(row.created, now), clean(row.show), row.tenant, needed)
    return table


def job_card(row: JobCard, *, now: datetime) -> RenderableType:
    """All about one job."""
    table = Card()
    state = Text(row.state.value, style=_style(row))
    if row.held:
        state.append(", on hold: it gets no new work", style="magenta")
    table.row("job", row.job)
    table.row("state", state)
    counts = ", ".join(f"{n} {state}" for state, n in row.counts.items())
    table.row("tasks", f"{row.tasks}: {counts}")
    table.row("asked by", f"{clean(row.tenant)}, show {clean(row.show)}, {row.tier} {row.priority}")
    table.row("recipe", f"{row.recipe}, version {row.version}")
    if row.estimate is not None:
        cost, when = row.estimate.cost, "as it runs" if row.estimate.made == "while it runs" else "at its submit"
        likely, most = (dollars(Decimal(amount)) for amount in (cost.p50, cost.p95))
        table.row("estimate", f"{likely} in all, 19 of 20 below {most} ({when})")
    table.row("submitted", f"{_when(row.created)}, {since(row.created, now)} ago")
    if row.ended is not None:
        took = since(row.created, datetime.fromisoformat(row.ended))
        table.row("ended", f"{_when(row.ended)}, after {took}")
    if row.deadline is not None:
        table.row("deadline", _when(row.deadline))
    costs = {kind: Decimal(cost) for kind, cost in row.cost_by_kind_usd.items()}
    parts = [f"{kind} {dollars(cost)}" for kind, cost in costs.items() if cost]
    table.row("cost", dollars(Decimal(row.cost_usd)) + (f": {', '.join(parts)}" if parts else ""))
    for task in row.running:
        took = seconds(task.seconds or 0.0)
        table.row("runs", f"{clean(task.task)} on {short_worker(task.worker or '?')}, {took}")
    for file in row.files:
        size = wording.size(int(str(file.get("size_bytes", 0))))
        table.row("file", Text.assemble(clean(str(file.get("name"))), (f", {size}", "dim")))
    return Group(Text(clean(row.title, 200) or "(no title)", style="bold"), Text(), table)


def why_of_job(found: JobWhy) -> RenderableType:
    """What is broken, what runs, what could, and how many wait for those."""
    held = ", on hold" if found.held and not found.over else ""
    lines: list[RenderableType] = [Text(f"{found.job} is {found.state.value}{held}"), *map(reasons, found.tasks)]
    for state, count in found.others.items():
        more = "more task" if found.tasks else "task"
        lines.append(Text(f"{plural(count, more)} {'is' if count == 1 else 'are'} {state}", style="dim"))
    return Group(*lines)


def reasons(found: ReasonRow) -> RenderableType:
    """One task: its state, what holds it back, when that may be over, and what to do."""

    def short(remedy: str) -> Indented:
        return Indented(text=Text(remedy.replace(found.job, short_id(found.job)), style="cyan"), by=4)

    lines: list[RenderableType] = [Text.assemble((clean(found.task), "bold"), f" {clean(found.said)}")]
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


def expected(found: ReasonRow) -> str:
    """When it starts, or ends, as far as anybody knows."""
    if found.state in DONE:
        return ""
    if found.waits_for_somebody:
        return "nothing happens until somebody acts"
    what = "it ends" if found.state is State.RUNNING else "it starts"
    if found.eta_s is None:
        return f"when {what} is not known"
    return f"{what} in about {span(found.eta_s)}" if found.eta_s >= 1.5 else f"{what} at any moment"


def summed(count: int, noun: str, by_state: Mapping[str, int]) -> str:
    """ "3 tasks (1 running, 2 ready)"."""
    parts = ", ".join(f"{n} {state}" for state, n in by_state.items())
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


def _waits(row: JobRow) -> bool:
    return row.held and row.ended is None


def _style(row: JobRow) -> str:
    return "magenta" if _waits(row) else STYLES.get(row.state, "")


def since(then: str, now: datetime) -> str:
    """How long that is."""
    return span((now - datetime.fromisoformat(then)).total_seconds())


def _when(instant: str) -> str:
    return datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M:%S")
