"""A film again from its manifest, and whether it is the same: by content, shot by shot, and why not. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.catalog import Catalog
from actors.contract import Json, Quality, ShotSpec
from actors.weights import revision
from cluster.assets import canonical_json
from cluster.errors import FarmError, InvalidInput
from pipelines.manifest import SCHEMA
from pipelines.recipes.film import Brief, take_key
from pipelines.script import Script
from pipelines.seeds import take_seed

FILM = "film.mp4"
REMEDY = "use the manifest.json of a film, as it was delivered"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A shot, or the film: what it was by content, and what it is."""

    name: str
    was: str
    now: str

    @property
    def equal(self) -> bool:
        return self.was == self.now


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """`differences` is all that can change bits and was not the same, whether or not it did."""

    film: Shown
    shots: tuple[Shown, ...]
    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        return self.film.equal and all(shot.equal for shot in self.shots)

    def to_json(self) -> Json:
        shown = {one.name: {"was": one.was, "now": one.now, "equal": one.equal} for one in (self.film, *self.shots)}
        film = shown.pop(self.film.name)
        return {"equal": self.equal, "film": film, "shots": shown, "differences": list(self.differences)}


def read(data: bytes) -> Json:
    """A manifest that can be replayed. Raises InvalidInput naming what is missing or damaged in it."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the manifest is no JSON: {error}", field="MANIFEST", remedy=REMEDY) from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InvalidInput(f"it is no manifest of schema {SCHEMA}", field="schema", remedy=REMEDY)
    at = ""
    try:
        for at in ("brief", "script", "versions"):
            _is(isinstance(document[at], dict))
        at = "script"
        script = Script.from_json(canonical_json(document["script"]))
        at = f"files.{FILM}.content_sha256"
        _is(isinstance(document["files"][FILM]["content_sha256"], str))
        at = "brief.seconds"
        _is(isinstance(document["brief"]["seconds"], (int, float)))
        at = "brief.quality"
        Quality(document["brief"]["quality"])
        at = "shots"
        _is([shot["id"] for shot in document["shots"]] == [shot.id for shot in script.shots])
        for n, shot in enumerate(document["shots"]):
            at = f"shots.{n}"
            ShotSpec.from_json(shot["spec"])
            _is(all(isinstance(shot[name], str) for name in ("content_sha256", "model", "revision")))
    except FarmError as error:
        raise InvalidInput(f"the manifest is damaged: {error.line()}", field=at, remedy=REMEDY) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput("the manifest is damaged: this is missing, or not what it should be", field=at,
                           remedy=REMEDY) from error  # fmt: skip
    return document


def _is(true: bool) -> None:
    if not true:
        raise ValueError


def brief_of(document: Mapping[str, Any]) -> Brief:
    """What is asked to make it again, of one that `read` has read: the circled takes alone, none from a cache."""
    script, asked = document["script"], document["brief"]
    seed = asked.get("seed") if asked.get("seed") is not None else script["seed"]
    seeds = {
        take_key(shot["id"], 1): shot["spec"]["seed"]
        for shot in document["shots"]
        if shot["spec"]["seed"] != take_seed(seed, shot["id"], take=1)
    }
    return Brief(
        logline=document.get("logline", ""),
        num_shots=len(document["shots"]),
        seconds=asked["seconds"],
        seed=seed,
        quality=Quality(asked["quality"]),
        model=document["shots"][0]["model"],
        script=script,
        seeds=seeds,
        fresh=True,
    )


def compared(was: Mapping[str, Any], now: Mapping[str, Any]) -> Verdict:
    """Two manifests: of the film that was, and of the one that was made from it."""
    shots, differences = list[Shown](), list[str]()
    for old, new in zip(was["shots"], now["shots"], strict=True):
        name = str(old["id"])
        shots.append(Shown(name=name, was=old["content_sha256"], now=new["content_sha256"]))
        differences += [
            f"{name}: {what}: {before}, now {after}"
            for of in ("spec", "made")
            for what, before, after in _differ(old.get(of, {}), new.get(of, {}))
        ]
        differences += [
            f"{name}: {what}: {old[what]}, now {new[what]}" for what in ("model", "revision") if old[what] != new[what]
        ]
    differences += [
        f"{what}: {before}, now {after}" for what, before, after in _differ(was["versions"], now["versions"])
    ]
    film = Shown(name="film", was=was["files"][FILM]["content_sha256"], now=now["files"][FILM]["content_sha256"])
    return Verdict(film=film, shots=tuple(shots), differences=tuple(dict.fromkeys(_alike(differences, len(shots)))))


def revisions_gone(document: Mapping[str, Any], catalog: Catalog) -> list[str]:
    """Models of it that are here in another revision. Raises UnknownModel for one that is not here at all."""
    found = []
    for shot in document["shots"]:
        model = catalog.model(shot["model"], role="render", field=f"shots.{shot['id']}.model")
        if (here := revision(model)) != shot["revision"]:
            found.append(f"{model.id} is here as {here}, not {shot['revision']}")
    return list(dict.fromkeys(found))


def _differ(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    names = [name for name in (*was, *(n for n in now if n not in was)) if was.get(name) != now.get(name)]
    return [(name, was.get(name, "not told"), now.get(name, "not told")) for name in names]


def _alike(differences: list[str], num_shots: int) -> list[str]:
    """What is said of every shot alike is said once."""
    said: dict[str, int] = {}
    for one in differences:
        said[one.partition(": ")[2]] = said.get(one.partition(": ")[2], 0) + 1
    return [
        f"all shots: {rest}" if num_shots > 1 and said[rest] == num_shots else one
        for one in differences
        for rest in (one.partition(": ")[2],)
    ]
