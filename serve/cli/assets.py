"""`farm assets ls|get|verify|gc`: files by their content, and the collection of what nobody needs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import InvalidInput
from serve.cli.wording import utf8

if TYPE_CHECKING:
    from collections.abc import Iterator

    from serve.rows import AssetRow, Collected
    from serve.shelf import Shelf

HELP = "List, fetch and verify the files that the farm has made, and remove what nobody needs any more."
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on each line.")]
AssetOf = Annotated[str, typer.Argument(metavar="ASSET", help="A SHA-256, or a beginning of it that fits one alone.")]
Perhaps = Annotated[str | None, typer.Argument(metavar="ASSET", help="This one alone.", show_default=False)]
Marked = Annotated[bool, typer.Option("--marked", help="Only those that nobody needs any more.")]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where it goes, if not beside its name.")]
Older = Annotated[
    float | None,
    typer.Option("--older", metavar="DAYS", min=0, help="Of jobs that failed or were deleted so long ago."),
]
Grace = Annotated[
    float | None, typer.Option("--grace", metavar="S", min=0, help="How long a mark must be old before its file goes.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it. Without this, only what would be done is said.")]
ENDINGS = {"video/mp4": ".mp4", "image/png": ".png", "application/json": ".json", "text/vtt": ".vtt"}

app = typer.Typer()


@app.callback(invoke_without_command=True)
def assets(context: typer.Context) -> None:
    """The files."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def ls(marked: Marked = False, limit: Limit = 50, as_json: AsJson = False) -> None:
    """The files that are in the store, by their SHA-256."""
    from serve.cli import office, rows, tables

    with office.shelf() as shelf:
        found: list[AssetRow] = []
        more = False
        for row in _all(shelf, marked=marked):
            if more := len(found) == limit:
                break
            found.append(row)
    if as_json:
        rows.write(found)
        return
    tables.put(tables.asset_table(found, now=datetime.now(UTC)))
    if more:
        typer.echo(f"there are more than {limit}: --limit N shows them")


@app.command()
def get(asset: AssetOf, out: Out = None, as_json: AsJson = False) -> None:
    """Fetch a file, verified, into FILE or one named by its SHA-256."""
    from serve.cli import office, rows
    from serve.cli.wording import size

    with office.shelf() as shelf:
        row = shelf.named(utf8(asset, "ASSET"))
        to = out or Path(row.asset[:16] + ENDINGS.get(row.media_type, ".bin"))
        if not to.parent.is_dir():
            raise InvalidInput(f"there is no directory {to.parent}", field="--out", remedy="make it first")
        shelf.fetch(row, to)
    if as_json:
        rows.write([{**row.plain(), "file": str(to)}])
    else:
        typer.echo(f"{to}  {row.media_type}, {size(row.size_bytes)}, whole")


@app.command()
def verify(asset: Perhaps = None, as_json: AsJson = False) -> int:
    """Read a file, or all of them, and say whether their bytes are what their names say; exit code 1 if not."""
    from serve.cli import office, rows
    from serve.cli.wording import clean, plural, size

    num, num_bytes, broken = 0, 0, 0
    with office.shelf() as shelf:
        for row in _all(shelf) if asset is None else [shelf.named(utf8(asset, "ASSET"))]:
            found = shelf.verify(row)
            num, num_bytes, broken = num + 1, num_bytes + row.size_bytes, broken + (not found.whole)
            if as_json:
                rows.write([found])
            elif not found.whole:
                typer.echo(f"{row.asset}  {clean(found.said or 'damaged')}")
    if not as_json:
        said = f"{broken} damaged or gone" if broken else "all whole"
        typer.echo(f"{plural(num, 'file')}, {size(num_bytes)}: {said}")
    return 1 if broken else 0


@app.command()
def gc(older: Older = None, grace: Grace = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Mark the files that nobody needs, and remove those that were marked long enough ago.

    The files of jobs that failed, were canceled or deleted are needed for ever, or for as long as the farm is set to
    keep them (FARM_ASSETS_KEPT_S); with --older DAYS for so long.
    """
    from serve.cli import office, rows

    with office.shelf() as shelf:
        found = shelf.collect(older_days=older, grace_s=grace, dry_run=not yes)
    if as_json:
        rows.write([found])
    else:
        typer.echo(_told(found))
    if not yes and (found.removed or found.marked or found.jobs):
        raise InvalidInput("nothing was done", field="gc", remedy="give --yes to do it")


def _all(shelf: Shelf, *, marked: bool = False) -> Iterator[AssetRow]:
    after: str | None = None
    more = True
    while more:
        page = shelf.page(marked=marked, after=after, limit=1000)
        yield from page.data
        after, more = page.last_id, page.has_more


def _told(found: Collected) -> str:
    from serve.cli.wording import plural, size

    if not (found.removed or found.marked or found.jobs):
        return "every file is needed"
    did = found.done
    lines = []
    if found.jobs:
        lines.append(f"{plural(found.jobs, 'job')} {'gave' if did else 'would give'} up the files of theirs")
    of_strays = f", {found.strays} of them named by no job" if found.strays else ""
    if found.marked:
        marked = f"{plural(found.marked, 'file')}, {size(found.marked_bytes)}, {'are' if did else 'would be'} marked"
        lines.append(f"{marked}{of_strays}: gone after the grace, if nobody makes them again")
    removed = f"{plural(found.removed, 'file')}, {size(found.removed_bytes)}"
    lines.append(f"{removed} {'removed' if did else 'would be removed'}")
    return "\n".join(lines)
