"""The crash sweep: the golden job under every fault at every point, and again while it recovers from a first one.

    python -m tests.chaos.sweep [--only REGEX] [--at-once 2] [--keep DIR]

Every case must end with the same content, and the checker must find nothing. `make chaos-sweep` runs all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from cluster import faults
from cluster.faults import Action, Fault
from tests.chaos import golden
from tests.chaos.small_farm import Outcome, SmallFarm, hurry

ACTIONS = (Action.BEFORE, Action.AFTER, Action.KILL, Action.KILL_AFTER)
OFTEN: dict[str, tuple[int, ...]] = {
    "ledger.transaction": (2, 12, 30, 60),
    "ledger.settle": (1, 4, 8),
    "store.publish": (1, 2, 5),
    "ledger.commit": (1, 2, 5),
    "worker.report": (1, 2),
}
"""Points that stand for many places: broken at several of their passings."""
FIRST = (
    Fault(point="worker.report", action=Action.KILL, nth=2),
    Fault(point="ledger.commit", action=Action.KILL_AFTER, nth=2),
)
"""What the farm recovers from when the second fault strikes: a worker that had uploaded, and a dispatcher."""
NEEDS_FIRST = {"dispatcher.adopt": Fault(point="worker.report", action=Action.KILL)}
"""Points that nothing passes in an undisturbed farm, with what must happen before: here the script's worker dies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    name: str
    plan: tuple[Fault, ...]

    @property
    def recovering(self) -> bool:
        return len(self.plan) > 1


UNDISTURBED = Case(name="undisturbed", plan=())


def cases() -> Iterator[Case]:
    for point in (*faults.POINTS, *faults.CALLS):
        if point.startswith(("webhooks.", "assets.")):
            continue  # nobody listens to the small farm, or collects; test_webhooks and test_collector break these
        for action in (*ACTIONS, *([Action.TWICE] if point in faults.CALLS else [])):
            for nth in OFTEN.get(point, (1,)):
                name = f"{point} {action} {nth}"
                alone = Fault(point=point, action=action, nth=nth)
                if point in NEEDS_FIRST:
                    yield Case(name=name, plan=(NEEDS_FIRST[point], alone))
                    continue
                yield Case(name=name, plan=(alone,))
                if nth == 1 or nth == OFTEN[point][0]:
                    again = Fault(point=point, action=action, follows=True)
                    for first in FIRST:
                        yield Case(name=f"{name} after {first.point} {first.action}", plan=(first, again))


def run(case: Case, folder: Path, *, keep: bool = False) -> tuple[Case, Outcome]:
    home = folder / case.name.replace(" ", "-")
    outcome = SmallFarm(home, case.plan).run()
    if not outcome.flaws and not keep:
        shutil.rmtree(home)
    return case, outcome


def sweep(chosen: list[Case], folder: Path, *, at_once: int) -> int:
    """Runs and prints; returns the number of cases that did not end as they must."""
    began_s = time.monotonic()
    num_bad, num_done, not_reached, crashes, slowest = 0, 0, list[str](), 0, 0.0
    content = golden.digest(golden.expected())
    with ProcessPoolExecutor(at_once, mp_context=get_context("fork"), initializer=hurry) as pool:
        for case, outcome in pool.map(run, [UNDISTURBED, *chosen], [folder] * (len(chosen) + 1)):
            flaws = list(outcome.flaws)
            if outcome.digest != content:
                flaws.append(f"the content is another one: {outcome.digest[:12]}")
            if outcome.struck < len(case.plan):
                if case.recovering:
                    not_reached.append(case.name)
                else:
                    flaws.append("its fault never struck")
            num_bad += bool(flaws)
            num_done += 1
            if num_done % 50 == 0:
                print(f"{num_done} cases, {time.monotonic() - began_s:.0f} s", flush=True)
            crashes += outcome.crashes
            slowest = max(slowest, outcome.seconds)
            for flaw in flaws:
                print(f"  {case.name}: {flaw}", flush=True)
    again = sum(case.recovering for case in chosen)
    said = (
        f"{len({case.plan[-1].point for case in chosen})} points",
        f"{len(chosen)} faulty cases ({again} in a recovery) and an undisturbed one",
        f"{len(chosen) + 1 - num_bad} ended with the same content and no violation",
        f"{crashes} processes died",
        f"{len(not_reached)} second faults had nothing left to strike",
        f"slowest case {slowest:.1f} s",
        f"{time.monotonic() - began_s:.0f} s in all",
    )
    print(", ".join(said))
    return num_bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name this regular expression finds")
    parser.add_argument("--at-once", type=int, default=2, help="cases that run side by side")
    parser.add_argument("--keep", type=Path, help="a folder for the homes of cases that did not end well")
    asked = parser.parse_args()
    chosen = [case for case in cases() if re.search(asked.only, case.name)]
    if not chosen:
        parser.error(f"no case is called {asked.only!r}")
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with contextlib.ExitStack() as stack:
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farm-sweep-", dir=memory)))
        folder.mkdir(parents=True, exist_ok=True)
        return 1 if sweep(chosen, folder, at_once=asked.at_once) else 0


if __name__ == "__main__":
    sys.exit(main())
