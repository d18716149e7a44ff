"""Jobs as graphs: submit, dependants, expansion, STALE, the content cache, and what people do to them."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import IllegalMove, InvalidGraph, InvalidInput, NotFound
from cluster.graph import MAX_TASKS, TaskSpec
from cluster.ledger.leases import Answer
from cluster.states import JobState, Move, State
from tests.ledger_desk import LedgerDesk, brief, file, task

S = State


def test_a_dependant_starts_when_all_its_inputs_are_done(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"), task("c", "a", "b", "a"))
    assert desk.states(job) == {"a": "ready", "b": "ready", "c": "pending"}
    desk.run(job, "a")
    assert desk.state(job, "c") is S.PENDING
    desk.run(job, "b")
    leased = desk.lease(job, "c")
    inputs = desk.ledger.leased_by_request("w1", "none")
    assert inputs is None
    assert desk.commit(leased) is Answer.ACCEPTED
    assert desk.ledger.job(job).state is JobState.SUCCEEDED
    assert desk.ledger.job(job).over
    desk.check()


def test_a_lease_brings_the_inputs_and_what_they_cost(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b", "a"))
    desk.run(job, "a", seconds=3, files=[file("a")], result={"n": 1})
    row = desk.task(job, "b")
    got = desk.ledger.lease(desk.term, row["id"], epoch=0, worker_id="w1", request_id="r")
    assert got is not None
    leased, of_job, inputs, spends = got
    assert (leased["key"], of_job.id, [i["key"] for i in inputs]) == ("b", job, ["a"])
    assert (inputs[0]["files"], inputs[0]["result"]) == ([file("a")], {"n": 1})
    assert (spends[inputs[0]["id"]].nano, spends[inputs[0]["id"]].held_s) == (3_000_000, 3.0)


def test_a_retried_submit_is_the_first_one(desk: LedgerDesk) -> None:
    first = desk.ledger.submit(brief(idempotency_key="k1"), [task("a")])
    assert desk.ledger.submit(brief(idempotency_key="k1"), [task("a")]) == (first[0], False)
    assert first[1]
    assert desk.ledger.submit(brief(idempotency_key="k1", tenant="other"), [task("a")])[1]
    with pytest.raises(InvalidInput, match="idempotency key") as refused:
        desk.ledger.submit(brief(idempotency_key="k1", spec={"n": 2}), [task("a")])
    assert refused.value.field == "idempotency_key"
    assert len(desk.ledger.jobs()) == 2


@pytest.mark.parametrize(
    ("graph", "what"),
    [
        pytest.param([task("a", "b"), task("b", "a")], "cycle", id="cycle"),
        pytest.param([task("a", "a")], "cycle", id="needs-itself"),
        pytest.param([task("a", "x")], "not in the job", id="unknown-need"),
        pytest.param([task("a"), task("a")], "two tasks", id="doubled-key"),
        pytest.param([], "at least one", id="empty"),
        pytest.param([task(f"t{n}") for n in range(MAX_TASKS + 1)], "at most 20000", id="too-many"),
        pytest.param([task("a")] * 100_000, "would have 100000$", id="a-hundred-thousand"),
    ],
)
def test_a_graph_that_cannot_run_is_refused_whole(desk: LedgerDesk, graph: list[TaskSpec], what: str) -> None:
    with pytest.raises(InvalidGraph, match=what):
        desk.submit(*graph)
    assert desk.ledger.jobs() == []


@pytest.mark.parametrize(
    "params",
    [{"x": float("nan")}, {"x": float("inf")}, {"x": "\ud800"}, {"x": {1, 2}}],
    ids=["nan", "infinity", "surrogate", "set"],
)
def test_params_that_are_no_json_are_refused_with_their_field(desk: LedgerDesk, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="params of the task 'a'"):
        desk.submit(task("a", params=params))
    with pytest.raises(InvalidInput):
        desk.submit(task("a"), spec=params)
    assert desk.ledger.jobs() == []


def test_any_text_that_json_holds_comes_back_as_it_was(desk: LedgerDesk) -> None:
    odd = {"x": "a\x00b \U0001f600 \u202eabc", "n": 2**53, "f": 0.1, "z": {"b": 1, "a": [None, True]}}
    job = desk.submit(task("a", params=odd), spec=odd)
    assert desk.task(job, "a")["params"] == odd
    assert desk.ledger.job(job).spec == odd


def test_events_are_numbered_and_read_in_parts(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b", "a"))
    desk.run(job, "a")
    desk.run(job, "b")
    whole = desk.ledger.events(job)
    assert [e.seq for e in whole] == list(range(1, len(whole) + 1))
    assert desk.ledger.events(job, after=3, limit=2) == whole[3:5]
    assert [e.kind for e in whole] == [
        *("job.created", "task.created", "task.created", "task.lease", "task.commit", "task.deps_met"),
        *("task.lease", "task.commit", "job.ended"),
    ]


def test_an_expansion_adds_its_children_in_the_transaction_that_commits_it(desk: LedgerDesk) -> None:
    job = desk.submit(task("script", expands=True), task("other"))
    children = [task("shot1", "script"), task("shot2"), task("film", "shot1", "shot2", "other")]
    leased = desk.lease(job, "script")
    assert desk.commit(leased, children=children) is Answer.ACCEPTED
    assert desk.commit(leased, children=children) is Answer.DUPLICATE
    assert desk.states(job) == {
        "script": "succeeded",
        "other": "ready",
        "shot1": "ready",
        "shot2": "ready",
        "film": "pending",
    }
    assert desk.ledger.job(job).num_tasks == 5
    desk.check()


@pytest.mark.parametrize(
    "children",
    [[task("other")], [task("x", "nobody")], [task("x", "y"), task("y", "x")]],
    ids=["doubled", "unknown-need", "cycle"],
)
def test_children_that_cannot_run_leave_the_task_as_it_was(desk: LedgerDesk, children: list[TaskSpec]) -> None:
    job = desk.submit(task("script", expands=True), task("other"))
    leased = desk.lease(job, "script")
    events = desk.ledger.events(job)
    with pytest.raises(InvalidGraph):
        desk.commit(leased, children=children)
    assert desk.ledger.events(job) == events
    assert desk.commit(leased, children=[task("x")]) is Answer.ACCEPTED
    desk.check()


def test_a_task_expands_once_in_its_life(desk: LedgerDesk) -> None:
    job = desk.submit(task("script"), task("expand", "script", expands=True))
    desk.run(job, "script")
    desk.run(job, "expand", children=[task("shot")])
    with pytest.raises(IllegalMove, match="expanded already") as refused:
        desk.move(job, "expand", Move.REOPEN)
    assert refused.value.remedy is not None
    desk.move(job, "script", Move.REOPEN)
    desk.run(job, "script")
    assert desk.state(job, "expand") is S.STALE
    assert desk.ledger.move_tasks(job, Move.REOPEN, states={S.STALE}, reason="again") == 0
    desk.check()


def test_an_expansion_that_never_committed_may_be_tried_again(desk: LedgerDesk) -> None:
    job = desk.submit(task("expand", expands=True))
    desk.move(job, "expand", Move.CANCEL)
    desk.move(job, "expand", Move.REOPEN)
    desk.run(job, "expand", children=[task("shot")])
    desk.check()


def test_opening_an_input_again_makes_stale_all_that_was_built_on_it(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b", "a"), task("c", "b"), task("d"), task("e", "c", "d"))
    for key in "abdce":
        desk.run(job, key)
    assert desk.move(job, "b", Move.REOPEN) is S.READY
    stale = {"a": "succeeded", "b": "ready", "c": "stale", "d": "succeeded", "e": "stale"}
    assert desk.states(job) == stale
    desk.check()
    desk.run(job, "b")
    assert desk.states(job) == stale | {"b": "succeeded"}  # nobody pays for c and e until somebody asks
    assert desk.ledger.move_tasks(job, Move.REOPEN, states={S.STALE}, reason="rebuild") == 2
    assert desk.states(job) == stale | {"b": "succeeded", "c": "ready", "e": "pending"}
    desk.run(job, "c")
    desk.run(job, "e")
    assert desk.ledger.job(job).state is JobState.SUCCEEDED
    desk.check()


def test_what_runs_on_an_input_that_is_opened_again_is_stopped(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b", "a"))
    desk.run(job, "a")
    old = desk.lease(job, "b")
    desk.clock.advance(5)
    desk.move(job, "a", Move.REOPEN)
    assert desk.state(job, "b") is S.PENDING
    assert desk.ledger.running() == []
    assert desk.spent("wasted", attempt_id=old.attempt_id) == 5_000_000
    assert desk.commit(old) is Answer.SUPERSEDED
    desk.run(job, "a")
    assert desk.commit(old) is Answer.SUPERSEDED
    desk.run(job, "b")
    assert [a["state"] for a in desk.ledger.attempts(job)].count("superseded") == 1
    desk.check()


def test_a_chain_of_hundreds_is_opened_again_in_one_go(desk: LedgerDesk) -> None:
    keys = [f"t{n}" for n in range(600)]
    graph = [task(k, *keys[n - 1 : n] if n else ()) for n, k in enumerate(keys)]
    job = desk.submit(*graph)
    desk.ledger.move_tasks(job, Move.EAT, states={S.READY, S.PENDING}, reason="a long chain of done things")
    assert desk.ledger.job(job).counts == {S.EATEN: 600}
    desk.move(job, "t0", Move.REOPEN)
    assert desk.ledger.job(job).counts == {S.READY: 1, S.STALE: 599}


def test_the_same_question_is_answered_once(desk: LedgerDesk) -> None:
    first = desk.submit(task("a"), task("b", "a"))
    desk.run(first, "a", files=[file("x")])
    desk.run(first, "b")
    second = desk.submit(task("a"), task("b", "a"))
    assert desk.ledger.job(second).state is JobState.SUCCEEDED
    assert desk.task(second, "b")["files"] == desk.task(first, "b")["files"]
    assert desk.ledger.spent(job_id=second).nano == 0
    assert desk.kinds(second).count("task.cache_hit") == 2
    assert desk.kinds(second)[-1] == "job.ended"
    desk.check()


def cached(desk: LedgerDesk, job: str) -> list[dict[str, Any]]:
    return [e.data for e in desk.ledger.events(job) if e.kind == "task.cached"]


def test_a_hit_says_what_it_saved(desk: LedgerDesk) -> None:
    """The work of the attempt that made the take and of the one whose checkpoint it went on from, not what failed."""
    first = desk.submit(task("a"), tenant="studio")
    desk.fail(desk.lease(first, "a"))
    desk.clock.advance(60)
    assert desk.ledger.backoff_over(desk.term)
    half = desk.lease(first, "a")
    desk.clock.advance(4)
    desk.interrupt(half, checkpoint=f"studio/attempts/{half.attempt_id}/checkpoint-2")
    last = desk.lease(first, "a")
    desk.clock.advance(3)
    went_on = {"resumed_from": f"studio/attempts/{half.attempt_id}/checkpoint-2"}
    waits = desk.submit(task("a"))
    desk.ledger.commit(
        desk.term, **last.who, receipt_key=f"studio/attempts/{last.attempt_id}/receipt.json", files=[file("x")],
        result={}, facts=went_on,
    )  # fmt: skip
    saved = {"key": "a", "from_task": last.task_id, "saved_nano": 7_000_000, "saved_s": 7.0}
    assert cached(desk, waits) == [saved]
    assert cached(desk, desk.submit(task("a"))) == [saved]
    assert cached(desk, first) == cached(desk, desk.submit(task("a"), tenant="rival")) == []
    desk.check()


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"params": {"spec": {"prompt": "a", "seed": 8}}}, id="seed"),
        pytest.param({"entry": "a.b:d"}, id="entry"),
        pytest.param({"model": "another"}, id="model"),
    ],
)
def test_another_question_is_asked(desk: LedgerDesk, other: dict[str, Any]) -> None:
    desk.run(desk.submit(task("a")), "a")
    assert desk.state(desk.submit(task("a", **other)), "a") is S.READY


def test_an_answer_stays_with_its_tenant_and_its_version_and_its_inputs(desk: LedgerDesk) -> None:
    first = desk.submit(task("a"), task("b", "a"))
    desk.run(first, "a", files=[file("x")], result={"n": 1})
    desk.run(first, "b")
    assert desk.state(desk.submit(task("a"), tenant="rival"), "a") is S.READY
    assert desk.state(desk.submit(task("a"), version=2), "a") is S.READY
    for files, result in (([file("y")], {"n": 1}), ([file("x")], {"n": 2})):
        other = desk.submit(task("a", entry="x.y:z"), task("b", "a"))
        if desk.state(other, "a") is S.SUCCEEDED:
            desk.move(other, "a", Move.REOPEN)
        desk.run(other, "a", files=files, result=result)
        assert desk.state(other, "b") is S.READY


@pytest.mark.parametrize("more", [{"cacheable": False}, {"expands": True}], ids=["not-cacheable", "expands"])
def test_what_must_run_runs_though_it_was_answered(desk: LedgerDesk, more: dict[str, Any]) -> None:
    desk.run(desk.submit(task("a", **more)), "a")
    assert desk.state(desk.submit(task("a", **more)), "a") is S.READY


def test_a_requeued_task_runs_and_its_new_answer_replaces_the_old_one(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    desk.run(job, "a", files=[file("damaged")])
    desk.move(job, "a", Move.REOPEN)
    assert desk.state(job, "a") is S.READY
    desk.run(job, "a", files=[file("whole")])
    assert desk.task(desk.submit(task("a")), "a")["files"] == [file("whole")]


def test_equal_questions_in_flight_wait_for_the_first(desk: LedgerDesk) -> None:
    first, second, rival = desk.submit(task("a")), desk.submit(task("a")), desk.submit(task("a"), tenant="rival")
    leased = desk.lease(first, "a")
    assert desk.try_lease(second, "a", worker="w2") is None
    assert desk.ledger.ready_tasks([second], 10) == []
    assert desk.try_lease(rival, "a", worker="w2") is not None
    desk.commit(leased, files=[file("x")])
    assert desk.task(second, "a")["files"] == [file("x")]
    assert desk.ledger.job(second).over
    desk.check()


def test_who_waited_for_an_answer_that_never_came_is_told_by_an_event(desk: LedgerDesk) -> None:
    first, second = desk.submit(task("a")), desk.submit(task("a"))
    desk.fail(desk.lease(first, "a"))
    before = desk.ledger.job(second).seq
    assert desk.kinds(second)[-1] == "task.free"
    leased = desk.lease(second, "a")
    assert desk.ledger.job(second).seq > before
    desk.commit(leased)
    assert desk.state(first, "a") is S.SUCCEEDED  # it waited in BACKOFF
    desk.check()


def test_cancel_is_monotonic(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"), task("c", "a"), task("d"))
    desk.run(job, "b")
    running = desk.lease(job, "a")
    desk.clock.advance(2)
    assert desk.ledger.cancel_job(job) == 3
    assert desk.states(job) == {"a": "canceled", "b": "succeeded", "c": "canceled", "d": "canceled"}
    assert desk.commit(running) is Answer.SUPERSEDED
    assert desk.try_lease(job, "d") is None
    assert desk.ledger.cancel_job(job) == 0
    assert desk.ledger.job(job).state is JobState.CANCELED
    assert desk.spent("wasted") == 2_000_000
    assert desk.kinds(job).count("job.ended") == 1
    desk.check()


def test_a_canceled_job_runs_again_only_when_somebody_asks(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b", "a"))
    desk.ledger.cancel_job(job)
    assert desk.ledger.move_tasks(job, Move.REOPEN, states={S.CANCELED}, reason="after all") == 2
    assert desk.states(job) == {"a": "ready", "b": "pending"}
    desk.run(job, "a")
    desk.run(job, "b")
    assert not {"task.die", "task.cancel"} & set(desk.kinds(job)[-6:])
    desk.check()


def test_a_job_on_hold_gets_no_lease_and_what_runs_goes_on(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"))
    running = desk.lease(job, "a")
    desk.ledger.set_held(job, True)
    desk.ledger.set_held(job, True)
    assert desk.try_lease(job, "b") is None
    assert desk.ledger.jobs_with_ready_tasks() == []
    assert desk.commit(running) is Answer.ACCEPTED
    desk.ledger.set_held(job, False)
    assert [row.id for row in desk.ledger.jobs_with_ready_tasks()] == [job]
    desk.run(job, "b")
    assert [k for k in desk.kinds(job) if k.startswith("job.")] == [
        *("job.created", "job.held", "job.released", "job.ended"),
    ]


def test_a_task_on_hold_stops_and_comes_back_where_its_inputs_are(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b", "a"))
    running = desk.lease(job, "a")
    assert desk.move(job, "a", Move.HOLD) is S.SUSPENDED
    assert desk.commit(running) is Answer.SUPERSEDED
    assert desk.move(job, "b", Move.HOLD) is S.SUSPENDED
    assert desk.ledger.job(job).state is JobState.SUSPENDED
    assert desk.move(job, "b", Move.RELEASE) is S.PENDING
    assert desk.move(job, "a", Move.RELEASE) is S.READY
    desk.check()


def test_an_eaten_task_satisfies_who_needs_it(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b", "a"))
    desk.move(job, "a", Move.CANCEL)
    assert desk.ledger.job(job).state is JobState.CANCELED  # b would wait for ever
    desk.move(job, "a", Move.REOPEN)
    assert desk.move(job, "a", Move.EAT) is S.EATEN
    desk.run(job, "b")
    assert desk.ledger.job(job).state is JobState.SUCCEEDED
    desk.check()


def test_whole_job_verbs_say_how_many_tasks_they_moved(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"), task("c", "a"), task("d"))
    for key in "ab":
        for _ in range(3):
            desk.fail(desk.lease(job, key))
            desk.clock.advance(300)
            desk.ledger.backoff_over(desk.term)
    assert desk.ledger.job(job).state is JobState.FAILING
    assert desk.ledger.move_tasks(job, Move.REOPEN, states={S.DEAD}, reason="retry") == 2
    assert desk.ledger.move_tasks(job, Move.HOLD, states={S.READY, S.PENDING}, reason="wait") == 4
    assert desk.ledger.move_tasks(job, Move.RELEASE, states=set(S), reason="go on") == 4
    assert desk.ledger.move_tasks(job, Move.EAT, states={S.READY}, reason="enough") == 3
    assert desk.states(job) == {"a": "eaten", "b": "eaten", "c": "ready", "d": "eaten"}
    assert desk.ledger.move_tasks(job, Move.HOLD, states=set(), reason="nothing") == 0
    desk.check()


def test_what_is_not_for_people_is_refused(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    for how in (Move.COMMIT, Move.LEASE, Move.RELEASE_PENDING, Move.BACKOFF_OVER):
        with pytest.raises(IllegalMove, match="not for people"):
            desk.move(job, "a", how)
        with pytest.raises(IllegalMove, match="not for people"):
            desk.ledger.move_tasks(job, how, states=set(S), reason="x")
    with pytest.raises(IllegalMove, match="cannot reopen") as refused:
        desk.move(job, "a", Move.REOPEN)
    assert "cancel" in str(refused.value.remedy)
    with pytest.raises(NotFound):
        desk.ledger.move_task("task_none", Move.HOLD, reason="x")
    with pytest.raises(NotFound):
        desk.ledger.move_tasks("job_none", Move.HOLD, states=set(S), reason="x")
    with pytest.raises(NotFound):
        desk.ledger.cancel_job("job_none")
    assert desk.state(job, "a") is S.READY


def test_priority_and_tier_change_and_are_kept_in_bounds(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    desk.ledger.set_priority(job, priority=90)
    desk.ledger.set_priority(job, tier="batch")
    assert (desk.ledger.job(job).priority, desk.ledger.job(job).tier) == (90, "batch")
    for bad in ({"priority": 101}, {"priority": -1}, {"tier": "urgent"}):
        with pytest.raises(InvalidInput):
            desk.ledger.set_priority(job, **bad)
        with pytest.raises(InvalidInput):
            desk.submit(task("a"), **bad)


def test_one_answer_wakes_all_who_wait_for_it(desk: LedgerDesk) -> None:
    num = 300
    job = desk.submit(task("a"), *(task(f"b{n}", "a") for n in range(num)), task("z", *(f"b{n}" for n in range(num))))
    desk.run(job, "a")
    assert desk.ledger.job(job).counts == {S.SUCCEEDED: 1, S.READY: num, S.PENDING: 1}
    assert len(desk.ledger.ready_tasks([job], 64)) == 64
    desk.check()


def test_the_first_ready_tasks_of_each_role_and_model_are_seen(desk: LedgerDesk) -> None:
    """A hundred shots of one model do not hide what another worker could do."""
    shots = [task(f"shot{n}", model="small") for n in range(5)]
    job = desk.submit(*shots, task("large", model="large"), task("words", role="write"), task("late", "words"))
    other = desk.submit(task("alone"), show="other", tier="batch", priority=9, deadline_us=77)
    seen = [(t.job_id, t.key, t.place) for t in desk.ledger.ready_tasks([job, other], 2)]
    assert seen == [(job, "shot0", 1), (job, "shot1", 2), (job, "large", 1), (job, "words", 1), (other, "alone", 1)]
    rows = {row.id: row for row in desk.ledger.jobs_with_ready_tasks()}
    assert {i: (row.n_ready, row.show, row.tier, row.priority, row.deadline_us) for i, row in rows.items()} == {
        job: (7, "default", "normal", 50, None),
        other: (1, "other", "batch", 9, 77),
    }


def test_a_show_has_the_share_that_it_was_given(desk: LedgerDesk) -> None:
    desk.ledger.set_share("studio", "ahead-of-its-jobs", 3)
    desk.submit(task("a"))
    desk.ledger.set_share("studio", "default", 0.5)
    desk.submit(task("b"))
    assert desk.ledger.shares() == {"studio/ahead-of-its-jobs": 3.0, "studio/default": 0.5}
    assert {row.share for row in desk.ledger.jobs_with_ready_tasks()} == {0.5}


@pytest.mark.parametrize("share", [0, -1, float("nan"), float("inf"), 1e7], ids=str)
def test_a_share_that_would_starve_somebody_is_refused(desk: LedgerDesk, share: float) -> None:
    with pytest.raises(InvalidInput) as refused:
        desk.ledger.set_share("studio", "default", share)
    assert refused.value.field == "share"
    assert desk.ledger.shares() == {}
