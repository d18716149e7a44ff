"""The verbs of operating a farm: commands and their options. They need no running farm, only its ledger."""

from __future__ import annotations

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
WithTasks = Annotated[bool, typer.Option("--tasks", help="Also its tasks that are on hold on their own.")]


@app.command(rich_help_panel=LOOK)
def ls(state: JobStates = None, show: ShowOf = None, limit: Limit = 30, as_json: AsJson = False) -> None:
    """The jobs of the farm, newest first."""
    from cluster.ledger import views
    from serve.cli import office, rows, tables

    of_show = None if show is None else utf8(show, "show")
    with office.opened() as desk:
        live_us = desk.live_us
        lines = desk.ledger.view(
            lambda c: views.job_list(c, show=of_show, states=state or (), limit=limit, live_us=live_us)
        )
        now_us = desk.ledger.clock.now_us()
    if as_json:
        rows.write(rows.job_rows(lines))
    else:
        tables.put(tables.job_table(lines, now_us=now_us))


@app.command(rich_help_panel=LOOK)
def info(job: JobOf, as_json: AsJson = False) -> None:
    """All about one job: its state, cost, what runs, and its files."""
    from cluster.ledger import views
    from serve.cli import office, rows, tables

    with office.opened() as desk:
        job_id, live_us, now_us = office.job_named(desk, job), desk.live_us, desk.ledger.clock.now_us()
        found = desk.ledger.job(job_id)
        nano = desk.ledger.view(lambda c: views.nano_by_kind(c, job_id, live_us))
        files = desk.ledger.view(lambda c: views.job_files(c, job_id))
        running = desk.ledger.view(
            lambda c: views.task_list(c, job_id, states=[State.RUNNING], now_us=now_us, live_us=live_us)
        )
    if as_json:
        costs = {kind: rows.money(n) for kind, n in nano.items()}
        tasks = [rows.task_row(job_id, line) for line in running]
        row = rows.job_row(found, sum(nano.values())) | {"cost_by_kind_usd": costs, "running": tasks}
        rows.write([row | {"files": [{"task": key, **file} for key, file in files]}])
    else:
        tables.put(tables.job_card(found, nano=nano, running=running, files=files, now_us=now_us))


@app.command(rich_help_panel=LOOK)
def tasks(job: JobOf, state: TaskStates = None, as_json: AsJson = False) -> None:
    """The tasks of a job: state, attempts, worker, seconds, cost."""
    from cluster.ledger import views
    from serve.cli import office, rows, tables

    with office.opened() as desk:
        job_id, live_us, now_us = office.job_named(desk, job), desk.live_us, desk.ledger.clock.now_us()
        lines = desk.ledger.view(
            lambda c: views.task_list(c, job_id, states=state or (), now_us=now_us, live_us=live_us)
        )
    if as_json:
        rows.write(rows.task_row(job_id, line) for line in lines)
    else:
        tables.put(tables.task_table(lines))


@app.command(rich_help_panel=LOOK)
def log(job: JobOf, after: After = 0, follow: Follow = False, as_json: AsJson = False) -> None:
    """What happened to a job, event by event."""
    from serve.cli import office, story

    with office.opened() as desk:
        story.tell(desk, office.job_named(desk, job), after=after, follow=follow, as_json=as_json)


@app.command(rich_help_panel=LOOK)
def why(target: JobOrTask, as_json: AsJson = False) -> None:
    """Why a task does not run: all that holds it back, until when, and what to do."""
    from serve.cli import inquiry, office

    with office.opened() as desk:
        inquiry.ask(desk, office.named(desk, target), as_json=as_json)


@app.command(rich_help_panel=LOOK)
def workers(everyone: Gone = False, limit: Limit = 200, as_json: AsJson = False) -> None:
    """Who works: what each holds, runs and costs."""
    from cluster.ledger import views
    from serve.cli import office, rows, tables

    with office.opened() as desk:
        live_us = desk.live_us
        lines = desk.ledger.view(lambda c: views.worker_list(c, gone=everyone, limit=limit, live_us=live_us))
        now_us, runs = desk.ledger.clock.now_us(), desk.farm_runs
    if as_json:
        rows.write(rows.worker_row(line) for line in lines)
        return
    tables.put(tables.worker_table(lines, now_us=now_us))
    if runs is False and any(line.row.ended_us is None for line in lines):
        typer.echo("no farm is at work here now: these were left behind by one that was killed")


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
    _order("requeue", target, yes=yes, as_json=as_json, states=frozenset(state or REOPENABLE))


@app.command(rich_help_panel=ACT)
def eat(target: JobOrTask, yes: Yes = False, as_json: AsJson = False) -> None:
    """Accept dead tasks as done without output."""
    _order("eat", target, yes=yes, as_json=as_json)


@app.command(rich_help_panel=ACT)
def pri(job: JobOf, priority: Priority = None, tier: TierOf = None, as_json: AsJson = False) -> None:
    """Set the priority or the tier of a job."""
    from serve.cli import office, orders

    with office.opened() as desk:
        orders.set_priority(desk, job, priority=priority, tier=tier.value if tier else None, as_json=as_json)


@app.command(rich_help_panel=ACT)
def drain(worker: WorkerOf, reason: Reason = "a person asked", yes: Yes = False, as_json: AsJson = False) -> None:
    """Give a worker no more work."""
    _order("drain", worker, yes=yes, as_json=as_json, reason=utf8(reason, "reason"))


def _order(verb: str, target: str, *, yes: bool, as_json: bool, **more: Any) -> None:
    from serve.cli import office, orders

    with office.opened() as desk:
        getattr(orders, verb)(desk, target, orders.Manner(yes=yes, as_json=as_json), **more)
