"""The supervisor of a standing farm: it owns the dispatcher and the fleets, sees to it that whatever waits has workers,
and sends webhooks. A plain class; `serve.app` makes it a detached actor."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.catalog import Catalog
from cluster.accelerators import Fleet
from cluster.errors import FarmError
from cluster.ledger import views
from cluster.ledger.ledger import Ledger
from cluster.logs import say
from cluster.metrics import Labels, Meters
from cluster.settings import Settings
from cluster.store.opening import open_store
from serve.crew import fleet_of, fleets_of
from serve.guard import Guard
from serve.upkeep import Upkeep, chores_of
from serve.webhooks import Deliverer

if TYPE_CHECKING:  # it imports Ray
    from actors.fleet import Fleets

log = logging.getLogger(__name__)
LOOK_S = 1.0
TOLD_S = 0.2
"""How long it takes until webhooks see that the farm ends."""
BROKE_S = 10.0
"""A pause after what nobody foresaw, so that no log is filled with it."""
CHORE_S = 5.0
"""How long the end of the farm waits for the chore that is being done: it may be done twice."""
AGAIN_S = 60.0
"""A fleet of which no worker started is tried again after this: what it lacks may have been put there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """`loading` are fleets with a worker that has not joined; `broken` says why no worker of one can."""

    up: bool
    workers: dict[str, int]  # by role
    loading: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


class Supervisor:
    """`start` returns at once and goes on trying until the ledger is there; `drain` ends it. Any thread may ask."""

    def __init__(self, settings: Settings, fleets: Fleets, *, gpus: int, meters: Meters | None = None) -> None:
        self._meters = meters or Meters()
        self._meters.watch("farm_disk_free_bytes", lambda: self._disk("free"))
        self._meters.watch("farm_disk_size_bytes", lambda: self._disk("total"))
        self._settings, self._fleets, self._gpus = settings, fleets, gpus
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="supervisor", daemon=True)
        self._up = False
        self._why_not = ""
        self._broken_s: dict[str, float] = {}

    def start(self) -> None:
        self._keeper.start()

    def standing(self) -> Standing:
        broken = [f"{name}: {error.line()}" for name, error in list(self._fleets.broken.items())]
        return Standing(
            up=self._up,
            workers=self._fleets.num_workers(),
            loading=tuple(self._fleets.loading()),
            broken=(self._why_not, *broken) if self._why_not else tuple(broken),
        )

    def _disk(self, what: str) -> dict[Labels, float]:
        return {(): float(getattr(shutil.disk_usage(self._settings.home), what))}

    def drain(self, timeout_s: float) -> None:
        """Gives out no more work: each worker saves what it draws at its next denoise step and leaves."""
        self._stopping.set()
        self._keeper.join(timeout_s)
        self._fleets.stop(timeout_s)

    def _keep(self) -> None:
        ledger = self._opened()
        if ledger is None:
            return
        hooks = threading.Thread(target=self._insist, args=(self._deliver, ledger), name="webhooks", daemon=True)
        upkeep = threading.Thread(target=self._insist, args=(self._upkeep, ledger), name="upkeep", daemon=True)
        hooks.start()
        upkeep.start()
        self._insist(self._look_on, ledger)
        hooks.join()
        upkeep.join(CHORE_S)
        ledger.close()

    def _insist(self, work: Callable[[Ledger], None], ledger: Ledger) -> None:
        """Until the farm ends, whatever breaks."""
        name = threading.current_thread().name
        while not self._stopping.is_set():
            try:
                work(ledger)
            except FarmError as error:
                say(log, "Work has to wait.", action=f"{name}.wait", level=logging.WARNING, why=error.line())
                self._stopping.wait(LOOK_S)
            except Exception:  # of nobody's foreseeing: what was not settled is due again
                log.exception("The work of %s broke.", name)
                self._stopping.wait(BROKE_S)

    def _deliver(self, ledger: Ledger) -> None:
        """Webhooks; what is being sent when the farm ends is waited for."""
        deliverer = Deliverer(ledger, Guard.of(self._settings), meters=self._meters)

        async def until_stopped() -> None:
            stop = asyncio.Event()
            running = asyncio.create_task(deliverer.run(stop))
            while not self._stopping.is_set() and not running.done():
                await asyncio.wait([running], timeout=TOLD_S)
            stop.set()
            await running

        asyncio.run(until_stopped())

    def _upkeep(self, ledger: Ledger) -> None:
        Upkeep(ledger, chores_of(self._settings, ledger, open_store(self._settings))).run(self._stopping)

    def _opened(self) -> Ledger | None:
        """The ledger, once it is there and the dispatcher works on it; None if the farm ended before."""
        ledger: Ledger | None = None
        while not self._stopping.is_set():
            try:
                catalog = Catalog.load(self._settings.home / "models.d")
                first = fleets_of(self._settings) or self._warm(catalog)
                ledger = ledger or Ledger(self._settings.ledger)
                self._fleets.start()
            except FarmError as error:
                self._why_not = error.line()
                say(log, "The farm cannot start.", action="supervisor.start", level=logging.ERROR, why=self._why_not)
                self._stopping.wait(LOOK_S)
                continue
            for fleet in first:
                self._fleets.want(fleet)
            self._up, self._why_not = True, ""
            return ledger
        if ledger is not None:
            ledger.close()
        return None

    def _look_on(self, ledger: Ledger) -> None:
        while not self._stopping.wait(LOOK_S):
            self._look(ledger)

    def _look(self, ledger: Ledger) -> None:
        now_s = time.monotonic()
        for name, error in list(self._fleets.broken.items()):
            if name not in self._broken_s:
                self._broken_s[name] = now_s
                say(log, "No worker of a fleet starts.", action="fleet.broken", level=logging.ERROR, fleet=name,
                    why=error.line())  # fmt: skip
            elif now_s - self._broken_s[name] > AGAIN_S:
                del self._broken_s[name]
                self._fleets.forget(name)
        for role, model in ledger.view(views.waiting_for):
            if not self._fleets.have(role, model):
                self._fleets.want(self._fleet(role, model))

    def _warm(self, catalog: Catalog) -> list[Fleet]:
        names = filter(None, self._settings.warm.replace(" ", "").split(","))
        models = [catalog.model(name, field="FARM_WARM") for name in names]
        return [*(self._fleet(model.role, model.id) for model in models), self._fleet("finish", None)]

    def _fleet(self, role: str, model: str | None) -> Fleet:
        return fleet_of(role, model, gpus=self._gpus, settings=self._settings)
