"""Backdrops: for each place a few layouts, each a stack of paper layers with their depth.

A layer is (role, parallax, mask): the share of the camera's movement that it follows, and a mask over a canvas two
views wide and one view and a quarter high, so that the camera can pan and zoom. Units: view widths; the view's centre
is (0, 0), y points down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

HALF_WIDTH, HALF_HEIGHT = 1.0, 0.625  # of the canvas, in view widths
_VIEW_PX = 512
LAYER_VIEW_PX = 64  # resolution of the masks that are handed out, per view width
NUM_LAYOUTS = 3

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    role: str
    parallax: float
    mask: Tensor  # float32 (height, width), in [0, 1]


class _Canvas:
    def __init__(self) -> None:
        self.image = Image.new("L", (round(2 * HALF_WIDTH * _VIEW_PX), round(2 * HALF_HEIGHT * _VIEW_PX)), 0)
        self._draw = ImageDraw.Draw(self.image)

    def _px(self, point: Point) -> Point:
        return ((point[0] + HALF_WIDTH) * _VIEW_PX, (point[1] + HALF_HEIGHT) * _VIEW_PX)

    def disc(self, x: float, y: float, r: float, fill: int = 255) -> None:
        self._draw.ellipse([self._px((x - r, y - r)), self._px((x + r, y + r))], fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: int = 255) -> None:
        self._draw.rectangle([self._px((x0, y0)), self._px((x1, y1))], fill=fill)

    def polygon(self, points: Sequence[Point], fill: int = 255) -> None:
        self._draw.polygon([self._px(point) for point in points], fill=fill)

    def ground(self, height: Callable[[float], float]) -> None:
        """Everything below the curve y = height(x)."""
        xs = np.linspace(-HALF_WIDTH, HALF_WIDTH, 257)
        line = [(float(x), height(float(x))) for x in xs]
        self.polygon([*line, (HALF_WIDTH, HALF_HEIGHT), (-HALF_WIDTH, HALF_HEIGHT)])

    def peak(self, x: float, top: float, half_width: float, base: float = HALF_HEIGHT) -> None:
        self.polygon([(x - half_width, base), (x, top), (x + half_width, base)])

    def mask(self) -> Tensor:
        k = _VIEW_PX // LAYER_VIEW_PX
        array = np.asarray(self.image, dtype=np.float32) / 255
        height, width = array.shape
        return torch.from_numpy(array.reshape(height // k, k, width // k, k).mean(axis=(1, 3)))


class _Stage:
    """Collects the layers of one layout, from back to front."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.layers: list[Layer] = []

    def add(self, role: str, parallax: float, cut: Callable[[_Canvas], None]) -> None:
        canvas = _Canvas()
        cut(canvas)
        self.layers.append(Layer(role=role, parallax=parallax, mask=canvas.mask()))

    def hills(self, role: str, parallax: float, level: float, rise: float, waves: float) -> None:
        phase = float(self.rng.uniform(0, 2 * math.pi))

        def height(x: float) -> float:
            return level - rise * (math.sin(waves * math.pi * x + phase) + 0.35 * math.sin(2.3 * waves * x + 2 * phase))

        self.add(role, parallax, lambda canvas: canvas.ground(height))

    def sparks(self, num: int, y0: float, y1: float, r0: float, r1: float, parallax: float = 0.1) -> None:
        """Stars, bubbles: spread evenly, each a little off its place."""
        xs = np.linspace(-0.95, 0.95, num) + self.rng.uniform(-0.04, 0.04, num)
        ys = self.rng.uniform(y0, y1, num)
        rs = self.rng.uniform(r0, r1, num)

        def cut(canvas: _Canvas) -> None:
            for x, y, r in zip(xs, ys, rs, strict=True):
                canvas.disc(float(x), float(y), float(r))

        self.add("glow", parallax, cut)


def _meadow(stage: _Stage) -> None:
    x = float(stage.rng.uniform(-0.32, 0.32))
    stage.add("glow", 0.15, lambda canvas: canvas.disc(x, -0.3, 0.12))
    stage.hills("far", 0.35, 0.1, 0.05, 1.6)
    stage.hills("mid", 0.6, 0.22, 0.05, 2.2)
    stage.hills("near", 1.0, 0.36, 0.035, 2.9)


def _sea(stage: _Stage) -> None:
    stage.sparks(13, -0.46, -0.1, 0.022, 0.034)
    phase = float(stage.rng.uniform(0, 1))

    def waves(role: str, parallax: float, level: float, width: float, shift: float) -> None:
        def height(x: float) -> float:
            return level - 0.035 * abs(math.sin(math.pi * (x / width + shift + phase)))

        stage.add(role, parallax, lambda canvas: canvas.ground(height))

    waves("far", 0.35, 0.1, 0.2, 0.0)
    waves("mid", 0.6, 0.22, 0.25, 0.4)
    waves("near", 1.0, 0.36, 0.3, 0.1)


def _desert(stage: _Stage) -> None:
    x = float(stage.rng.uniform(-0.25, 0.25))
    stage.add("glow", 0.1, lambda canvas: canvas.disc(x, -0.04, 0.2))
    shift = float(stage.rng.uniform(-0.1, 0.1))

    def mesas(canvas: _Canvas) -> None:
        for x0, width, top in ((-0.85, 0.3, -0.02), (-0.3, 0.2, 0.02), (0.12, 0.34, -0.06), (0.68, 0.26, 0.0)):
            left = x0 + shift
            canvas.polygon([(left, 0.3), (left + 0.05, top), (left + width - 0.05, top), (left + width, 0.3)])
        canvas.box(-1, 0.2, 1, 0.625)

    stage.add("far", 0.35, mesas)
    stage.hills("mid", 0.6, 0.25, 0.045, 1.5)
    stage.hills("near", 1.0, 0.38, 0.05, 1.9)


def _city(stage: _Stage) -> None:
    rng = stage.rng

    def skyline(num: int, y0: float, y1: float) -> list[tuple[float, float, float]]:
        edges = np.linspace(-1, 1, num + 1)
        tops = [y0 + (y1 - y0) * ((i * 0.618 + float(rng.uniform(0, 0.25))) % 1.0) for i in range(num)]
        return [(float(edges[i]), float(edges[i + 1]), tops[i]) for i in range(num)]

    far, mid = skyline(12, -0.2, 0.02), skyline(9, -0.02, 0.2)

    def towers(blocks: list[tuple[float, float, float]], gap: float) -> Callable[[_Canvas], None]:
        def cut(canvas: _Canvas) -> None:
            for x0, x1, top in blocks:
                canvas.box(x0 + gap, top, x1 - gap, 0.625)

        return cut

    def windows(canvas: _Canvas) -> None:
        for i, (x0, x1, top) in enumerate(mid):
            middle = (x0 + x1) / 2
            for row in range(2):
                for side in (-1, 1):
                    if (i + row + (side > 0)) % 3:
                        x, y = middle + side * 0.05, top + 0.07 + row * 0.1
                        canvas.box(x - 0.025, y - 0.03, x + 0.025, y + 0.03)

    stage.add("far", 0.35, towers(far, 0.004))
    stage.add("mid", 0.6, towers(mid, 0.012))
    stage.add("glow", 0.6, windows)
    stage.add("near", 1.0, lambda canvas: canvas.box(-1, 0.38, 1, 0.625))


def _mountains(stage: _Stage) -> None:
    shift = float(stage.rng.uniform(-0.12, 0.12))
    peaks = [(-0.75, -0.2, 0.5), (-0.28, -0.32, 0.5), (0.24, -0.16, 0.46), (0.7, -0.3, 0.5)]

    def caps(canvas: _Canvas) -> None:
        for x, top, half in peaks:
            share = 0.16 / (0.625 - top)
            canvas.peak(x + shift, top, half * share, top + 0.16)

    def far(canvas: _Canvas) -> None:
        for x, top, half in peaks:
            canvas.peak(x + shift, top, half)

    def mid(canvas: _Canvas) -> None:
        for x, top, half in (
            (-0.95, 0.06, 0.4),
            (-0.48, 0.12, 0.36),
            (0.02, 0.04, 0.4),
            (0.5, 0.12, 0.36),
            (0.92, 0.06, 0.4),
        ):
            canvas.peak(x - shift, top, half)

    stage.add("far", 0.3, far)
    stage.add("glow", 0.3, caps)
    stage.add("mid", 0.6, mid)
    stage.hills("near", 1.0, 0.34, 0.04, 1.7)


def _reef(stage: _Stage) -> None:
    stage.sparks(11, -0.46, 0.02, 0.024, 0.042, 0.3)
    stage.hills("far", 0.35, 0.2, 0.06, 1.8)
    shift = float(stage.rng.uniform(-0.12, 0.12))

    def coral(canvas: _Canvas) -> None:
        for x, y in ((-0.84, 0.16), (-0.46, 0.24), (0.4, 0.14), (0.82, 0.22)):
            for dx, height in ((-0.09, 0.06), (0.0, -0.04), (0.09, 0.04)):
                cx = x + shift + dx
                canvas.box(cx - 0.026, y + height, cx + 0.026, 0.625)
                canvas.disc(cx, y + height, 0.042)

    stage.add("mid", 0.65, coral)
    stage.hills("near", 1.0, 0.39, 0.03, 2.4)


def _forest(stage: _Stage) -> None:
    shift = float(stage.rng.uniform(-0.08, 0.08))

    def trunks(xs: Sequence[float], half: float, sway: float) -> Callable[[_Canvas], None]:
        def cut(canvas: _Canvas) -> None:
            for x in xs:
                canvas.polygon(
                    [
                        (x + sway - half, -0.625),
                        (x + sway + half, -0.625),
                        (x + half * 1.5, 0.625),
                        (x - half * 1.5, 0.625),
                    ]
                )

        return cut

    stage.add("far", 0.3, trunks([x + shift for x in (-0.9, -0.58, -0.3, -0.02, 0.26, 0.56, 0.88)], 0.03, 0.01))
    stage.add("mid", 0.6, trunks([x - shift for x in (-0.78, -0.4, 0.4, 0.76)], 0.05, -0.02))

    def canopy(canvas: _Canvas) -> None:
        for i, x in enumerate(np.linspace(-1.0, 1.0, 12)):
            canvas.disc(float(x) + shift, -0.52 + 0.04 * (i % 2), 0.15)

    stage.add("glow", 0.8, canopy)
    stage.hills("near", 1.0, 0.37, 0.03, 2.6)


def _space(stage: _Stage) -> None:
    stage.sparks(17, -0.46, 0.3, 0.02, 0.034)
    x = float(stage.rng.uniform(0.26, 0.36)) * float(stage.rng.choice([-1, 1]))

    def planet(canvas: _Canvas) -> None:
        canvas.disc(x, -0.26, 0.13)
        canvas.polygon([(x - 0.24, -0.2), (x - 0.22, -0.17), (x + 0.24, -0.32), (x + 0.22, -0.35)])

    stage.add("far", 0.3, planet)
    stage.hills("mid", 0.6, 0.3, 0.03, 1.3)
    stage.hills("near", 1.0, 0.39, 0.02, 3.3)


_BUILDERS: dict[str, Callable[[_Stage], None]] = {
    "meadow": _meadow,
    "sea": _sea,
    "desert": _desert,
    "city": _city,
    "mountains": _mountains,
    "reef": _reef,
    "forest": _forest,
    "space": _space,
}

PLACES = tuple(_BUILDERS)


@cache
def layers(place: str, layout: int) -> tuple[Layer, ...]:
    """The layers of one of the NUM_LAYOUTS layouts of a place, from back to front; what no layer covers is sky."""
    stage = _Stage(np.random.default_rng([PLACES.index(place), layout]))
    _BUILDERS[place](stage)
    return tuple(stage.layers)
