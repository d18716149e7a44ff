"""What crosses between processes: plain frozen values, JSON on the wire, no torch, no Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any, NewType, Protocol

import numpy as np

from cluster.errors import FailureClass, InvalidSpec

JobId = NewType("JobId", str)
TaskId = NewType("TaskId", str)
AttemptId = NewType("AttemptId", str)
WorkerId = NewType("WorkerId", str)
Json = dict[str, Any]


class Quality(StrEnum):
    """What a take may save on."""

    DRAFT = "draft"
    STANDARD = "standard"
    FINAL = "final"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShotSpec:
    """All that a family reads to draw one take. Sizes are of the delivered picture."""

    prompt: str
    num_frames: int
    fps: Fraction  # for playback; models count frames, never seconds
    width_px: int
    height_px: int
    num_steps: int  # denoise steps
    guidance_scale: float
    seed: int
    negative_prompt: str = ""
    quality: Quality = Quality.STANDARD

    def __post_init__(self) -> None:
        for name in ("num_frames", "width_px", "height_px", "num_steps"):
            if getattr(self, name) < 1:
                raise InvalidSpec(f"{name} must be 1 or more, got {getattr(self, name)}", field=name)
        if self.fps <= 0:
            raise InvalidSpec(f"fps must be above 0, got {self.fps}", field="fps")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise InvalidSpec(f"guidance_scale must be 0 or more, got {self.guidance_scale}", field="guidance_scale")
        if not 0 <= self.seed < 2**63:
            raise InvalidSpec(f"seed must be from 0 to 2^63-1, got {self.seed}", field="seed")

    @property
    def duration_s(self) -> float:
        return float(self.num_frames / self.fps)

    def to_json(self) -> Json:
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "num_frames": self.num_frames,
            "fps": str(self.fps),
            "width_px": self.width_px,
            "height_px": self.height_px,
            "num_steps": self.num_steps,
            "guidance_scale": self.guidance_scale,
            "seed": self.seed,
            "quality": self.quality.value,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ShotSpec:
        return cls(**{**data, "fps": Fraction(data["fps"]), "quality": Quality(data["quality"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One finished answer of a writer."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


class Complete(Protocol):
    """How a caller asks a writer; it blocks, and many threads may ask at once."""

    def __call__(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Json | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        timeout_s: float,
    ) -> Completion: ...


class Family(Protocol):
    """The adapter for one model architecture: it can stop, save, resume and batch between denoise steps.

    A family is loaded once per worker by its module's `load(model_dir, *, device, dtype, num_threads)`.
    `Conditioning` and `State` are the family's own types; nobody else looks inside. Each state owns its scheduler.
    """

    def encode(self, specs: Sequence[ShotSpec]) -> list[Any]: ...

    def start(self, spec: ShotSpec, conditioning: Any) -> Any: ...

    def step(self, states: Sequence[Any]) -> None:
        """One denoise step for each of `states`, which share one shape; each moves its own `index` by one."""

    def progress(self, state: Any) -> tuple[int, int]:
        """(denoise steps done, denoise steps in all)."""

    def save(self, state: Any) -> bytes: ...

    def load(self, data: bytes) -> Any:
        """The state that `save` wrote. Raises DamagedCheckpoint if it is damaged or of another fingerprint."""

    def decode(self, state: Any) -> Iterator[np.ndarray]:
        """Chunks of frames, each uint8 (frames, height_px, width_px, 3), in order."""
