"""A ledger with a clock that moves when told to, and short words for what a dispatcher does with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from sqlalchemy import RowMapping

from cluster.clock import ManualClock
from cluster.errors import FailureClass
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from cluster.ledger.leases import Answer
from cluster.ledger.ledger import Ledger
from cluster.states import Move, State

HOUR = 3600.0
RATE = 3_600_000_000
"""Nano-dollars an hour: a worker-second costs 1,000,000."""


def task(key: str, *needs: str, **more: Any) -> TaskSpec:
    """A task that asks something nobody else asks."""
    more.setdefault("params", {"spec": {"prompt": key, "seed": 7}})
    return TaskSpec(**{"key": key, "step": "draw", "role": "render", "entry": "a.b:c", "needs": needs, **more})


def brief(**more: Any) -> JobSpec:
    return JobSpec(**{"recipe": "pipelines.recipes.film", "title": "A film", "spec": {"n": 1}, **more})


def file(content: str) -> dict[str, Any]:
    sha = hashlib.sha256(content.encode()).hexdigest()
    return {
        "name": "clip.mp4",
        "key": f"studio/assets/sha256/{sha[:2]}/{sha[2:4]}/{sha}",
        "sha256": sha,
        "content_sha256": sha,
        "size_bytes": 9,
        "media_type": "video/mp4",
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Leased:
    task_id: str
    attempt_id: str
    epoch: int
    row: RowMapping

    @property
    def who(self) -> dict[str, Any]:
        return {"task_id": self.task_id, "attempt_id": self.attempt_id, "epoch": self.epoch}


class LedgerDesk:
    """Workers `w1` and `w2` are there from the beginning; each costs RATE."""

    def __init__(self, url: str, *, start_us: int | None = None) -> None:
        self.clock = ManualClock() if start_us is None else ManualClock(start_us)
        self._requests = count()
        self.ledger = Ledger(url, clock=self.clock, durable=False)
        self.term = self.ledger.take_term()
        for worker in ("w1", "w2"):
            self.join(worker)

    def close(self) -> None:
        self.ledger.close()

    def join(self, worker: str, *, num_accelerators: int = 0, rate: int = RATE, spawned_s_ago: float = 0) -> None:
        row: dict[str, Any] = {
            "id": worker,
            "fleet": "render",
            "role": "render",
            "model": None,
            "node": "n1",
            "accelerator": "cpu",
            "num_accelerators": num_accelerators,
            "price_class": "on-demand",
            "rate_card": "test",
            "nano_per_hour": rate,
            "spawned_us": self.clock.now_us() - round(spawned_s_ago * 1e6),
            "facts": {},
        }
        self.ledger.join(self.term, row)

    def submit(self, *graph: TaskSpec, **more: Any) -> str:
        return self.ledger.submit(brief(**more), graph)[0]

    def task(self, job: str, key: str) -> RowMapping:
        return next(t for t in self.ledger.tasks(job) if t["key"] == key)

    def state(self, job: str, key: str) -> State:
        return State(self.task(job, key)["state"])

    def states(self, job: str) -> dict[str, str]:
        return {t["key"]: t["state"] for t in self.ledger.tasks(job)}

    def kinds(self, job: str) -> list[str]:
        return [e.kind for e in self.ledger.events(job)]

    def try_lease(
        self, job: str, key: str, *, worker: str = "w1", request: str | None = None, epoch: int | None = None
    ) -> Leased | None:
        row = self.task(job, key)
        return self.ask(row["id"], epoch=row["epoch"] if epoch is None else epoch, worker=worker, request=request)

    def ask(self, task_id: str, *, epoch: int, worker: str = "w1", request: str | None = None) -> Leased | None:
        got = self.ledger.lease(
            self.term,
            task_id,
            epoch=epoch,
            worker_id=worker,
            request_id=request or f"request-{next(self._requests)}",
        )
        if got is None:
            return None
        new = got[0]
        return Leased(task_id=new["id"], attempt_id=new["attempt_id"], epoch=new["epoch"], row=new)

    def lease(self, job: str, key: str, **more: Any) -> Leased:
        leased = self.try_lease(job, key, **more)
        assert leased is not None, f"{key} is {self.state(job, key)}"
        return leased

    def commit(
        self,
        leased: Leased,
        *,
        files: Sequence[Mapping[str, Any]] | None = None,
        children: Sequence[TaskSpec] = (),
        result: Mapping[str, Any] | None = None,
        term: int | None = None,
    ) -> Answer:
        return self.ledger.commit(
            self.term if term is None else term,
            **leased.who,
            receipt_key=f"studio/attempts/{leased.attempt_id}/receipt.json",
            files=[dict(f) for f in (files if files is not None else [file(leased.attempt_id)])],
            result=dict(result or {}),
            facts={"seconds": 1.5},
            children=children,
        )

    def fail(self, leased: Leased, failure: FailureClass = FailureClass.BUG, message: str = "it broke") -> Answer:
        return self.ledger.fail(self.term, **leased.who, failure=failure, code="x", message=message, facts={})

    def lose(self, leased: Leased) -> Answer:
        return self.ledger.lose(self.term, **leased.who, why="its lease ran out")

    def interrupt(self, leased: Leased, **facts: Any) -> Answer:
        return self.ledger.interrupt(self.term, **leased.who, facts=facts)

    def run_in_two(self, job: str, key: str) -> tuple[Leased, Leased]:
        """Nine seconds of it, and after an interruption, from a checkpoint, the tenth: both attempts."""
        half = self.lease(job, key)
        self.clock.advance(9)
        checkpoint = f"studio/attempts/{half.attempt_id}/checkpoint-1"
        self.interrupt(half, checkpoint=checkpoint)
        last = self.lease(job, key)
        self.clock.advance(1)
        receipt = f"studio/attempts/{last.attempt_id}/receipt.json"
        made: dict[str, Any] = {"files": [file("x")], "result": {}, "facts": {"resumed_from": checkpoint}}
        assert self.ledger.commit(self.term, **last.who, receipt_key=receipt, **made) is Answer.ACCEPTED
        return half, last

    def run(self, job: str, key: str, *, seconds: float = 1.0, **more: Any) -> Leased:
        leased = self.lease(job, key)
        self.clock.advance(seconds)
        assert self.commit(leased, **more) is Answer.ACCEPTED
        return leased

    def move(self, job: str, key: str, how: Move) -> State:
        return self.ledger.move_task(self.task(job, key)["id"], how, reason="a person asked")

    def spent(self, kind: str, **equals: str) -> int:
        return self.ledger.spent(kind=kind, **equals).nano

    def check(self) -> None:
        assert self.ledger.flaws() == []
