"""`farm cost`: what was spent, on what, and what it brought; `farm cost check`: whether the books balance."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import InvalidInput
from serve.cli import cost_export
from serve.cli.wording import utf8

HELP = (
    "What the farm has spent, on what, and what that brought.\n\n"
    "Finished minutes are those of takes that are drawn, accepted ones those of takes that are in a film or were asked "
    "for alone. What is rendered now is in it when it ends.\n\n"
    "[bold]Examples[/]\n"
    "  farm cost --by film --since 7d\n"
    "  farm cost --by day --since 2026-11-01 --plot cost.png"
)
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class By(StrEnum):
    """As in the ledger, named here so that help needs no SQL."""

    SHOW = "show"
    FILM = "film"
    SHOT = "shot"
    MODEL = "model"
    FLEET = "fleet"
    DAY = "day"


ByOf = Annotated[By, typer.Option("--by", help="What it is summed by.")]
Since = Annotated[
    str | None, typer.Option(metavar="WHEN", help="2026-11-01, 2026-11-01T12:00 (UTC), or so long ago: 24h, 7d.")
]
Until = Annotated[str | None, typer.Option(metavar="WHEN", help="Not part of it.")]
ShowOf = Annotated[str | None, typer.Option("--show", metavar="NAME", help="Only this show.")]
Limit = Annotated[int, typer.Option(metavar="N", min=1, help="At most so many, the dearest.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw it: .png, .svg or .pdf.", dir_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for each group; the last one is the total.")]

app = typer.Typer()
app.add_typer(cost_export.app)


@app.callback(invoke_without_command=True)
def cost(
    context: typer.Context,
    by: ByOf = By.SHOW,
    since: Since = None,
    until: Until = None,
    show: ShowOf = None,
    limit: Limit = 40,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """What was spent, on what, and what that brought."""
    if context.invoked_subcommand is not None:
        return
    from cluster.ledger.costs import By as Sums
    from serve.cli import cost_pictures, office, rows, tables
    from serve.costs import CostsAsked

    if plot is not None:
        cost_pictures.check(plot)
    now = datetime.now(UTC)
    with office.opened() as desk:
        table = desk.costs(
            CostsAsked(
                by=Sums(by.value),
                show=None if show is None else utf8(show, "show"),
                since=None if since is None else _unix(since, "--since", now),
                until=None if until is None else _unix(until, "--until", now),
                limit=limit,
            )
        )
    if plot is not None:
        cost_pictures.draw(table, plot)
    if as_json:
        rows.write(table.data)
        rows.write([{"total": table.total.plain(), "wasted_by_reason_usd": table.wasted_by_reason_usd}])
    else:
        tables.put(cost_pictures.written(table))


@app.command()
def check(as_json: AsJson = False) -> int:
    """Hold the cost lines against held time, the event log, the meters and budgets; exit code 1 if not all balances."""
    from cluster.ledger import balance
    from serve.cli import office, rows
    from serve.cli.wording import clean, plural

    with office.ledger_of(office.here("farm cost check")) as ledger:
        found = ledger.view(balance.balance)
    if as_json:
        rows.write({"invariant": flaw.partition(": ")[0], "flaw": flaw} for flaw in found.flaws)
        rows.write([{"balanced": not found.flaws, **found.sums}])
    else:
        for flaw in found.flaws:
            typer.echo(clean(flaw))
        if found.flaws:
            typer.echo(f"{plural(len(found.flaws), 'flaw')} in the bill")
        else:
            typer.echo(found.said)
    return 1 if found.flaws else 0


def _unix(text: str, field: str, now: datetime) -> int:
    """Raises InvalidInput."""
    ago = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    try:
        when = now - timedelta(**{UNITS[ago[2]]: int(ago[1])}) if ago else datetime.fromisoformat(text.strip())
        return max(0, int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()))
    except (ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{field} {text!r} is no time", field=field, remedy="write it as in 2026-11-01, 24h or 7d"
        ) from error
