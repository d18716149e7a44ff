"""`farm keys add|ls|rotate|revoke`: who may ask over HTTP. A secret is printed once and kept nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import InvalidInput
from serve.cli.wording import utf8

if TYPE_CHECKING:
    from rich.console import RenderableType

    from serve.rows import KeyRow, NewKey

HELP = "Make, list, rotate and revoke the keys of those who ask over HTTP."


class ScopeName(StrEnum):
    """The ledger's own scopes, named here so that help needs no SQL."""

    GENERATE = "generate"
    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"


AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on each line.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it. Without this, only what would be done is said.")]
KeyOf = Annotated[str, typer.Argument(metavar="KEY", help="An id, or any part of it that fits one alone.")]
Scopes = Annotated[list[ScopeName] | None, typer.Option("--scope", help="What it may do; several times for several.")]
Tenant = Annotated[str | None, typer.Option(metavar="NAME", help="Whose key it is, if not the farm's own tenant.")]
ShowOf = Annotated[str | None, typer.Option("--show", metavar="NAME", help="The only show that it sees.")]
Rpm = Annotated[int | None, typer.Option("--requests-per-minute", metavar="N", help="At most so many.")]
InFlight = Annotated[
    float | None, typer.Option("--in-flight", metavar="S", help="At most so many predicted seconds of open work.")
]
Tpm = Annotated[int | None, typer.Option("--tokens-per-minute", metavar="N", help="At most so many, read and made.")]
KeepOld = Annotated[float, typer.Option("--keep-old", metavar="HOURS", min=0, help="How long the old secret opens.")]

app = typer.Typer()


@app.callback(invoke_without_command=True)
def keys(context: typer.Context) -> None:
    """The keys."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for, as people will read it.")],
    tenant: Tenant = None,
    show: ShowOf = None,
    scope: Scopes = None,
    requests_per_minute: Rpm = None,
    in_flight: InFlight = None,
    tokens_per_minute: Tpm = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print its secret, this once. It may generate and read, if nothing else is said."""
    from serve.cli import office
    from serve.rows import KeyAsked

    asked = KeyAsked(
        name=utf8(name, "name"),
        tenant=tenant,
        show=show,
        scopes=[one.value for one in scope or (ScopeName.GENERATE, ScopeName.READ)],
        requests_per_minute=requests_per_minute,
        in_flight_s=in_flight,
        tokens_per_minute=tokens_per_minute,
    )
    with office.keyring() as ring:
        made = ring.add(asked)
    _tell_secret(made, as_json=as_json)


@app.command()
def ls(tenant: Tenant = None, as_json: AsJson = False) -> None:
    """All keys, oldest first, the revoked ones too; of no secret more than its beginning."""
    from serve.cli import office, rows, tables

    with office.keyring() as ring:
        found = ring.keys(tenant)
    if as_json:
        rows.write(found)
    else:
        tables.put(_table(found, now=datetime.now(UTC)))


@app.command()
def rotate(key: KeyOf, keep_old: KeepOld = 0.0, yes: Yes = False, as_json: AsJson = False) -> None:
    """Give a key a new secret and print it, this once."""
    from serve.cli import office

    with office.keyring() as ring:
        found = ring.named(utf8(key, "ID"))
        if keep_old == 0 and not yes:
            typer.echo(f"{_line(found)} would get a new secret, and the old one would open nothing any more")
            raise InvalidInput(
                "nothing was done", field="rotate", remedy="give --yes to do it, or --keep-old HOURS to have both"
            )
        made = ring.rotate(found.key, keep_old_s=keep_old * 3600)
    _tell_secret(made, as_json=as_json)


@app.command()
def revoke(key: KeyOf, yes: Yes = False, as_json: AsJson = False) -> None:
    """End a key for good. What was submitted with it goes on."""
    from serve.cli import office, rows

    with office.keyring() as ring:
        found = ring.named(utf8(key, "ID"))
        if not yes:
            typer.echo(f"{_line(found)} would open nothing any more")
            raise InvalidInput("nothing was done", field="revoke", remedy="give --yes to do it")
        done = ring.revoke(found.key)
    if as_json:
        rows.write([done])
    else:
        typer.echo(f"{_line(done)} is revoked")


def _table(found: Sequence[KeyRow], *, now: datetime) -> RenderableType:
    from rich.text import Text

    from serve.cli.tables import Grid, since
    from serve.cli.wording import clean

    if not found:
        return Text("no keys; farm keys add NAME makes one")
    table = Grid("KEY", "SECRET", "TENANT", "SHOW", "MAY", ">USED", "NAME")
    for key in found:
        used = "never" if key.used is None else f"{since(key.used, now)} ago"
        may = "revoked" if key.revoked is not None else ", ".join(key.scopes)
        name = Text(clean(key.name), style="dim" if key.revoked is not None else "")
        table.row(key.key, f"{key.prefix}...", key.tenant, key.show or "any", may, used, name)
    return table


def _line(key: KeyRow) -> str:
    from serve.cli.wording import clean

    return f"{key.key} ({clean(key.name)}, {key.prefix}...)"


def _tell_secret(made: NewKey, *, as_json: bool) -> None:
    from serve.cli import rows

    if as_json:
        rows.write([made])
        return
    typer.echo(made.secret)
    typer.echo(f"{_line(made)}: keep the line above, it is not shown again", err=True)
