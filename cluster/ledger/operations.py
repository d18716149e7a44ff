"""What people do to jobs and tasks: cancel, hold, release, retry, requeue, eat. Each is one transaction over a set."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Row, select, update

from cluster import failures
from cluster.errors import FailureClass, IllegalMove, InvalidInput, NotFound
from cluster.graph import with_new_seed
from cluster.ledger import attempts, events, moves, questions
from cluster.ledger.jobs import TIERS
from cluster.ledger.schema import jobs, tasks
from cluster.states import MOVES, OF_PEOPLE, OPEN, AttemptState, Move, State

ALONE = frozenset({Move.CANCEL, Move.HOLD})
"""Moves of a task that does not run from which nothing follows for others: a job makes them at once."""

GOES_ON = frozenset({Move.REOPEN, Move.EAT, Move.APPROVE, Move.REJECT})
"""Moves after which somebody reads the files of the job."""


def cancel_job(connection: Connection, job_id: str, *, now_us: int) -> int:
    """Cancels what has not ended; monotonic. Returns how many tasks were canceled. Raises NotFound."""
    _change(connection, job_id, target="cancel")
    events.append(connection, job_id, at_us=now_us, kind="job.cancel")
    return move_tasks(connection, job_id, Move.CANCEL, states=OPEN, now_us=now_us, reason="canceled by request")


def delete_job(connection: Connection, job_id: str, *, now_us: int) -> None:
    """Nobody is shown it any more; what has not ended is canceled. Its events and its bill stay. Raises NotFound."""
    job = _job(connection, job_id)
    if job.ended_us is None:
        cancel_job(connection, job_id, now_us=now_us)
    if job.deleted_us is None:
        _change(connection, job_id, deleted_us=now_us)
        events.append(connection, job_id, at_us=now_us, kind="job.deleted")


def set_held(connection: Connection, job_id: str, held: bool, *, now_us: int) -> None:
    """A job on hold gets no new lease; what runs goes on. Raises NotFound."""
    if _job(connection, job_id).held != held:
        _change(connection, job_id, held=held)
        events.append(connection, job_id, at_us=now_us, kind="job.held" if held else "job.released")


def set_priority(connection: Connection, job_id: str, *, priority: int | None, tier: str | None, now_us: int) -> None:
    """Raises NotFound, InvalidInput."""
    if priority is not None and not 0 <= priority <= 100:
        raise InvalidInput(f"priority must be from 0 to 100, got {priority}", field="priority")
    if tier is not None and tier not in TIERS:
        raise InvalidInput(f"no tier {tier!r}", field="tier", remedy=f"use one of {', '.join(TIERS)}")
    job = _job(connection, job_id)
    new = {
        "priority": job.priority if priority is None else priority,
        "tier": job.tier if tier is None else tier,
    }
    _change(connection, job_id, **new)
    events.append(connection, job_id, at_us=now_us, kind="job.priority", data=new)


def move_task(connection: Connection, task_id: str, how: Move, *, now_us: int, reason: str) -> State:
    """One task, one move of a person. Raises NotFound, IllegalMove."""
    task = moves.read(connection, task_id)
    if task is None:
        raise NotFound(f"no task {task_id}")
    batch = moves.Batch(connection, now_us=now_us)
    state = _move(connection, batch, task, how, now_us=now_us, reason=reason)
    batch.close()
    return state


def make_input_again(connection: Connection, task_id: str, input_key: str, *, now_us: int, reason: str) -> None:
    """The store has lost what an input of a task made: nobody is given it as an answer, and it is made again if a
    person could have asked for that."""
    for made in moves.inputs_of(connection, task_id):
        if made.key == input_key:
            tenant = _job(connection, made.job_id).tenant
            for file in made.files or ():
                questions.forget(connection, tenant, file["sha256"])
            with suppress(IllegalMove):
                move_task(connection, made.id, Move.REOPEN, now_us=now_us, reason=reason)


def move_tasks(
    connection: Connection,
    job_id: str,
    how: Move,
    *,
    states: Collection[State],
    keys: Collection[str] | None = None,
    now_us: int,
    reason: str,
) -> int:
    """One move of a person for every task of the job (with one of `keys`) that is in one of `states` and can make it.

    Returns how many moved. Those which what the others did has brought to a state without such a move are left. Raises
    NotFound, IllegalMove for a move that is not for people.
    """
    _job(connection, job_id)
    _check_of_people(how)
    names = [s.value for s in states]
    query = select(tasks).where(tasks.c.job_id == job_id, tasks.c.state.in_(names)).order_by(tasks.c.ordinal)
    rows = connection.execute(query if keys is None else query.where(tasks.c.key.in_(list(keys)))).all()
    batch = moves.Batch(connection, now_us=now_us)
    alone = [t for t in rows if how in ALONE and t.state != State.RUNNING.value and (State(t.state), how) in MOVES]
    if alone:
        batch.apply_all(how, [(task, {"reason": reason}) for task in alone])
    count, made = len(alone), {task.id for task in alone}
    for row in rows:
        task = moves.read(connection, row.id) if row.id not in made else None  # as the others' moves have left it
        if task is not None and (State(task.state), how) in MOVES and not _expanded(task, how):
            _move(connection, batch, task, how, now_us=now_us, reason=reason)
            count += 1
    batch.close()
    return count


def _move(connection: Connection, batch: moves.Batch, task: Row[Any], how: Move, *, now_us: int, reason: str) -> State:
    _check_of_people(how)
    if _expanded(task, how):
        raise IllegalMove(
            f"task {task.key!r} has expanded already, and does so once",
            remedy="submit the job again: what has not changed costs nothing",
        )
    if how in GOES_ON and _job(connection, task.job_id).released_us is not None:
        raise IllegalMove("the files of its job are kept no longer", remedy="submit the job again")
    columns: dict[str, Any] = {}
    if how is Move.REOPEN:
        how = Move.REOPEN_PENDING if task.unmet > 0 else Move.REOPEN
        columns = {"receipt_key": None, "files": None, "result": None}
        connection.execute(update(jobs).where(jobs.c.id == task.job_id, jobs.c.target != "run").values(target="run"))
    elif how is Move.RELEASE and task.unmet > 0:
        how = Move.RELEASE_PENDING
    elif how is Move.REJECT and (State(task.state), how) in MOVES:
        return _reject(batch, task, reason=reason)
    elif how is Move.APPROVE and (State(task.state), how) in MOVES:
        questions.approve(connection, _job(connection, task.job_id).tenant, task, now_us=now_us)
        columns = {"attempt_id": task.attempt_id}  # whose answer it is: the event says so
    data = None
    if (State(task.state), how) in MOVES and task.state == State.RUNNING.value:
        attempts.stop(connection, task, AttemptState.CANCELED, now_us=now_us, note=f"canceled by {how.value}")
        data = {"attempt": AttemptState.CANCELED.value}
    return batch.apply(task, how, reason=reason, data=data, **columns)


def _reject(batch: moves.Batch, task: Row[Any], *, reason: str) -> State:
    """Another take with another seed, as after a check of the pixels that failed; dead when their budget is spent."""
    verdict = failures.judge(FailureClass.QUALITY, task.failures)
    data: dict[str, Any] = {"failure": FailureClass.QUALITY.value}
    if verdict.dead:
        why = f"{reason}, {verdict.counts[FailureClass.QUALITY.value]} times"
        return batch.apply(task, Move.DIE, reason=why, data=data, failures=verdict.counts)
    params = with_new_seed(task.params) or task.params
    return batch.apply(
        task, Move.REJECT, reason=reason, data=data | {"seed": params.get("spec", {}).get("seed")}, params=params,
        generation=task.generation + 1, failures=verdict.counts, content_key=None,
        receipt_key=None, files=None, result=None,
    )  # fmt: skip


def _check_of_people(how: Move) -> None:
    if how not in OF_PEOPLE:
        raise IllegalMove(f"{how} is not for people", remedy=f"use one of {', '.join(sorted(OF_PEOPLE))}")


def _expanded(task: Row[Any], how: Move) -> bool:
    """A second expansion would give the job each child twice."""
    return how is Move.REOPEN and task.expands and task.receipt_key is not None


def _job(connection: Connection, job_id: str) -> Row[Any]:
    job = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if job is None:
        raise NotFound(f"no job {job_id}", remedy="`farm ls` lists them")
    return job


def _change(connection: Connection, job_id: str, **columns: Any) -> None:
    _job(connection, job_id)
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(**columns))
