"""`farm doctor`: what is wrong with a farm, or would be, and what to do about it."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on each line.")]

app = typer.Typer()


@app.command(rich_help_panel="Look at the farm")
def doctor(as_json: AsJson = False) -> int:
    """Look at what the farm stands on, and say what to do. Exit code 1 if it cannot work."""
    from cluster import settings as settings_module
    from serve.cli import rows
    from serve.doctor import Verdict, examine

    failed = 0
    for finding in examine(settings_module.load()):
        failed += finding.verdict is Verdict.FAILED
        if as_json:
            rows.write([finding])
        else:
            _tell(finding.verdict, finding.check, finding.said, finding.remedy)
    return 1 if failed else 0


def _tell(verdict: str, check: str, said: str, remedy: str | None) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from serve.cli.wording import clean

    style = {"ok": "green", "warning": "yellow", "failed": "bold red"}[verdict]
    console = Console(highlight=False, emoji=False, markup=False)
    console.print(Text(f"{verdict:<8}", style=style) + Text(f"{clean(check)}: {clean(said)}", style="default"))
    if remedy:
        console.print(Padding(Text(clean(remedy)), (0, 0, 0, 8)))
