"""The engine of render workers: it drives a family through the step contract and writes the take.

A take is `clip.mp4` with `poster.png`; a still is `still.png`. Decoding and coding overlap chunk by chunk.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from actors.contract import Bench, Family, FromFrame, Json, Made, MadeFile, ShotSpec
from cluster import media
from cluster.errors import DamagedCheckpoint, Interrupted, InvalidSpec, QualityCheckFailed
from cluster.frames import read_picture

Frames = np.ndarray[Any, np.dtype[np.uint8]]
VERSIONS_OF = ("torch", "diffusers", "transformers")
FLAT = 2.0
"""Frames whose pixels differ by less than this (standard deviation of 0-255) show nothing."""


def load_family(name: str, model_dir: Path, *, device: str, dtype: str, num_threads: int) -> Family:
    """The family in actors/families/<name>.py, loaded. The file name is the registry."""
    module = importlib.import_module(f"actors.families.{name}")
    family: Family = module.load(model_dir, device=device, dtype=dtype, num_threads=num_threads)
    return family


def versions() -> dict[str, str]:
    """What can change bits: goes into every receipt."""
    return {name: metadata.version(name) for name in VERSIONS_OF}


def processor() -> str:
    """What the CPU calls itself: another one may round otherwise."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Renderer:
    """Runs takes one at a time. `checkpoint_every_s` is work between two checkpoints; None takes none."""

    def __init__(
        self, make_family: Callable[[], Family], *, checkpoint_every_s: float | None = 30.0, facts: Json | None = None
    ) -> None:
        self._make_family = make_family
        self._checkpoint_every_s = checkpoint_every_s
        self._facts = facts or {}
        self._family: Family | None = None
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder")

    def start(self) -> Json:
        began = time.monotonic()
        self._family = self._make_family()
        return {**self._facts, "load_s": round(time.monotonic() - began, 3)}

    def close(self) -> None:
        self._family = None
        self._decoder.shutdown()

    def run(self, bench: Bench) -> Made:
        """Renders the take that the order's params ask for. Raises QualityCheckFailed for an empty picture."""
        spec = ShotSpec.from_json(bench.order.params["spec"])
        state, resumed_at = self._resumed(bench, spec)
        if state is None:
            bench.progress("encode", 0, 1)
            state = self._loaded().start(spec, self._encoded(bench, spec))
        self._denoise(bench, state)
        bench.progress("decode", 0, spec.num_frames)
        made = self._still(bench, spec, state) if spec.num_frames == 1 else self._clip(bench, spec, state)
        facts = {**self._facts, "determinism": "bit-exact", **({"resumed_at": resumed_at} if resumed_at else {})}
        return Made(files=made.files, result={**made.result, "spec": spec.to_json()}, facts=facts)

    def _resumed(self, bench: Bench, spec: ShotSpec) -> tuple[Any, int]:
        """The state of the furthest checkpoint that verifies and where it stands, or (None, 0)."""
        family = self._loaded()
        for saved in bench.resume():
            try:
                state = family.load(saved, spec)
            except DamagedCheckpoint as error:
                bench.refuse(error)
                continue
            return state, family.progress(state)[0]
        return None, 0

    def _encoded(self, bench: Bench, spec: ShotSpec) -> Any:
        family = self._loaded()
        if spec.first_frame is None:
            return family.encode([spec])[0]
        if not isinstance(family, FromFrame):
            raise InvalidSpec("the model takes no first frame", field="first_frame", remedy="leave it out")
        return family.encode_from(spec, read_picture(bench.asset(spec.first_frame)))

    def _denoise(self, bench: Bench, state: Any) -> None:
        """Steps to the end. A checkpoint is taken every so often, when the attempt shall stop, and before decoding."""
        family, every_s = self._loaded(), self._checkpoint_every_s
        saved_s = time.monotonic()
        done, total = family.progress(state)
        saved_at = done
        try:
            bench.progress("denoise", done, total)
            while done < total:
                family.step([state])
                done, total = family.progress(state)
                bench.progress("denoise", done, total)
                due = every_s is not None and time.monotonic() - saved_s >= every_s
                if due or (every_s is not None and done == total):
                    self._save(bench, state, done)
                    saved_s, saved_at = time.monotonic(), done
        except Interrupted:
            if every_s is not None and done > saved_at:
                self._save(bench, state, done)
            raise

    def _save(self, bench: Bench, state: Any, done: int) -> None:
        data = self._loaded().save(state)
        if data is not None:
            bench.checkpoint(data, done)

    def _clip(self, bench: Bench, spec: ShotSpec, state: Any) -> Made:
        """Decoding runs ahead of coding by one chunk, in a thread of its own."""
        path = bench.scratch / "clip.mp4"
        middle, shown, spread = spec.num_frames // 2, 0, 0.0
        poster: Frames | None = None
        encoder = media.ClipEncoder(path, fps=spec.fps, width_px=spec.width_px, height_px=spec.height_px)
        with encoder:
            for chunk in self._ahead(self._loaded().decode(state)):
                if poster is None and shown + len(chunk) > middle:
                    poster = chunk[middle - shown]
                shown += len(chunk)
                spread = max(spread, float(chunk[0].std()))
                encoder.push(chunk)
                bench.progress("decode", shown, spec.num_frames)
            if poster is None or shown != spec.num_frames:
                raise QualityCheckFailed(f"the model drew {shown} frames, not {spec.num_frames}")
            if spread < FLAT:
                raise QualityCheckFailed("the clip shows nothing but one colour")
            clip = encoder.close()
        still = bench.scratch / "poster.png"
        still.write_bytes(media.poster(poster))
        return Made(
            files=(
                MadeFile(name="clip.mp4", path=path, media_type="video/mp4", content_sha256=clip.content_sha256),
                MadeFile(name="poster.png", path=still, media_type="image/png"),
            ),
            result={"num_frames": shown, "content_sha256": clip.content_sha256},
        )

    def _still(self, bench: Bench, spec: ShotSpec, state: Any) -> Made:
        frame = next(iter(self._loaded().decode(state)))[0]
        if float(frame.std()) < FLAT:
            raise QualityCheckFailed("the still shows nothing but one colour")
        path = bench.scratch / "still.png"
        path.write_bytes(media.poster(frame))
        content = media.content_sha256([frame[np.newaxis]], fps=spec.fps)
        return Made(
            files=(MadeFile(name="still.png", path=path, media_type="image/png", content_sha256=content),),
            result={"num_frames": 1, "content_sha256": content},
        )

    def _ahead(self, chunks: Iterator[Frames]) -> Iterator[Frames]:
        source = iter(chunks)
        coming = self._decoder.submit(next, source, None)
        while (chunk := coming.result()) is not None:
            coming = self._decoder.submit(next, source, None)
            yield chunk

    def _loaded(self) -> Family:
        assert self._family is not None, "start() comes first"
        return self._family
