"""An engine of milliseconds that makes what a render worker makes: real clips and stills, of plain moving colours."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from actors.contract import Bench, Json, Made, MadeFile, ShotSpec
from cluster import media
from cluster.errors import FarmError


class PictureEngine:
    """`at_half` is waited for in the middle of a denoise, if it is there; `fails` says of a prompt how it ends.
    `side_px`: squares of that size, quicker to encode than what was asked for."""

    def __init__(
        self, fails: Callable[[str], FarmError | None] = lambda prompt: None, *, side_px: int | None = None
    ) -> None:
        self._side_px = side_px
        self.at_half: threading.Event | None = None
        self._fails = fails

    def start(self) -> Json:
        return {}

    def run(self, bench: Bench) -> Made:
        spec = ShotSpec.from_json(bench.order.params["spec"])
        if (error := self._fails(spec.prompt)) is not None:
            raise error
        for step in range(spec.num_steps + 1):
            bench.progress("denoise", step, spec.num_steps)
            while step == spec.num_steps // 2 and (gate := self.at_half) is not None and not gate.wait(0.02):
                bench.progress("denoise", step, spec.num_steps)
        bench.progress("decode", 0, spec.num_frames)
        sides = (spec.height_px, spec.width_px) if self._side_px is None else (self._side_px, self._side_px)
        frames = np.zeros((spec.num_frames, *sides, 3), np.uint8)
        frames[..., 0] = spec.seed % 251
        frames[..., 1] = (np.arange(spec.num_frames) * 9 % 251).astype(np.uint8)[:, None, None]
        frames[..., 2] = zlib.crc32(spec.prompt.encode()) % 251
        if spec.num_frames == 1:
            still = bench.scratch / "still.png"
            still.write_bytes(media.poster(frames[0]))
            return Made(files=(MadeFile(name="still.png", path=still, media_type="image/png"),))
        clip, poster = bench.scratch / "clip.mp4", bench.scratch / "poster.png"
        made = media.encode_clip(clip, [frames], fps=Fraction(spec.fps))
        poster.write_bytes(media.poster(frames[spec.num_frames // 2]))
        return Made(
            files=(
                MadeFile(name="clip.mp4", path=clip, media_type="video/mp4", content_sha256=made.content_sha256),
                MadeFile(name="poster.png", path=poster, media_type="image/png"),
            )
        )

    def close(self) -> None:
        return
