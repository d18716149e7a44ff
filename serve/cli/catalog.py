"""`farm models` and `farm models add`: the commands and their options."""

from __future__ import annotations

from typing import Annotated

import typer

from serve.cli.wording import utf8

HELP = "The catalog: what is here, what it needs, what it can draw."
ADD_HELP = (
    "Put a model into the catalog: weights from a directory or a hub repository, safetensors only.\n\n"
    "What it can draw is read from its configurations. The entry is a YAML file under FARM_HOME/models.d.\n\n"
    "[bold]Examples[/]\n"
    "  farm models add ~/weights/my-wan --name wan-small\n"
    "  farm models add Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
)

app = typer.Typer(rich_markup_mode="rich")


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="The catalog as one JSON array.")] = False,
) -> None:
    """The catalog."""
    if context.invoked_subcommand is None:
        from serve.cli.models import print_models

        print_models(as_json=as_json)


@app.command("add", help=ADD_HELP)
def add_to_catalog(
    source: Annotated[str, typer.Argument(metavar="PATH|HUB_ID", help="A model as diffusers lays it out.")],
    name: Annotated[str | None, typer.Option(metavar="ID", help="What to call it, if not as its directory.")] = None,
    revision: Annotated[str, typer.Option(metavar="REV", help="Of a hub repository.")] = "main",
    as_json: Annotated[bool, typer.Option("--json", help="The new entry as one JSON object.")] = False,
) -> None:
    """One more model."""
    from serve.cli.models import print_added

    print_added(utf8(source, "source"), name=name, revision=revision, as_json=as_json)
