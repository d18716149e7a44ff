"""Moving a task, and what follows from it: counters, the event, dependants. Every change of a state passes here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from cluster.errors import InvalidGraph, StaleEpoch
from cluster.graph import TaskSpec, checked, content_key
from cluster.ledger import events
from cluster.ledger.schema import edges, jobs, takes, tasks
from cluster.states import DONE, ENDED, REOPENING, JobState, Move, State, job_state, moved


def apply(
    connection: Connection,
    task: Row[Any],
    how: Move,
    *,
    now_us: int,
    attempt_id: str | None = None,
    reason: str | None = None,
    data: dict[str, Any] | None = None,
    **columns: Any,
) -> State:
    """Moves `task` as the row was read. Raises IllegalMove, or StaleEpoch if the row has moved on since."""
    old = State(task.state)
    new = moved(old, how)
    if attempt_id is not None:
        columns["attempt_id"] = attempt_id
    if how in REOPENING:
        columns |= {"generation": task.generation + 1, "failures": {}}
    changed = connection.execute(
        update(tasks)
        .where(tasks.c.id == task.id, tasks.c.state == old.value, tasks.c.epoch == task.epoch)
        .values(state=new.value, reason=reason, changed_us=now_us, **columns)
    ).rowcount
    if changed != 1:
        raise StaleEpoch(f"task {task.id} has moved on since it was read as {old}, epoch {task.epoch}")
    events.append(
        connection,
        task.job_id,
        at_us=now_us,
        kind=f"task.{how.value}",
        task_id=task.id,
        attempt_id=attempt_id,
        epoch=columns.get("epoch", task.epoch),
        from_state=old,
        to_state=new,
        data={
            "key": task.key,
            "generation": columns.get("generation", task.generation),
            **({"reason": reason} if reason else {}),
            **(data or {}),
        },
    )
    if new in DONE and old not in DONE:
        _inputs_committed(connection, task, now_us)
    elif old in DONE and new not in DONE:
        _inputs_reopened(connection, task, now_us)
    if new in ENDED or old in ENDED:
        _close_or_reopen_job(connection, task.job_id, now_us)
    if new is State.READY:
        _take_cached(connection, task.id, now_us)
    return new


def read(connection: Connection, task_id: str) -> Row[Any] | None:
    return connection.execute(select(tasks).where(tasks.c.id == task_id)).one_or_none()


def insert_tasks(
    connection: Connection, job_id: str, specs: Iterable[TaskSpec], *, ids: Iterable[str], now_us: int
) -> list[str]:
    """Adds tasks to a job with their edges. Raises InvalidGraph. Returns the new ids in order."""
    existing = dict(
        connection.execute(select(tasks.c.key, tasks.c.id).where(tasks.c.job_id == job_id)).tuples().all()
    )
    ordered = checked(list(specs), existing=frozenset(existing))
    id_of = dict(existing)
    for spec, task_id in zip(ordered, ids, strict=False):
        id_of[spec.key] = task_id
    needed = [id_of[n] for spec in ordered for n in spec.needs if n in existing]
    done = set(
        connection.execute(
            select(tasks.c.id).where(tasks.c.id.in_(needed), tasks.c.state.in_([s.value for s in DONE]))
        ).scalars()
        if needed
        else ()
    )
    first = len(existing)
    rows, pairs = [], []
    for n, spec in enumerate(ordered):
        task_id = id_of[spec.key]
        unmet = sum(id_of[need] not in done for need in spec.needs)
        state = State.PENDING if unmet else State.READY
        rows.append(
            {
                "id": task_id,
                "job_id": job_id,
                "ordinal": first + n,
                "key": spec.key,
                "step": spec.step,
                "role": spec.role,
                "entry": spec.entry,
                "params": spec.params,
                "model": spec.model,
                "weight": spec.weight,
                "expands": spec.expands,
                "cacheable": spec.cacheable,
                "state": state.value,
                "epoch": 0,
                "generation": 0,
                "unmet": unmet,
                "failures": {},
                "changed_us": now_us,
            }
        )
        pairs += [{"job_id": job_id, "task_id": task_id, "needs_id": id_of[need]} for need in dict.fromkeys(spec.needs)]
    if not rows:
        raise InvalidGraph("a graph needs at least one task", field="tasks")
    connection.execute(insert(tasks), rows)
    if pairs:
        connection.execute(insert(edges), [{k: p[k] for k in ("task_id", "needs_id")} for p in pairs])
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(num_tasks=jobs.c.num_tasks + len(rows)))
    for row in rows:
        events.append(
            connection,
            job_id,
            at_us=now_us,
            kind="task.created",
            task_id=row["id"],
            epoch=0,
            to_state=State(row["state"]),
            data={"key": row["key"], "step": row["step"], "weight": row["weight"], "model": row["model"]},
        )
    for row in rows:
        if row["state"] == State.READY.value:
            _take_cached(connection, row["id"], now_us)
    return [row["id"] for row in rows]


def inputs_of(connection: Connection, task_id: str) -> list[Row[Any]]:
    """The tasks that this one needs, in the order of their ordinals."""
    return list(
        connection.execute(
            select(tasks)
            .join(edges, edges.c.needs_id == tasks.c.id)
            .where(edges.c.task_id == task_id)
            .order_by(tasks.c.ordinal)
        )
    )


def _inputs_committed(connection: Connection, task: Row[Any], now_us: int) -> None:
    for child in _dependants(connection, task.id):
        connection.execute(update(tasks).where(tasks.c.id == child.id).values(unmet=tasks.c.unmet - 1))
        if child.unmet == 1 and child.state == State.PENDING.value:
            fresh = read(connection, child.id)
            assert fresh is not None
            apply(connection, fresh, Move.DEPS_MET, now_us=now_us)


def _inputs_reopened(connection: Connection, task: Row[Any], now_us: int) -> None:
    """What was built on `task` is older than its input now: committed dependants go STALE, waiting ones wait again."""
    for child in _dependants(connection, task.id):
        connection.execute(update(tasks).where(tasks.c.id == child.id).values(unmet=tasks.c.unmet + 1))
        fresh = read(connection, child.id)
        assert fresh is not None
        state = State(fresh.state)
        if state in DONE:
            apply(connection, fresh, Move.INPUTS_CHANGED, now_us=now_us, reason=f"its input {task.key} was opened again")
        elif state in (State.READY, State.BACKOFF):
            apply(connection, fresh, Move.DEPS_REOPENED, now_us=now_us, reason=f"its input {task.key} was opened again")


def _dependants(connection: Connection, task_id: str) -> list[Row[Any]]:
    return list(
        connection.execute(
            select(tasks)
            .join(edges, edges.c.task_id == tasks.c.id)
            .where(edges.c.needs_id == task_id)
            .order_by(tasks.c.ordinal)
        )
    )


def counts_of(job: Row[Any]) -> dict[State, int]:
    return {s: job._mapping[f"n_{s.value}"] for s in State}


def _close_or_reopen_job(connection: Connection, job_id: str, now_us: int) -> None:
    job = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
    over = job_state(counts_of(job)) in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED)
    if over and job.ended_us is None:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(ended_us=now_us))
        events.append(connection, job_id, at_us=now_us, kind="job.ended")
    elif not over and job.ended_us is not None:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(ended_us=None))
        events.append(connection, job_id, at_us=now_us, kind="job.reopened")


def _take_cached(connection: Connection, task_id: str, now_us: int) -> None:
    """A task that became READY gets its content key; if the tenant has a committed answer to it, that is taken."""
    task = read(connection, task_id)
    assert task is not None
    if not task.cacheable or task.state != State.READY.value:
        return
    job = connection.execute(select(jobs.c.tenant, jobs.c.version).where(jobs.c.id == task.job_id)).one()
    inputs = inputs_of(connection, task_id)
    key = content_key(
        entry=task.entry,
        params=task.params,
        inputs={i.key: [f["content_sha256"] for f in i.files or ()] for i in inputs},
        engine=str(job.version),
    )
    connection.execute(update(tasks).where(tasks.c.id == task_id).values(content_key=key))
    if task.generation > 0:  # somebody asked for it to run again
        return
    take = connection.execute(
        select(takes).where(takes.c.tenant == job.tenant, takes.c.content_key == key)
    ).one_or_none()
    if take is not None:
        apply(
            connection,
            task,
            Move.CACHE_HIT,
            now_us=now_us,
            attempt_id=take.attempt_id,
            data={"from_task": take.task_id},
            receipt_key=take.receipt_key,
            files=take.files,
            result=take.result,
        )
