"""The catalog of models: every YAML in `actors/models/` and in one extra directory, by id.

Free of torch: API processes check shots against it at submit. What a model can draw stands in its YAML alone.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from actors.contract import Json, Quality, ShotSpec
from actors.limits import Limits, Preset
from actors.vocabulary import Mention, Vocabulary
from cluster.errors import InvalidSettings, InvalidSpec, UnknownModel, Unsupported

MAX_PROMPT_CHARS = 2000
FREE_PROMPT_PATTERN = r"^[A-Z][a-z']+( [a-zA-Z'-]+,?){7,40}\.$"  # words, not "5" and not one word for ever


FirstFrame = Literal["never", "may", "must"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Availability:
    """Whether the model can run here now; `reason` says what is missing, or where it is."""

    ready: bool
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One entry. `limits`, `defaults` and `vocabulary` are of render models; `engine` holds a writer's settings."""

    id: str
    role: Literal["render", "writer"]
    family: str
    title: str
    description: str
    weights: Mapping[
        str, str
    ]  # where they come from: {folder} of the repository, {path}, {hub} or {distribution, gguf}
    revision: str
    licence: str
    packages: tuple[str, ...]
    memory_mb: int = 0
    accelerator_gib: float = 0.0
    max_prompt_chars: int = MAX_PROMPT_CHARS
    limits: Limits | None = None
    defaults: Mapping[Quality, Preset] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    first_frame: FirstFrame = "never"  # whether a take can begin with a given picture
    engine: Mapping[str, Any] = field(default_factory=dict)

    def check(self, spec: ShotSpec) -> None:
        """Raises InvalidSpec with the field, what is allowed, and what to do."""
        limits = self._limits()
        if not limits.allows_frames(spec.num_frames):
            raise InvalidSpec(
                f"num_frames {spec.num_frames} cannot be drawn by {self.id}",
                field="num_frames",
                remedy=f"it draws clips of {limits.seconds()} at {float(limits.fps):g} fps, and stills of 1 frame",
            )
        if not limits.allows_size(spec.width_px, spec.height_px):
            raise InvalidSpec(
                f"{spec.width_px} x {spec.height_px} is no size of {self.id}",
                field="size",
                remedy="it draws " + limits.describe_sizes(),
            )
        low, high = limits.steps
        if not low <= spec.num_steps <= high:
            raise InvalidSpec(f"num_steps must be from {low} to {high}, got {spec.num_steps}", field="num_steps")
        self.check_first_frame(spec.first_frame is not None)
        self._check_prompt(spec.prompt)
        if self.vocabulary is not None and self.vocabulary.fields(spec.prompt) is None:
            raise self._cannot_draw()

    def check_first_frame(self, given: bool) -> None:
        """Raises Unsupported for a first frame that it does not take, InvalidSpec without one that it needs."""
        name = "input_reference"
        if given and self.first_frame == "never":
            raise Unsupported(
                f"{self.id} takes no first frame", field=name, remedy="leave it out, and say it in the prompt"
            )
        if not given and self.first_frame == "must":
            raise InvalidSpec(f"{self.id} draws on from a first frame alone", field=name, remedy="give a picture")

    def spec(
        self,
        *,
        prompt: str,
        seconds: float,
        seed: int,
        quality: Quality = Quality.STANDARD,
        size: tuple[int, int] | None = None,
        still: bool = False,
        first_frame: str | None = None,
    ) -> ShotSpec:
        """A checked shot with this model's defaults; `size` is (width_px, height_px). A free prompt is mapped onto
        the vocabulary, and what it leaves open is chosen by the seed. Raises InvalidSpec."""
        limits = self._limits()
        if not 0 <= seed < 2**63:
            raise InvalidSpec(f"seed must be from 0 to 2^63-1, got {seed}", field="seed")
        self._check_prompt(prompt)
        width_px, height_px = size or limits.sizes[0]
        preset = self.defaults[quality]
        spec = ShotSpec(
            prompt=self.caption(self._drawable(prompt, seed)) if self.vocabulary else prompt.strip(),
            num_frames=1 if still else self.num_frames(seconds),
            fps=limits.fps,
            width_px=_pixels("width", width_px),
            height_px=_pixels("height", height_px),
            num_steps=preset.steps,
            guidance_scale=preset.guidance,
            seed=seed,
            quality=quality,
            first_frame=first_frame,
        )
        self.check(spec)
        return spec

    def prompt_schema(self) -> Json:
        """JSON schema of the fields of one shot: enums for a vocabulary, else one bounded sentence."""
        if self.vocabulary is None:
            properties: Json = {"prompt": {"type": "string", "pattern": FREE_PROMPT_PATTERN}}
        else:
            properties = {
                kind: {"type": "string", "enum": list(self.vocabulary.words(kind))} for kind in self.vocabulary.kinds
            }
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    def example(self) -> str | None:
        """A prompt that says all that a model with a vocabulary can be told."""
        if self.vocabulary is None:
            return None
        return self.caption({kind: words[0] for kind, words in self.vocabulary.summary().items()})

    def caption(self, fields: Mapping[str, str]) -> str:
        """The prompt of a shot. Raises InvalidSpec with the name of the field that is missing or not drawable."""
        if self.vocabulary is None:
            prompt = str(fields.get("prompt", ""))
            self._check_prompt(prompt)
            return prompt
        for kind in (*self.vocabulary.kinds, *fields):
            allowed = self.vocabulary.words(kind) if kind in self.vocabulary.kinds else ()
            if not allowed:
                raise InvalidSpec(
                    f"{self.id} knows no field {kind!r}", field=kind, remedy=f"use {', '.join(self.vocabulary.kinds)}"
                )
            if fields.get(kind) not in allowed:
                raise InvalidSpec(
                    f"{kind} {fields.get(kind)!r} cannot be drawn by {self.id}",
                    field=kind,
                    remedy=f"use one of {', '.join(allowed)}",
                )
        return self.vocabulary.sentence(fields)

    def parse(self, prompt: str) -> dict[str, str] | None:
        """What a free sentence names of the vocabulary, first of each kind; None if nothing. Free-text models: all."""
        if self.vocabulary is None:
            return {"prompt": prompt} if prompt.strip() else None
        return self.vocabulary.fields(prompt)

    def mentions(self, text: str) -> list[Mention]:
        return [] if self.vocabulary is None else self.vocabulary.mentions(text)

    def availability(self, home: Path | None = None) -> Availability:
        """Truthful without loading anything: packages, family and weights, in this order."""
        from actors.weights import local_dir

        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            return Availability(ready=False, reason=f"needs the package {', '.join(missing)}")
        if self.role == "render" and importlib.util.find_spec(f"actors.families.{self.family}") is None:
            return Availability(ready=False, reason=f"no family {self.family} in this version")
        ready, reason = local_dir(self, home)
        return Availability(ready=ready, reason=reason)

    def _limits(self) -> Limits:
        if self.limits is None:
            raise InvalidSpec(f"{self.id} is a {self.role}, it draws nothing", field="model")
        return self.limits

    def num_frames(self, seconds: float) -> int:
        """The nearest number of frames that it draws. Raises InvalidSpec for seconds that it cannot."""
        limits = self._limits()
        if limits.frames and max(limits.frames) == 1:
            raise InvalidSpec(f"{self.id} draws stills only", field="seconds", remedy="use `farm image`")
        if not math.isfinite(seconds) or seconds <= 0:
            raise InvalidSpec(
                f"seconds must be above 0, got {seconds}", field="seconds", remedy=f"use {limits.seconds()}"
            )
        asked = seconds * float(limits.fps)
        nearest = limits.nearest_frames(asked)
        if abs(nearest - asked) > max(1.0, limits.multiple_of / 2):
            raise InvalidSpec(
                f"{self.id} draws no clip of {seconds:g} s", field="seconds", remedy=f"use {limits.seconds()}"
            )
        return nearest

    def _check_prompt(self, prompt: str) -> None:
        if not prompt.strip():
            raise InvalidSpec("the prompt is empty", field="prompt", remedy="say in a sentence what to draw")
        if len(prompt) > self.max_prompt_chars:
            raise InvalidSpec(
                f"the prompt has {len(prompt)} characters",
                field="prompt",
                remedy=f"use {self.max_prompt_chars} at most",
            )
        if any((ord(char) < 32 and char not in "\t\n\r") or ord(char) == 127 for char in prompt):
            raise InvalidSpec("the prompt has control characters", field="prompt", remedy="take them out")

    def _drawable(self, prompt: str, seed: int) -> dict[str, str]:
        assert self.vocabulary is not None
        named = self.vocabulary.fields(prompt)
        if named is None:
            raise self._cannot_draw()
        dice = random.Random(f"{seed}|{sorted(named.items())}")
        drawn = {kind: dice.choice(self.vocabulary.words(kind)) for kind in self.vocabulary.kinds}
        return {kind: named.get(kind, drawn[kind]) for kind in self.vocabulary.kinds}

    def _cannot_draw(self) -> InvalidSpec:
        assert self.vocabulary is not None
        can = "; ".join(f"{kind}: {', '.join(words)}" for kind, words in self.vocabulary.summary().items())
        return InvalidSpec(
            f"nothing in the prompt can be drawn by {self.id}", field="prompt", remedy=f"name some of these. {can}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """All models by id."""

    models: Mapping[str, Model]

    @classmethod
    def load(cls, extra_dir: Path | None = None) -> Catalog:
        """The models of the house and those that people added in `extra_dir`, which win. Raises InvalidSettings."""
        own = [entry for entry in files("actors").joinpath("models").iterdir() if entry.name.endswith(".yaml")]
        texts = [(entry.name, entry.read_text(encoding="utf-8")) for entry in sorted(own, key=lambda e: e.name)]
        if extra_dir is not None and extra_dir.is_dir():
            texts += [(str(path), path.read_text(encoding="utf-8")) for path in sorted(extra_dir.glob("*.yaml"))]
        models: dict[str, Model] = {}
        for name, text in texts:
            try:
                model = _read(yaml.safe_load(text))
            except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
                raise InvalidSettings(
                    f"{name} is no model: {type(error).__name__}: {error}", remedy="mend or remove the file"
                ) from error
            models[model.id] = model
        return cls(models=models)

    def model(self, model_id: str, *, role: str | None = None, field: str = "model") -> Model:
        """Raises UnknownModel, which names the near ones."""
        ids = [model.id for model in self.models.values() if role in (None, model.role)]
        if model_id in ids:
            return self.models[model_id]
        near = difflib.get_close_matches(model_id, ids, n=3, cutoff=0.4) or ids
        what = "model" if role is None else f"{role} model"
        raise UnknownModel(f"no {what} {model_id!r}", field=field, remedy=f"use {' or '.join(near)}")


def _pixels(name: str, value: int) -> int:
    if value < 1:
        raise InvalidSpec(f"{name} must be 1 or more, got {value}", field="size")
    return value


ROLES: Mapping[str, Literal["render", "writer"]] = {"video": "render", "language": "writer"}
FIELDS = frozenset(
    {"name", "kind", "family", "title", "summary", "weights", "revision", "license", "needs", "engine", "sizes"}
    | {"size_multiple_of", "max_pixels", "frames", "fps", "seconds", "steps", "defaults", "max_prompt_chars"}
    | {"template", "vocabulary", "first_frame"}
)
FIRST_FRAMES: Mapping[str, FirstFrame] = {"never": "never", "may": "may", "must": "must"}
PACKAGES = {"video": ("torch", "diffusers", "transformers"), "language": ("vllm",)}


def _read(data: Mapping[str, Any]) -> Model:
    """One YAML entry. Raises KeyError, TypeError or ValueError for what is missing or misspelt."""
    if unknown := set(data) - FIELDS:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    if data["kind"] not in ROLES:
        raise ValueError(f"kind {data['kind']!r} is none of {sorted(ROLES)}")
    role = ROLES[data["kind"]]
    weights, needs, defaults = data["weights"], data.get("needs", {}), data.get("defaults", {})
    return Model(
        id=str(data["name"]),
        role=role,
        family=str(data["family"]),
        title=str(data["title"]),
        description=" ".join(str(data["summary"]).split()),
        weights={"folder": weights} if isinstance(weights, str) else {k: str(v) for k, v in weights.items()},
        revision=str(data["revision"]),
        licence=str(data["license"]),
        packages=tuple(needs.get("packages", PACKAGES[data["kind"]])),
        memory_mb=int(needs.get("memory_mb", 0)),
        accelerator_gib=float(needs.get("accelerator_gib", 0)),
        max_prompt_chars=int(data.get("max_prompt_chars", MAX_PROMPT_CHARS)),
        limits=Limits.from_yaml(data) if role == "render" else None,
        defaults={
            Quality(quality): Preset(steps=int(steps), guidance=float(defaults["guidance_scale"]))
            for quality, steps in defaults.get("num_steps", {}).items()
        },
        vocabulary=Vocabulary.from_yaml(data) if data.get("vocabulary") else None,
        first_frame=FIRST_FRAMES[data.get("first_frame", "never")],
        engine=dict(data.get("engine", {})),
    )
