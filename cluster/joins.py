"""One film from many clips. Coded pictures are copied where all clips are coded alike, else all are coded again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from cluster.errors import DamagedAsset, InvalidInput
from cluster.frames import Frames
from cluster.media import MP4_OPTIONS, ClipEncoder, ClipFacts, foreign_errors, opened, probe, read_frames
from cluster.sound import add_sound


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """`first_frames[i]` is the frame of the film at which clip i begins. `copied`: nothing was coded again."""

    path: Path
    fps: Fraction
    first_frames: tuple[int, ...]
    num_frames: int
    copied: bool


def join(clips: Sequence[Path], out: Path) -> Joined:
    """Join `clips` in order into the mp4 file `out`; size and frame rate are those of the first.

    Clips of another size are fitted with dark bars, of another rate repeat or drop frames. If any clip has sound, the
    film has sound, silent elsewhere. Raises InvalidInput for no clips, DamagedAsset, StoreFull, StoreUnavailable.
    """
    if not clips:
        raise InvalidInput("a film needs a clip", field="clips")
    facts = [probe(clip) for clip in clips]
    copied = _coded_alike(clips, facts)
    silent = out.with_name(f".{out.name}.silent.mp4") if any(fact.has_sound for fact in facts) else out
    counts = _copy_packets(clips, facts, silent) if copied else _code_again(clips, facts, silent)
    if silent != out:
        try:
            add_sound(
                silent, [(clip, Fraction(count) / facts[0].fps) for clip, count in zip(clips, counts, strict=True)], out
            )
        finally:
            silent.unlink(missing_ok=True)
    first_frames = tuple(sum(counts[:index]) for index in range(len(counts)))
    return Joined(path=out, fps=facts[0].fps, first_frames=first_frames, num_frames=sum(counts), copied=copied)


def _coded_alike(clips: Sequence[Path], facts: Sequence[ClipFacts]) -> bool:
    """Whether the packets of all clips can stand in one stream: same codec, parameters, size, rate, time base."""
    marks = set()
    for clip, fact in zip(clips, facts, strict=True):
        with opened(clip) as container:
            stream = container.streams.video[0]
            whole = (stream.start_time or 0) == 0 and (1 / fact.fps / stream.time_base).denominator == 1
            if not whole or stream.duration != fact.num_frames / fact.fps / stream.time_base:
                return False
            extra = stream.codec_context.extradata
            marks.add((fact.codec, fact.pix_fmt, fact.width_px, fact.height_px, fact.fps, stream.time_base, extra))
    return len(marks) == 1


def _copy_packets(clips: Sequence[Path], facts: Sequence[ClipFacts], out: Path) -> list[int]:
    part = out.with_name(f".{out.name}.part")
    try:
        with opened(clips[0]) as first, foreign_errors(out):
            with av.open(str(part), "w", format="mp4", options=dict(MP4_OPTIONS)) as film:
                stream = film.add_stream_from_template(first.streams.video[0])
                before = Fraction(0)
                for clip, fact in zip(clips, facts, strict=True):
                    for packet in _shifted(clip, before):
                        packet.stream = stream
                        film.mux(packet)
                    before += fact.num_frames / fact.fps
            part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return [fact.num_frames for fact in facts]


def _shifted(clip: Path, before: Fraction) -> Iterator[Any]:
    """The coded pictures of `clip`, `before` seconds later."""
    with opened(clip) as container:
        for packet in container.demux(video=0):
            if packet.size:
                if packet.pts is None or packet.dts is None:
                    raise DamagedAsset(f"{clip.name} has a picture without a time")
                ticks = int(before / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                yield packet


def _code_again(clips: Sequence[Path], facts: Sequence[ClipFacts], out: Path) -> list[int]:
    lead, counts = facts[0], []
    width_px, height_px = lead.width_px // 2 * 2, lead.height_px // 2 * 2
    with ClipEncoder(out, fps=lead.fps, width_px=width_px, height_px=height_px) as encoder:
        for clip, fact in zip(clips, facts, strict=True):
            count = max(1, round(fact.num_frames / fact.fps * lead.fps))
            for frame_HWC in _resampled(clip, count=count, ratio=fact.fps / lead.fps):
                encoder.push(_fitted(frame_HWC, width_px=width_px, height_px=height_px)[None])
            counts.append(count)
    return counts


def _resampled(clip: Path, *, count: int, ratio: Fraction) -> Iterator[Frames]:
    """`count` frames; frame i is the one that the clip shows at that instant, the last one held if it is short."""
    given, frame_HWC = 0, None
    for index, frame_HWC in enumerate(read_frames(clip)):
        while given < count and int(given * ratio) == index:
            yield frame_HWC
            given += 1
    if frame_HWC is None:
        raise DamagedAsset(f"{clip.name} has no frames")
    while given < count:
        yield frame_HWC
        given += 1


def _fitted(frame_HWC: Frames, *, width_px: int, height_px: int) -> Frames:
    if frame_HWC.shape[:2] == (height_px, width_px):
        return frame_HWC
    picture = ImageOps.pad(
        Image.fromarray(frame_HWC), (width_px, height_px), Image.Resampling.LANCZOS, color=(24, 20, 18)
    )
    return np.asarray(picture)
