"""Which workers a farm on this machine has: one fleet for each role and model that work is there for."""

from __future__ import annotations

import os

from cluster.accelerators import Fleet
from cluster.settings import Settings


def fleet_of(role: str, model: str | None, *, gpus: int, settings: Settings) -> Fleet:
    """On a CPU one worker of each role; on `gpus` accelerators a render worker each, pinned."""
    name = "-".join(part for part in (role, model) if part)
    price = settings.price_class
    if role == "render":
        threads = settings.render_threads or os.cpu_count() or 1
        return Fleet(
            name=name, role=role, model=model, price_class=price, num_threads=threads,
            accelerator="GPU" if gpus else "cpu", accelerators_per_worker=1 if gpus else 0,
            num_workers=max(1, gpus),
        )  # fmt: skip
    threads = settings.writer_threads if role == "writer" else 1
    return Fleet(name=name, role=role, model=model, price_class=price, num_threads=threads)
