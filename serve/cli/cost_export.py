"""`farm cost export`: costs as a file for finance, in the words of FOCUS, here or from a farm elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import InvalidInput, NotReady
from serve.cli.wording import utf8

if TYPE_CHECKING:
    from cluster.settings import Settings
    from serve.exports import Asked

HELP = "What the farm has spent."
WAIT_S = 300.0
"""How long a farm elsewhere may look for the next rows: it sorts all cost lines of the period first."""


class FocusName(StrEnum):
    """FOCUS's versions, and what follows, named here so that help needs no SQL."""

    V1_4 = "1.4"
    V1_2 = "1.2"


class ModeName(StrEnum):
    SHOWBACK = "showback"
    INVOICE = "invoice"


class FormatName(StrEnum):
    CSV = "csv"
    PARQUET = "parquet"


From = Annotated[str | None, typer.Option("--from", metavar="WHEN", help="A date or a whole hour, UTC.")]
To = Annotated[
    str | None, typer.Option("--to", metavar="WHEN", help="Not part of it. Without both: the last closed month.")
]
Focus = Annotated[FocusName, typer.Option("--focus", help="Whose column names.")]
ModeOf = Annotated[ModeName, typer.Option("--mode", help="Showback bills nothing; an invoice is of whole months.")]
FormatOf = Annotated[FormatName, typer.Option("--format", help="Of the file.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="A new file.", dir_okay=False, show_default=False)]
Tenant = Annotated[str | None, typer.Option(metavar="NAME", help="Only its costs; of a ledger here.")]
Everyone = Annotated[bool, typer.Option("--everyone", help="Of a farm elsewhere: all tenants, and idle time.")]
Provisional = Annotated[bool, typer.Option("--provisional", help="Also while something may still be booked.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object about the file.")]

app = typer.Typer()


@app.command()
def export(
    out: Out,
    from_: From = None,
    to: To = None,
    focus: Focus = FocusName.V1_4,
    mode: ModeOf = ModeName.SHOWBACK,
    format: FormatOf = FormatName.CSV,
    tenant: Tenant = None,
    everyone: Everyone = False,
    provisional: Provisional = False,
    as_json: AsJson = False,
) -> None:
    """Write costs into a new file, as FOCUS 1.4 or 1.2: CSV or Parquet, exact to the nano-dollar."""
    from cluster import settings as settings_module
    from serve.cli import rows
    from serve.cli.wording import plural, size
    from serve.exports import Asked, kept, summary

    asked = Asked(
        from_=None if from_ is None else utf8(from_, "--from"),
        to=None if to is None else utf8(to, "--to"),
        focus=focus.value,
        mode=mode.value,
        format=format.value,
        tenant=None if tenant is None else utf8(tenant, "--tenant"),
        everyone=everyone,
        provisional=provisional,
    )
    with kept(out) as part, _pieces(settings_module.load(), asked) as pieces:
        with part.open("wb") as file:
            for piece in pieces:
                file.write(piece)
        told = summary(part, asked.format)
    if as_json:
        rows.write([{"file": str(out), "focus": focus.value, "mode": mode.value, "format": format.value, **told}])
        return
    typer.echo(
        f"{out} holds {plural(told['rows'], 'charge')}, {size(told['bytes'])}: FOCUS {focus.value}, {mode.value}, "
        f"${told['effective_cost_usd']} effective, ${told['billed_cost_usd']} billed"
    )


@contextmanager
def _pieces(settings: Settings, asked: Asked) -> Iterator[Iterable[bytes]]:
    from cluster import farm_lock
    from serve import exports, upkeep
    from serve.cli import office
    from serve.remote import Remote

    if settings.url:
        if asked.tenant is not None:
            raise InvalidInput(
                "a key sees its own tenant", field="--tenant", remedy="leave it out, or use a key of that tenant"
            )
        with Remote.of(settings) as remote, remote.opened(asked.path, wait_s=WAIT_S) as response:
            yield response.iter_bytes()
        return
    with office.ledger_of(settings) as ledger:
        export = asked.of(settings, now_us=ledger.clock.now_us())
        try:
            exports.check(ledger, export)
        except NotReady:
            if farm_lock.is_held(settings.home):
                raise
            upkeep.bill(ledger, settings)
            exports.check(ledger, export)
        yield exports.pieces(ledger, export)
