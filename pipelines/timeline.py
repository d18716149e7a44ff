"""The film as an OpenTimelineIO timeline, for editing programs: one clip per shot, each a range of film.mp4.

OpenTimelineIO keeps rates as floats, so the exact rational stands in `metadata["reelfarm"]["fps"]`. Times are counted
in frames, so nothing is lost by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import opentimelineio as otio

if TYPE_CHECKING:
    from pipelines.conform import Take
    from pipelines.script import Script


def timeline(
    script: Script, takes: Sequence[Take], *, first_frames: Sequence[int], num_frames: int, fps: Fraction
) -> str:
    """JSON of film.otio. `first_frames[i]` is where shot i begins in film.mp4; the title is a clip of its own."""
    whole = _range(0, num_frames, fps)
    film = otio.schema.Timeline(_text(script.title))
    film.global_start_time = otio.opentime.RationalTime(0, float(fps))
    film.metadata["reelfarm"] = {"logline": _text(script.logline), "fps": str(fps)}
    track = otio.schema.Track("shots", kind=otio.schema.TrackKind.Video)
    film.tracks.append(track)
    track.append(_clip("title", _range(0, first_frames[0], fps), whole))
    shots = [(scene, shot) for scene in script.scenes for shot in scene.shots]
    ends = [*first_frames[1:], num_frames]
    for (scene, shot), take, first, end in zip(shots, takes, first_frames, ends, strict=True):
        clip = _clip(shot.id, _range(first, end, fps), whole)
        clip.metadata["reelfarm"] = {
            "scene": _text(scene.heading),
            "prompt": _text(take.spec.prompt),
            "negative_prompt": _text(take.spec.negative_prompt),
            "narration": _text(shot.narration),
            "seed": str(take.spec.seed),  # up to 2^63: readers that hold numbers as doubles would round it
            "model": take.model,
            "revision": take.revision,
            "quality": take.spec.quality.value,
            "content_sha256": take.content_sha256,
        }
        track.append(clip)
    _mark_scenes(film, script, first_frames, fps)
    text: str = otio.adapters.write_to_string(film, "otio_json")
    return text + "\n"


def _clip(name: str, source_range: Any, available_range: Any) -> Any:
    media = otio.schema.ExternalReference(target_url="film.mp4", available_range=available_range)
    return otio.schema.Clip(name=name, media_reference=media, source_range=source_range)


def _range(first: int, end: int, fps: Fraction) -> Any:
    rate = float(fps)
    return otio.opentime.TimeRange(
        otio.opentime.RationalTime(first, rate), otio.opentime.RationalTime(end - first, rate)
    )


def _mark_scenes(film: Any, script: Script, first_frames: Sequence[int], fps: Fraction) -> None:
    shots_before = 0
    for scene in script.scenes:
        first = first_frames[shots_before]
        film.tracks.markers.append(otio.schema.Marker(_text(scene.heading), _range(first, first, fps)))
        shots_before += len(scene.shots)


def _text(text: str) -> str:
    """Without NUL, at which OpenTimelineIO's strings may end."""
    return text.replace("\0", "")
