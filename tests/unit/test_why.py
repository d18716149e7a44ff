"""`farm why`: each predicate that can hold a task back, by name, with its end and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from cluster import states
from cluster.budgets import Action, Budget, BudgetSpec, Need, Scope
from cluster.fit import Asked, Place
from cluster.states import State
from cluster.why import Here, Predicate, Snapshot, Work, why

P, S = Predicate, State
JOB = "job_1"


def work(key: str, state: State = S.READY, *, predicted_s: float = 30.0, **more: Any) -> Work:
    return Work(
        **{"name": f"{JOB}/{key}", "key": key, "step": "draw", "role": "render", "state": state,
           "predicted_s": predicted_s, **more}
    )  # fmt: skip


def runs(key: str, for_s: float, *, on: str = "w1", predicted_s: float = 30.0, **more: Any) -> Work:
    return work(key, S.RUNNING, predicted_s=predicted_s, worker_id=on, ran_s=for_s, **more)


def worker(name: str, *running: Work, role: str = "render", models: tuple[str, ...] = ("m",), **more: Any) -> Here:
    return Here(
        place=Place(worker_id=name, role=role, models=models, **{"node": "n1", **more}), running=running
    )  # fmt: skip


def asked(failures: Mapping[str, int] | None = None, failed_on: Mapping[str, int] | None = None) -> Asked:
    return Asked(role="render", model="m", failures=failures or {}, failed_on=failed_on or {})


def seen(state: State = S.READY, **more: Any) -> Snapshot:
    """A task of a farm with one idle worker that could run it."""
    facts: dict[str, Any] = {
        "task": work("me", state),
        "asked": asked(),
        "job_id": JOB,
        "here": (worker("w1"),),
        "farm_runs": True,
    }
    return Snapshot(**{**facts, **more})


NEED = Need(likely_nano=10_000_000, wanted_nano=20_000_000)


def capped(*, spent: int, reserved: int = 0, **more: Any) -> Budget:
    """Ten cents for a show; in thousandths of a dollar."""
    spec = BudgetSpec(tenant="studio", scope=Scope.SHOW, subject="trailer", cap_nano=100_000_000)
    facts = {"acting": None, "from_us": 0, "until_us": None, "created_us": 0, "changed_us": 0, **more}
    return Budget(id="b", spec=spec, spent_nano=spent * 10**6, reserved_nano=reserved * 10**6, **facts)


BUSY = (worker("w1", runs("a", 10)), worker("w2", runs("b", 25, on="w2")))
DRAINED = "three failures in a row"
CASES: dict[str, tuple[Snapshot, list[tuple[Predicate, str, float | None, str | None]]]] = {
    "nothing but the next look": (seen(), [(P.DISPATCH, "a free worker asks for it at any moment", 1, None)]),
    "job on hold": (seen(held=True), [(P.JOB_HELD, "its job is on hold", None, "farm release job_1")]),
    "a budget that others have reserved": (
        seen(budgets=(capped(spent=60, reserved=30),), need=NEED),
        [(P.BUDGET, "the budget of show trailer has no room for it: $0.0600 of $0.1000 spent, $0.0300 reserved by what "
          "runs", None, None)],
    ),
    "a budget that is spent": (
        seen(S.SUSPENDED, task=work("me", S.SUSPENDED, reason="budget"), budgets=(capped(spent=95),), need=NEED),
        [(P.BUDGET, "the budget of show trailer has no room for it: $0.0950 of $0.1000 spent, $0.0000 reserved by what "
          "runs", None, "farm budget set show trailer --cap USD")],
    ),
    "a budget of a month on hold": (
        seen(budgets=(capped(spent=80, acting=Action.HOLD, until_us=60_000_000),), need=NEED, now_us=20_000_000),
        [(P.BUDGET, "the budget of show trailer lets nothing start (hold): $0.0800 of $0.1000 spent", 40,
          "farm budget set show trailer --cap USD")],
    ),
    "job canceled": (seen(canceled=True), [(P.JOB_CANCELED, "its job is canceled", None, "farm requeue job_1/me")]),
    "on hold itself": (
        seen(S.SUSPENDED, task=work("me", S.SUSPENDED, reason="put on hold by a person")),
        [(P.SUSPENDED, "the task itself is on hold: put on hold by a person", None, "farm release job_1/me")],
    ),
    "in review": (
        seen(S.IN_REVIEW),
        [(P.REVIEW, "it waits for a person's verdict", None,
          "farm approve job_1/me, or farm reject job_1/me to have it drawn again")],
    ),
    "back-off": (
        seen(
            S.BACKOFF,
            task=work("me", S.BACKOFF, reason="the store is away"),
            asked=asked({"infra": 2, "bug": 1}),
            backoff_s=12.0,
        ),
        [(P.BACKOFF, "it is tried again in 12 s, after 1 bug failure of 3, 2 infra failures of 20: the store is away",
          13, None)],
    ),
    "limit without a budget": (
        seen(S.BACKOFF, asked=asked({"limit": 2}), backoff_s=-1.0),
        [(P.BACKOFF, "it is tried again in 0 s, after 2 limit failures", 1, None)],
    ),
    "same question": (
        seen(twin=runs("her", 10)),
        [(P.SAME_QUESTION, "job_1/her is answering the same question on w1, for 10 s: this task takes its answer",
          20, None)],
    ),
    "no farm": (
        seen(farm_runs=False),
        [(P.NO_FARM, "no farm is at work on this ledger", None, "give the command that submitted the job again")],
    ),
    "nobody here, and no lock to look at": (
        seen(farm_runs=None, here=()),
        [(P.NO_FARM, "no farm is at work on this ledger", None, "give the command that submitted the job again")],
    ),
    "no worker of the role": (
        seen(here=(worker("w1", role="writer"),)),
        [(P.NO_WORKER, "no render worker with m is here; one that is loading is not counted", None, None)],
    ),
    "no worker of the model": (
        seen(here=(worker("w1", models=("other",)),)),
        [(P.NO_WORKER, "no render worker with m is here; one that is loading is not counted", None, None)],
    ),
    "all that could are draining": (
        seen(here=(worker("w1", draining=DRAINED), worker("w2", draining="a person asked"))),
        [
            (P.UNFIT, f"w1: it takes no more work: {DRAINED}", None, None),
            (P.UNFIT, "w2: it takes no more work: a person asked", None, None),
        ],
    ),
    "one is draining, another is busy": (
        seen(here=(worker("w1", draining=DRAINED), BUSY[1])),
        [(P.BUSY, "the only worker that fits, w2, is busy; 0 tasks are ahead of it in the queue", 5, None)],
    ),
    "failed where it could run, and elsewhere is nobody": (
        seen(asked=asked(failed_on={"w1": 2})),
        [(P.DISPATCH, "a free worker asks for it at any moment", 1, None)],
    ),
    "failed here, so it waits for the other, which is busy": (
        seen(asked=asked(failed_on={"w1": 1}), here=(worker("w1"), BUSY[1])),
        [(P.BUSY, "the only worker that fits, w2, is busy; 0 tasks are ahead of it in the queue", 5, None)],
    ),
    "last trial on a node that is busy": (
        seen(asked=asked({"poison": 2}), here=(worker("w1", num_running_on_node=1),)),
        [(P.UNFIT, "w1: the task took two workers with it: it waits to run alone on a node", None, None)],
    ),
    "node kept for somebody's last trial": (
        seen(here=(worker("w1", node_is_taken=True),)),
        [(P.UNFIT, "w1: its node is kept for a task that took two workers with it", None, None)],
    ),
    "all busy": (
        seen(here=BUSY),
        [(P.BUSY, "all 2 workers that fit are busy; 0 tasks are ahead of it in the queue", 5, None)],
    ),
    "all busy, others first": (
        seen(here=BUSY, ahead=(work("x"), work("y"), work("z", predicted_s=15))),
        [(P.BUSY, "all 2 workers that fit are busy; 3 tasks are ahead of it in the queue", (20 + 5 + 75) / 2, None)],
    ),
    "one is free, but somebody is first": (
        seen(here=(worker("w1"), BUSY[1]), ahead=(work("x"),)),
        [(P.BUSY, "1 of 2 workers that fit are free; 1 task is ahead of it in the queue", (5 + 30) / 2, None)],
    ),
    "learned durations": (
        seen(here=(worker("w1", runs("a", 10)),), ratios={"draw": 2.0}),
        [(P.BUSY, "the only worker that fits, w1, is busy; 0 tasks are ahead of it in the queue", 50, None)],
    ),
    "an input runs": (
        seen(S.PENDING, needs=(runs("script", 15),)),
        [(P.INPUT, "it needs script, which runs on w1 for 15 s, 15 s left", 15, None)],
    ),
    "an input is dead": (
        seen(S.PENDING, needs=(work("script", S.DEAD, reason="out of memory"),)),
        [(P.INPUT, "it needs script, which is dead: out of memory", None,
          "farm retry job_1/script, or farm eat job_1/script to go on without it")],
    ),
    "inputs in many states": (
        seen(
            S.PENDING,
            needs=(work("a", S.STALE), work("b", S.CANCELED), work("c", S.SUSPENDED), work("d", S.NOT_COMPATIBLE),
                   work("e", S.IN_REVIEW)),
        ),
        [
            (P.INPUT, "it needs a, which is stale", None, "farm requeue job_1/a"),
            (P.INPUT, "it needs b, which is canceled", None, "farm requeue job_1/b"),
            (P.INPUT, "it needs c, which is suspended", None, "farm release job_1/c"),
            (P.INPUT, "it needs d, which is not_compatible", None,
             "add a fleet for it, then farm requeue job_1/d"),
            (P.INPUT, "it needs e, which is in_review", None,
             "farm approve job_1/e, or farm reject job_1/e to have it drawn again"),
        ],
    ),
    "what is broken behind an input is named": (
        seen(S.PENDING, needs=(work("conform", S.PENDING), work("sh010", S.DEAD, reason="it broke", direct=False))),
        [
            (P.INPUT, "it needs conform, which is pending", None, None),
            (P.INPUT, "behind its inputs, sh010 is dead: it broke", None,
             "farm retry job_1/sh010, or farm eat job_1/sh010 to go on without it"),
        ],
    ),
    "inputs in a chain take as long as all of them": (
        seen(S.PENDING, needs=(work("b", S.PENDING), runs("a", 10, direct=False))),
        [(P.INPUT, "it needs b, which is pending", 50, None)],
    ),
    "many inputs of one state": (
        seen(S.PENDING, needs=tuple(work(f"s{n}") for n in range(40))),
        [*((P.INPUT, f"it needs s{n}, which is ready", 1200.0, None) for n in range(5)),
         (P.INPUT, "it needs 35 more tasks that are ready", 1200, None)],
    ),
    "inputs, a hold and no worker at once": (
        seen(S.PENDING, needs=(work("a"),), held=True, here=(worker("w1", role="writer"),)),
        [
            (P.JOB_HELD, "its job is on hold", None, "farm release job_1"),
            (P.INPUT, "it needs a, which is ready", 30, None),
            (P.NO_WORKER, "no render worker with m is here; one that is loading is not counted", None, None),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_predicate_is_named_with_its_end_and_its_remedy(name: str) -> None:
    snapshot, holds = CASES[name]
    found = why(snapshot)
    assert [(h.what, h.text, h.eta_s, h.remedy) for h in found.holds] == holds
    etas = [eta for _, _, eta, _ in holds]
    assert found.eta_s == (None if None in etas else max(etas))  # type: ignore[type-var]
    assert found.waits_for_somebody == any(remedy for *_, remedy in holds)


def test_every_predicate_has_a_case() -> None:
    assert {what for _, holds in CASES.values() for what, *_ in holds} == set(Predicate)


ENDED = {
    "succeeded": (seen(S.SUCCEEDED, num_attempts=2), "has succeeded, by attempt 2", None),
    "answered": (seen(S.SUCCEEDED), "has succeeded, by an answer that was there already", None),
    "eaten": (
        seen(task=work("me", S.EATEN, reason="accepted by a person")),
        "was accepted as done without output: accepted by a person", None,
    ),
    "stale": (
        seen(task=work("me", S.STALE, reason="its input a was opened again")),
        "is done, but older than its inputs: its input a was opened again", "farm requeue job_1/me",
    ),
    "canceled": (seen(S.CANCELED, task=work("me", S.CANCELED)), "was canceled", "farm requeue job_1/me"),
    "not compatible": (
        seen(task=work("me", S.NOT_COMPATIBLE)), "can run on no fleet of this farm",
        "add such a fleet, then farm requeue job_1/me",
    ),
    "dead": (
        seen(task=work("me", S.DEAD, reason="it broke"), asked=asked({"bug": 3})),
        "is dead after 3 bug failures of 3: it broke",
        "farm retry job_1/me, or farm eat job_1/me to go on without it",
    ),
    "dead by bad input, which no retry mends": (
        seen(task=work("me", S.DEAD, reason="no such size"), asked=asked({"input": 1})),
        "is dead after 1 input failure: no such size",
        "mend the brief and submit it again, or farm eat job_1/me to go on without it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDED)
def test_a_task_that_has_ended_says_what_it_is_and_what_can_be_done(name: str) -> None:
    snapshot, said, remedy = ENDED[name]
    found = why(snapshot)
    assert (found.said, found.remedy, found.holds) == (said, remedy, ())


def test_every_state_that_has_ended_has_a_case() -> None:
    assert {snapshot.task.state for snapshot, *_ in ENDED.values()} == states.ENDED


@pytest.mark.parametrize(
    ("snapshot", "said", "eta_s"),
    [
        (seen(task=runs("me", 10), num_attempts=2), "attempt 2 runs on w1, for 10 s by now", 20),
        (seen(task=runs("me", 45), num_attempts=1), "attempt 1 runs on w1, for 45 s by now, longer than predicted",
         None),
        (seen(task=runs("me", 45), num_attempts=1, farm_runs=False),
         "attempt 1 was running on w1 when its farm was killed", None),
    ],
    ids=["in time", "late", "left behind"],
)  # fmt: skip
def test_a_running_task_says_where_and_how_long(snapshot: Snapshot, said: str, eta_s: float | None) -> None:
    found = why(snapshot)
    assert (found.said, found.eta_s) == (said, eta_s)
    assert found.waits_for_somebody == (snapshot.farm_runs is False)
