"""Seconds of a clip of the house model on this machine, and what the farm adds to them.

    make bench

The farm and the same family called directly render the same clips, turn by turn in one run; medians of the pairs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.catalog import Catalog
from actors.contract import Family, ShotSpec
from actors.renderer import load_family
from actors.weights import weights_dir
from cluster import media
from serve.local import Farm

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
PAIRS = 5
PROMPT = "a red boat drifts right on the sea at night"


def spec(catalog: Catalog, seed: int) -> ShotSpec:
    return catalog.model("house-video").spec(prompt=PROMPT, seconds=2.0, seed=seed)


def direct(family: Family, shot: ShotSpec, path: Path) -> dict[str, float]:
    """One clip without a farm. Returns seconds by stage."""
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began
        return result

    conditioning = timed("encode", lambda: family.encode([shot])[0])
    state = family.start(shot, conditioning)
    done, total = family.progress(state)
    while done < total:
        timed("denoise", lambda: family.step([state]))
        done, total = family.progress(state)
    chunks = timed("decode", lambda: list(family.decode(state)))
    timed("mux", lambda: media.encode_clip(path, chunks, fps=shot.fps))
    return seconds


def test_a_clip_by_stage_and_the_overhead_of_the_farm(tmp_path: Path) -> None:
    with Farm(home=tmp_path / "home", gpus=0) as farm:
        model = farm.catalog.model("house-video")
        family = load_family(
            model.family,
            weights_dir(model, tmp_path / "home"),
            device="cpu",
            dtype="float32",
            num_threads=os.cpu_count() or 1,
        )
        direct(family, spec(farm.catalog, 1), tmp_path / "warm.mp4")
        farm.clip(PROMPT, seed=1, out=tmp_path / "warm")  # loads the render worker
        stages: list[dict[str, float]] = []
        ratios: list[float] = []
        for pair in range(PAIRS):
            shot = spec(farm.catalog, 100 + pair)
            began = time.perf_counter()
            stages.append(direct(family, shot, tmp_path / f"{pair}.mp4"))
            alone_s = time.perf_counter() - began
            began = time.perf_counter()
            farm.clip(PROMPT, seed=100 + pair, out=tmp_path / str(pair))
            ratios.append((time.perf_counter() - began) / alone_s)
    print("\nseconds per clip, medians:")
    for stage in ("encode", "denoise", "decode", "mux"):
        print(f"  {stage:8} {statistics.median(s[stage] for s in stages):.2f}")
    print(f"farm / family alone: {statistics.median(ratios):.2f}  (of {', '.join(f'{r:.2f}' for r in ratios)})")
    assert len(ratios) == PAIRS
