"""Verbs of a person who looks at takes: circle, approve, reject. A farm does what follows."""

from __future__ import annotations

from typing import Annotated

import typer

from serve.cli.operate import ACT, AsJson, Yes
from serve.cli.wording import utf8

app = typer.Typer()
TakeOf = Annotated[
    str, typer.Argument(metavar="JOB/TAKE", help="As in 01m8/sh010.t2, or the id of a take.", show_default=False)
]


@app.command(rich_help_panel=ACT)
def circle(take: TakeOf, as_json: AsJson = False) -> None:
    """Choose a take for its shot: the film is cut again with it."""
    _give("circle", take, yes=True, as_json=as_json)


@app.command(rich_help_panel=ACT)
def approve(take: TakeOf, as_json: AsJson = False) -> None:
    """Accept a take that is in review, and circle it."""
    _give("approve", take, yes=True, as_json=as_json)


@app.command(rich_help_panel=ACT)
def reject(take: TakeOf, yes: Yes = False, as_json: AsJson = False) -> None:
    """Have a take that is in review drawn again with another seed; the third time it is dead."""
    _give("reject", take, yes=yes, as_json=as_json)


def _give(verb: str, text: str, *, yes: bool, as_json: bool) -> None:
    from cluster import settings as settings_module
    from serve.cli import office
    from serve.cli.verdicts import LedgerTakes, RemoteTakes, give
    from serve.remote import Remote

    settings, take = settings_module.load(), utf8(text, "take")
    if settings.url:
        with Remote.of(settings) as remote:
            give(RemoteTakes(remote=remote), verb, take, yes=yes, as_json=as_json)
        return
    with office.ledger_of(settings) as ledger:
        give(LedgerTakes(ledger=ledger, settings=settings), verb, take, yes=yes, as_json=as_json)
