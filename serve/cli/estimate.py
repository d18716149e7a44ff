"""`farm estimate`: what a film, a clip or an image would take and cost, before anything of it is submitted."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.contract import Quality
from cluster.errors import InvalidInput
from serve.cli.operate import LOOK
from serve.cli.wording import utf8

if TYPE_CHECKING:
    from rich.console import RenderableType

    from serve.rows import Estimate

app = typer.Typer()


class Kind(StrEnum):
    FILM = "film"
    CLIP = "clip"
    IMAGE = "image"


What = Annotated[
    str, typer.Argument(metavar="[clip|image] TEXT", help="A logline; or what is wanted and its prompt.",
                        show_default=False),
]  # fmt: skip
Prompt = Annotated[str | None, typer.Argument(hidden=True)]
Shots = Annotated[int, typer.Option(metavar="N", help="Of a film.")]
Takes = Annotated[int, typer.Option(metavar="N", help="Of each shot of a film.")]
Seconds = Annotated[float, typer.Option(metavar="S", help="Of a clip, or of each shot.")]
QualityOf = Annotated[Quality, typer.Option("--quality", help="draft, standard or final.")]
Model = Annotated[str, typer.Option(metavar="ID", help="That draws; `farm models ls` lists them.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command(rich_help_panel=LOOK)
def estimate(
    what: What,
    text: Prompt = None,
    shots: Shots = 4,
    takes: Takes = 1,
    seconds: Seconds = 2.0,
    quality: QualityOf = Quality.STANDARD,
    model: Model = "house-video",
    as_json: AsJson = False,
) -> None:
    """What a film, a clip or an image would take and cost if it were asked for now."""
    from cluster import settings as settings_module
    from serve.cli import rows, tables

    kind, words = _meant(what, text)
    of_kind: dict[Kind, dict[str, Any]] = {
        Kind.FILM: {"logline": words, "shots": shots, "takes": takes, "seconds": seconds},
        Kind.CLIP: {"prompt": words, "seconds": seconds},
        Kind.IMAGE: {"prompt": words},
    }
    asked = of_kind[kind] | {"quality": quality.value, "model": model}
    settings = settings_module.load()
    found = _there(kind, asked, settings) if settings.url else _here(kind, asked, settings)
    if as_json:
        rows.write([found])
    else:
        tables.put(_table(found))


def _meant(what: str, text: str | None) -> tuple[Kind, str]:
    """What is asked for, and its words."""
    if text is None:
        return Kind.FILM, utf8(what, "LOGLINE")
    if what not in tuple(Kind):
        raise InvalidInput(
            f"{what!r} is nothing that can be made", field="estimate", remedy="use film, clip or image, then its text"
        )
    return Kind(what), utf8(text, "PROMPT")


def _there(kind: Kind, asked: dict[str, Any], settings: Any) -> Estimate:
    from serve.remote import Remote
    from serve.remote_office import read
    from serve.rows import Estimate

    with Remote.of(settings) as remote:
        return read(Estimate, remote.post("/v1/estimates", {"kind": "video" if kind is Kind.CLIP else kind, **asked}))


def _here(kind: Kind, asked: dict[str, Any], settings: Any) -> Estimate:
    """By the ledger of FARM_HOME, which is made if need be: a farm that has never worked guesses."""
    from actors.catalog import Catalog
    from cluster.ledger.ledger import Ledger
    from pipelines.recipes import clip, film, image
    from serve.foresight import Foresight, answer, kinds_of

    settings.home.mkdir(parents=True, exist_ok=True)
    catalog = Catalog.load(settings.home / "models.d")
    quality = Quality(asked["quality"])
    if kind is Kind.CLIP:
        words = {name: asked[name] for name in ("prompt", "seconds", "model")}
        graph = clip.plan(clip.Brief(**words, quality=quality), catalog)
    elif kind is Kind.IMAGE:
        graph = image.plan(image.Brief(prompt=asked["prompt"], model=asked["model"], quality=quality), catalog)
    else:
        brief = film.Brief(
            logline=asked["logline"], num_shots=asked["shots"], num_takes=asked["takes"], seconds=asked["seconds"],
            model=asked["model"], quality=quality,
        )  # fmt: skip
        graph = film.plan(brief, catalog)
        graph += film.to_come(brief, catalog, graph)
    ledger = Ledger(settings.ledger)
    try:
        seen = Foresight.of_ledger(ledger, settings)
    finally:
        ledger.close()
    return answer("video" if kind is Kind.CLIP else kind.value, seen.forecast(kinds_of(graph), tier="normal"))


def _table(found: Estimate) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from cluster.timing import span
    from serve.cli.tables import Grid
    from serve.cli.wording import dollars, plural

    grid = Grid("STEP", ">TASKS", ">SECONDS", ">95 %", ">COST", ">95 %", "LEARNED FROM")
    for step in found.steps:
        took, cost = step.accelerator_seconds, step.cost
        learned = plural(step.samples, "attempt") if step.samples else "nothing yet: a guess"
        here = "" if step.workers else f", and nobody is here ({step.accelerator})"
        grid.row(
            step.step, str(step.tasks), f"{took.p50:.1f}", f"{took.p95:.1f}", dollars(Decimal(cost.p50)),
            dollars(Decimal(cost.p95)), f"{learned}{here}",
        )  # fmt: skip
    wait = "" if found.wait_seconds is None else f", after a wait of {span(found.wait_seconds.p50)}"
    total = f"{dollars(Decimal(found.cost.p50))} and {span(found.seconds.p50)}{wait}"
    most = f"{dollars(Decimal(found.cost.p95))} and {span(found.seconds.p95)}"
    return Group(grid, Text(f"\nlikely {total}; 19 of 20 stay below {most}"))
