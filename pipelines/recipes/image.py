"""An image: one still from one prompt, a storyboard frame."""

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
    seed: int = 7
    quality: Quality = Quality.STANDARD
    model: str = "house-video"
    size: tuple[int, int] | None = None  # (width_px, height_px)

    def to_json(self) -> Json:
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "quality": self.quality.value,
            "model": self.model,
            "size": list(self.size) if self.size else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Brief:
        size = data.get("size")
        return cls(**{**data, "quality": Quality(data["quality"]), "size": tuple(size) if size else None})


def plan(brief: Brief, catalog: Catalog) -> list[TaskSpec]:
    """One render task of one frame. Raises InvalidSpec, UnknownModel."""
    model = catalog.model(brief.model, role="render", field="model")
    spec = model.spec(
        prompt=brief.prompt, seconds=1.0, seed=brief.seed, quality=brief.quality, size=brief.size, still=True
    )
    return [take_task("image", spec, model)]
