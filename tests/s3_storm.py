"""A quick farm on a real S3 server behind a proxy that breaks things: what is rendered survives it, and nothing else
stays. The tests run it for seconds; `python -m tests.s3_storm` for minutes."""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from actors.contract import Bench, Json, Made, MadeFile
from cluster.assets import Receipt
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from cluster.states import JobState, State
from cluster.store.s3 import S3Store
from cluster.store.s3_place import Place
from cluster.store.s3_upload import PART_BYTES
from cluster.sweeper import Swept, sweep
from tests.farm import InProcessFarm, in_process_farm
from tests.s3_proxy import Trouble, proxied
from tests.seaweedfs import BUCKET, SeaweedFS, keys_of, seaweedfs

NUM_WORKERS = 2


class Draws:
    """A take of `num_bytes` that says which it is, with a checkpoint on the way."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self.num_drawn = 0

    def start(self) -> Json:
        return {}

    def run(self, bench: Bench) -> Made:
        self.num_drawn += 1
        bench.checkpoint(b"latents of " + bench.order.key.encode(), 1)
        path = bench.scratch / "take.mp4"
        with path.open("wb") as file:
            file.write(bench.order.key.encode().ljust(100, b"."))
            file.write(os.urandom(1 << 16) * (self._num_bytes >> 16))
        return Made(files=(MadeFile(name="take.mp4", path=path, media_type="video/mp4"),))

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weathered:
    """What came of it."""

    jobs: list[JobState]
    early: list[str]  # jobs that were said to be done before their bytes were there
    num_drawn: int
    failures: int
    troubles: dict[str, int]
    swept: Swept
    left: list[str]  # keys beside those that receipts name
    uploads: int
    seconds: float


def weathered(
    server: SeaweedFS,
    home: Path,
    trouble: Callable[[Trouble], None],
    *,
    num_jobs: int = 6,
    takes: int = 2,
    num_bytes: int = PART_BYTES + (1 << 16),
    timeout_s: float = 120.0,
) -> Weathered:
    """Renders `num_jobs` with two workers, after `trouble` has seen to what is in their way, then sweeps.

    The keys of the person `farm` are in the environment.
    """
    began_s = time.monotonic()
    home.mkdir(exist_ok=True)
    plain = S3Store(Place(bucket=BUCKET, prefix=f"{uuid4().hex}/", endpoint=server.endpoint))
    with ExitStack() as stack:
        through, broken = stack.enter_context(proxied(server))
        place = Place(bucket=BUCKET, prefix=plain._place.prefix, endpoint=through.endpoint)
        store = S3Store(place)
        store.capabilities()
        farm = stack.enter_context(in_process_farm(home, store=store))
        engine = Draws(num_bytes)
        jobs = [_submitted(farm, n, takes) for n in range(num_jobs)]
        workers = [farm.worker(engine) for _ in range(NUM_WORKERS)]
        threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
        trouble(broken)
        for worker in workers:
            worker.start()
        for thread in threads:
            thread.start()
        early: list[str] = []
        seen: set[str] = set()

        def over() -> bool:
            for job_id in jobs:
                if job_id not in seen and farm.ledger.job(job_id).over:
                    seen.add(job_id)
                    early.extend(_not_there(farm, plain, job_id))
            return len(seen) == len(jobs)

        farm.wait_for(over, timeout_s=timeout_s)
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join(timeout=60)
        attempts = [attempt for job_id in jobs for attempt in farm.ledger.attempts(job_id)]
        swept = sweep(farm.ledger, plain, uploads_kept_s=-60.0, remains_kept_s=-60.0)
        committed = {key for job_id in jobs for key in _committed(farm, job_id)}
        client = server.client()
        return Weathered(
            jobs=[farm.ledger.job(job_id).state for job_id in jobs],
            early=early,
            num_drawn=engine.num_drawn,
            failures=sum(attempt["failure"] is not None for attempt in attempts),
            troubles=dict(broken.count),
            swept=swept,
            left=sorted(set(plain.list("studio/")) ^ committed),
            uploads=len(client.list_multipart_uploads(Bucket=BUCKET, Prefix=place.prefix).get("Uploads", [])),
            seconds=time.monotonic() - began_s,
        )


def _submitted(farm: InProcessFarm, number: int, takes: int) -> str:
    tasks = [
        TaskSpec(
            key=f"j{number}.t{take}", step="draw", role="render", entry="a.b:c", params={"seed": 100 * number + take}
        )
        for take in range(takes)
    ]
    job = JobSpec(recipe="pipelines.recipes.clip", title=f"Takes {number}", spec={"n": number})
    return farm.ledger.submit(job, tasks)[0]


def _not_there(farm: InProcessFarm, plain: S3Store, job_id: str) -> list[str]:
    """What a job that is said to be done has not got: its bytes are read, past the proxy."""
    flaws = []
    for task in farm.ledger.tasks(job_id):
        receipt = Receipt.from_bytes(plain.get(task["receipt_key"])) if task["receipt_key"] else None
        if task["state"] != State.SUCCEEDED or receipt is None:
            flaws.append(f"{task['key']} is {task['state']}: {task['reason']}")
            continue
        for file in receipt.files:
            plain.verify(file.blob, reread=True)
            with plain.open(file.key) as reader:
                if not reader.read(100).startswith(task["key"].encode()):
                    flaws.append(f"{task['key']} has the bytes of another")
    return flaws


def _committed(farm: InProcessFarm, job_id: str) -> list[str]:
    tasks = [task for task in farm.ledger.tasks(job_id) if task["receipt_key"]]
    return [key for task in tasks for key in (task["receipt_key"], *(file["key"] for file in task["files"]))]


def minutes(trouble: Trouble, down_s: float) -> None:
    """All of it, one after the other, and some of it together."""
    trouble.error_rate = 0.1
    time.sleep(5.0)
    trouble.down = True
    time.sleep(down_s)
    trouble.down = False
    trouble.slow_s = 0.5
    time.sleep(10.0)
    trouble.slow_s = 0.0


def main() -> None:
    asked = argparse.ArgumentParser(prog="tests.s3_storm")
    asked.add_argument("--down", type=float, default=60.0, metavar="S", help="how long the server is away")
    asked.add_argument("--jobs", type=int, default=100)
    given = asked.parse_args()
    os.environ.update(keys_of("farm"))
    with tempfile.TemporaryDirectory(prefix="farm-storm-") as folder, seaweedfs(Path(folder)) as server:
        done = weathered(
            server,
            Path(folder) / "home",
            lambda trouble: threading.Thread(target=minutes, args=(trouble, given.down), daemon=True).start(),
            num_jobs=given.jobs,
            num_bytes=1 << 20,
            timeout_s=600.0 + given.down,
        )
    print(done)
    good = set(done.jobs) == {JobState.SUCCEEDED} and not (done.early or done.left or done.uploads)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
