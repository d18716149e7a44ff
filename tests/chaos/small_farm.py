"""A farm of a few forked processes without Ray: dispatcher, two workers, a client; who dies is started again.

The process that runs cases forks its children from itself after all imports, so that a process of the farm is up within
milliseconds. It stays free of threads and of open databases.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import actors.worker
from actors.contract import WorkerFacts
from actors.dispatcher import Dispatcher
from actors.worker import Worker
from cluster import failures, faults
from cluster.clock import SystemClock
from cluster.errors import FailureClass, FarmError, Unavailable
from cluster.faults import Chance, Fault
from cluster.ledger.audit import violations
from cluster.ledger.ledger import Ledger
from cluster.rates import load_rate_card
from cluster.settings import Settings
from cluster.states import JobState
from cluster.store.directory import DirectoryStore
from tests.chaos import golden, sockets

PATIENCE_S = 40.0
TICK_S = 0.03
TIMES = {"heartbeat_s": 0.1, "lease_s": 0.5, "lease_wait_s": 0.3, "checkpoint_s": 0.001}


def hurry() -> None:
    """Waits of a real farm, in milliseconds; before any child is forked."""
    actors.worker.RETRY_AFTER_S = 0.03
    for failure in (FailureClass.INFRA, FailureClass.QUALITY, FailureClass.BUG):
        failures.FIRST_DELAY_S[failure] = 0.01


def _end_with_the_parent() -> None:
    """Linux kills this process when the one that forked it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a case ended. `flaws` is empty when it ended as it must."""

    seconds: float
    digest: str
    flaws: list[str]
    struck: int
    crashes: int  # processes that ended by themselves, killed or broken


@dataclass
class SmallFarm:
    """`run()` runs the golden job to its end under a plan of faults."""

    home: Path
    plan: Sequence[Fault | Chance] = ()
    _pids: dict[int, str] = field(default_factory=dict)
    _starts: dict[str, int] = field(default_factory=dict)
    _stopped: set[str] = field(default_factory=set)  # who may end now
    crashes: int = 0

    def run(self) -> Outcome:
        began_s = time.monotonic()
        self.home.mkdir(parents=True)
        self.settings = Settings(home=self.home, **TIMES)  # type: ignore[arg-type]
        Ledger(self.settings.ledger, durable=False).close()
        late = ""
        try:
            for name in ("dispatcher", "w0", "w1", "client"):
                self._start(name)
            self._wait(lambda: "client" not in self._pids.values(), began_s)
            self._stop("w0", "w1")
            self._wait(lambda: not {"w0", "w1"} & set(self._pids.values()), began_s)
            self._start("gone")
            self._wait(lambda: "gone" not in self._pids.values(), began_s)
        except TimeoutError:
            late = f"it did not come to its end within {PATIENCE_S} s; {sorted(self._pids.values())} still ran"
        finally:
            self._end()
        found, digest = self._judge()
        return Outcome(
            seconds=time.monotonic() - began_s,
            digest=digest,
            flaws=[late, *found] if late else found,
            struck=faults.struck(self.home / "faults"),
            crashes=self.crashes,
        )

    # Processes

    def _start(self, name: str) -> None:
        count = self._starts[name] = self._starts.get(name, -1) + 1
        pid = os.fork()
        if pid:
            self._pids[pid] = name
            return
        code = 1
        try:  # the child
            _end_with_the_parent()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            out = os.open(self.home / f"{name}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            logging.basicConfig(stream=sys.stderr, level=logging.INFO, force=True)
            faults.arm(self.plan, self.home / "faults")
            {"dispatcher": self._dispatch, "client": self._submit, "gone": self._wait_until_gone}.get(
                name, lambda: self._work(f"{name}-{count}")
            )()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _wait(self, over: Callable[[], bool], began_s: float) -> None:
        """Until `over`; who died meanwhile is started again."""
        while not over():
            if time.monotonic() - began_s > PATIENCE_S:
                raise TimeoutError
            for pid, name in list(self._pids.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    del self._pids[pid]
                    self.crashes += bool(status)
                    if status and name not in self._stopped:
                        self._start(name)
            time.sleep(0.004)

    def _stop(self, *names: str) -> None:
        self._stopped.update(names)
        for pid, name in self._pids.items():
            if name in names:
                os.kill(pid, signal.SIGTERM)

    def _end(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._pids.clear()

    # What each child does

    def _dispatch(self) -> None:
        asyncio.run(self._dispatcher())

    async def _dispatcher(self) -> None:
        dispatcher = Dispatcher(
            ledger=Ledger(self.settings.ledger, durable=False),
            store=DirectoryStore(self.settings.store_dir),
            rates=load_rate_card(),
            clock=SystemClock(),
            settings=self.settings,
        )
        while True:
            try:
                await dispatcher.start()
                break
            except Unavailable:
                await asyncio.sleep(TICK_S)
        sockets.serve(self.home / "desk", dispatcher, asyncio.get_running_loop())
        await dispatcher.run(TICK_S)

    def _work(self, worker_id: str) -> None:
        facts = WorkerFacts(
            id=worker_id, fleet="small", role="finish", models=(), node="here", accelerator="cpu",
            num_accelerators=0, price_class="on-demand", spawned_us=SystemClock().now_us(),
        )  # fmt: skip
        worker = Worker(
            facts,
            engine=golden.GoldenEngine(),
            desk=sockets.SocketDesk(self.home / "desk"),
            store=DirectoryStore(self.settings.store_dir),
            scratch=self.home / "scratch",
            heartbeat_s=self.settings.heartbeat_s,
        )
        signal.signal(signal.SIGTERM, lambda *_: worker.stop())
        worker.start()
        worker.run()
        worker.close()

    def _submit(self) -> None:
        ledger = Ledger(self.settings.ledger, durable=False)
        while True:
            try:
                job_id, _ = ledger.submit(golden.job(), golden.graph())
                while not ledger.job(job_id).over:
                    time.sleep(0.02)
                return
            except Unavailable:
                continue

    def _wait_until_gone(self) -> None:
        ledger = Ledger(self.settings.ledger, durable=False)
        while True:
            try:
                if not ledger.open_workers():
                    return
            except Unavailable:
                continue
            time.sleep(0.02)

    # What it came to

    def _judge(self) -> tuple[list[str], str]:
        ledger = Ledger(self.settings.ledger, durable=False)
        try:
            jobs = ledger.jobs()
            if len(jobs) != 1:
                return [f"there are {len(jobs)} jobs"], ""
            found = [] if jobs[0].state is JobState.SUCCEEDED else [f"the job is {jobs[0].state}"]
            found += [*ledger.flaws(), *violations(ledger.log(), injected=[], orders_per_worker=1, quiet=True)]
            left = [path.name for path in self.settings.store_dir.rglob(".incoming/*") if not self.crashes]
            found += [f"nothing left over: {name}" for name in left]
            return sorted(set(found)), golden.digest_of_tasks(ledger.tasks(jobs[0].id))
        except FarmError as error:
            return [f"the ledger cannot be read: {error.line()}"], ""
        finally:
            ledger.close()
