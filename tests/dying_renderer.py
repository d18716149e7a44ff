"""A render worker's work in a process of its own, which kills itself in the middle of the denoise if it is told to."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import diffusers  # noqa: F401  # loaded once by the fork server, not by each of its children
import torch  # noqa: F401

from actors.bench import WorkBench
from actors.contract import Order, ShotSpec
from actors.renderer import Renderer, load_family
from cluster.store.directory import DirectoryStore


def render(
    family: str,
    place: Path,
    root: Path,
    spec: ShotSpec,
    attempts: Sequence[str],
    resume_from: Sequence[str],
    die_at: int,
) -> None:
    """Draws `spec` once for each attempt; ROOT/<attempt id>.json says what came out. The last one dies at `die_at`."""
    renderer = Renderer(
        lambda: load_family(family, place, device="cpu", dtype="float32", num_threads=1), checkpoint_every_s=0
    )
    renderer.start()
    for attempt_id in attempts:
        scratch = root / attempt_id
        scratch.mkdir()
        mortal = die_at if attempt_id == attempts[-1] else 0
        bench = _Mortal(_order(spec, attempt_id, resume_from), DirectoryStore(root / "store"), scratch, mortal)
        made = renderer.run(bench)
        facts = bench.finish() | {"content": made.result["content_sha256"], "at": made.facts.get("resumed_at", 0)}
        (root / f"{attempt_id}.json").write_text(json.dumps(facts), encoding="utf-8")
    renderer.close()


class _Mortal(WorkBench):
    def __init__(self, order: Order, store: DirectoryStore, scratch: Path, die_at: int) -> None:
        super().__init__(order, store=store, scratch=scratch, tell=lambda: None)
        self._die_at = die_at

    def progress(self, stage: str, done: int, total: int) -> None:
        super().progress(stage, done, total)
        if stage == "denoise" and 0 < self._die_at == done:
            os.kill(os.getpid(), signal.SIGKILL)


def _order(spec: ShotSpec, attempt_id: str, resume_from: Sequence[str]) -> Order:
    return Order(
        task_id="task", attempt_id=attempt_id, epoch=1, generation=0, job_id="job", tenant="studio", show="tests",
        title="", spec={}, key="take", step="render", entry="", params={"spec": spec.to_json()}, model=None, inputs=(),
        resume_from=tuple(resume_from),
    )  # fmt: skip
