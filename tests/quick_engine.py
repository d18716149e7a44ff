"""An engine of milliseconds for tests of the farm: real files, real progress, no model."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from actors.contract import Bench, Engine, Json, Made, MadeFile
from cluster.accelerators import Fleet
from cluster.settings import Settings


class QuickEngine:
    """Writes one small file that depends on the order's params alone."""

    def start(self) -> Json:
        return {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS")}

    def run(self, bench: Bench) -> Made:
        params = bench.order.params
        for n in range(3):
            bench.progress("denoise", n + 1, 3)
        if "nap_s" in params:
            threading.Event().wait(params["nap_s"])
        if "gate" in params:
            _wait_at(Path(params["gate"]), bench)
        path = bench.scratch / "take.txt"
        path.write_text(f"{bench.order.params}", encoding="utf-8")
        return Made(files=(MadeFile(name="take.txt", path=path, media_type="text/plain"),), facts=self.start())

    def close(self) -> None:
        return


def _wait_at(gate: Path, bench: Bench) -> None:
    """Says who waits, in the file `pid` beside the gate, until the gate is there."""
    waiting = gate.with_name("pid.part")
    waiting.write_text(str(os.getpid()), encoding="utf-8")
    waiting.rename(gate.with_name("pid"))
    while not gate.exists():
        bench.progress("denoise", 1, 3)
        threading.Event().wait(0.05)


def make(fleet: Fleet, settings: Settings) -> Engine:
    return QuickEngine()
