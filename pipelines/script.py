"""The script: a document that people read and edit. Written by `pipelines.writing`, checked here."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from actors.catalog import Model
from cluster.errors import InvalidInput, InvalidSpec

MAX_SHOTS = 40
MAX_LOGLINE_CHARS = 2000


def _printable(text: str) -> str:
    if bad := [char for char in text if unicodedata.category(char) in {"Cc", "Cs"}]:
        raise ValueError(f"has the control character {bad[0]!r}")
    if not text.strip():
        raise ValueError("is empty")
    return text


Line = Annotated[str, Field(max_length=400), AfterValidator(_printable)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Shot(_Document):
    """One picture: the drawable `fields`, the `prompt` made of them, and the sentence told over it."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    fields: dict[str, str]
    prompt: Annotated[str, Field(max_length=3000), AfterValidator(_printable)]
    narration: Line


class Scene(_Document):
    """Shots that follow each other in one place."""

    heading: Line
    place: str
    shots: Annotated[tuple[Shot, ...], Field(min_length=1)]


class Script(_Document):
    """A film on paper. `continuity` says who and what looks the same in all shots; `notes` what the writer had to
    decide without the logline."""

    title: Line
    logline: Annotated[str, Field(max_length=MAX_LOGLINE_CHARS), AfterValidator(lambda text: check_logline(text))]
    model: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    continuity: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scenes: Annotated[tuple[Scene, ...], Field(min_length=1)]

    @property
    def shots(self) -> tuple[Shot, ...]:
        """All shots in the order of the film."""
        return tuple(shot for scene in self.scenes for shot in scene.shots)

    def to_json(self) -> str:
        """Canonical: equal scripts are equal bytes."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Script:
        """Raises InvalidInput with the path of the field, as in `scenes[0].shots[1].narration`."""
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidInput(
                f"{_path(first['loc'])}: {first['msg'].removeprefix('Value error, ')}",
                field=_path(first["loc"]),
                remedy="mend the script",
            ) from error
        except ValueError as error:
            raise InvalidInput(f"the script is not JSON: {error}", field="script", remedy="mend it") from error

    def validate_against(self, model: Model) -> None:
        """Whether `model` can draw every shot as it stands. Raises InvalidInput with the path of the field."""
        if self.model != model.id:
            raise InvalidInput(f"the script is for {self.model!r}, not for {model.id!r}", field="model")
        if len(self.shots) > MAX_SHOTS:
            raise InvalidInput(f"the script has {len(self.shots)} shots", field="scenes", remedy=f"use {MAX_SHOTS}")
        seen: set[str] = set()
        for at, scene in enumerate(self.scenes):
            for index, shot in enumerate(scene.shots):
                path = f"scenes[{at}].shots[{index}]"
                if shot.id in seen:
                    raise InvalidInput(f"the id {shot.id!r} stands twice", field=f"{path}.id", remedy="rename one")
                seen.add(shot.id)
                _check_shot(shot, model, path)


def check_logline(logline: str) -> str:
    """The logline on one line without margins. Raises InvalidInput."""
    if not logline.strip():
        raise InvalidInput("the logline is empty", field="logline", remedy="tell the film in a sentence")
    if len(logline) > MAX_LOGLINE_CHARS:
        raise InvalidInput(
            f"the logline has {len(logline):,} characters",
            field="logline",
            remedy=f"use {MAX_LOGLINE_CHARS:,} at most; a sentence or two is best",
        )
    text = " ".join(logline.split())
    if bad := [char for char in logline if unicodedata.category(char) in {"Cc", "Cs"} and char not in "\t\n\r"]:
        raise InvalidInput(f"the logline has the control character {bad[0]!r}", field="logline", remedy="take it out")
    return text


def _check_shot(shot: Shot, model: Model, path: str) -> None:
    try:
        prompt = model.caption(shot.fields)
    except InvalidSpec as error:
        raise InvalidInput(
            f"{path}.fields: {error}", field=f"{path}.fields.{error.field}", remedy=error.remedy
        ) from error
    drawn: Mapping[str, Any] | None = model.parse(shot.prompt)
    if model.vocabulary is not None and drawn != shot.fields:
        raise InvalidInput(
            f"{path}.prompt does not say what its fields say",
            field=f"{path}.prompt",
            remedy=f"write {prompt!r}, or change the fields with it",
        )


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "script"
