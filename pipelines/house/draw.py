"""Draws a scene as paper maps: for each frame and each point of a 64 x 64 grid, how much of each paper covers it.

Coverage instead of colour keeps edges exact below the size of a point; colours are the codec's business. Everything is
drawn by sampling masks under an affine map, so a clip takes milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.house.papers import NUM_BACKDROP_ROLES, PLACE_PAPERS, ROLES
from pipelines.house.places import HALF_HEIGHT, HALF_WIDTH, NUM_LAYOUTS, layers
from pipelines.house.scenes import CAMERAS, NUM_FRAMES, Scene
from pipelines.house.shapes import SPAN, subject_masks

MAP_PX = 64

_HALF_SIZE = 0.26  # half the height of a subject, in view widths


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pose:
    """The path of a subject; arrays of NUM_FRAMES."""

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    width: np.ndarray
    height: np.ndarray


def _pose(scene: Scene) -> _Pose:
    t = np.linspace(0, 1, NUM_FRAMES)
    zero, one = np.zeros(NUM_FRAMES), np.ones(NUM_FRAMES)
    x, y, angle, width, height = zero, zero, zero, one, one
    swing = scene.swing
    if scene.motion == "drifts right":
        x, y = swing * 0.21 * (2 * t - 1), 0.012 * np.sin(4 * math.pi * t)
    elif scene.motion == "drifts left":
        x, y = swing * 0.21 * (1 - 2 * t), 0.012 * np.sin(4 * math.pi * t)
    elif scene.motion == "rises":
        y, x = swing * 0.2 * (1 - 2 * t), 0.012 * np.sin(4 * math.pi * t)
    elif scene.motion == "sinks":
        y, x = swing * 0.2 * (2 * t - 1), 0.012 * np.sin(4 * math.pi * t)
    elif scene.motion == "bounces":
        hop = np.abs(np.sin(2 * math.pi * t))
        y = 0.15 - swing * 0.3 * hop
        height = 1 - 0.2 * np.exp(-((hop / 0.25) ** 2))
        width = 2 - height
    elif scene.motion == "sways":
        angle = swing * 0.42 * np.sin(2 * math.pi * t)
    elif scene.motion == "spins":
        angle = 2 * math.pi * t
    elif scene.motion == "grows":
        width = height = 0.5 + 0.75 * t
    elif scene.motion == "shrinks":
        width = height = 1.25 - 0.75 * t
    else:
        raise ValueError(f"no such motion: {scene.motion}")
    lens = 1.0 + (
        0.1 * (t - 0.5) if scene.camera == "pushes in" else 0.1 * (0.5 - t) if scene.camera == "pulls back" else 0
    )
    size = scene.size * _HALF_SIZE * lens
    return _Pose(x=x + scene.x, y=y + scene.y, angle=angle, width=size * width, height=size * height)


def _view(scene: Scene, parallax: float) -> tuple[np.ndarray, np.ndarray]:
    """How a layer sees the camera: (shift in view widths, zoom), arrays of NUM_FRAMES."""
    t = np.linspace(0, 1, NUM_FRAMES)
    shift, zoom = np.zeros(NUM_FRAMES), np.ones(NUM_FRAMES)
    if scene.camera == "pans right":
        shift = 0.5 * parallax * (t - 0.5)
    elif scene.camera == "pans left":
        shift = 0.5 * parallax * (0.5 - t)
    elif scene.camera == "pushes in":
        zoom = 1 + 0.45 * (0.35 + 0.65 * parallax) * t
    elif scene.camera == "pulls back":
        zoom = 1 + 0.45 * (0.35 + 0.65 * parallax) * (1 - t)
    elif scene.camera != "still":
        raise ValueError(f"no such camera move: {scene.camera}")
    return shift, zoom


def _grid(px: int) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(px, dtype=torch.float32) + 0.5) / px - 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(-1, 1, 1)


def _paint_backdrop(scene: Scene, map_px: int) -> Tensor:
    x, y = _grid(map_px)
    maps = torch.zeros(NUM_FRAMES, NUM_BACKDROP_ROLES, map_px, map_px)
    maps[:, 0] = 1.0
    for layer in layers(scene.place, scene.layout):
        shift, zoom = _view(scene, layer.parallax)
        gx = (x / _column(zoom) + _column(shift)) / HALF_WIDTH
        gy = (y / _column(zoom)) / HALF_HEIGHT
        mask = layer.mask.expand(NUM_FRAMES, 1, *layer.mask.shape)
        cover = F.grid_sample(mask, torch.stack([gx, gy], -1), padding_mode="border", align_corners=False)
        maps.mul_(1 - cover)
        maps[:, ROLES.index(layer.role)] += cover[:, 0]
    return maps


@lru_cache(maxsize=len(PLACE_PAPERS) * NUM_LAYOUTS * len(CAMERAS))
def _backdrop(place: str, layout: int, camera: str) -> Tensor:
    """At the usual size a backdrop is painted once: there are few, and half precision keeps them at 1 MB each."""
    scene = Scene(subject="", hue="", place=place, motion="", camera=camera, layout=layout)
    return _paint_backdrop(scene, MAP_PX).half()


def draw(scene: Scene, *, map_px: int = MAP_PX) -> Tensor:
    """The paper maps of a scene: float32 (NUM_FRAMES, roles, map_px, map_px), in [0, 1], summing to 1 over the roles.

    Same scene, same numbers.
    """
    if map_px == MAP_PX:
        backdrop = _backdrop(scene.place, scene.layout, scene.camera).float()
    else:
        backdrop = _paint_backdrop(scene, map_px)
    x, y = _grid(map_px)
    pose = _pose(scene)
    dx, dy = x - _column(pose.x), y - _column(pose.y)
    cos, sin = _column(np.cos(pose.angle)), _column(np.sin(pose.angle))
    u = (cos * dx + sin * dy) / _column(pose.width) / SPAN
    v = (-sin * dx + cos * dy) / _column(pose.height) / SPAN
    art = subject_masks(scene.subject).expand(NUM_FRAMES, -1, -1, -1)
    cut = F.grid_sample(art, torch.stack([u, v], -1), padding_mode="zeros", align_corners=False)
    return torch.cat([backdrop * (1 - cut.sum(1, keepdim=True)), cut], dim=1)
