"""The sound of a film: that of its clips one after the other, silence where a clip has none. AAC, 48 kHz, stereo."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from cluster.media import BITEXACT_FLAG, MP4_OPTIONS, foreign_errors, opened

SAMPLE_RATE_HZ = 48_000
Samples = np.ndarray[Any, np.dtype[np.float32]]


def read_sound(clip: Path, *, duration_s: Fraction) -> Samples:
    """float32 (2, samples) of exactly `duration_s`: cut or filled with silence. Raises DamagedAsset."""
    num_samples = round(duration_s * SAMPLE_RATE_HZ)
    sound = np.zeros((2, num_samples), np.float32)
    with opened(clip) as container:
        if not container.streams.audio:
            return sound
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SAMPLE_RATE_HZ)
        at = 0
        for frame in [*container.decode(audio=0), None]:
            for piece in resampler.resample(frame):
                samples_CT = piece.to_ndarray()[:, : num_samples - at]
                sound[:, at : at + samples_CT.shape[1]] = samples_CT
                at += samples_CT.shape[1]
    return sound


def add_sound(silent: Path, clips: Sequence[tuple[Path, Fraction]], out: Path) -> None:
    """Write `out`: the pictures of `silent`, copied, with the sound of `clips`, each for its seconds."""
    part = out.with_name(f".{out.name}.part")
    try:
        with opened(silent) as pictures, foreign_errors(out):
            with av.open(str(part), "w", format="mp4", options=dict(MP4_OPTIONS)) as film:
                video = film.add_stream_from_template(pictures.streams.video[0])
                audio = film.add_stream("aac", rate=SAMPLE_RATE_HZ, options={"b": "160k"})
                audio.codec_context.layout = "stereo"
                audio.codec_context.flags |= BITEXACT_FLAG
                for packet in pictures.demux(video=0):
                    if packet.size:
                        packet.stream = video
                        film.mux(packet)
                at = 0
                for clip, duration_s in clips:
                    samples_CT = read_sound(clip, duration_s=duration_s)
                    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples_CT), format="fltp", layout="stereo")
                    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, at, Fraction(1, SAMPLE_RATE_HZ)
                    at += samples_CT.shape[1]
                    film.mux(audio.encode(frame))
                film.mux(audio.encode(None))
            part.replace(out)
    finally:
        part.unlink(missing_ok=True)
