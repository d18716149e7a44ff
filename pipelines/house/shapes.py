"""Subjects, cut from three papers each: body, mark and light. Units: the paper spans [-1, 1], y points down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

BODY, MARK, LIGHT = 1, 2, 3
SPAN = 1.2  # the sheet reaches from -SPAN to SPAN, so that nothing touches its edge
_SHEET_PX = 720
SHEET_PX = 48  # size of the masks that are handed out

Point = tuple[float, float]


class Sheet:
    """A square of paper that takes cut-outs one over the other."""

    def __init__(self) -> None:
        self.image = Image.new("L", (_SHEET_PX, _SHEET_PX), 0)
        self._draw = ImageDraw.Draw(self.image)

    def _px(self, point: Point) -> Point:
        scale = _SHEET_PX / (2 * SPAN)
        return ((point[0] + SPAN) * scale, (point[1] + SPAN) * scale)

    def disc(self, x: float, y: float, rx: float, role: int, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self._draw.ellipse([self._px((x - rx, y - ry)), self._px((x + rx, y + ry))], fill=role)

    def polygon(self, points: Sequence[Point], role: int) -> None:
        self._draw.polygon([self._px(point) for point in points], fill=role)

    def box(self, x0: float, y0: float, x1: float, y1: float, role: int, radius: float = 0.0) -> None:
        px = radius * _SHEET_PX / (2 * SPAN)
        self._draw.rounded_rectangle([self._px((x0, y0)), self._px((x1, y1))], radius=px, fill=role)

    def sector(self, x: float, y: float, r: float, start_deg: float, end_deg: float, role: int) -> None:
        self._draw.pieslice([self._px((x - r, y - r)), self._px((x + r, y + r))], start_deg, end_deg, fill=role)

    def arc(self, x: float, y: float, r: float, start_deg: float, end_deg: float, width: float, role: int) -> None:
        px = max(1, round(width * _SHEET_PX / (2 * SPAN)))
        self._draw.arc([self._px((x - r, y - r)), self._px((x + r, y + r))], start_deg, end_deg, fill=role, width=px)

    def face(self, x: float, y: float, size: float, role: int = MARK) -> None:
        """Two eyes and a smile."""
        for side in (-1, 1):
            self.disc(x + side * size, y, size * 0.36, role, ry=size * 0.46)
        self.arc(x, y + size * 0.35, size * 0.62, 20, 160, size * 0.3, role)


def _ball(sheet: Sheet) -> None:
    sheet.disc(0, 0, 0.92, BODY)
    sheet.sector(0, 0, 0.92, -20, 40, LIGHT)
    sheet.sector(0, 0, 0.92, 100, 160, LIGHT)
    sheet.sector(0, 0, 0.92, 220, 280, MARK)
    sheet.disc(0, 0, 0.2, MARK)


def _star(sheet: Sheet) -> None:
    points = []
    for i in range(10):
        r = 1.06 if i % 2 == 0 else 0.52
        angle = math.radians(-90 + 36 * i)
        points.append((r * math.cos(angle), r * math.sin(angle) + 0.06))
    sheet.polygon(points, BODY)
    sheet.face(0, -0.05, 0.24)


def _boat(sheet: Sheet) -> None:
    sheet.polygon([(-0.98, 0.4), (0.98, 0.4), (0.62, 0.92), (-0.66, 0.92)], BODY)
    sheet.box(-0.9, 0.52, 0.88, 0.64, MARK)
    sheet.box(-0.07, -1.0, 0.07, 0.42, MARK)
    sheet.polygon([(0.13, -0.92), (0.13, 0.28), (0.86, 0.28)], LIGHT)
    sheet.polygon([(-0.13, -0.7), (-0.13, 0.28), (-0.78, 0.28)], BODY)


def _fish(sheet: Sheet) -> None:
    sheet.polygon([(-0.45, 0), (-1.05, -0.55), (-0.9, 0), (-1.05, 0.55)], MARK)
    sheet.polygon([(-0.2, -0.45), (0.1, -0.9), (0.4, -0.4)], MARK)
    sheet.disc(0.16, 0, 0.82, BODY, ry=0.58)
    sheet.polygon([(-0.2, -0.54), (0.06, -0.6), (0.0, 0.6), (-0.24, 0.52)], LIGHT)
    sheet.disc(0.56, -0.14, 0.2, LIGHT)
    sheet.disc(0.6, -0.14, 0.11, MARK)


def _bird(sheet: Sheet) -> None:
    sheet.polygon([(-0.4, 0.1), (-1.08, -0.22), (-0.98, 0.34)], MARK)
    sheet.disc(-0.06, 0.18, 0.66, BODY, ry=0.54)
    sheet.disc(0.46, -0.34, 0.42, BODY)
    sheet.polygon([(0.78, -0.52), (1.14, -0.3), (0.78, -0.14)], MARK)
    sheet.disc(0.54, -0.42, 0.17, LIGHT)
    sheet.disc(0.57, -0.42, 0.09, MARK)
    sheet.polygon([(-0.72, -0.86), (0.3, 0.0), (-0.02, 0.5), (-0.5, 0.28)], LIGHT)
    sheet.box(-0.2, 0.68, -0.06, 0.98, MARK)
    sheet.box(0.1, 0.68, 0.24, 0.98, MARK)


def _tree(sheet: Sheet) -> None:
    sheet.box(-0.16, 0.2, 0.16, 1.0, MARK)
    for x, y, r in ((-0.42, 0.12, 0.46), (0.42, 0.12, 0.46), (0.0, -0.44, 0.58), (0.0, 0.1, 0.5)):
        sheet.disc(x, y, r, BODY)
    for x, y in ((-0.42, 0.16), (0.06, -0.56), (0.42, 0.1), (-0.02, 0.02)):
        sheet.disc(x, y, 0.13, LIGHT)


def _house(sheet: Sheet) -> None:
    sheet.box(0.38, -0.92, 0.62, -0.2, MARK)
    sheet.box(-0.7, -0.2, 0.7, 0.96, BODY)
    sheet.polygon([(-1.0, -0.12), (0.0, -1.0), (1.0, -0.12)], MARK)
    sheet.box(-0.5, 0.12, -0.08, 0.52, LIGHT)
    sheet.box(0.14, 0.2, 0.52, 0.96, LIGHT, 0.12)


def _heart(sheet: Sheet) -> None:
    points = []
    for i in range(72):
        t = 2 * math.pi * i / 72
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16.5, -y / 16.5 - 0.08))
    sheet.polygon(points, BODY)
    sheet.disc(-0.52, -0.42, 0.2, LIGHT)
    sheet.face(0.04, -0.12, 0.24)


def _cloud(sheet: Sheet) -> None:
    sheet.box(-1.0, 0.0, 1.0, 0.58, MARK, 0.29)
    for x, y, r in ((-0.58, 0.06, 0.4), (-0.1, -0.26, 0.52), (0.5, 0.0, 0.44), (0.0, 0.12, 0.4)):
        sheet.disc(x, y, r, BODY)
    sheet.box(-0.96, 0.02, 0.94, 0.4, BODY, 0.19)
    sheet.face(0.0, -0.06, 0.22)


def _rocket(sheet: Sheet) -> None:
    sheet.polygon([(-0.22, 0.6), (0.22, 0.6), (0.0, 1.14)], LIGHT)
    sheet.polygon([(-0.3, 0.1), (-0.74, 0.78), (-0.26, 0.62)], MARK)
    sheet.polygon([(0.3, 0.1), (0.74, 0.78), (0.26, 0.62)], MARK)
    sheet.disc(0, -0.12, 0.42, BODY, ry=0.8)
    sheet.box(-0.33, 0.3, 0.33, 0.66, BODY, 0.06)
    sheet.polygon([(-0.31, -0.62), (0.31, -0.62), (0.0, -1.12)], MARK)
    sheet.disc(0, -0.16, 0.22, LIGHT)


def _moon(sheet: Sheet) -> None:
    sheet.disc(0.02, 0, 0.98, BODY)
    sheet.disc(0.42, -0.16, 0.76, 0)
    sheet.disc(-0.56, -0.24, 0.13, MARK)
    sheet.arc(-0.44, 0.2, 0.26, 60, 170, 0.1, MARK)
    points = []
    for i in range(8):
        r = 0.36 if i % 2 == 0 else 0.14
        angle = math.radians(45 * i)
        points.append((0.5 + r * math.cos(angle), -0.14 + r * math.sin(angle)))
    sheet.polygon(points, LIGHT)


def _car(sheet: Sheet) -> None:
    sheet.polygon([(-0.66, 0.12), (-0.42, -0.52), (0.36, -0.52), (0.66, 0.12)], BODY)
    sheet.box(-1.04, 0.0, 1.04, 0.48, BODY, 0.18)
    sheet.polygon([(-0.46, 0.04), (-0.3, -0.36), (-0.06, -0.36), (-0.06, 0.04)], LIGHT)
    sheet.polygon([(0.1, 0.04), (0.1, -0.36), (0.28, -0.36), (0.46, 0.04)], LIGHT)
    for x in (-0.54, 0.54):
        sheet.disc(x, 0.48, 0.3, MARK)
        sheet.disc(x, 0.48, 0.13, LIGHT)


def _cat(sheet: Sheet) -> None:
    for side in (-1, 1):
        sheet.polygon([(side * 0.86, -1.02), (side * 0.14, -0.5), (side * 0.88, -0.1)], BODY)
        sheet.polygon([(side * 0.72, -0.74), (side * 0.42, -0.5), (side * 0.74, -0.34)], MARK)
    sheet.disc(0, 0.14, 0.92, BODY, ry=0.76)
    for side in (-1, 1):
        sheet.disc(side * 0.4, 0.02, 0.22, LIGHT)
        sheet.disc(side * 0.38, 0.04, 0.11, MARK, ry=0.17)
    sheet.disc(0, 0.48, 0.34, LIGHT, ry=0.24)
    sheet.polygon([(-0.15, 0.36), (0.15, 0.36), (0.0, 0.54)], MARK)


def _balloon(sheet: Sheet) -> None:
    sheet.polygon([(-0.5, 0.2), (0.5, 0.2), (0.2, 0.72), (-0.2, 0.72)], BODY)
    sheet.disc(0, -0.3, 0.74, BODY, ry=0.76)
    sheet.disc(0, -0.3, 0.42, MARK, ry=0.76)
    sheet.disc(0, -0.3, 0.2, LIGHT, ry=0.76)
    sheet.polygon([(-0.2, 0.4), (0.2, 0.4), (0.14, 0.62), (-0.14, 0.62)], BODY)
    sheet.box(-0.24, 0.74, 0.24, 1.06, MARK, 0.06)


_CUTTERS: dict[str, Callable[[Sheet], None]] = {
    "ball": _ball,
    "star": _star,
    "boat": _boat,
    "fish": _fish,
    "bird": _bird,
    "tree": _tree,
    "house": _house,
    "heart": _heart,
    "cloud": _cloud,
    "rocket": _rocket,
    "moon": _moon,
    "car": _car,
    "cat": _cat,
    "balloon": _balloon,
}

SUBJECTS = tuple(_CUTTERS)


@cache
def subject_masks(subject: str) -> Tensor:
    """How much of each point of the sheet is body, mark and light: float32 (3, SHEET_PX, SHEET_PX), in [0, 1]."""
    sheet = Sheet()
    _CUTTERS[subject](sheet)
    index = np.asarray(sheet.image)
    k = _SHEET_PX // SHEET_PX
    masks = np.stack([(index == role) for role in (BODY, MARK, LIGHT)]).astype(np.float32)
    return torch.from_numpy(masks.reshape(3, SHEET_PX, k, SHEET_PX, k).mean(axis=(2, 4)))
