"""The commands and their options. A command only says what is asked; `serve.cli.session` does it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.contract import Quality
from cluster.errors import InvalidInput
from serve.cli import (
    assets,
    batch,
    budgets,
    catalog,
    cost,
    doctor,
    estimate,
    keys,
    operate,
    replayed,
    review,
    standing,
    tenants,
    upkeep,
)
from serve.cli.session import Work
from serve.cli.wording import plural, utf8

if TYPE_CHECKING:
    from actors.catalog import Catalog
    from serve.distant import RemoteFarm
    from serve.finished import Finished
    from serve.local import Farm
    from serve.watch import OnUpdate

MAX_SCRIPT_BYTES = 1 << 20
HELP_NAMES = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=HELP_NAMES,
)


def _shown_version(asked: bool) -> None:
    if asked:
        typer.echo(f"reelfarm {version()}")
        raise typer.Exit


def _duration(value: float) -> float:
    if not math.isfinite(value) or value <= 0:
        raise typer.BadParameter(f"{value:g} is not a length above 0")
    return value


def _seed(value: int | None) -> int | None:
    if value is not None and not 0 <= value < 2**63:
        raise typer.BadParameter(f"{value} is not from 0 to 2^63-1")
    return value


def _size(value: str | None) -> tuple[int, int] | None:
    """ "512x384" -> (512, 384), width first."""
    if value is None:
        return None
    sides = value.lower().replace("×", "x").split("x")
    if len(sides) != 2 or not all(side.strip().isascii() and side.strip().isdigit() for side in sides):
        raise InvalidInput(f"--size {value!r} is no size", field="--size", remedy="write it as in --size 512x512")
    return int(sides[0]), int(sides[1])


RENDER_HELP = (
    "A film from a sentence: it is written, drawn shot by shot, and joined.\n\n"
    "The directory gets film.mp4, film.vtt (the narration), script.json, contact-sheet.png, poster.png, and "
    "manifest.json with all that is needed to make the film again. What is done is kept: the same command twice does "
    "the work once, and one that was stopped goes on.\n\n"
    "[bold]Examples[/]\n"
    '  farm render "A red boat crosses the sea at night"\n'
    '  farm render "A cat dreams of the moon" --shots 6 --quality final\n'
    "  farm render --script film/script.json --out again"
)
CLIP_HELP = (
    "One shot from a prompt, without a script.\n\n"
    "The directory gets clip.mp4 and poster.png. `farm models` says what a model can draw.\n\n"
    "[bold]Examples[/]\n"
    '  farm clip "a blue whale sinks on a coral reef"\n'
    '  farm clip "a rocket lifts off, the camera pulls back" --seed 11 --out rocket'
)
IMAGE_HELP = (
    "One still from a prompt: a storyboard frame.\n\n"
    "The directory gets still.png. `farm models` says what a model can draw.\n\n"
    "[bold]Examples[/]\n"
    '  farm image "a white house in the snowy mountains"\n'
    '  farm image "a pink star in outer space" --quality final --out star'
)

Shots = Annotated[int, typer.Option(metavar="N", min=1, help="How many shots the film has.")]
Seconds = Annotated[float, typer.Option(metavar="S", callback=_duration, help="How long each shot is.")]
Seed = Annotated[int, typer.Option(metavar="N", callback=_seed, help="The same seed draws the same pictures again.")]
QualityOf = Annotated[Quality, typer.Option("--quality", help="How many denoise steps a shot is worth.")]
ModelOf = Annotated[str, typer.Option("--model", metavar="ID", help="What draws. See farm models.")]
WriterOf = Annotated[str, typer.Option("--writer", metavar="ID", help="What writes. See farm models.")]
Gpus = Annotated[int | None, typer.Option(metavar="N", min=0, help="Accelerators to use, if not all that are here.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for each event; the last one is the result.")]
SizeOf = Annotated[str | None, typer.Option("--size", metavar="WxH", help="In pixels, if not the model's own.")]
FilmSeed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        callback=_seed,
        show_default="7",
        help="The same seed draws the same pictures again; a script brings its own.",
    ),
]
Takes = Annotated[int, typer.Option(metavar="N", min=1, max=8, help="How many takes each shot has.")]
InReview = Annotated[bool, typer.Option("--review", help="Wait until a person approves a take of each shot.")]
FilmOf = Annotated[str, typer.Option("--film", metavar="FILM", help="Go on with a film that is here, as it stands.")]
ScriptFile = Annotated[Path | None, typer.Option("--script", metavar="FILE", help="A script.json to film as it is.")]


def _out(what: str) -> Any:
    return typer.Option("--out", metavar="DIR", help=f"Where the {what} goes; made if need be.")


@app.callback(invoke_without_command=True)
def farm(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_shown_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A sentence becomes a film, on this machine.

    [b]Try[/]  farm render "A red boat crosses the sea at night"
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(help=RENDER_HELP)
def render(
    logline: Annotated[str, typer.Argument(metavar="LOGLINE", help="The film in a sentence.", show_default=False)] = "",
    shots: Shots = 4,
    seconds: Seconds = 2.0,
    seed: FilmSeed = None,
    quality: QualityOf = Quality.STANDARD,
    model: ModelOf = "house-video",
    writer: WriterOf = "house-writer",
    script: ScriptFile = None,
    takes: Takes = 1,
    review: InReview = False,
    film: FilmOf = "",
    out: Annotated[str, _out("film")] = "film",
    gpus: Gpus = None,
    as_json: AsJson = False,
) -> Work:
    """A film."""
    text = utf8(logline, "logline")
    if not text.strip() and script is None and not film:
        raise InvalidInput(
            "a film needs a logline", field="logline",
            remedy='tell it in a sentence: farm render "A red boat crosses the sea at night", or give --script FILE',
        )  # fmt: skip
    document = None if script is None else read_script(script)

    def brief() -> Any:
        from pipelines.recipes import film

        return film.Brief(
            logline=text, num_shots=shots, seconds=seconds, seed=seed, quality=quality, model=model, writer=writer,
            script=document, num_takes=takes, review=review,
        )  # fmt: skip

    def check(catalog: Catalog) -> None:
        from pipelines.recipes import film as recipe

        if not film:
            recipe.plan(brief(), catalog)

    def run(farm: Farm | RemoteFarm, on_update: OnUpdate) -> Finished:
        return farm.render(
            text, shots=shots, seconds=seconds, seed=seed, quality=quality.value, model=model, writer=writer,
            script=document, takes=takes, review=review, film=utf8(film, "film"), out=out, on_update=on_update,
        )  # fmt: skip

    if film:
        facts = f"going on with {film}"
        return Work(headline=text, facts=facts, out=_directory(out), gpus=gpus, as_json=as_json, check=check, run=run)
    asked = f"{plural(shots, 'shot')} of {seconds:g} s" if document is None else f"the shots of {script}"
    seeded = f"seed {seed}" if seed is not None else "seed 7" if document is None else "its own seed"
    facts = f"{asked}, {quality.value}, {seeded}, {model}"
    return Work(headline=text, facts=facts, out=_directory(out), gpus=gpus, as_json=as_json, check=check, run=run)


@app.command(help=replayed.HELP)
def replay(
    manifest: replayed.ManifestFile,
    out: Annotated[str, _out("film")] = "replay",
    gpus: Gpus = None,
    as_json: AsJson = False,
) -> Work:
    """A film again."""
    return replayed.work(manifest, out=_directory(out), gpus=gpus, as_json=as_json)


@app.command(help=CLIP_HELP)
def clip(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the shot shows.", show_default=False)],
    seconds: Seconds = 2.0,
    seed: Seed = 7,
    quality: QualityOf = Quality.STANDARD,
    model: ModelOf = "house-video",
    size: SizeOf = None,
    out: Annotated[str, _out("clip")] = "clip",
    gpus: Gpus = None,
    as_json: AsJson = False,
) -> Work:
    """One shot."""
    text, sides = utf8(prompt, "prompt"), _size(size)

    def check(catalog: Catalog) -> None:
        from pipelines.recipes import clip as recipe

        brief = recipe.Brief(prompt=text, seconds=seconds, seed=seed, quality=quality, model=model, size=sides)
        recipe.plan(brief, catalog)

    def run(farm: Farm | RemoteFarm, on_update: OnUpdate) -> Finished:
        return farm.clip(
            text, seconds=seconds, seed=seed, quality=quality.value, model=model, size=sides, out=out,
            on_update=on_update,
        )  # fmt: skip

    facts = f"a clip of {seconds:g} s, {quality.value}, seed {seed}, {model}"
    return Work(headline=text, facts=facts, out=_directory(out), gpus=gpus, as_json=as_json, check=check, run=run)


@app.command(help=IMAGE_HELP)
def image(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the picture shows.", show_default=False)],
    seed: Seed = 7,
    quality: QualityOf = Quality.STANDARD,
    model: ModelOf = "house-video",
    size: SizeOf = None,
    out: Annotated[str, _out("picture")] = "image",
    gpus: Gpus = None,
    as_json: AsJson = False,
) -> Work:
    """One still."""
    text, sides = utf8(prompt, "prompt"), _size(size)

    def check(catalog: Catalog) -> None:
        from pipelines.recipes import image as recipe

        recipe.plan(recipe.Brief(prompt=text, seed=seed, quality=quality, model=model, size=sides), catalog)

    def run(farm: Farm | RemoteFarm, on_update: OnUpdate) -> Finished:
        return farm.image(text, seed=seed, quality=quality.value, model=model, size=sides, out=out, on_update=on_update)

    facts = f"a still, {quality.value}, seed {seed}, {model}"
    return Work(headline=text, facts=facts, out=_directory(out), gpus=gpus, as_json=as_json, check=check, run=run)


app.add_typer(batch.app)
app.add_typer(catalog.app, name="models", help=catalog.HELP)
app.add_typer(standing.app)
app.add_typer(operate.app)
app.add_typer(estimate.app)
app.add_typer(doctor.app)
app.add_typer(cost.app, name="cost", help=cost.HELP, rich_help_panel=operate.LOOK)
app.add_typer(review.app)
app.add_typer(budgets.app, name="budget", help=budgets.HELP, rich_help_panel=operate.ACT)
app.add_typer(keys.app, name="keys", help=keys.HELP, rich_help_panel=operate.ACT)
app.add_typer(assets.app, name="assets", help=assets.HELP, rich_help_panel=operate.ACT)
app.add_typer(tenants.app, name="tenants", help=tenants.HELP, rich_help_panel=operate.ACT)
app.add_typer(upkeep.app, name="ledger", help=upkeep.HELP, rich_help_panel=operate.ACT)


def version() -> str:
    """Of the installed distribution, or of the source tree that this runs from."""
    import tomllib
    from importlib import metadata

    try:
        return metadata.version("reelfarm")
    except metadata.PackageNotFoundError:
        source = Path(__file__).resolve().parents[2] / "pyproject.toml"
        return str(tomllib.loads(source.read_text(encoding="utf-8"))["project"]["version"])


def read_script(path: Path) -> dict[str, Any]:
    """The script that a person gives. Raises InvalidInput; what is in it the recipe checks."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_SCRIPT_BYTES:
            raise InvalidInput(
                f"the script {path} has {size_bytes:,} bytes", field="--script", remedy="it may have a megabyte"
            )
        document = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise InvalidInput(
            f"the script {path} cannot be read: {error.strerror}", field="--script", remedy="name a script.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"the script {path} is not JSON: {error}",
            field="--script",
            remedy="mend it; a film's script.json shows how",
        ) from error
    if not isinstance(document, dict):
        raise InvalidInput(f"the script {path} is no JSON object", field="--script", remedy="name a script.json")
    return document


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _directory(out: str) -> Path:
    if not out.strip():
        raise InvalidInput("--out is empty", field="--out", remedy="name a directory, as in --out film")
    return Path(out)
