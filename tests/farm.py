"""A whole farm in one process, for tests: the real ledger, store, dispatcher and workers, without Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from actors.contract import Beat, Engine, Order, Report, WorkerFacts
from actors.dispatcher import Dispatcher
from actors.worker import Worker
from cluster.clock import Clock, SystemClock
from cluster.ledger.ledger import Ledger
from cluster.rates import load_rate_card
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from cluster.store.port import Store

T = TypeVar("T")


class LocalDesk:
    """The dispatcher on an event loop of this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dispatcher: Dispatcher) -> None:
        self.loop, self.dispatcher = loop, dispatcher

    def ask(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=60)

    def join(self, worker: WorkerFacts) -> None:
        self.ask(self.dispatcher.join(worker))

    def lease(self, worker_id: str, request_id: str) -> Order | None:
        return self.ask(self.dispatcher.lease(worker_id, request_id))

    def dismiss(self, worker_id: str) -> None:
        self.ask(self.dispatcher.dismiss(worker_id))

    def beat(self, worker_id: str, beats: Sequence[Beat]) -> dict[str, str]:
        return self.ask(self.dispatcher.beat(worker_id, beats))

    def report(self, report: Report) -> str:
        return self.ask(self.dispatcher.report(report))

    def leave(self, worker_id: str, *, died: bool = False) -> None:
        self.ask(self.dispatcher.leave(worker_id, died=died))


class InProcessFarm:
    """`worker()` makes one; `work_until_over(job_id)` runs one until the job has ended."""

    def __init__(
        self,
        home: Path,
        *,
        lease_s: float = 30.0,
        lease_wait_s: float = 0.2,
        store: Store | None = None,
        clock: Clock | None = None,
        **settings: float,
    ) -> None:
        self.home = home
        times = {"lease_s": lease_s, "lease_wait_s": lease_wait_s, "heartbeat_s": lease_s / 3}
        self.settings = Settings(home=home, **{**times, **settings})  # type: ignore[arg-type]
        self.clock = clock or SystemClock()
        self.ledger = Ledger(f"sqlite:///{home / 'ledger.db'}", clock=self.clock)
        self.store = store or DirectoryStore(home / "store")
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.desk = self.new_dispatcher()
        self._count = 0

    def new_dispatcher(self) -> LocalDesk:
        """Another dispatcher on the same ledger, with the next term."""

        async def make() -> Dispatcher:
            dispatcher = Dispatcher(
                ledger=self.ledger,
                store=self.store,
                rates=load_rate_card(),
                clock=self.clock,
                settings=self.settings,
            )
            await dispatcher.start()
            return dispatcher

        made = asyncio.run_coroutine_threadsafe(make(), self.loop).result(timeout=60)
        return LocalDesk(self.loop, made)

    def facts(self, *, role: str = "render", models: tuple[str, ...] = ()) -> WorkerFacts:
        self._count += 1
        return WorkerFacts(
            id=f"w{self._count}",
            fleet="test",
            role=role,
            models=models,
            node="here",
            accelerator="cpu",
            num_accelerators=0,
            price_class="on-demand",
            spawned_us=self.clock.now_us(),
        )

    def worker(self, engine: Engine, *, role: str = "render", models: tuple[str, ...] = (), desk: Any = None) -> Worker:
        return Worker(
            self.facts(role=role, models=models),
            engine=engine,
            desk=desk or self.desk,
            store=self.store,
            scratch=self.home / "scratch",
            heartbeat_s=0.1,
        )

    def work_until_over(self, job_id: str, worker: Worker, *, timeout_s: float = 30.0) -> None:
        worker.start()
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        self.wait_for(lambda: self.ledger.job(job_id).over, timeout_s=timeout_s)
        worker.stop()
        thread.join(timeout=timeout_s)
        assert not thread.is_alive()

    def wait_for(self, ready: Callable[[], bool], *, timeout_s: float = 90.0) -> None:
        """Looks at the dispatcher's truth until `ready`, ticking it; fails the test after `timeout_s`."""
        import time

        ends = time.monotonic() + timeout_s
        while not ready():
            assert time.monotonic() < ends, "the farm did not get there in time"
            self.desk.ask(self.desk.dispatcher.tick())
            threading.Event().wait(0.02)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=10)
        self.loop.close()
        self.ledger.close()


@contextmanager
def in_process_farm(
    home: Path, *, store: Store | None = None, clock: Clock | None = None, **settings: float
) -> Iterator[InProcessFarm]:
    farm = InProcessFarm(home, store=store, clock=clock, **settings)
    try:
        yield farm
    finally:
        farm.close()
