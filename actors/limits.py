"""What a render model can deliver: frames, sizes, denoise steps. Pure, torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """What a quality means for a model."""

    steps: int
    guidance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a render model can deliver: frame counts listed, or `multiple_of * n + plus` up to `max_frames`."""

    fps: Fraction
    frames: tuple[int, ...] = ()
    multiple_of: int = 1
    plus: int = 0
    max_frames: int = 0
    sizes: tuple[tuple[int, int], ...] = ()  # (width_px, height_px), the first is the default
    size_multiple_of: int = 1  # other sizes are allowed up to `max_pixels` if this divides both sides
    max_pixels: int = 0
    steps: tuple[int, int] = (1, 200)

    def allows_frames(self, count: int) -> bool:
        if self.frames:
            return count in self.frames
        return count == 1 or (self.plus < count <= self.max_frames and (count - self.plus) % self.multiple_of == 0)

    def nearest_frames(self, count: float) -> int:
        """The allowed count of a clip (never a still) that is nearest to `count`."""
        if self.frames:
            return min((n for n in self.frames if n > 1), key=lambda n: abs(n - count))
        chunks = max(1, round((count - self.plus) / self.multiple_of))
        return min(chunks, (self.max_frames - self.plus) // self.multiple_of) * self.multiple_of + self.plus

    def allows_size(self, width_px: int, height_px: int) -> bool:
        fits = width_px % self.size_multiple_of == 0 and height_px % self.size_multiple_of == 0
        return (width_px, height_px) in self.sizes or (fits and 0 < width_px * height_px <= self.max_pixels)

    def seconds(self) -> str:
        """The lengths of clips, for a person."""
        if self.frames:
            return " or ".join(f"{float(n / self.fps):g}" for n in sorted(self.frames) if n > 1) + " s"
        return f"{float((self.multiple_of + self.plus) / self.fps):.2g} to {float(self.max_frames / self.fps):.2g} s"

    def describe_sizes(self) -> str:
        listed = ", ".join(f"{width} x {height}" for width, height in self.sizes)
        if not self.max_pixels:
            return listed
        return f"{listed}, or sides divisible by {self.size_multiple_of} up to {self.max_pixels} pixels"

    @classmethod
    def from_yaml(cls, data: Mapping[str, Any]) -> Limits:
        """From an entry's `fps`, `frames: {values: [...]}` or `{multiple_of:, plus:, max:}`, `sizes`, `steps`,
        `size_multiple_of` and `max_pixels`. Raises KeyError, TypeError, ValueError."""
        frames, steps = data["frames"], data.get("steps", (1, 200))
        return cls(
            fps=Fraction(str(data["fps"])),
            frames=tuple(int(n) for n in frames.get("values", ())),
            multiple_of=int(frames.get("multiple_of", 1)),
            plus=int(frames.get("plus", 0)),
            max_frames=int(frames.get("max", 0)),
            sizes=tuple((int(width), int(height)) for width, height in data["sizes"]),
            size_multiple_of=int(data.get("size_multiple_of", 1)),
            max_pixels=int(data.get("max_pixels", 0)),
            steps=(int(steps[0]), int(steps[1])),
        )
