"""The farm over HTTP, measured: submits with a long history in the ledger, and from a submit to the first denoise step.

    make bench

The client runs on the same cores as the farm.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from actors.contract import Engine
from cluster.accelerators import Fleet
from cluster.settings import Settings
from tests.picture_engine import PictureEngine
from tests.standing_farm import StandingFarm, standing_farm, until

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
BOAT = "a red boat crosses the sea"
HISTORY = 100_000
SUBMIT_S = 20.0
CLIENTS = 4
RATE = 20
WARM_UP, SAMPLES = 2, 9
NOBODY_DRAWS = """fleets:
  - {name: pictures, role: render, model: house-video, engine: "tests.bench.test_http:waits"}
  - {name: finish, role: finish}
"""
"""A fleet that nobody named would be started for what waits, and draw on the same cores."""


def waits(fleet: Fleet, settings: Settings) -> Engine:
    engine = PictureEngine()
    engine.at_half = threading.Event()
    return engine


def test_submits_per_second_with_a_hundred_thousand_jobs_in_the_ledger(tmp_path: Path) -> None:
    farm = standing_farm(tmp_path / "home")
    (farm.home / "fleets.yaml").write_text(NOBODY_DRAWS)
    farm.up()
    try:
        with door(farm) as client:
            made = submit(client, "history")
        multiply(farm, made.removeprefix("video_"), HISTORY)
        flat_out = submits(farm, rate=None)
        paced = submits(farm, rate=RATE)
        with door(farm) as client:
            listed = statistics.median(timed(lambda: client.get("/v1/videos?limit=20")) for _ in range(9))
            found = statistics.median(timed(lambda: client.get(f"/v1/videos/{made}")) for _ in range(9))
    finally:
        farm.down()
    print(f"\n{HISTORY:,} jobs in the ledger; one video {found * 1e3:.0f} ms, a page {listed * 1e3:.0f} ms")
    for name, took in (("as many as go", flat_out), (f"{RATE} a second", paced)):
        p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
        print(
            f"{name}: {len(took) / SUBMIT_S:.1f} submits/s by {CLIENTS} clients, p50 {p50 * 1e3:.0f} ms, "
            f"p99 {p99 * 1e3:.0f} ms"
        )


def submits(farm: StandingFarm, *, rate: int | None) -> list[float]:
    """Seconds of each, sorted. `rate`: so many a second, told off between the clients; who is late does not wait."""
    began_s = time.monotonic()

    def ask(who: int) -> list[float]:
        took = list[float]()
        with door(farm) as client:
            for n in itertools.count():
                due_s = began_s if rate is None else began_s + (n * CLIENTS + who) / rate
                time.sleep(max(0.0, due_s - time.monotonic()))
                sent_s = time.monotonic()
                if sent_s >= began_s + SUBMIT_S:
                    return took
                submit(client, f"{rate}-{who}-{n}")
                took.append(time.monotonic() - (sent_s if rate is None else due_s))

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sorted(one for each in pool.map(ask, range(CLIENTS)) for one in each)


def test_from_a_submit_to_the_first_denoise_step_on_a_warm_farm(tmp_path: Path) -> None:
    farm = standing_farm(tmp_path / "home", FARM_WARM="house-video")
    del farm.env["FARM_FLEETS"]
    farm.up()
    took = []
    try:
        ledger = farm.ledger()
        with door(farm) as client:
            for n in range(WARM_UP + SAMPLES):
                began_us = ledger.clock.now_us()
                job_id = f"job_{submit(client, str(n), seed=n).removeprefix('video_')}"
                until(lambda: ledger.job(job_id).over)  # noqa: B023  # awaited here
                facts = ledger.attempts(job_id)[-1]["facts"]
                took.append((facts["began_us"]["denoise"] - began_us) / 1e3)
        ledger.close()
    finally:
        farm.down()
    took = took[WARM_UP:]
    print(
        f"\nfrom a submit to the first denoise step: median {statistics.median(took):.0f} ms "
        f"({', '.join(f'{one:.0f}' for one in took)})"
    )


def door(farm: StandingFarm) -> httpx.Client:
    return httpx.Client(base_url=farm.url, headers={"Authorization": f"Bearer {farm.key}"}, timeout=60.0)


def submit(client: httpx.Client, name: str, seed: int = 7) -> str:
    answer = client.post(
        "/v1/videos", json={"prompt": BOAT, "seconds": 2, "seed": seed}, headers={"Idempotency-Key": name}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def timed(work: object) -> float:
    began_s = time.monotonic()
    assert callable(work)
    work()
    return time.monotonic() - began_s


def multiply(farm: StandingFarm, ulid: str, num_jobs: int) -> None:
    """The one job, with its task and events, again and again, as if each had been asked for and canceled long ago."""
    ledger = farm.ledger()
    ledger.cancel_job(f"job_{ulid}")

    def copy(connection: object) -> None:
        run = connection.execute  # type: ignore[attr-defined]
        for table, key, links in (
            ("jobs", "id", ()),
            ("tasks", "id", ("job_id",)),
            ("events", None, ("job_id", "task_id")),
        ):
            names = [row[1] for row in run(text(f"PRAGMA table_info({table})"))]
            skip = {"id"} if table == "events" else set()
            made = []
            for name in (kept := [n for n in names if n not in skip]):
                if name == key or name in links:
                    made.append(f"substr({name}, 1, 5) || printf('%026d', n)")
                elif name == "idempotency_key":
                    made.append("NULL")
                else:
                    made.append(name)
            run(text(
                f"WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < {num_jobs}) "
                f"INSERT INTO {table} ({', '.join(kept)}) SELECT {', '.join(made)} FROM {table}, counted "
                f"WHERE {'id' if table == 'jobs' else 'job_id'} = 'job_{ulid}'"
            ))  # fmt: skip

    ledger.database.transaction(copy)
    ledger.close()
