"""`farm batch`: a video for each line of a file, for those who have thousands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.cli.wording import utf8

HELP = (
    "A video for each line of a file, at batch tier, from a farm that is up or that FARM_URL names.\n\n"
    'A line is a JSON object: {"prompt": "a red boat"} with any field of POST /v1/videos, and an `id` if you like. All '
    "lines are checked before any is submitted. The directory gets results.jsonl (videos, seconds, costs, errors) and "
    "clips/. The same command again does nothing twice: it waits for what goes on and fetches what is missing, also "
    "after it was killed.\n\n"
    "[bold]Examples[/]\n"
    "  farm batch --input prompts.jsonl --output out --show winter\n"
    "  ray job submit --working-dir DIR -- farm batch --input prompts.jsonl --output /shared/out --show winter"
)
Input = Annotated[Path, typer.Option("--input", metavar="FILE", help="A JSON object on each line.", show_default=False)]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Made if need be.", show_default=False)]
ShowOf = Annotated[str, typer.Option("--show", metavar="NAME", help="Who is billed; by default the show of the key.")]
Name = Annotated[str, typer.Option("--name", metavar="NAME", help="The same file under another name is new work.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out instead of submitting nothing.")]
Download = Annotated[
    bool, typer.Option("--download/--no-download", help="Fetch the clips, or only say where they are.")
]
Concurrency = Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Requests at once.")]

app = typer.Typer()


@app.command(help=HELP)
def batch(
    input_file: Input,
    output: Output,
    show: ShowOf = "",
    name: Name = "",
    skip_bad: SkipBad = False,
    download: Download = True,
    concurrency: Concurrency = 8,
) -> None:
    """A video for each line of a file."""
    from pipelines.batch.progress import display
    from pipelines.batch.run import Batch, check_all_made, run

    asked = Batch(
        input=input_file, output=output, show=utf8(show, "show"), name=utf8(name, "name"), skip_bad=skip_bad,
        download=download, concurrency=concurrency,
    )  # fmt: skip
    url, secret = _farm()
    shown = display()
    try:
        found = run(asked, url=url, secret=secret, display=shown)
        shown.say(f"{sum(result.made for result in found)} of {len(found)} lines are made: {output / 'results.jsonl'}")
    finally:
        shown.close()
    check_all_made(found, output / "results.jsonl")


def _farm() -> tuple[str, str]:
    """(url, key) of the farm that FARM_URL names, else of the one that is up here. Raises NotFound."""
    from cluster import settings as settings_module
    from cluster.errors import NotFound
    from serve import up

    settings = settings_module.load()
    if settings.url:
        return settings.url, settings.secret()
    here = up.here(settings)
    if here is None or not here.ready:
        raise NotFound(
            "no farm is up here", field="FARM_URL", remedy="`farm up` starts one; FARM_URL names one that is elsewhere"
        )
    return here.url, here.key
