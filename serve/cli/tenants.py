"""`farm tenants erase`: a tenant who goes."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.errors import InvalidInput, NotFound
from serve.cli.wording import utf8

HELP = "Erase all that a tenant has asked for, written and made; the bill stays."
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on each line.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it. Without this, only what would be done is said.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the tenant, whole.")]

app = typer.Typer()


@app.callback(invoke_without_command=True)
def tenants(context: typer.Context) -> None:
    """Tenants."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def erase(name: Name, yes: Yes = False, as_json: AsJson = False) -> None:
    """Erase a tenant: files, scripts, prompts, events, keys and webhooks. There is no way back.

    What runs is stopped. Of each job its states and its cost lines stay, with the tenant's name, so that bills balance.
    """
    from dataclasses import asdict

    from cluster import retention
    from cluster.assets import check_tenant
    from cluster.rates import usd
    from cluster.store.opening import open_store
    from serve.cli import office, rows
    from serve.cli.wording import dollars, plural, size

    tenant = check_tenant(utf8(name, "NAME"))
    settings = office.here("farm tenants")
    with office.ledger_of(settings) as ledger:
        store = open_store(settings)
        found = (retention.erase if yes else retention.look_at)(ledger, store, tenant)
    was = found.ledger
    if was.jobs + was.keys + was.webhooks + was.assets + found.num_keys + was.nano == 0:
        raise NotFound(f"there is no tenant {tenant}, and nothing of theirs", field="NAME")
    if as_json:
        told = {name: n for name, n in asdict(was).items() if name != "nano"}
        rows.write([{"tenant": tenant, **told, "keys_of_store": found.num_keys, "bill_usd": f"{usd(was.nano):.9f}",
                     "done": yes}])  # fmt: skip
    else:
        counts = [
            plural(was.jobs, "job"),
            plural(was.films, "film"),
            plural(was.keys, "key"),
            plural(was.webhooks, "webhook"),
            f"{plural(found.num_keys, 'file')} of the store ({plural(was.assets, 'asset')}, {size(was.asset_bytes)})",
        ]
        verb = "are gone" if yes else "would be gone"
        typer.echo(f"of {tenant} {', '.join(counts)} {verb}; the bill of {dollars(usd(was.nano))} stays")
    if not yes:
        raise InvalidInput("nothing was done", field="erase", remedy="give --yes to do it")
