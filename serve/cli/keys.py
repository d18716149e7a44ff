"""`farm keys add|ls|rotate|revoke`: who may ask over HTTP. A secret is printed once and kept nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import InvalidInput

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cluster.ledger.keys import Key
    from cluster.ledger.ledger import Ledger
    from cluster.settings import Settings
    from serve.rows import KeyRow

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
    from cluster.ledger.keys import KeySpec, Scope

    scopes = scope or [ScopeName.GENERATE, ScopeName.READ]
    with _books() as (ledger, settings):
        key, secret = ledger.create_key(
            KeySpec(
                tenant=tenant or settings.tenant,
                name=name,
                scopes=tuple(dict.fromkeys(Scope(one.value) for one in scopes)),
                show=show,
                requests_per_minute=requests_per_minute,
                in_flight_s=in_flight,
                tokens_per_minute=tokens_per_minute,
            )
        )
    _tell_secret(key, secret, as_json=as_json)


@app.command()
def ls(tenant: Tenant = None, as_json: AsJson = False) -> None:
    """All keys, oldest first, the revoked ones too; of no secret more than its beginning."""
    from serve.cli import rows, tables

    with _books() as (ledger, _):
        found, now_us = ledger.keys(tenant), ledger.clock.now_us()
    if as_json:
        rows.write(row_of(key) for key in found)
    else:
        tables.put(_table(found, now_us=now_us))


@app.command()
def rotate(key: KeyOf, keep_old: KeepOld = 0.0, yes: Yes = False, as_json: AsJson = False) -> None:
    """Give a key a new secret and print it, this once."""
    with _books() as (ledger, _):
        found = _named(ledger, key)
        if keep_old == 0 and not yes:
            typer.echo(f"{_line(found)} would get a new secret, and the old one would open nothing any more")
            raise InvalidInput(
                "nothing was done", field="rotate", remedy="give --yes to do it, or --keep-old HOURS to have both"
            )
        done, secret = ledger.rotate_key(found.id, keep_old_s=keep_old * 3600)
    _tell_secret(done, secret, as_json=as_json)


@app.command()
def revoke(key: KeyOf, yes: Yes = False, as_json: AsJson = False) -> None:
    """End a key for good. What was submitted with it goes on."""
    from serve.cli import rows

    with _books() as (ledger, _):
        found = _named(ledger, key)
        if not yes:
            typer.echo(f"{_line(found)} would open nothing any more")
            raise InvalidInput("nothing was done", field="revoke", remedy="give --yes to do it")
        done = ledger.revoke_key(found.id)
    if as_json:
        rows.write([row_of(done)])
    else:
        typer.echo(f"{_line(done)} is revoked")


def row_of(key: Key) -> KeyRow:
    from serve.clerk import key_row

    return key_row(key)


def _table(found: Sequence[Key], *, now_us: int) -> RenderableType:
    from rich.text import Text

    from cluster.timing import span
    from serve.cli.tables import Grid
    from serve.cli.wording import clean

    if not found:
        return Text("no keys; farm keys add NAME makes one")
    table = Grid("KEY", "SECRET", "TENANT", "SHOW", "MAY", ">USED", "NAME")
    for key in found:
        used = "never" if key.used_us is None else f"{span((now_us - key.used_us) / 1e6)} ago"
        may = "revoked" if key.revoked_us is not None else ", ".join(scope.value for scope in key.scopes)
        name = Text(clean(key.name), style="dim" if key.revoked_us is not None else "")
        table.row(key.id, f"{key.prefix}...", key.tenant, key.show or "any", may, used, name)
    return table


@contextmanager
def _books() -> Iterator[tuple[Ledger, Settings]]:
    """The ledger of FARM_HOME, made if need be: a key may be there before the farm has worked."""
    from cluster import settings as settings_module
    from cluster.ledger.ledger import Ledger

    settings = settings_module.load()
    settings.home.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(settings.ledger)
    try:
        yield ledger, settings
    finally:
        ledger.close()


def _named(ledger: Ledger, text: str) -> Key:
    """Raises NotFound, InvalidInput for what fits several."""
    from cluster.ledger import keys as ledger_keys
    from serve import naming

    key_id = naming.key(ledger, text, tenant=None, show=None)
    return ledger.view(lambda c: ledger_keys.read(c, key_id))


def _line(key: Key) -> str:
    from serve.cli.wording import clean

    return f"{key.id} ({clean(key.name)}, {key.prefix}...)"


def _tell_secret(key: Key, secret: str, *, as_json: bool) -> None:
    from serve.cli import rows

    if as_json:
        from serve.clerk import new_key

        rows.write([new_key(key, secret)])
        return
    typer.echo(secret)
    typer.echo(f"{_line(key)}: keep the line above, it is not shown again", err=True)
