"""The look of the house: warm paper, soft shadows, type. Everything here is drawn the same on every machine.

Type is Roboto, which the ray wheel carries for its dashboard; where that is missing, the face inside Pillow. Both
know Latin letters only: others lose their accents, or become a middle dot.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from bisect import bisect_right
from enum import StrEnum
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Colour = tuple[int, int, int]
Face = ImageFont.FreeTypeFont | ImageFont.ImageFont

CREAM: Colour = (246, 236, 216)
CARD: Colour = (254, 250, 242)
RAY: Colour = (240, 223, 190)
SUN: Colour = (244, 192, 96)
INK: Colour = (47, 40, 54)
MUTED: Colour = (126, 112, 106)
RED: Colour = (186, 54, 50)
RED_DEEP: Colour = (150, 38, 42)
RED_DARK: Colour = (118, 28, 37)
GOLD: Colour = (228, 172, 78)
TEAL: Colour = (88, 140, 134)
TEAL_DEEP: Colour = (52, 96, 104)
NIGHT: Colour = (38, 62, 80)

_SHADOW: Colour = (60, 30, 20)
_UNSHOWN = "\N{MIDDLE DOT}"


class Weight(StrEnum):
    REGULAR = "400"
    ITALIC = "400italic"
    BOLD = "700"
    BLACK = "900"


@cache
def face(weight: Weight, size_px: int) -> Face:
    path = _roboto(weight)
    if path is None:
        return ImageFont.load_default(size_px)
    return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)


@cache
def _roboto(weight: Weight) -> Path | None:
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None:
        return None
    media = Path(spec.origin).parent / "dashboard/client/build/static/media"
    return next(iter(sorted(media.glob(f"roboto-latin-{weight}.*.woff"))), None)


@cache
def _has_glyph(weight: Weight, character: str) -> bool:
    type_ = face(weight, 24)
    return bytes(type_.getmask(character)) != bytes(type_.getmask("\uffff"))


def shown(text: str, weight: Weight) -> str:
    """`text` in characters that the face can draw, on one line."""
    out = []
    for character in unicodedata.normalize("NFC", " ".join(text.split())):
        category = unicodedata.category(character)
        if character == " " or (category[0] not in "CM" and _has_glyph(weight, character)):
            out.append(character)
        elif category[0] not in "CM":
            plain = [part for part in unicodedata.normalize("NFKD", character) if unicodedata.category(part)[0] != "M"]
            out.extend(part if _has_glyph(weight, part) else _UNSHOWN for part in plain)
    return "".join(out)


def width_px(text: str, weight: Weight, size_px: int, *, tracking_px: float = 0) -> float:
    return face(weight, size_px).getlength(text) + tracking_px * max(0, len(text) - 1)


def wrapped(text: str, weight: Weight, size_px: int, *, to_px: float, max_lines: int) -> list[str]:
    """Lines no wider than `to_px`; a word that is too long is cut, and what does not fit ends in an ellipsis."""
    lines, line = [], ""
    for word in shown(text, weight).split():
        joined = f"{line} {word}" if line else word
        if width_px(joined, weight, size_px) <= to_px:
            line = joined
            continue
        if line:
            lines.append(line)
        while len(word) > 1 and width_px(word, weight, size_px) > to_px:
            keep = max(1, bisect_right(range(len(word)), to_px, key=lambda n: width_px(word[:n], weight, size_px)) - 1)
            lines.append(word[:keep])
            word = word[keep:]
        line = word
    lines += [line] if line else []
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and width_px(f"{last}\N{HORIZONTAL ELLIPSIS}", weight, size_px) > to_px:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], f"{last.rstrip(' ,.;:')}\N{HORIZONTAL ELLIPSIS}"]
    return lines


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    weight: Weight,
    size_px: int,
    colour: Colour,
    *,
    anchor: str = "ls",
    tracking_px: float = 0,
) -> None:
    """Text at a baseline; `anchor` l, m or r across, always on the baseline (s). Tracking opens the letters."""
    x, y = at
    x -= {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * width_px(text, weight, size_px, tracking_px=tracking_px)
    type_ = face(weight, size_px)
    if not tracking_px:
        draw.text((x, y), text, colour, type_, anchor="ls")
        return
    for index, character in enumerate(text):
        ahead = type_.getlength(text[: index + 1]) - type_.getlength(character)
        draw.text((x + ahead + tracking_px * index, y), character, colour, type_, anchor="ls")


def sheet_of_paper(size: tuple[int, int], colour: Colour, *, fibres: bool = True) -> Image.Image:
    """RGB paper. Fibres are sparse, so that the picture still compresses well."""
    paper = Image.new("RGB", size, colour)
    if fibres:
        tile = _fibres()
        for y in range(0, size[1], tile.height):
            for x in range(0, size[0], tile.width):
                paper.paste(tuple(max(0, value - 22) for value in colour), (x, y), tile)
    return paper


@cache
def _fibres() -> Image.Image:
    """An L mask (512, 512) of faint, short, curved threads. PCG64's raw stream is fixed for all versions of NumPy."""
    raw = np.random.PCG64(7).random_raw(4 * 420) / 2.0**64
    mask = Image.new("L", (1024, 1024))
    draw = ImageDraw.Draw(mask)
    for x, y, turn, length in raw.reshape(-1, 4) * (1024, 1024, 2 * np.pi, 26):
        draw.arc([x, y, x + 8 + length, y + 8 + length], np.degrees(turn), np.degrees(turn) + 70, fill=90, width=2)
    return mask.resize((512, 512), Image.Resampling.BOX)


def raised(
    paper: Colour | Image.Image, mask: Image.Image, *, drop_px: float, blur_px: float, opacity: float = 0.38
) -> tuple[Image.Image, int]:
    """A cut paper (`mask` is L) with the soft shadow of its height: RGBA, and the room around it in pixels."""
    room = round(blur_px * 3 + abs(drop_px))
    size = (mask.width + 2 * room, mask.height + 2 * room)
    shade = Image.new("L", size)
    shade.paste(mask.point(lambda value: round(value * opacity)), (round(room + drop_px * 0.35), round(room + drop_px)))
    layer = Image.new("RGBA", size, (*_SHADOW, 0))
    layer.putalpha(shade.filter(ImageFilter.GaussianBlur(blur_px)))
    top = Image.new("RGBA", mask.size, paper) if isinstance(paper, tuple) else paper.convert("RGBA")
    top.putalpha(mask)
    layer.alpha_composite(top, (room, room))
    return layer, room


def lay(
    onto: Image.Image,
    paper: Colour | Image.Image,
    mask: Image.Image,
    *,
    drop_px: float,
    blur_px: float,
    opacity: float = 0.38,
    at: tuple[int, int] = (0, 0),
) -> None:
    """Lay a cut paper onto an RGB picture, its upper left corner at `at`."""
    layer, room = raised(paper, mask, drop_px=drop_px, blur_px=blur_px, opacity=opacity)
    onto.paste(layer, (at[0] - room, at[1] - room), layer)


def scallops(width: int, height: int, *, num: int) -> Image.Image:
    """L mask of a valance: a band with `num` round lobes below."""
    scale = 2
    mask = Image.new("L", (width * scale, height * scale))
    draw = ImageDraw.Draw(mask)
    lobe = width * scale / num
    band = max(0.0, height * scale - lobe / 2)
    draw.rectangle([0, 0, width * scale, band], fill=255)
    for index in range(num):
        draw.pieslice([index * lobe, band - lobe / 2, (index + 1) * lobe, band + lobe / 2 - 1], 0, 180, fill=255)
    return mask.resize((width, height), Image.Resampling.LANCZOS)


@cache
def rounded(width: int, height: int, radius: int) -> Image.Image:
    """L mask of a card. It is shared: do not draw on it."""
    mask = Image.new("L", (width * 2, height * 2))
    ImageDraw.Draw(mask).rounded_rectangle([0, 0, width * 2 - 1, height * 2 - 1], radius * 2, fill=255)
    return mask.resize((width, height), Image.Resampling.LANCZOS)
