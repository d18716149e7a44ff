"""`farm budget ls|set|rm|show`: what a tenant, a show or a film may cost."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import InvalidInput
from serve.cli.wording import utf8

if TYPE_CHECKING:
    from rich.console import RenderableType

    from serve.rows import BudgetCard, BudgetRow, ThresholdRow

HELP = "Cap what the tenant, a show or a film may cost."


class ScopeName(StrEnum):
    """The scopes of budgets, named here so that help needs nothing else."""

    TENANT = "tenant"
    SHOW = "show"
    FILM = "film"


class PeriodName(StrEnum):
    TOTAL = "total"
    MONTH = "month"


AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on each line.")]
ScopeOf = Annotated[ScopeName, typer.Argument(metavar="tenant|show|film", show_default=False)]
Subject = Annotated[str, typer.Argument(metavar="[NAME]", help="Of the show, or the film's id.", show_default=False)]
Cap = Annotated[str, typer.Option("--cap", metavar="USD", help="How much it may cost: 12.50", show_default=False)]
Currency = Annotated[str, typer.Option("--currency", metavar="CODE", help="USD: nothing else is accounted.")]
PeriodOf = Annotated[PeriodName, typer.Option("--period", help="In all, or in each month of the calendar (UTC).")]
At = Annotated[
    list[str] | None,
    typer.Option(
        "--at", metavar="PART=ACTION",
        help="What happens there: 0.8=notify, 1=hold, 1=finish or 1=cancel; several times for several. "
        "[default: 0.8=notify, 1=hold]", show_default=False,
    ),
]  # fmt: skip
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it. Without this, only what would be done is said.")]

app = typer.Typer()


@app.callback(invoke_without_command=True)
def budget(context: typer.Context) -> None:
    """The budgets."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def ls(as_json: AsJson = False) -> None:
    """All budgets: cap, spent, reserved by what runs, left."""
    from serve.cli import office, rows, tables

    with office.opened() as desk:
        found = desk.budgets()
    if as_json:
        rows.write(found)
    else:
        tables.put(_table(found))


@app.command(name="set")
def put(
    scope: ScopeOf,
    subject: Subject = "",
    *,
    cap: Cap,
    currency: Currency = "USD",
    period: PeriodOf = PeriodName.TOTAL,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Set the budget of the tenant, a show or a film; again changes it. What waited for money goes on if there is."""
    from cluster.budgets import Period, Scope
    from serve.cli import office, rows, tables
    from serve.rows import BudgetAsked

    asked = BudgetAsked(
        scope=Scope(scope.value), subject=utf8(subject, "subject"), cap_usd=_dollars(cap), currency=currency,
        period=Period(period.value), thresholds=None if at is None else [_threshold(one) for one in at],
    )  # fmt: skip
    with office.opened() as desk:
        row = desk.set_budget(asked)
    if as_json:
        rows.write([row])
    else:
        tables.put(_table([row]))


@app.command()
def show(scope: ScopeOf, subject: Subject = "", as_json: AsJson = False) -> None:
    """One budget, and what happened to it."""
    from serve.cli import office, rows, tables

    with office.opened() as desk:
        card = desk.budget(_named(desk.budgets(), scope, utf8(subject, "subject")).budget)
    if as_json:
        rows.write([card])
    else:
        tables.put(_card(card))


@app.command()
def rm(scope: ScopeOf, subject: Subject = "", yes: Yes = False, as_json: AsJson = False) -> None:
    """Take a budget away: what it held goes on."""
    from serve.cli import office, rows

    with office.opened() as desk:
        row = _named(desk.budgets(), scope, utf8(subject, "subject"))
        if not yes:
            typer.echo(
                f"{_name(row)} would cost as much as it does: its budget of ${_short(row.cap_usd)} would be gone"
            )
            raise InvalidInput("nothing was done", field="rm", remedy="give --yes to do it")
        row = desk.remove_budget(row.budget)
    if as_json:
        rows.write([row])
    else:
        typer.echo(f"the budget of {_name(row)} is gone")


def _named(found: Sequence[BudgetRow], scope: ScopeName, subject: str) -> BudgetRow:
    """A name alone is one of this tenant's; a farm elsewhere lists no others."""
    from cluster.errors import NotFound
    from cluster.settings import load

    settings = load()
    for row in found:
        if (row.scope, row.subject) == (scope.value, subject) and (settings.url or row.tenant == settings.tenant):
            return row
    raise NotFound(
        f"no budget of {scope.value} {subject}".rstrip(), field="subject",
        remedy="`farm budget ls` lists them; FARM_TENANT says whose is meant",
    )  # fmt: skip


def _threshold(text: str) -> ThresholdRow:
    from cluster.budgets import Action
    from serve.rows import ThresholdRow

    part, _, action = text.partition("=")
    try:
        return ThresholdRow(at=float(part), action=Action(action))
    except ValueError:
        known = ", ".join(one.value for one in Action)
        raise InvalidInput(
            f"{text!r} is no threshold", field="--at", remedy=f"use PART=ACTION, as 0.8=notify; actions are {known}"
        ) from None


def _dollars(text: str) -> str:
    """As exact text."""
    try:
        value = Decimal(text.strip().removeprefix("$"))
        if not value.is_finite() or value < 0 or value.as_tuple().exponent < -9:  # type: ignore[operator]
            raise ValueError
    except (ArithmeticError, ValueError):
        raise InvalidInput(
            f"{text!r} is no amount of dollars", field="--cap", remedy="use a number from 0 on, as in --cap 12.50"
        ) from None
    return f"{value:f}"


def _name(row: BudgetRow) -> str:
    from serve.cli.wording import clean

    return clean(f"{row.scope} {row.subject}".strip())


def _short(amount: str) -> str:
    value = Decimal(amount)
    return f"{value:.2f}" if value == round(value, 2) else f"{value:.6f}".rstrip("0")


def _table(found: Sequence[BudgetRow]) -> RenderableType:
    from rich.text import Text

    from serve.cli.tables import Grid
    from serve.cli.wording import clean

    if not found:
        return Text("no budgets; farm budget set tenant --cap USD makes one")
    grid = Grid("BUDGET OF", ">CAP", ">SPENT", ">RESERVED", ">LEFT", ">USED", "PERIOD", "NOW", "TENANT")
    for row in found:
        used = None if row.used is None else f"{row.used:.0%}"
        style = "bold red" if row.acting in ("hold", "finish", "cancel") else "magenta" if row.acting else ""
        grid.row(
            _name(row), *(_short(x) for x in (row.cap_usd, row.spent_usd, row.reserved_usd, row.left_usd)),
            used or "-", row.period, Text(row.acting or "open", style=style), clean(row.tenant),
        )  # fmt: skip
    return grid


def _card(card: BudgetCard) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from serve.cli.tables import Grid

    at = ", ".join(f"{one.action} at {one.at:.0%}" for one in card.thresholds) or "none: the cap alone"
    log = Grid("WHEN", "WHAT", "")
    for event in card.log:
        log.row(event.at[:19].replace("T", " "), event.event, event.text)
    return Group(_table([card]), Text(f"thresholds: {at}\n"), log)
