"""Scenes: what a caption says, plus the little that it leaves open; and which of them training may never see."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from pipelines.house.papers import HUE_PAPERS, PLACE_PAPERS
from pipelines.house.places import NUM_LAYOUTS
from pipelines.house.shapes import SUBJECTS

MOTIONS = (
    "drifts right",
    "drifts left",
    "rises",
    "sinks",
    "bounces",
    "sways",
    "spins",
    "grows",
    "shrinks",
)
NUM_FRAMES = 24
CAMERAS = ("still", "pans left", "pans right", "pushes in", "pulls back")
_HELD_OUT_SHARE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What is drawn. Positions in view widths from the centre, y down; `size` 1 is the usual one."""

    subject: str
    hue: str
    place: str
    motion: str
    camera: str
    x: float = 0.0
    y: float = 0.0
    size: float = 1.0
    swing: float = 1.0
    layout: int = 0

    def held_out(self) -> bool:
        """Whether training may never see this (subject, hue, place, motion); decided by a hash, for ever."""
        key = "|".join((self.subject, self.hue, self.place, self.motion)).encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") < _HELD_OUT_SHARE * 2**32


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene with everything drawn by lot, held out or not."""
    return Scene(
        subject=str(rng.choice(SUBJECTS)),
        hue=str(rng.choice(list(HUE_PAPERS))),
        place=str(rng.choice(list(PLACE_PAPERS))),
        motion=str(rng.choice(MOTIONS)),
        camera=str(rng.choice(CAMERAS)),
        x=float(rng.uniform(-0.045, 0.045)),
        y=float(rng.uniform(-0.035, 0.035)),
        size=float(rng.uniform(0.93, 1.07)),
        swing=float(rng.uniform(0.9, 1.1)),
        layout=int(rng.integers(NUM_LAYOUTS)),
    )


def training_scene(rng: np.random.Generator) -> Scene:
    """A scene with everything drawn by lot, never one that is held out."""
    while True:
        scene = random_scene(rng)
        if not scene.held_out():
            return scene


def held_out_scenes(num: int, *, seed: int) -> list[Scene]:
    """Scenes that training never sees, no (subject, hue, place, motion) twice."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, str, str, str], Scene] = {}
    while len(found) < num:
        scene = random_scene(rng)
        if scene.held_out():
            found.setdefault((scene.subject, scene.hue, scene.place, scene.motion), scene)
    return list(found.values())
