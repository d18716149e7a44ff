"""The opening of a film: a paper theatre whose curtain parts on the title."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from cluster import paper
from cluster.errors import InvalidInput
from cluster.frames import Frames
from cluster.paper import Weight

_OVER = 2  # drawn this much larger, then reduced


def title_card(title: str, subtitle: str = "", *, width_px: int, height_px: int, num_frames: int) -> Frames:
    """uint8 (num_frames, height_px, width_px, 3). The curtain is open for the last third. Any text will do."""
    if num_frames < 1 or min(width_px, height_px) < 16:
        raise InvalidInput(f"a title of {num_frames} frames of {width_px} x {height_px} cannot be drawn", field="size")
    size = (width_px * _OVER, height_px * _OVER)
    stage = _stage(size)
    _letter(stage, title, subtitle)
    unit = min(size)
    left, room = paper.raised(*_curtain(size), drop_px=unit / 60, blur_px=unit / 50)
    right = left.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    valance = _valance(size)
    frames = []
    for index in range(num_frames):
        travel = round(_opened(index, num_frames) * size[0] * 0.42)
        picture = stage.copy()
        picture.paste(left, (-room - travel, -room), left)
        picture.paste(right, (size[0] + room + travel - right.width, -room), right)
        picture.paste(valance, (0, 0), valance)
        frames.append(np.asarray(picture.resize((width_px, height_px), Image.Resampling.BOX)))
    return np.stack(frames)


def _opened(index: int, num_frames: int) -> float:
    """How far the curtain is open at a frame, 0 to 1: slow, quick, slow."""
    share = min(1.0, (index + 1) / max(1, round(num_frames * 0.62)))
    return share * share * (3 - 2 * share)


def _stage(size: tuple[int, int]) -> Image.Image:
    """Sky with rays, a sun, three hills."""
    width, height = size
    unit = min(size)
    stage = paper.sheet_of_paper(size, paper.CREAM)
    centre, reach = (width / 2, height * 0.86), math.hypot(width, height)
    rays = Image.new("L", size)
    draw = ImageDraw.Draw(rays)
    for index in range(0, 36, 2):
        turns = [math.pi * (index + side) / 18 for side in (0, 1)]
        draw.polygon(
            [centre, *((centre[0] + reach * math.cos(a), centre[1] - reach * math.sin(a)) for a in turns)], 255
        )
    stage.paste(paper.RAY, (0, 0, *size), rays)
    sun = Image.new("L", size)
    radius = unit * 0.2
    ImageDraw.Draw(sun).ellipse(
        [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius], fill=255
    )
    paper.lay(stage, paper.SUN, sun, drop_px=unit / 150, blur_px=unit / 80)
    hills = (
        (paper.TEAL, 0.80, 0.035, 1.1, 0.4),
        (paper.TEAL_DEEP, 0.87, 0.03, 1.7, 2.6),
        (paper.NIGHT, 0.935, 0.02, 2.3, 4.4),
    )
    for colour, level, swing, waves, phase in hills:
        hill = Image.new("L", size)
        line = [
            (x, height * (level + swing * math.sin(2 * math.pi * waves * x / width + phase)))
            for x in range(0, width + 8, 8)
        ]
        ImageDraw.Draw(hill).polygon([*line, (width, height), (0, height)], fill=255)
        paper.lay(stage, colour, hill, drop_px=-unit / 200, blur_px=unit / 70)
    return stage


def _letter(stage: Image.Image, title: str, subtitle: str) -> None:
    """Cut letters, as large as three lines allow, in the sky."""
    width, height = stage.size
    unit, room = min(stage.size), stage.size[0] * 0.74
    title = paper.shown(title, Weight.BLACK)
    size_px, lines = _fitting(title, room=room, largest=round(unit * 0.125), smallest=round(unit * 0.05))
    leading = size_px * 1.12
    top = height * 0.47 - leading * (len(lines) - 1) / 2 - (unit * 0.03 if subtitle else 0)
    letters = Image.new("L", stage.size)
    draw = ImageDraw.Draw(letters)
    for index, line in enumerate(lines):
        x = (width - paper.width_px(line, Weight.BLACK, size_px)) / 2
        draw.text((x, top + index * leading), line, 255, paper.face(Weight.BLACK, size_px), anchor="ls")
    paper.lay(stage, paper.RED_DEEP, letters, drop_px=unit / 170, blur_px=unit / 170, opacity=0.5)
    if subtitle:
        small = round(unit * 0.034)
        for line in paper.wrapped(subtitle, Weight.REGULAR, small, to_px=room, max_lines=2):
            baseline = top + (len(lines) - 1) * leading + small * 2.1
            paper.write(
                ImageDraw.Draw(stage), (width / 2, baseline), line, Weight.REGULAR, small, paper.INK, anchor="ms"
            )
            top += small * 1.35


def _fitting(title: str, *, room: float, largest: int, smallest: int) -> tuple[int, list[str]]:
    """As few lines as cost no more than a quarter of the size that three lines allow; no word is cut.

    If even the smallest size is too large for three lines: that size, and what fits.
    """
    sizes: dict[int, int] = {}  # most lines -> largest size
    for size_px in range(largest, smallest, -2):
        lines = paper.wrapped(title, Weight.BLACK, size_px, to_px=room, max_lines=99)
        if " ".join(lines) == title:
            for num in range(max(1, len(lines)), 4):
                sizes.setdefault(num, size_px)
    for size_px in (sizes[num] for num in sorted(sizes) if sizes[num] >= 0.75 * sizes[3]):
        return size_px, _balanced(paper.wrapped(title, Weight.BLACK, size_px, to_px=room, max_lines=3), size_px)
    return smallest, paper.wrapped(title, Weight.BLACK, smallest, to_px=room, max_lines=4)


def _balanced(lines: list[str], size_px: int) -> list[str]:
    """The same number of lines, as even as can be."""
    text, room = " ".join(lines), max(paper.width_px(line, Weight.BLACK, size_px) for line in lines) if lines else 0.0
    best = lines
    while room > 0:
        room *= 0.97
        tried = paper.wrapped(text, Weight.BLACK, size_px, to_px=room, max_lines=99)
        if len(tried) > len(lines) or " ".join(tried) != text:
            return best
        best = tried
    return best


def _curtain(size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """The left half of a curtain: RGB and its L mask. Strips of paper, each laid over the next."""
    width, height = size[0] // 2 + size[0] // 30, size[1]
    num, colours = 6, (paper.RED, paper.RED_DEEP)
    half = Image.new("RGB", (width, height), paper.RED_DARK)
    whole = Image.new("L", (width, height))
    strip = width / num
    for index in reversed(range(num)):
        mask = Image.new("L", (width, height))
        draw = ImageDraw.Draw(mask)
        right = (index + 1) * strip
        edge = [
            (right - strip * 0.16 * (1 + math.sin(2.2 * y / height * math.pi + index)), y)
            for y in range(0, height + 9, 8)
        ]
        hem = height * 0.985 - strip * 0.35 * (index % 2)
        draw.polygon([(0, 0), *((x, min(y, hem)) for x, y in edge), (0, hem)], fill=255)
        paper.lay(half, colours[index % 2], mask, drop_px=strip / 14, blur_px=strip / 9, opacity=0.5)
        whole.paste(255, (0, 0, width, height), mask)
    return half, whole


def _valance(size: tuple[int, int]) -> Image.Image:
    """RGBA of the whole picture: scallops with a golden hem below a rail."""
    width, height = size
    unit = min(size)
    layer = Image.new("RGBA", size)
    num = max(3, round(7 * width / unit))
    for colour, depth in ((paper.GOLD, 0.158), (paper.RED, 0.145), (paper.RED_DARK, 0.035)):
        mask = Image.new("L", (width, max(2, round(height * depth))), 255)
        if colour != paper.RED_DARK:
            mask = paper.scallops(*mask.size, num=num)
        cut, room = paper.raised(colour, mask, drop_px=unit / 110, blur_px=unit / 80)
        layer.alpha_composite(cut, (0, 0), (room, room))
    return layer
