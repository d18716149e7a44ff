"""The contact sheet: a film on one page, scene by scene, its shots as paper cards below the valance of a theatre."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from cluster import paper
from cluster.errors import InvalidInput
from cluster.frames import Frames
from cluster.paper import Colour, Weight

_MARGIN, _GUTTER = 96, 34
_CARD_WIDTHS = {1: 620, 2: 470, 3: 400, 4: 330, 5: 282}  # by the number of columns
_INSET = 14  # of a card
_TAPES: tuple[Colour, ...] = (paper.GOLD, (142, 178, 168), (214, 142, 122), (150, 160, 196))


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetShot:
    """`frames`: one picture, or three (begin, middle, end), each uint8 (height, width, 3). `facts`: seconds, cost."""

    shot_id: str
    frames: Sequence[Frames]
    caption: str
    narration: str = ""
    facts: str = ""

    def __post_init__(self) -> None:
        if not len(self.frames):
            raise InvalidInput(f"shot {self.shot_id} has no picture", field="frames")


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetScene:
    heading: str
    shots: Sequence[SheetShot]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Card:
    """A shot, measured: what stands where is decided before anything is drawn."""

    shot: SheetShot
    width: int
    picture: tuple[int, int]
    strip: tuple[int, int]  # of one small picture; (0, 0) without
    narration: list[str]
    caption: list[str]
    facts: list[str]

    @property
    def height(self) -> int:
        strip = self.strip[1] + 6 if self.strip[1] else 0
        words = 28 * len(self.narration) + (8 if self.narration else 0) + 21 * len(self.caption)
        facts = 20 * len(self.facts) + (14 if self.facts else 0)
        return _INSET + self.picture[1] + strip + 40 + words + facts + _INSET + 6


def contact_sheet(film_title: str, scenes: Sequence[SheetScene], *, subtitle: str = "", footer: str = "") -> bytes:
    """PNG, as wide as its columns and as high as the film is long. Any text will do; long captions wrap."""
    num_columns = _columns(scenes)
    card_width = _CARD_WIDTHS[num_columns]
    room = num_columns * card_width + (num_columns - 1) * _GUTTER
    width = room + 2 * _MARGIN
    title_px = 76 if room > 700 else 56
    title = paper.wrapped(film_title, Weight.BLACK, title_px, to_px=room, max_lines=3)
    subtitles = paper.wrapped(subtitle, Weight.REGULAR, 26, to_px=room, max_lines=2)
    title_at = 132 + title_px
    subtitle_at = title_at + round(1.08 * title_px * (len(title) - 1)) + 46
    top = subtitle_at + 34 * len(subtitles)
    rows = [
        [_measured(shot, card_width) for shot in scene.shots[start : start + num_columns]]
        for scene in scenes
        for start in range(0, max(1, len(scene.shots)), num_columns)
    ]
    starts = _scene_starts(scenes, num_columns)
    height = top + sum(_row_height(row, index in starts) for index, row in enumerate(rows)) + 110
    sheet = paper.sheet_of_paper((width, height), paper.CREAM)
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(title):
        at = (_MARGIN - 3, title_at + round(1.08 * title_px * index))
        paper.write(draw, at, line, Weight.BLACK, title_px, paper.RED_DEEP)
    for index, line in enumerate(subtitles):
        paper.write(draw, (_MARGIN, subtitle_at + 34 * index), line, Weight.REGULAR, 26, paper.MUTED)
    y = top
    for index, row in enumerate(rows):
        if index in starts:
            _write_heading(sheet, y, starts[index] + 1, scenes[starts[index]].heading)
        _draw_row(sheet, row, bottom=y + _row_height(row, index in starts), tape=_TAPES[_scene_of(index, starts) % 4])
        y += _row_height(row, index in starts)
    for line in paper.wrapped(footer, Weight.REGULAR, 18, to_px=room, max_lines=1):
        paper.write(draw, (width / 2, height - 44), line, Weight.REGULAR, 18, paper.MUTED, anchor="ms")
    _hang_valance(sheet)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def spritesheet(frames: Sequence[Frames], *, num_columns: int, width_px: int) -> bytes:
    """PNG of equal pictures side by side, each `width_px` wide, row by row, without a gap: what players scrub over."""
    if not frames:
        raise InvalidInput("a spritesheet needs a picture", field="frames")
    height_px = max(1, round(width_px * frames[0].shape[0] / frames[0].shape[1]))
    num_rows = -(-len(frames) // num_columns)
    sheet = Image.new("RGB", (num_columns * width_px, num_rows * height_px))
    for at, frame_HWC in enumerate(frames):
        picture = Image.fromarray(np.ascontiguousarray(frame_HWC)).resize((width_px, height_px))
        sheet.paste(picture, (at % num_columns * width_px, at // num_columns * height_px))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _columns(scenes: Sequence[SheetScene]) -> int:
    """Four, five for a long film, fewer for a short one."""
    longest = max((len(scene.shots) for scene in scenes), default=1)
    total = sum(len(scene.shots) for scene in scenes)
    return max(1, min(longest, 5 if total > 20 else 4))


def _scene_starts(scenes: Sequence[SheetScene], num_columns: int) -> dict[int, int]:
    """Row -> the scene that begins there."""
    starts, row = {}, 0
    for index, scene in enumerate(scenes):
        starts[row] = index
        row += max(1, -(-len(scene.shots) // num_columns))
    return starts


def _scene_of(row: int, starts: dict[int, int]) -> int:
    return starts[max(start for start in starts if start <= row)]


def _row_height(row: Sequence[_Card], is_start: bool) -> int:
    return max((card.height for card in row), default=0) + 40 + (84 if is_start else 0)


def _measured(shot: SheetShot, width: int) -> _Card:
    room = width - 2 * _INSET
    height_px, width_px, _ = shot.frames[len(shot.frames) // 2].shape
    many = len(shot.frames) > 1
    small = (room - 2 * 6) // 3
    return _Card(
        shot=shot,
        width=width,
        picture=(room, max(1, round(room * height_px / width_px))),
        strip=(small, max(1, round(small * height_px / width_px))) if many else (0, 0),
        narration=paper.wrapped(shot.narration, Weight.ITALIC, 21, to_px=room - 8, max_lines=5),
        caption=paper.wrapped(shot.caption, Weight.REGULAR, 16, to_px=room - 8, max_lines=6),
        facts=paper.wrapped(shot.facts, Weight.REGULAR, 15, to_px=room - 8, max_lines=2),
    )


def _write_heading(sheet: Image.Image, y: int, number: int, heading: str) -> None:
    draw = ImageDraw.Draw(sheet)
    label, end = f"SCENE {number}", sheet.width - _MARGIN
    paper.write(draw, (_MARGIN, y + 36), label, Weight.BOLD, 17, paper.RED, tracking_px=2.4)
    x = _MARGIN + paper.width_px(label, Weight.BOLD, 17, tracking_px=2.4) + 20
    for line in paper.wrapped(heading, Weight.BOLD, 30, to_px=end - x, max_lines=1):
        paper.write(draw, (x, y + 36), line, Weight.BOLD, 30, paper.INK)
        x += paper.width_px(line, Weight.BOLD, 30) + 24
    for dash in range(round(x), end, 14):
        draw.line([(dash, y + 26), (min(dash + 7, end), y + 26)], fill=(206, 184, 150), width=2)


def _draw_row(sheet: Image.Image, row: Sequence[_Card], *, bottom: int, tape: Colour) -> None:
    height = max((card.height for card in row), default=0)
    for column, card in enumerate(row):
        _draw_card(sheet, card, (_MARGIN + column * (card.width + _GUTTER), bottom - 40 - height), height, tape, column)


def _draw_card(sheet: Image.Image, card: _Card, at: tuple[int, int], height: int, tape: Colour, column: int) -> None:
    x, y = at
    paper.lay(sheet, paper.CARD, paper.rounded(card.width, height, 6), drop_px=7, blur_px=9, opacity=0.3, at=at)
    _paste(sheet, card.shot.frames[len(card.shot.frames) // 2], card.picture, (x + _INSET, y + _INSET))
    baseline = y + _INSET + card.picture[1]
    if card.strip[1]:
        frames = card.shot.frames
        for index, frame_HWC in enumerate((frames[0], frames[len(frames) // 2], frames[-1])):
            _paste(sheet, frame_HWC, card.strip, (x + _INSET + index * (card.strip[0] + 6), baseline + 6))
        baseline += card.strip[1] + 6
    draw = ImageDraw.Draw(sheet)
    left, room = x + _INSET + 4, card.width - 2 * _INSET - 8
    baseline += 30
    for line in paper.wrapped(card.shot.shot_id.upper(), Weight.BOLD, 16, to_px=room * 0.85, max_lines=1):
        paper.write(draw, (left, baseline), line, Weight.BOLD, 16, paper.RED, tracking_px=1.6)
    baseline += 10
    for line in card.narration:
        baseline += 28
        paper.write(draw, (left, baseline - 4), line, Weight.ITALIC, 21, paper.INK)
    baseline += 8 if card.narration else 0
    for line in card.caption:
        baseline += 21
        paper.write(draw, (left, baseline - 4), line, Weight.REGULAR, 16, paper.MUTED)
    for index, line in enumerate(reversed(card.facts)):
        paper.write(draw, (left, y + height - _INSET - 4 - 20 * index), line, Weight.REGULAR, 15, paper.INK)
    _stick_tape(sheet, (x + card.width // 2, y), tape, turn=(-3, 2, -1.5, 3, -2)[column % 5])


def _paste(sheet: Image.Image, frame_HWC: Frames, size: tuple[int, int], at: tuple[int, int]) -> None:
    picture = Image.fromarray(np.ascontiguousarray(frame_HWC)).resize(size, Image.Resampling.LANCZOS)
    sheet.paste(picture, at, paper.rounded(*size, 3))


def _stick_tape(sheet: Image.Image, centre: tuple[int, int], colour: Colour, *, turn: float) -> None:
    mask = Image.new("L", (104, 30), 214).rotate(turn, Image.Resampling.BICUBIC, expand=True)
    at = (centre[0] - mask.width // 2, centre[1] - mask.height // 2 - 2)
    paper.lay(sheet, colour, mask, drop_px=2, blur_px=2, opacity=0.22, at=at)


def _hang_valance(sheet: Image.Image) -> None:
    for colour, depth in ((paper.GOLD, 90), (paper.RED, 80)):
        paper.lay(sheet, colour, paper.scallops(sheet.width, depth, num=round(sheet.width / 80)), drop_px=5, blur_px=7)
    paper.lay(sheet, paper.RED_DARK, Image.new("L", (sheet.width, 18), 255), drop_px=4, blur_px=5)
