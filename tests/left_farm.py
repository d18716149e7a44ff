"""A ledger that a farm has left, ten minutes ago if nothing else is said: `film` has a dead shot, `clip` is done."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tests.ledger_desk import LedgerDesk, file, task

WORKER = "render-house-video/01kaqx2y3z4v5w6x7y8z9abcde"
AGO_US = 600_000_000


def left_farm(path: Path, empty_ledger: Path, *, ago_us: int = AGO_US) -> tuple[str, str]:
    """Writes it to `path`; returns the ids of film and clip."""
    shutil.copyfile(empty_ledger, path)
    desk = LedgerDesk(f"sqlite:///{path}", start_us=time.time_ns() // 1000 - ago_us)
    desk.join(WORKER)
    film = desk.submit(
        task("script", step="script", role="writer"),
        task("sh010.t1", "script"),
        task("sh020.t1", "script"),
        task("conform", "sh010.t1", "sh020.t1", role="finish"),
        title="A red boat crosses the sea at night, looking for the star it lost",
        show="lanterns",
    )
    desk.run(film, "script", seconds=20)
    first = desk.lease(film, "sh010.t1", worker=WORKER)
    desk.clock.advance(30)
    desk.commit(first)
    for _ in range(3):
        second = desk.lease(film, "sh020.t1")
        desk.clock.advance(10)
        desk.fail(second, message="it broke\n\x1b[31mbadly")
        desk.clock.advance(5)
        desk.ledger.backoff_over(desk.term)
    clip = desk.submit(task("clip"), title="a white house", tier="batch")
    done = desk.lease(clip, "clip", worker="w2")
    desk.clock.advance(40)
    desk.commit(done, files=[file("a clip")])
    desk.close()
    return film, clip
