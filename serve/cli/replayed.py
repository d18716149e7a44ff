"""`farm replay`: a film again from its manifest, and whether it is the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import InvalidInput
from serve.cli.session import Work
from serve.cli.wording import clean, plural

if TYPE_CHECKING:
    from actors.catalog import Catalog
    from pipelines.replay import Verdict
    from serve.distant import RemoteFarm
    from serve.finished import Finished
    from serve.local import Farm
    from serve.watch import OnUpdate

MAX_BYTES = 8 << 20
HELP = (
    "A film again, from the manifest that came with it: rendered anew, nothing taken from an earlier run, and held "
    "against what it was.\n\n"
    "Bit-equal is each shot and the film by the hash of its content; where they are not, what could have made the "
    "difference is named: another model revision, other versions, threads, another processor. Exit code 1 then.\n\n"
    "[bold]Example[/]\n"
    "  farm replay film/manifest.json --out again"
)
ManifestFile = Annotated[Path, typer.Argument(metavar="MANIFEST", help="The manifest.json of a film.")]


def work(manifest: Path, *, out: Path, gpus: int | None, as_json: bool) -> Work:
    """Raises InvalidInput for what is no manifest, or a damaged one."""
    from pipelines import replay

    document = replay.read(_bytes(manifest))
    brief = replay.brief_of(document)

    def check(catalog: Catalog) -> None:
        from pipelines.recipes import film as recipe

        replay.revisions_gone(document, catalog)
        recipe.plan(brief, catalog)

    def run(farm: Farm | RemoteFarm, on_update: OnUpdate) -> Finished:
        finished = farm.render(
            brief.logline, seconds=brief.seconds, seed=brief.seed, quality=brief.quality.value, model=brief.model,
            script=brief.script, seeds=brief.seeds, fresh=True, out=out, on_update=on_update,
        )  # fmt: skip
        now: dict[str, Any] = json.loads((out / manifest_name()).read_bytes())
        return replace(finished, verdict=replay.compared(document, now))

    facts = f"{plural(brief.num_shots, 'shot')} of {brief.seconds:g} s anew, {brief.quality.value}, {brief.model}"
    return Work(
        headline=f"{document['title']}, again", facts=facts, out=out, gpus=gpus, as_json=as_json, check=check, run=run
    )


def manifest_name() -> str:
    from pipelines.delivery import LAST

    return LAST


def lines(verdict: Verdict) -> list[str]:
    """What people read."""
    if verdict.equal:
        said = [f"bit-equal: the film and its {plural(len(verdict.shots), 'shot')}"]
        return [*said, *(f"although {clean(one)}" for one in verdict.differences)]
    broken = [shot.name for shot in verdict.shots if not shot.equal]
    film = "the film is bit-equal" if verdict.film.equal else "the film differs"
    shots = (
        f"{plural(len(broken), 'shot')} of {len(verdict.shots)} differ: {', '.join(broken)}" if broken else "no shot"
    )
    because = [clean(one) for one in verdict.differences] or ["nothing that the manifest tells of is different"]
    return [f"not bit-equal: {film}, {shots}", *because]


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInput(f"{path} is too long for a manifest", field="MANIFEST")
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"the manifest {path} cannot be read: {error.strerror}", field="MANIFEST",
            remedy="name the manifest.json of a film",
        ) from error  # fmt: skip
