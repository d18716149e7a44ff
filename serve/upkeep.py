"""The upkeep of a farm: chores, each at its interval, one after the other. The supervisor has a thread for it.

When each was last tried, and last succeeded, stands in the ledger: a farm that starts again does not begin anew, and
whoever asks (`farm doctor`, the metrics) reads how old the last success is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster import retention
from cluster.errors import FarmError, Unavailable
from cluster.ledger import chores
from cluster.ledger.ledger import Ledger
from cluster.logs import say
from cluster.rates import load_rate_card
from cluster.settings import Settings
from cluster.store.port import Store
from cluster.sweeper import sweep

log = logging.getLogger(__name__)
LOOK_S = 1.0
BILL_LOOK_S = 60.0
AGAIN_S = 60.0
"""A chore that failed is tried again after this, or after its interval if that is shorter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chore:
    """`do` may be done twice, and returns what it did, for the log. It waits for nobody: a store that is away is an
    error, and the next try."""

    name: str
    every_s: float
    do: Callable[[], dict[str, Any]]


def bill(ledger: Ledger, settings: Settings) -> dict[str, Any]:
    """What the meters have counted. Raises InvalidSettings for what has no price."""
    done = ledger.bill_meters(load_rate_card(settings.rate_card), every_s=settings.bill_s)
    if done.gaps:
        raise done.gaps[0]
    return {"lines": done.num_lines}


def chores_of(settings: Settings, ledger: Ledger, store: Store) -> list[Chore]:
    """All that a farm does for its own upkeep."""

    def swept() -> dict[str, Any]:
        kept = {"uploads_kept_s": settings.uploads_kept_s, "remains_kept_s": settings.checkpoints_kept_s}
        return asdict(sweep(ledger, store, **kept))

    return [
        Chore(name="sweep-store", every_s=settings.sweep_s, do=swept),
        Chore(
            name="collect-assets",
            every_s=settings.sweep_s,
            do=lambda: asdict(retention.collect(ledger, store, settings)),
        ),
        Chore(name="forget", every_s=settings.sweep_s, do=lambda: asdict(retention.forget(ledger, settings))),
        Chore(name="bill-meters", every_s=min(BILL_LOOK_S, settings.bill_s), do=lambda: bill(ledger, settings)),
    ]


class Upkeep:
    """`run` until it is told to stop; `look` does what is due now. One thread at a time."""

    def __init__(self, ledger: Ledger, jobs: Sequence[Chore]) -> None:
        self._ledger, self._chores = ledger, jobs

    def run(self, stopping: threading.Event) -> None:
        while not stopping.wait(LOOK_S):
            try:
                self.look(stopping)
            except Unavailable as error:
                say(log, "The ledger is away.", action="upkeep.wait", level=logging.WARNING, why=error.line())

    def look(self, stopping: threading.Event | None = None) -> None:
        """Whatever one chore raises is written down, and the others have their turn. Raises LedgerUnavailable."""
        told = {one.name: one for one in self._ledger.view(chores.read)}
        for chore in self._chores:
            if stopping is not None and stopping.is_set():
                return
            last = told.get(chore.name)
            if last is not None:
                wait_s = chore.every_s if last.error is None else min(chore.every_s, AGAIN_S)
                if abs(self._ledger.clock.now_us() - last.tried_us) < wait_s * 1e6:
                    continue
            self._ledger.tell_chore(chore.name, error=self._do(chore))

    def _do(self, chore: Chore) -> str | None:
        """Why it failed."""
        try:
            did = chore.do()
        except FarmError as error:
            say(
                log, "A chore failed.", action="chore.failed", level=logging.WARNING, chore=chore.name, why=error.line()
            )
            return error.line()
        except Exception as error:  # of nobody's foreseeing: the next try may be luckier, the other chores are
            log.exception("A chore broke.")
            return f"something unforeseen happened ({type(error).__name__}: {error})"
        say(log, "A chore was done.", action="chore.done", chore=chore.name, **did)
        return None
