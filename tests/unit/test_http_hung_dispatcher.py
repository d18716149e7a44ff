"""What HTTP answers of running jobs while the dispatcher, which alone knows how far they are, hangs or breaks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.contract import Json
from cluster.clock import SystemClock
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from serve import service
from tests.front_desk import FrontDesk
from tests.ledger_desk import LedgerDesk

NUM_JOBS = 3


class Asked:
    """A dispatcher that keeps what it was asked, and answers once `ends` is set."""

    def __init__(self) -> None:
        self.questions: list[tuple[str, ...]] = []
        self.ends = threading.Event()
        self.tasks: dict[str, str] = {}  # the one of each job

    def poke(self) -> None:
        pass

    def progress(self, *job_ids: str) -> list[Json]:
        self.questions.append(job_ids)
        self.ends.wait(60)
        at = {"attempt_id": "a", "stage": "denoise", "done": 1, "total": 2}
        return [{"job_id": job_id, "task_id": self.tasks[job_id], **at} for job_id in job_ids]


@pytest.fixture
def asked() -> Iterator[Asked]:
    asked = Asked()
    yield asked
    asked.ends.set()


@pytest.fixture
def front(sqlite_url: str, tmp_path: Path, asked: Asked) -> Iterator[FrontDesk]:
    """All of its jobs run."""
    work = LedgerDesk(sqlite_url, start_us=SystemClock().now_us())
    front = FrontDesk(work.ledger, DirectoryStore(tmp_path / "store"), Settings(home=tmp_path), asked)
    for seed in range(NUM_JOBS):
        job_id = front.create(seed=seed)["id"].replace("video_", "job_")
        asked.tasks[job_id] = work.lease(job_id, "clip").task_id
    yield front
    work.close()


def progress_of_page(front: FrontDesk) -> list[int]:
    page = front.ask("GET", "/v1/videos")
    assert page.status_code == 200, page.text
    return [video["progress"] for video in page.json()["data"]]


def test_a_page_asks_the_dispatcher_once_for_all_of_its_jobs(
    front: FrontDesk, asked: Asked, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(service, "ASK_S", 60.0)
    asked.ends.set()
    assert progress_of_page(front) == [44] * NUM_JOBS  # 3 + 82 / 2
    assert [set(question) for question in asked.questions] == [set(asked.tasks)]


def test_a_dispatcher_that_hangs_is_left_alone_for_a_while(
    front: FrontDesk, asked: Asked, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(service, "QUIET_S", 3600.0)
    assert [progress_of_page(front) for _ in range(2)] == [[0] * NUM_JOBS] * 2
    assert len(asked.questions) <= 1


def test_a_dispatcher_that_hangs_holds_a_few_threads_however_often_it_is_asked(
    front: FrontDesk, asked: Asked, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(service, "QUIET_S", 0.0)
    monkeypatch.setattr(service, "ASK_S", 0.05)
    for _ in range(service.QUESTIONS_AT_ONCE + 2):
        assert progress_of_page(front) == [0] * NUM_JOBS
    assert len(asked.questions) <= service.QUESTIONS_AT_ONCE


def test_what_nobody_foresaw_of_the_dispatcher_is_no_error_of_a_request(
    front: FrontDesk, asked: Asked, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(service, "ASK_S", 60.0)
    asked.ends.set()
    asked.tasks.clear()  # a KeyError
    assert progress_of_page(front) == [0] * NUM_JOBS
    assert "KeyError" in caplog.text
