"""How far a job is said to be: pure, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.ledger.jobs import Job
from cluster.ledger.money import Spend
from cluster.ledger.outcomes import Backlog, Outcome
from cluster.states import State
from serve.standing import Standing, standing

NOW_US = 1_790_000_000_000_000
QUEUE = Backlog(
    before=("a", "b", "job"),
    ready_s={"render": 30.0},
    running_s={"render": 8.0},
    num_ready={"render": 3},
    num_workers={"render": 2},
)


def seen(*states: State, weight: float = 10.0, ran_s: float = 0.0, held: bool = False) -> Outcome:
    counts: dict[State, int] = {}
    for state in states:
        counts[state] = counts.get(state, 0) + 1
    job = Job(
        id="job", tenant="studio", show="default", recipe="r", version=1, title="t", spec={}, tier="normal",
        priority=50, deadline_us=None, held=held, seq=1, num_tasks=len(states), counts=counts,
    )  # fmt: skip
    tasks = [
        {"id": f"t{n}", "state": state.value, "weight": weight, "step": "render", "role": "render",
         "changed_us": NOW_US - round(ran_s * 1e6)}
        for n, state in enumerate(states)
    ]  # fmt: skip
    return Outcome(job=job, tasks=tuple(tasks), spend=Spend(nano=0, held_s=0.0))


def at(
    outcome: Outcome, *moving: dict[str, Any], backlog: Backlog | None = QUEUE, place: int | None = None
) -> Standing:
    return standing(outcome, moving, backlog=backlog, place=place, ratios={"render": 2.0}, now_us=NOW_US)


def heard(stage: str, done: int, total: int, task: str = "t0") -> dict[str, Any]:
    return {"task_id": task, "stage": stage, "done": done, "total": total}


@pytest.mark.parametrize(
    ("moving", "progress"),
    [
        ([], 0),
        ([heard("", 0, 0)], 0),
        ([heard("encode", 0, 1)], 0),
        ([heard("denoise", 0, 16)], 3),
        ([heard("denoise", 8, 16)], 44),
        ([heard("denoise", 16, 16)], 85),
        ([heard("decode", 12, 24)], 91),
        ([heard("upload", 1, 1)], 99),
        ([heard("conform", 1, 2)], 45),
        ([heard("denoise", 99, 16)], 85),
        ([heard("denoise", 8, 16, task="another")], 0),
    ],
    ids=lambda value: str(value[0].values()) if isinstance(value, list) and value else "",
)
def test_progress_is_the_stage_and_its_steps_and_never_100_before_the_commit(moving: Any, progress: int):
    assert at(seen(State.RUNNING), *moving).progress == progress


@pytest.mark.parametrize(
    ("states", "status", "progress"),
    [
        ([State.READY], "queued", 0),
        ([State.SUSPENDED], "queued", 0),
        ([State.BACKOFF], "queued", 0),
        ([State.RUNNING], "in_progress", 0),
        ([State.IN_REVIEW], "in_progress", 99),
        ([State.SUCCEEDED, State.READY], "in_progress", 50),
        ([State.SUCCEEDED, State.SUCCEEDED], "completed", 100),
        ([State.EATEN], "completed", 100),
        ([State.SUCCEEDED, State.DEAD], "failed", 50),
        ([State.NOT_COMPATIBLE], "failed", 0),
        ([State.CANCELED], "cancelled", 0),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_the_status_is_what_the_ledger_says_in_the_words_of_the_clients(states: Any, status: str, progress: int):
    found = at(seen(*states))
    assert (found.status, found.progress) == (status, progress)
    assert found.over == (status in ("completed", "failed", "cancelled"))


def test_who_waits_is_told_its_place_and_when_it_is_likely_to_be_done():
    found = at(seen(State.READY), place=2)
    assert found.queue_position == 2
    assert found.eta_s == (8 / 2 + 2 * 10) / 2 + 10 * 2  # what is ahead over two workers, then its own time
    assert found.poll_after_ms == 3200


def test_what_an_expansion_will_bring_counts_before_it_is_there():
    outcome = seen(State.SUCCEEDED, State.READY)
    assert (at(outcome).progress, at(outcome).eta_s) == (50, 20.0)
    wider = standing(outcome, (), backlog=QUEUE, place=None, ratios={}, now_us=NOW_US, ahead_s=20.0)
    assert (wider.progress, wider.eta_s) == (25, 30.0)


def test_what_nobody_knows_is_not_made_up():
    assert at(seen(State.IN_REVIEW, State.READY)).eta_s is None
    nobody = Backlog(before=("job",), ready_s={"render": 10.0}, running_s={}, num_ready={"render": 1}, num_workers={})
    assert at(seen(State.READY), backlog=nobody, place=0).eta_s is None
    assert at(seen(State.READY), backlog=None, place=None).eta_s is None
    assert at(seen(State.READY, held=True), place=0).eta_s is None
    assert at(seen(State.READY), backlog=None).poll_after_ms == 1000


def test_what_runs_is_timed_by_its_own_pace():
    slow = at(seen(State.RUNNING, ran_s=44.0), heard("denoise", 8, 16))
    assert slow.eta_s == pytest.approx(56.0)
    assert slow.poll_after_ms == 5000
    assert at(seen(State.RUNNING, ran_s=5.0)).eta_s == 15.0  # no pace yet: as predicted, twice as long by experience
    assert at(seen(State.RUNNING, ran_s=50.0)).eta_s == 0.0
