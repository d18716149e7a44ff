"""The estimate of a job: kept at its submit, told again while it runs, and compared with what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.ledger.keys import Scope
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from tests.front_desk import BOAT, FrontDesk
from tests.ledger_desk import RATE, LedgerDesk


class Seen:
    """A ledger with workers in the hand, and HTTP on it."""

    def __init__(self, url: str, home: Path) -> None:
        self.books = LedgerDesk(url)
        self.front = FrontDesk(self.books.ledger, DirectoryStore(home / "store"), Settings(home=home))
        self.key = self.front.key(*Scope)

    def video(self, video_id: str) -> Any:
        self.front.app.state.service.queue._until_s = 0.0  # looks again
        return self.front.ask("GET", f"/v1/videos/{video_id}", key=self.key).json()


@pytest.fixture
def seen(sqlite_url: str, tmp_path: Path) -> Iterator[Seen]:
    seen = Seen(sqlite_url, tmp_path)
    yield seen
    seen.books.close()


def test_a_video_carries_its_estimate_from_submit_to_its_end(seen: Seen):
    video = seen.front.ask("POST", "/v1/videos", key=seen.key, json={"prompt": BOAT, "seed": 7}).json()
    job = video["id"].replace("video_", "job_")
    [task] = seen.books.ledger.tasks(job)
    price, of_card = Decimal(RATE) / 10**9 / 3600, Decimal("0.04") / 3600  # nobody here has the model: a cpu is bought
    kept = seen.books.ledger.job(job).estimate
    assert kept is not None
    first = seen.video(video["id"])["estimate"]
    assert first["made"] == "while it runs"
    assert first["cost"]["p50"] == f"{of_card * Decimal(task['weight']):.9f}"
    assert first["cost"]["p95"] == f"{of_card * Decimal(task['weight']) * 3:.9f}"  # nothing is known yet
    leased = seen.books.lease(job, "clip")
    seen.books.clock.advance(100)
    seen.books.fail(leased)
    again = seen.video(video["id"])["estimate"]
    assert Decimal(again["cost"]["p50"]) == Decimal(first["cost"]["p50"]) + price * 100  # what failed is paid for
    seen.books.clock.advance(3600)
    seen.books.ledger.backoff_over(seen.books.term)
    seen.books.run(job, "clip", seconds=9.0)
    over = seen.video(video["id"])
    assert over["estimate"]["made"] == "at submit"
    assert over["estimate"]["cost"] == first["cost"]
    assert Decimal(over["cost"]["amount"]) == price * 109
    card = seen.front.ask("GET", f"/v1/jobs/{job}", key=seen.key).json()
    assert card["estimate"] == over["estimate"]


def test_a_film_that_is_to_be_written_counts_the_takes_to_come(seen: Seen):
    body = {"logline": "A red boat crosses the sea", "shots": 3, "takes": 2}
    told = seen.front.ask("POST", "/v1/estimates", key=seen.key, json={"kind": "film", **body}).json()
    film = seen.front.ask("POST", "/v1/films", key=seen.key, json=body).json()
    assert film["estimate"] == {"cost": told["cost"], "seconds": told["seconds"], "made": "at submit"}
    assert film["cost"]["amount"] == "0.000000000"
