"""What people ask the ledger: names, lists, what runs costs, what a verb would touch, what holds a task back."""

from __future__ import annotations

from itertools import chain, product

import pytest
from sqlalchemy import Connection, delete, insert, select

from cluster.errors import FailureClass, NotFound
from cluster.ledger import following, history, holdings, names, outcomes, reasons, rosters, views
from cluster.ledger.outcomes import Sight
from cluster.ledger.schema import jobs
from cluster.ledger.views import Touched
from cluster.states import JobState, Move, State, job_state
from cluster.why import Snapshot
from tests.ledger_desk import RATE, LedgerDesk, file, task

S1 = 1_000_000
"""Nano-dollars of one second of a worker."""


def touched(desk: LedgerDesk, job: str, how: Move, states: set[State], *keys: str) -> Touched:
    live_us = desk.clock.now_us()
    return desk.ledger.view(lambda c: views.touched(c, job, how, keys=keys, states=states, live_us=live_us))


def snapshot(desk: LedgerDesk, job: str, key: str) -> Snapshot:
    task_id, now_us = desk.task(job, key)["id"], desk.clock.now_us()
    return desk.ledger.view(
        lambda c: reasons.snapshot(c, task_id, now_us=now_us, ratios={"draw": 2.0}, farm_runs=True, sight=Sight())
    )


@pytest.mark.parametrize(
    ("part", "found"),
    [("w1", ["w1"]), ("w", ["w1", "w2", "w_%/x1"]), ("2", ["w2"]), ("w_%", ["w_%/x1"]), ("w_%/1", ["w_%/x1"]),
     ("w_%/x1", ["w_%/x1"]), ("%", []), ("nobody", []), ("w/1", [])],
    ids=["exact", "begin", "end", "signs of LIKE", "fleet and end", "whole with fleet", "wildcard", "none", "no fleet"],
)  # fmt: skip
def test_a_part_names_what_it_begins_or_ends(desk: LedgerDesk, part: str, found: list[str]) -> None:
    desk.join("w_%/x1")
    assert desk.ledger.view(lambda c: names.worker_ids(c, part)) == found


def test_an_id_is_found_without_its_first_word(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    task_id = desk.task(job, "a")["id"]
    assert desk.ledger.view(lambda c: names.job_ids(c, job[4:20], Sight())) == [job]
    assert desk.ledger.view(lambda c: names.task_ids(c, task_id[5:24], Sight())) == [task_id]
    assert desk.ledger.view(lambda c: names.job_ids(c, task_id, Sight())) == []


def test_the_database_calls_the_state_of_a_job_as_the_code_does(desk: LedgerDesk) -> None:
    """All sets of states that its tasks can be in."""
    sets = [dict(zip(State, counts, strict=True)) for counts in product((0, 1), repeat=len(State))]
    job = desk.submit(task("a"))

    def told(connection: Connection) -> list[str]:
        of_job = select(jobs).where(jobs.c.id == job)
        row = connection.execute(of_job).one()._mapping
        rows = [
            {**row, "id": f"job_{n}", "idempotency_key": None, **{f"n_{s.value}": m for s, m in counts.items()}}
            for n, counts in enumerate(sets)
        ]
        connection.execute(insert(jobs), rows)
        said = {row.id: row[1] for row in connection.execute(select(jobs.c.id, views.JOB_STATE))}
        connection.execute(delete(jobs).where(jobs.c.id != job))
        return [said[f"job_{n}"] for n in range(len(sets))]

    assert desk.ledger.database.transaction(told) == [job_state(counts).value for counts in sets]


def test_jobs_are_listed_by_show_and_state_newest_first(desk: LedgerDesk) -> None:
    done = desk.submit(task("a"), show="one")
    desk.run(done, "a", seconds=3)
    desk.clock.advance(1)
    waits = desk.submit(task("b"), show="two")

    def listed(show: str | None, *states: JobState, limit: int = 10) -> list[tuple[str, int]]:
        live_us = desk.clock.now_us()
        lines = desk.ledger.view(
            lambda c: views.job_list(c, sight=Sight(), show=show, states=states, limit=limit, live_us=live_us)
        )
        return [(line.job.id, line.nano) for line in lines]

    assert listed(None) == [(waits, 0), (done, 3 * S1)]
    assert listed(None, limit=1) == [(waits, 0)]
    assert listed("one") == [(done, 3 * S1)]
    assert listed(None, JobState.QUEUED) == [(waits, 0)]
    assert listed(None, JobState.SUCCEEDED) == [(done, 3 * S1)]
    assert listed(None, JobState.SUCCEEDED, JobState.QUEUED, limit=1) == [(waits, 0)]
    assert listed("two", JobState.SUCCEEDED) == []


def test_what_is_out_of_sight_is_neither_listed_nor_named(desk: LedgerDesk) -> None:
    own, theirs = desk.submit(task("a"), show="one"), desk.submit(task("a"), tenant="other", show="one")
    gone = desk.submit(task("a"), show="two")
    desk.ledger.delete_job(gone)

    def seen(**bounds: str) -> tuple[list[str], list[str], list[str]]:
        sight = Sight(**bounds)
        listed = desk.ledger.view(lambda c: views.job_list(c, sight=sight, show=None, states=(), limit=9, live_us=None))
        both = []
        for job in (own, theirs, gone):
            task_id = desk.task(job, "a")["id"]
            both.append(desk.ledger.view(lambda c, j=job: names.job_ids(c, j, sight)))  # type: ignore[misc]
            both.append(desk.ledger.view(lambda c, t=task_id: names.task_ids(c, t, sight)))  # type: ignore[misc]
        return sorted(line.job.id for line in listed), sorted(chain(*both[::2])), sorted(chain(*both[1::2]))

    first, second = desk.task(own, "a")["id"], desk.task(theirs, "a")["id"]
    assert seen() == (sorted([own, theirs]), sorted([own, theirs]), sorted([first, second]))
    assert seen(tenant="other") == ([theirs], [theirs], [second])
    assert seen(tenant="studio", show="two") == ([], [], [])
    with pytest.raises(NotFound):
        desk.ledger.view(lambda c: views.job_list(
            c, sight=Sight(tenant="other"), show=None, states=(), limit=9, live_us=None, after=own))  # fmt: skip


def test_jobs_and_tasks_come_in_pages(desk: LedgerDesk) -> None:
    made = [desk.submit(task("a"), task("b"), task("c")) for _ in range(3)]
    newest = sorted(made, reverse=True)  # all of one instant

    def jobs_after(after: str | None) -> list[str]:
        lines = desk.ledger.view(
            lambda c: views.job_list(c, sight=Sight(), show=None, states=(), limit=2, live_us=None, after=after)
        )
        return [line.job.id for line in lines]

    def tasks_after(after: str | None) -> list[str]:
        lines = desk.ledger.view(
            lambda c: views.task_list(c, made[0], states=(), now_us=0, live_us=None, after=after, limit=2)
        )
        return [line.key for line in lines]

    assert (jobs_after(None), jobs_after(newest[1])) == (newest[:2], newest[2:])
    b, foreign = desk.task(made[0], "b")["id"], desk.task(made[1], "a")["id"]
    assert (tasks_after(None), tasks_after(b)) == (["a", "b"], ["c"])
    with pytest.raises(NotFound):
        tasks_after(foreign)


def test_shows_are_listed_with_what_they_are_owed_do_and_spent(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"), task("c", "b"), show="one")
    desk.submit(task("a"), tenant="other", show="two")
    desk.run(job, "a", seconds=3)
    desk.lease(job, "b")
    desk.ledger.set_share("studio", "zero", 2.5)
    lines = desk.ledger.view(lambda c: rosters.show_list(c, tenant="studio", show=None))
    assert [(x.name, x.share, x.num_jobs, x.num_running, x.num_waiting, x.nano) for x in lines] == [
        ("one", 1.0, 1, 1, 1, 3 * S1), ("zero", 2.5, 0, 0, 0, 0)
    ]  # fmt: skip
    assert [x.name for x in desk.ledger.view(lambda c: rosters.show_list(c, tenant="other", show="two"))] == ["two"]
    assert [x.name for x in desk.ledger.view(lambda c: rosters.show_list(c, tenant=None, show=None))] == [
        "two", "one", "zero"
    ]  # fmt: skip


def test_a_worker_names_what_it_runs_as_far_as_that_may_be_seen(desk: LedgerDesk) -> None:
    own, theirs = desk.submit(task("a")), desk.submit(task("b"), tenant="other")
    desk.lease(own, "a")
    desk.lease(theirs, "b")
    line = desk.ledger.view(lambda c: rosters.worker(c, "w1", sight=Sight(tenant="studio"), live_us=None))
    assert (line.running, line.num_others) == (((own, "a"),), 1)
    with pytest.raises(NotFound):
        desk.ledger.view(lambda c: rosters.worker(c, "nobody", sight=Sight(), live_us=None))


def test_what_runs_costs_its_part_of_what_is_not_booked_yet(desk: LedgerDesk) -> None:
    one, two = desk.submit(task("a"), task("done")), desk.submit(task("b"))
    desk.run(one, "done", seconds=4)
    desk.lease(one, "a")
    desk.clock.advance(2)
    desk.lease(two, "b")
    desk.clock.advance(10)

    def cost(job: str, live_us: int | None) -> dict[str, int]:
        return desk.ledger.view(lambda c: views.nano_by_kind(c, job, live_us))

    now_us = desk.clock.now_us()
    assert cost(one, now_us) == {"busy": 6 * S1, "wasted": 0, "running": 5 * S1}
    assert cost(two, now_us) == {"busy": 0, "wasted": 0, "running": 5 * S1}
    assert cost(one, None)["running"] == 0
    lines = desk.ledger.view(lambda c: views.task_list(c, one, states=(), now_us=now_us, live_us=now_us))
    assert [(x.key, x.num_attempts, x.worker_id, x.seconds, x.nano) for x in lines] == [
        ("a", 1, "w1", 12.0, 7 * S1), ("done", 1, "w1", 4.0, 4 * S1)
    ]  # fmt: skip
    workers = desk.ledger.view(lambda c: rosters.worker_list(c, sight=Sight(), gone=False, limit=9, live_us=now_us))
    assert {x.row.id: (x.running, sum(x.nano.values())) for x in workers} == {
        "w1": (((one, "a"), (two, "b")), 16 * S1), "w2": ((), 16 * S1)
    }  # fmt: skip
    desk.ledger.leave(desk.term, "w2")
    assert [
        w.row.id
        for w in desk.ledger.view(lambda c: rosters.worker_list(c, sight=Sight(), gone=False, limit=9, live_us=None))
    ] == ["w1"]
    assert len(desk.ledger.view(lambda c: rosters.worker_list(c, sight=Sight(), gone=True, limit=9, live_us=None))) == 2


def test_a_task_shows_the_attempts_of_its_generation(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    for _ in range(3):
        desk.fail(desk.lease(job, "a"))
        desk.clock.advance(5)
        desk.ledger.backoff_over(desk.term)
    desk.move(job, "a", Move.REOPEN)

    def line() -> views.TaskLine:
        return desk.ledger.view(lambda c: views.task_list(c, job, states=(), now_us=0, live_us=None))[0]

    assert (line().num_attempts, line().worker_id, line().seconds, line().generation) == (0, None, None, 1)
    desk.lease(job, "a", worker="w2")
    assert (line().num_attempts, line().worker_id) == (1, "w2")


def test_a_verb_touches_the_tasks_that_can_make_its_move(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b", "a"), task("c", "b"), task("d"))
    desk.run(job, "a", seconds=3)
    desk.run(job, "b", seconds=5)
    desk.lease(job, "d")
    desk.clock.advance(2)
    done = {State.SUCCEEDED}
    assert touched(desk, job, Move.REOPEN, done, "a") == Touched(
        keys=("a",), by_state={State.SUCCEEDED: 1}, nano=3 * S1, num_stale=1, left_out=()
    )
    assert touched(desk, job, Move.REOPEN, done).num_stale == 0
    assert touched(desk, job, Move.REOPEN, done).keys == ("a", "b")
    open_now = touched(desk, job, Move.CANCEL, {State.READY, State.RUNNING})
    assert (open_now.by_state, open_now.nano) == ({State.READY: 1, State.RUNNING: 1}, 2 * S1)
    assert touched(desk, job, Move.EAT, {State.DEAD}).keys == ()


def test_keys_leave_out_all_other_tasks_of_a_move(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"), task("b"), task("c"))
    hold = {"states": {State.READY}, "reason": "a person asked"}
    assert desk.ledger.move_tasks(job, Move.HOLD, keys=["a", "c", "nobody"], **hold) == 2  # type: ignore[arg-type]
    assert desk.states(job) == {"a": "suspended", "b": "ready", "c": "suspended"}
    assert desk.ledger.move_tasks(job, Move.HOLD, keys=[], **hold) == 0  # type: ignore[arg-type]


def test_files_of_a_job_are_those_that_nothing_is_built_on(desk: LedgerDesk) -> None:
    job = desk.submit(task("shot"), task("film", "shot"))
    desk.run(job, "shot", files=[file("a shot")])
    assert desk.ledger.view(lambda c: views.job_files(c, job)) == []
    desk.run(job, "film", files=[file("a film")], result={"files": [{"name": "first.png"}]})
    found = desk.ledger.view(lambda c: views.job_files(c, job))
    assert [(key, f["name"]) for key, f in found] == [("film", "first.png"), ("film", "clip.mp4")]


def test_a_worker_is_up_when_it_has_loaded(desk: LedgerDesk) -> None:
    desk.clock.advance(100)
    desk.join("late", spawned_s_ago=30)
    joined_us = desk.clock.now_us()
    desk.run(desk.submit(task("a")), "a")
    assert desk.ledger.view(lambda c: views.up_since(c, ["late", "nobody"])) == {"late": joined_us}


def test_where_a_task_failed_is_counted_for_the_failures_that_a_worker_may_be_at_fault_for(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    for failure, worker in ((FailureClass.BUG, "w1"), (FailureClass.QUALITY, "w2"), (FailureClass.INFRA, "w1")):
        desk.fail(desk.lease(job, "a", worker=worker), failure)
        desk.clock.advance(60)
        desk.ledger.backoff_over(desk.term)
    task_id = desk.task(job, "a")["id"]
    assert desk.ledger.view(lambda c: views.failed_on(c, task_id, 0)) == {"w1": 2, "n1": 2}
    assert desk.ledger.view(lambda c: views.failed_on(c, task_id, 1)) == {}


def test_a_snapshot_has_inputs_in_the_order_of_the_graph_and_what_is_behind_them(desk: LedgerDesk) -> None:
    job = desk.submit(task("a", weight=8.0), task("b", "a"), task("c"), task("d", "b", "c"), task("done"))
    desk.run(job, "done")
    running = desk.lease(job, "a")
    desk.clock.advance(3)
    seen = snapshot(desk, job, "d")
    assert [(n.key, n.direct, n.state, n.ran_s) for n in seen.needs] == [
        ("c", True, State.READY, 0.0), ("b", True, State.PENDING, 0.0), ("a", False, State.RUNNING, 3.0)
    ]  # fmt: skip
    assert [(h.place.worker_id, h.place.num_running_on_node, [w.name for w in h.running]) for h in seen.here] == [
        ("w1", 1, [f"{job}/a"]), ("w2", 1, [])
    ]  # fmt: skip
    desk.commit(running)
    assert [n.key for n in snapshot(desk, job, "d").needs] == ["c", "b"]
    with pytest.raises(NotFound):
        desk.ledger.view(
            lambda c: reasons.snapshot(c, "task_nobody", now_us=0, ratios={}, farm_runs=None, sight=Sight())
        )


def test_a_snapshot_counts_who_comes_first(desk: LedgerDesk) -> None:
    def jobs(*more: dict[str, object]) -> list[str]:
        made = []
        for n, facts in enumerate(more):
            made.append(desk.submit(task(f"t{n}", model="m"), **facts))  # type: ignore[arg-type]
            desk.clock.advance(1)
        return made

    urgent, soon, old, mine, _late, _batch = jobs(
        {"tier": "interactive"}, {"deadline_us": desk.clock.now_us() + 10**9}, {}, {}, {}, {"tier": "batch"}
    )
    desk.submit(task("other", model="another"))
    desk.submit(task("writes", role="writer"), tier="interactive")
    anyone = desk.submit(task("any"), priority=90)
    assert {w.name.partition("/")[0] for w in snapshot(desk, mine, "t3").ahead} == {urgent, soon, old, anyone}
    desk.ledger.set_held(urgent, True)
    desk.ledger.set_priority(old, priority=1)
    assert {w.name.partition("/")[0] for w in snapshot(desk, mine, "t3").ahead} == {soon, anyone}


def test_a_snapshot_of_a_last_trial_keeps_its_node_for_it(desk: LedgerDesk) -> None:
    poisoned, other = desk.submit(task("a")), desk.submit(task("b"))
    for _ in range(2):
        leased = desk.lease(poisoned, "a")
        desk.ledger.lose(
            desk.term, **leased.who, why="its worker is gone", failure=FailureClass.POISON, facts={"stage": "denoise"}
        )
    assert snapshot(desk, poisoned, "a").asked.failures == {"poison": 2}
    desk.lease(poisoned, "a")
    assert {h.place.node_is_taken for h in snapshot(desk, other, "b").here} == {True}
    assert {h.place.node_is_taken for h in snapshot(desk, poisoned, "a").here} == {False}


def test_a_snapshot_knows_who_answers_the_same_question(desk: LedgerDesk) -> None:
    same = {"spec": {"prompt": "same", "seed": 1}}
    one, two = desk.submit(task("one", params=same)), desk.submit(task("two", params=same))
    foreign = desk.submit(task("three", params=same), tenant="other")
    assert snapshot(desk, two, "two").twin is None
    leased = desk.lease(one, "one")
    twin = snapshot(desk, two, "two").twin
    assert twin is not None
    assert (twin.name, twin.worker_id) == (f"{one}/one", "w1")
    assert snapshot(desk, foreign, "three").twin is None
    desk.fail(leased)
    assert snapshot(desk, two, "two").twin is None


def test_views_write_nothing(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    before = desk.kinds(job)
    snapshot(desk, job, "a")
    touched(desk, job, Move.CANCEL, {State.READY})
    assert desk.kinds(job) == before
    desk.check()


def test_what_attempts_taught_is_told_with_the_shape_of_what_was_asked(desk: LedgerDesk) -> None:
    spec = {"prompt": "a", "width_px": 8, "height_px": 6, "num_frames": 24, "num_steps": 4}
    drawn = task("a", params={"spec": spec}, model="house", weight=2.0)
    job = desk.submit(drawn, task("b", params={"num_shots": 3, "script": {"title": "long"}}), task("c", params={}))
    for key, seconds in (("a", 5), ("b", 7), ("c", 1)):
        desk.run(job, key, seconds=seconds)
    found = {sample.shape: sample for sample in desk.ledger.view(history.samples)}
    assert set(found) == {"width_px=8 height_px=6 num_frames=24 num_steps=4", "num_shots=3", None}
    first = found["width_px=8 height_px=6 num_frames=24 num_steps=4"]
    assert (first.step, first.model, first.predicted_s, first.actual_s) == ("draw", "house", 2.0, 5.0)


def test_crews_are_those_who_take_work_and_where_nobody_does_those_who_did_last(desk: LedgerDesk) -> None:
    def crews() -> list[tuple[int, int]]:
        return sorted((one.num_workers, one.nano_per_hour) for one in desk.ledger.view(holdings.crews))

    desk.join("dear", rate=9 * RATE)
    assert crews() == [(1, 9 * RATE), (2, RATE)]
    desk.ledger.drain("w1", reason="a person asked")
    assert crews() == [(1, RATE), (1, 9 * RATE)]
    desk.clock.advance(1)
    desk.join("last", rate=5 * RATE)
    for worker in ("w1", "w2", "dear", "last"):
        desk.ledger.leave(desk.term, worker)
    assert crews() == [(0, 5 * RATE)]


def test_who_follows_jobs_is_told_what_came_later_and_how_they_stand(desk: LedgerDesk) -> None:
    quiet, busy, gone = (desk.submit(task(key)) for key in ("a", "b", "c"))
    seqs = {job: desk.ledger.job(job).seq for job in (quiet, busy, gone)}
    known = desk.ledger.view(lambda c: outcomes.of(c, list(seqs)))
    desk.lease(busy, "b")
    desk.clock.advance(2)
    desk.ledger.delete_job(gone)
    now_us = desk.clock.now_us()

    def look(seen: dict[str, int], limit: int = 500) -> following.Look:
        return desk.ledger.view(lambda c: following.look(c, seen, known, now_us=now_us, limit=limit))

    found = look(seqs)
    assert found.heads == {quiet: seqs[quiet], busy: seqs[busy] + 1}
    assert [(e.job_id, e.seq, e.kind) for some in found.events.values() for e in some] == [
        (busy, seqs[busy] + 1, "task.lease")
    ]
    assert [(job, one.job.state) for job, one in found.changed.items()] == [(busy, JobState.RUNNING)]
    assert dict(found.accruing_nano) == {busy: 2 * S1}
    assert look({}).heads == {}
    first = look(dict.fromkeys((quiet, busy), 0), limit=3)
    first_seen = {job: some[-1].seq for job, some in first.events.items()}
    then = look({**dict.fromkeys((quiet, busy), 0), **first_seen})
    told = [(e.job_id, e.seq) for part in (first, then) for some in part.events.values() for e in some]
    assert len([e for some in first.events.values() for e in some]) == 3
    assert sorted(told) == sorted((job, seq) for job, head in found.heads.items() for seq in range(1, head + 1))


def test_who_went_on_from_a_checkpoint_teaches_nothing_and_others_on_what_they_ran(desk: LedgerDesk) -> None:
    job = desk.submit(task("whole"), task("part"))
    desk.run(job, "whole", seconds=10)
    desk.run_in_two(job, "part")
    found = desk.ledger.view(history.samples)
    assert [(sample.actual_s, sample.accelerator) for sample in found] == [(10.0, "cpu")]
