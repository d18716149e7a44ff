"""The verbs of operating a farm: commands and their options. They need no running farm, only its ledger or HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from cluster.errors import InvalidInput
from cluster.states import REOPENABLE, JobState, State
from serve.cli.wording import utf8

LOOK, ACT = "Look at the farm", "Change what it does"
NAMES = "An id, or any part of it that begins or ends it and fits one alone."

app = typer.Typer()


class Tier(StrEnum):
    """How urgent a job is; the ledger's own tiers, named here so that help needs no SQL."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"


JobOf = Annotated[str, typer.Argument(metavar="JOB", help=NAMES, show_default=False)]
JobOrTask = Annotated[str, typer.Argument(metavar="JOB[/TASK]", help=NAMES, show_default=False)]
WorkerOf = Annotated[str, typer.Argument(metavar="WORKER", help=NAMES, show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on each line.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it. Without this, only what would be done is said.")]
JobStates = Annotated[list[JobState] | None, typer.Option("--state", help="Only these; may be given several times.")]
TaskStates = Annotated[list[State] | None, typer.Option("--state", help="Only these; may be given several times.")]
ShowOf = Annotated[str | None, typer.Option("--show", metavar="NAME", help="Only jobs of this show.")]
Limit = Annotated[int, typer.Option(metavar="N", min=1, help="At most so many, the newest.")]
After = Annotated[int, typer.Option(metavar="N", min=0, help="Only events with a higher number.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")]
Gone = Annotated[bool, typer.Option("--all", help="Also those that have left.")]
Priority = Annotated[int | None, typer.Option(metavar="N", help="0 to 100, inside its tier.")]
TierOf = Annotated[Tier | None, typer.Option("--tier", help="How urgent it is.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Kept in the ledger.")]
NameOfShow = Annotated[str | None, typer.Argument(metavar="SHOW", help="This one alone.", show_default=False)]
Share = Annotated[float | None, typer.Option(metavar="X", help="What it is owed, as a weight beside the others.")]
WithTasks = Annotated[bool, typer.Option("--tasks", help="Also its tasks that are on hold on their own.")]


@app.command(rich_help_panel=LOOK)
def ls(state: JobStates = None, show: ShowOf = None, limit: Limit = 30, as_json: AsJson = False) -> None:
    """The jobs of the farm, newest first."""
    from serve.cli import office, rows, tables

    of_show = None if show is None else utf8(show, "show")
    with office.opened() as desk:
        found = desk.jobs(show=of_show, states=state or (), limit=limit)
    if as_json:
        rows.write(found)
    else:
        tables.put(tables.job_table(found, now=datetime.now(UTC)))


@app.command(rich_help_panel=LOOK)
def info(job: JobOf, as_json: AsJson = False) -> None:
    """All about one job: its state, cost, what runs, and its files."""
    from serve.cli import office, rows, tables

    with office.opened() as desk:
        found = desk.job(desk.job_named(utf8(job, "ID")))
    if as_json:
        rows.write([found])
    else:
        tables.put(tables.job_card(found, now=datetime.now(UTC)))


@app.command(rich_help_panel=LOOK)
def tasks(job: JobOf, state: TaskStates = None, as_json: AsJson = False) -> None:
    """The tasks of a job: state, attempts, worker, seconds, cost."""
    from serve.cli import office, rows, tables

    with office.opened() as desk:
        found = desk.tasks(desk.job_named(utf8(job, "ID")), states=state or ())
    if as_json:
        rows.write(found)
    else:
        tables.put(tables.task_table(found))


@app.command(rich_help_panel=LOOK)
def log(job: JobOf, after: After = 0, follow: Follow = False, as_json: AsJson = False) -> None:
    """What happened to a job, event by event."""
    from serve.cli import office, story

    with office.opened() as desk:
        story.tell(desk, desk.job_named(utf8(job, "ID")), after=after, follow=follow, as_json=as_json)


@app.command(rich_help_panel=LOOK)
def why(target: JobOrTask, as_json: AsJson = False) -> None:
    """Why a task does not run: all that holds it back, until when, and what to do."""
    from serve.cli import office, rows, tables

    with office.opened() as desk:
        where = desk.named(utf8(target, "ID"))
        one = desk.why_task(where) if where.task is not None else None
        found = desk.why_job(where.job) if one is None else None
    if as_json:
        rows.write([one] if one else found.tasks if found else ())
    else:
        tables.put(tables.reasons(one) if one else tables.why_of_job(found) if found else "")


@app.command(rich_help_panel=LOOK)
def workers(everyone: Gone = False, limit: Limit = 200, as_json: AsJson = False) -> None:
    """Who works: what each holds, runs and costs."""
    from serve.cli import office, rows, tables

    with office.opened() as desk:
        found = desk.workers(gone=everyone, limit=limit)
    if as_json:
        rows.write(found.data)
        return
    tables.put(tables.worker_table(found.data, now=datetime.now(UTC)))
    if found.farm_runs is False and any(row.left is None for row in found.data):
        typer.echo("no farm is at work here now: these were left behind by one that was killed")


@app.command(rich_help_panel=LOOK)
def shows(name: NameOfShow = None, share: Share = None, as_json: AsJson = False) -> None:
    """The shows: what each is owed of the farm, runs, waits for and has spent."""
    from serve.cli import office, rows, tables

    if share is not None and name is None:
        raise InvalidInput("--share is of one show", field="--share", remedy="name it: farm shows NAME --share X")
    of_show = None if name is None else utf8(name, "show")
    with office.opened() as desk:
        if of_show is None:
            found = desk.shows()
        else:
            found = [desk.show(of_show) if share is None else desk.set_share(of_show, share)]
    if as_json:
        rows.write(found)
    else:
        tables.put(tables.show_table(found))


@app.command(rich_help_panel=ACT)
def cancel(target: JobOrTask, yes: Yes = False, as_json: AsJson = False) -> None:
    """Stop a job, or one task, for good."""
    _order("cancel", target, yes=yes, as_json=as_json)


@app.command(rich_help_panel=ACT)
def hold(target: JobOrTask, yes: Yes = False, as_json: AsJson = False) -> None:
    """Give no new work of a job out; stop one task."""
    _order("hold", target, yes=yes, as_json=as_json)


@app.command(rich_help_panel=ACT)
def release(target: JobOrTask, with_tasks: WithTasks = False, as_json: AsJson = False) -> None:
    """Undo hold."""
    _order("release", target, yes=True, as_json=as_json, with_tasks=with_tasks)


@app.command(rich_help_panel=ACT)
def retry(target: JobOrTask, yes: Yes = False, as_json: AsJson = False) -> None:
    """Run dead tasks again."""
    _order("retry", target, yes=yes, as_json=as_json)


@app.command(rich_help_panel=ACT)
def requeue(target: JobOrTask, state: TaskStates = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Run again what has ended, whatever its state, without the cache."""
    if wrong := set(state or ()) - REOPENABLE:
        allowed = ", ".join(sorted(one.value for one in REOPENABLE))
        raise InvalidInput(f"a task that is {min(wrong)} has not ended", field="--state", remedy=f"use {allowed}")
    _order("requeue", target, yes=yes, as_json=as_json, states=frozenset(state or ()))


@app.command(rich_help_panel=ACT)
def eat(target: JobOrTask, yes: Yes = False, as_json: AsJson = False) -> None:
    """Accept dead tasks as done without output."""
    _order("eat", target, yes=yes, as_json=as_json)


@app.command(rich_help_panel=ACT)
def pri(job: JobOf, priority: Priority = None, tier: TierOf = None, as_json: AsJson = False) -> None:
    """Set the priority or the tier of a job."""
    from serve.cli import office, orders

    with office.opened() as desk:
        orders.set_priority(
            desk, utf8(job, "ID"), priority=priority, tier=tier.value if tier else None, as_json=as_json
        )  # fmt: skip


@app.command(rich_help_panel=ACT)
def drain(worker: WorkerOf, reason: Reason = "a person asked", yes: Yes = False, as_json: AsJson = False) -> None:
    """Give a worker no more work."""
    from serve.cli import office, orders

    because = utf8(reason, "reason")
    with office.opened() as desk:
        found = desk.worker_named(utf8(worker, "ID"))
        orders.drain(desk, found, orders.Manner(yes=yes, as_json=as_json), reason=because)


def _order(verb: str, target: str, *, yes: bool, as_json: bool, **more: Any) -> None:
    from serve.cli import office, orders
    from serve.office import Order, Verb

    with office.opened() as desk:
        order = Order(verb=Verb(verb), where=desk.named(utf8(target, "ID")), **more)
        orders.give(desk, order, orders.Manner(yes=yes, as_json=as_json))
