"""The dispatcher as a worker reaches it: every call may be lost, or answered in vain, or made twice."""

from __future__ import annotations

from collections.abc import Sequence

from actors.contract import Beat, Desk, Order, Report, WorkerFacts
from cluster import faults


class Reach:
    """A desk behind the points of a worker's calls."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @faults.at("worker.join")
    def join(self, worker: WorkerFacts) -> None:
        self._desk.join(worker)

    @faults.at("worker.lease")
    def lease(self, worker_id: str, request_id: str) -> Order | None:
        return self._desk.lease(worker_id, request_id)

    @faults.at("worker.dismiss")
    def dismiss(self, worker_id: str) -> None:
        self._desk.dismiss(worker_id)

    @faults.at("worker.beat")
    def beat(self, worker_id: str, beats: Sequence[Beat]) -> dict[str, str]:
        return self._desk.beat(worker_id, beats)

    @faults.at("worker.report")
    def report(self, report: Report) -> str:
        return self._desk.report(report)

    @faults.at("worker.leave")
    def leave(self, worker_id: str, *, died: bool = False) -> None:
        self._desk.leave(worker_id, died=died)
