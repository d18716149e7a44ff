"""From takes to a film: the title, the shots in order, captions, a contact sheet, a poster, a timeline.

Plain functions on local files; the finish worker runs them. Same script and same takes: the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from actors.contract import MadeFile, ShotSpec
from cluster.errors import InvalidInput
from cluster.frames import Frames, poster
from cluster.joins import Joined, join
from cluster.media import coded_sha256, encode_clip, probe, read_frames
from cluster.sheet import SheetScene, SheetShot, contact_sheet
from cluster.titles import title_card
from pipelines.timeline import timeline

if TYPE_CHECKING:
    from pipelines.script import Script

TITLE_S = Fraction(3, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Take:
    """The circled take of a shot: its clip, what was asked, what it cost over all its attempts."""

    shot_id: str
    clip: Path
    spec: ShotSpec
    model: str
    revision: str
    sha256: str
    content_sha256: str
    held_s: float
    cost_usd: Decimal
    number: int = 1  # which of the takes of its shot it is
    num_takes: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Conformed:
    """`first_frames[i]` is the frame of the film at which shot i begins; the title stands before the first."""

    files: tuple[MadeFile, ...]
    fps: Fraction
    first_frames: tuple[int, ...]
    num_frames: int
    copied: bool  # the shots were not coded again

    @property
    def duration_s(self) -> float:
        return float(self.num_frames / self.fps)


def conform(script: Script, takes: Sequence[Take], out_dir: Path) -> Conformed:
    """Writes film.mp4, film.vtt, film.otio, contact-sheet.png and poster.png into `out_dir`, which exists.

    `takes` are those of the script's shots, in order. Raises InvalidInput if they are not, DamagedAsset, StoreFull.
    """
    shot_ids = [shot.id for scene in script.scenes for shot in scene.shots]
    if [take.shot_id for take in takes] != shot_ids or not takes:
        raise InvalidInput(f"takes {[take.shot_id for take in takes]} are not of shots {shot_ids}", field="takes")
    film = _film(script.title, [take.clip for take in takes], out_dir)
    first_frames = film.first_frames[1:]
    thumbnails = [_thumbnails(take.clip) for take in takes]
    narrations = [shot.narration for scene in script.scenes for shot in scene.shots]
    texts = {
        "film.vtt": captions(narrations, first_frames=first_frames, num_frames=film.num_frames, fps=film.fps),
        "film.otio": timeline(script, takes, first_frames=first_frames, num_frames=film.num_frames, fps=film.fps),
    }
    pictures = {
        "contact-sheet.png": _sheet(script, takes, thumbnails, film),
        "poster.png": poster(max((middle for _, middle, _ in thumbnails), key=_telling)),
    }
    for name, text in texts.items():
        (out_dir / name).write_text(text, encoding="utf-8", newline="\n")
    for name, picture in pictures.items():
        (out_dir / name).write_bytes(picture)
    media_types = {"film.vtt": "text/vtt", "film.otio": "application/vnd.pixar.opentimelineio+json"}
    return Conformed(
        files=(
            MadeFile(name="film.mp4", path=film.path, media_type="video/mp4", content_sha256=coded_sha256(film.path)),
            *(MadeFile(name=name, path=out_dir / name, media_type=media_types[name]) for name in texts),
            *(MadeFile(name=name, path=out_dir / name, media_type="image/png") for name in pictures),
        ),
        fps=film.fps,
        first_frames=first_frames,
        num_frames=film.num_frames,
        copied=film.copied,
    )


def captions(narrations: Sequence[str], *, first_frames: Sequence[int], num_frames: int, fps: Fraction) -> str:
    """WebVTT: one cue per shot that has a narration, for as long as the shot stands."""
    lines = ["WEBVTT", ""]
    ends = [*first_frames[1:], num_frames]
    for number, (narration, first, end) in enumerate(zip(narrations, first_frames, ends, strict=True), 1):
        text = " ".join(narration.replace("\0", " ").split())
        if text:
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")  # so no "-->" is left either
            lines += [str(number), f"{_timestamp(first / fps)} --> {_timestamp(end / fps)}", text, ""]
    return "\n".join(lines)


def dollars(amount_usd: Decimal) -> str:
    """For people; the ledger has the exact figure."""
    if 0 < amount_usd < Decimal("0.0001"):
        return "under $0.0001"
    return f"${amount_usd:.4f}" if amount_usd < 1 else f"${amount_usd:.2f}"


def _timestamp(seconds: Fraction) -> str:
    total_ms = round(seconds * 1000)
    minutes, ms = divmod(total_ms, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d}.{ms % 1000:03d}"


def _film(title: str, clips: Sequence[Path], out_dir: Path) -> Joined:
    """The title, in the size and rate of the first shot and coded like it, then the shots."""
    lead = probe(clips[0])
    width_px, height_px = lead.width_px // 2 * 2, lead.height_px // 2 * 2
    num_frames = max(1, round(TITLE_S * lead.fps))
    frames_THWC = title_card(title, width_px=width_px, height_px=height_px, num_frames=num_frames)
    opening = out_dir / ".title.mp4"
    try:
        encode_clip(opening, [frames_THWC], fps=lead.fps)
        return join([opening, *clips], out_dir / "film.mp4")
    finally:
        opening.unlink(missing_ok=True)


def _thumbnails(clip: Path) -> tuple[Frames, Frames, Frames]:
    """Frames near the beginning, in the middle and near the end."""
    num_frames = probe(clip).num_frames
    wanted = [num_frames // 10, num_frames // 2, num_frames - 1 - num_frames // 10]
    kept = {index: frame for index, frame in enumerate(read_frames(clip)) if index in wanted}
    begin, middle, end = (kept[index] for index in wanted)
    return begin, middle, end


def _telling(frame_HWC: Frames) -> float:
    """How much there is to see: the spread of the colours times the contrast of neighbours, at thumbnail size."""
    small = np.asarray(Image.fromarray(frame_HWC).resize((64, 64), Image.Resampling.BOX), dtype=np.float64)
    contrast = np.abs(np.diff(small, axis=0)).mean() + np.abs(np.diff(small, axis=1)).mean()
    return float(small.reshape(-1, 3).std(axis=0).mean() * contrast)


def _sheet(
    script: Script, takes: Sequence[Take], thumbnails: Sequence[tuple[Frames, Frames, Frames]], film: Joined
) -> bytes:
    of_shot = dict(zip((take.shot_id for take in takes), zip(takes, thumbnails, strict=True), strict=True))
    scenes = [
        SheetScene(
            heading=scene.heading,
            shots=[
                SheetShot(
                    shot_id=shot.id,
                    frames=of_shot[shot.id][1],
                    caption=of_shot[shot.id][0].spec.prompt,
                    narration=shot.narration,
                    facts=_facts(of_shot[shot.id][0]),
                )
                for shot in scene.shots
            ],
        )
        for scene in script.scenes
    ]
    cost = sum((take.cost_usd for take in takes), Decimal(0))
    held_s = sum(take.held_s for take in takes)
    count = f"{len(takes)} shot{'s' if len(takes) != 1 else ''}"
    running = f"{float(film.num_frames / film.fps):.1f} s"
    footer = f"{count} \N{MIDDLE DOT} {running} \N{MIDDLE DOT} drawn in {held_s:.0f} s for {dollars(cost)}"
    return contact_sheet(script.title, scenes, subtitle=script.logline, footer=footer)


def _facts(take: Take) -> str:
    chosen = (f"take {take.number} of {take.num_takes}",) if take.num_takes > 1 else ()
    parts = (*chosen, f"{take.spec.duration_s:.1f} s", f"drawn in {take.held_s:.1f} s", dollars(take.cost_usd))
    return " \N{MIDDLE DOT} ".join(parts)
