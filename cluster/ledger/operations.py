"""What people do to jobs and tasks: cancel, hold, release, retry, requeue, eat. Each is one transaction over a set."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select, update

from cluster.errors import NotFound
from cluster.ledger import events, leases, moves
from cluster.ledger.schema import jobs, tasks
from cluster.states import MOVES, OPEN, Move, State


def cancel_job(connection: Connection, job_id: str, *, now_us: int) -> int:
    """Cancels what has not ended; monotonic. Returns how many tasks were canceled. Raises NotFound."""
    changed = connection.execute(update(jobs).where(jobs.c.id == job_id).values(target="cancel")).rowcount
    if changed != 1:
        raise NotFound(f"no job {job_id}", remedy="`farm ls` lists them")
    open_tasks = _in_states(connection, job_id, OPEN)
    for task in open_tasks:
        if task.state == State.RUNNING.value:
            leases.cancel_running(connection, task, now_us=now_us)
        moves.apply(connection, task, Move.CANCEL, now_us=now_us, reason="canceled by request")
    return len(open_tasks)


def set_held(connection: Connection, job_id: str, held: bool, *, now_us: int) -> None:
    """A job on hold gets no new lease; what runs goes on. Raises NotFound."""
    changed = connection.execute(update(jobs).where(jobs.c.id == job_id).values(held=held)).rowcount
    if changed != 1:
        raise NotFound(f"no job {job_id}", remedy="`farm ls` lists them")
    events.append(connection, job_id, at_us=now_us, kind="job.held" if held else "job.released")


def reopen(connection: Connection, task: Row[Any], *, now_us: int, reason: str) -> State:
    """Runs an ended task again, as a new generation; what was built on it goes STALE."""
    waits = task.unmet > 0
    how = Move.REOPEN_PENDING if waits else Move.REOPEN
    return moves.apply(connection, task, how, now_us=now_us, reason=reason, receipt_key=None, files=None, result=None)


def move_task(connection: Connection, task_id: str, how: Move, *, now_us: int, reason: str) -> State:
    """One task, one move of a person. Raises NotFound, IllegalMove."""
    task = moves.read(connection, task_id)
    if task is None:
        raise NotFound(f"no task {task_id}")
    if how is Move.REOPEN:
        return reopen(connection, task, now_us=now_us, reason=reason)
    if how is Move.RELEASE and task.unmet > 0:
        how = Move.RELEASE_PENDING
    if (State(task.state), how) in MOVES and task.state == State.RUNNING.value:
        leases.cancel_running(connection, task, now_us=now_us)
    return moves.apply(connection, task, how, now_us=now_us, reason=reason)


def _in_states(connection: Connection, job_id: str, states: frozenset[State]) -> list[Row[Any]]:
    names = [s.value for s in states]
    return list(
        connection.execute(
            select(tasks).where(tasks.c.job_id == job_id, tasks.c.state.in_(names)).order_by(tasks.c.ordinal)
        )
    )
