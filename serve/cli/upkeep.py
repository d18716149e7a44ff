"""`farm ledger backup|restore|check`: the care of the books."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import InvalidInput

HELP = "Back up, restore and check the ledger: all jobs, attempts and money of this farm."
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on each line.")]
File = Annotated[Path, typer.Argument(metavar="FILE", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it. Without this, only what would be done is said.")]

app = typer.Typer()


@app.callback(invoke_without_command=True)
def ledger(context: typer.Context) -> None:
    """The care of the books."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def backup(file: File, as_json: AsJson = False) -> None:
    """Copy the ledger, as it is at one instant, into a new FILE; a farm may go on writing."""
    from cluster.ledger import upkeep
    from serve.cli import office, rows
    from serve.cli.wording import plural, size

    done = upkeep.backup(office.here("farm ledger").ledger, file)
    if as_json:
        rows.write([{"verb": "backup", "file": str(done.path), "bytes": done.num_bytes, "jobs": done.num_jobs}])
    else:
        typer.echo(f"{done.path} holds {plural(done.num_jobs, 'job')}, {size(done.num_bytes)}")


@app.command()
def restore(file: File, yes: Yes = False, as_json: AsJson = False) -> None:
    """Put a backup in the place of the ledger; the old one stays beside it. No farm may be at work."""
    from cluster import farm_lock
    from cluster.ledger import upkeep
    from serve.cli import office, rows
    from serve.cli.wording import plural

    settings = office.here("farm ledger")
    settings.home.mkdir(parents=True, exist_ok=True)
    with farm_lock.held(settings.home):
        found = upkeep.looked_at(settings.ledger, file)
        if not yes:
            said = f"{file} holds {plural(found.num_jobs, 'job')}; the ledger would become that, the old one is kept"
            if as_json:
                rows.write([{"verb": "restore", "file": str(file), "jobs": found.num_jobs, "done": False}])
            else:
                typer.echo(said)
            raise InvalidInput("nothing was done", field="restore", remedy="give --yes to do it")
        done = upkeep.restore(settings.ledger, file, at=datetime.now(UTC))
    old = str(done.old) if done.old else None
    if as_json:
        rows.write([{"verb": "restore", "file": str(file), "jobs": done.num_jobs, "old": old, "done": True}])
    else:
        typer.echo(f"the ledger holds {plural(done.num_jobs, 'job')}" + (f"; the old one is {old}" if old else ""))


@app.command()
def check(as_json: AsJson = False) -> int:
    """Read all of the ledger and say what is wrong with it; exit code 1 if something is."""
    from cluster.ledger import upkeep
    from serve.cli import office, rows
    from serve.cli.wording import clean, plural

    with office.ledger_of(office.here("farm ledger")) as ledger:
        flaws = ledger.view(upkeep.check)
    if as_json:
        rows.write({"flaw": flaw} for flaw in flaws)
    else:
        for flaw in flaws:
            typer.echo(clean(flaw))
        typer.echo(f"{plural(len(flaws), 'flaw')} in the ledger" if flaws else "the ledger is whole, and it balances")
    return 1 if flaws else 0
