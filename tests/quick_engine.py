"""An engine of milliseconds for tests of the farm: real files, real progress, no model."""

from __future__ import annotations

import os

from actors.contract import Bench, Engine, Json, Made, MadeFile
from cluster.accelerators import Fleet
from cluster.settings import Settings


class QuickEngine:
    """Writes one small file that depends on the order's params alone."""

    def start(self) -> Json:
        return {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS")}

    def run(self, bench: Bench) -> Made:
        steps = int(bench.order.params.get("steps", 3))
        for n in range(steps):
            bench.progress("denoise", n + 1, steps)
        path = bench.scratch / "take.txt"
        path.write_text(f"{bench.order.params}", encoding="utf-8")
        return Made(files=(MadeFile(name="take.txt", path=path, media_type="text/plain"),), facts=self.start())

    def close(self) -> None:
        return


def make(fleet: Fleet, settings: Settings) -> Engine:
    return QuickEngine()
