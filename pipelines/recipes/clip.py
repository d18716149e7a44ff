"""A clip: one shot from one prompt, no script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.catalog import Catalog
from actors.contract import Json, Quality
from cluster.graph import TaskSpec
from pipelines.recipes.film import take_task

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Brief:
    prompt: str
    seconds: float = 2.0
    seed: int = 7
    quality: Quality = Quality.STANDARD
    model: str = "house-video"
    size: tuple[int, int] | None = None  # (width_px, height_px)
    first_frame: str | None = None  # sha256 of an asset of the tenant: a PNG of this size

    @property
    def sides(self) -> tuple[int, int]:
        """(width_px, height_px) of one whose size is given."""
        assert self.size is not None
        return self.size

    def to_json(self) -> Json:
        return {
            "prompt": self.prompt,
            "seconds": self.seconds,
            "seed": self.seed,
            "quality": self.quality.value,
            "model": self.model,
            "size": list(self.size) if self.size else None,
            **({"first_frame": self.first_frame} if self.first_frame else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Brief:
        size = data.get("size")
        return cls(**{**data, "quality": Quality(data["quality"]), "size": tuple(size) if size else None})


def plan(brief: Brief, catalog: Catalog) -> list[TaskSpec]:
    """One render task. Raises InvalidSpec, UnknownModel."""
    model = catalog.model(brief.model, role="render", field="model")
    spec = model.spec(
        prompt=brief.prompt,
        seconds=brief.seconds,
        seed=brief.seed,
        quality=brief.quality,
        size=brief.size,
        first_frame=brief.first_frame,
    )
    return [take_task("clip", spec, model)]
