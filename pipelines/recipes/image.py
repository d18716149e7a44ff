"""An image: stills from one prompt, storyboard frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.catalog import Catalog
from actors.contract import Json, Quality
from cluster.errors import InvalidInput
from cluster.graph import TaskSpec
from pipelines.recipes.film import take_task
from pipelines.seeds import take_seed

VERSION = 1
MAX_COUNT = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Brief:
    prompt: str
    seed: int = 7
    quality: Quality = Quality.STANDARD
    model: str = "house-video"
    size: tuple[int, int] | None = None  # (width_px, height_px)
    count: int = 1  # stills; the first has the seed, the others have seeds derived from it

    def to_json(self) -> Json:
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "quality": self.quality.value,
            "model": self.model,
            "size": list(self.size) if self.size else None,
            "count": self.count,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Brief:
        size = data.get("size")
        return cls(**{**data, "quality": Quality(data["quality"]), "size": tuple(size) if size else None})


def plan(brief: Brief, catalog: Catalog) -> list[TaskSpec]:
    """A render task of one frame for each still. Raises InvalidInput, InvalidSpec, UnknownModel."""
    model = catalog.model(brief.model, role="render", field="model")
    if not 1 <= brief.count <= MAX_COUNT:
        raise InvalidInput(f"1 to {MAX_COUNT} stills at once, not {brief.count}", field="count")
    graph = []
    for at in range(brief.count):
        key = key_of(at)
        seed = brief.seed if at == 0 else take_seed(brief.seed, key, take=1)
        spec = model.spec(
            prompt=brief.prompt, seconds=1.0, seed=seed, quality=brief.quality, size=brief.size, still=True
        )
        graph.append(take_task(key, spec, model))
    return graph


def key_of(at: int) -> str:
    """Of the task that draws this still, counted from 0."""
    return "image" if at == 0 else f"image.{at + 1}"
