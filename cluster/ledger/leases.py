"""Leases and what ends them. Every write of an attempt carries (task, epoch); every write of a dispatcher its term."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from cluster import failures
from cluster.errors import FailureClass, StaleTerm
from cluster.graph import TaskSpec
from cluster.ledger import events, money, moves
from cluster.ledger.schema import assets, attempts, dispatcher, jobs, takes, tasks, workers
from cluster.states import AttemptState, Move, State


class Answer(StrEnum):
    """What an attempt is told about its report."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"  # the same report has been accepted before
    SUPERSEDED = "superseded"  # the task is no longer this attempt's: stop, throw the output away


def take_term(connection: Connection, *, now_us: int) -> int:
    """A new dispatcher's term. From this commit on, writes of older terms are refused."""
    term = connection.execute(
        update(dispatcher).values(term=dispatcher.c.term + 1, started_us=now_us).returning(dispatcher.c.term)
    ).scalar_one_or_none()
    if term is None:
        connection.execute(insert(dispatcher).values(id=1, term=1, started_us=now_us))
        return 1
    return int(term)


def check_term(connection: Connection, term: int) -> None:
    current = connection.execute(select(dispatcher.c.term)).scalar_one_or_none()
    if current != term:
        raise StaleTerm(f"dispatcher of term {term} has been replaced by term {current}")


def join(connection: Connection, row: dict[str, Any], *, now_us: int) -> None:
    """A worker is here: its holding began when it was spawned, and until now it was loading. Idempotent."""
    known = connection.execute(select(workers.c.id).where(workers.c.id == row["id"])).one_or_none()
    if known is None:
        connection.execute(insert(workers).values(**row, since_us=row["spawned_us"], ended_us=None))
        money.close_interval(connection, row["id"], now_us=now_us, idle_kind="load")


def leave(connection: Connection, worker_id: str, *, now_us: int) -> None:
    money.close_interval(connection, worker_id, now_us=now_us)
    connection.execute(
        update(workers).where(workers.c.id == worker_id, workers.c.ended_us.is_(None)).values(ended_us=now_us)
    )


def lease(
    connection: Connection, task_id: str, *, epoch: int, attempt_id: str, worker_id: str, request_id: str, now_us: int
) -> Row[Any] | None:
    """Gives the task to the worker under epoch + 1, if it is still READY at `epoch`. Returns its row, or None."""
    task = moves.read(connection, task_id)
    if task is None or task.state != State.READY.value or task.epoch != epoch:
        return None
    held = connection.execute(select(jobs.c.held).where(jobs.c.id == task.job_id)).scalar_one()
    if held:
        return None
    money.close_interval(connection, worker_id, now_us=now_us)
    connection.execute(
        insert(attempts).values(
            id=attempt_id,
            task_id=task_id,
            job_id=task.job_id,
            epoch=epoch + 1,
            generation=task.generation,
            worker_id=worker_id,
            request_id=request_id,
            state=AttemptState.RUNNING.value,
            started_us=now_us,
        )
    )
    moves.apply(
        connection,
        task,
        Move.LEASE,
        now_us=now_us,
        attempt_id=attempt_id,
        data={"worker": worker_id},
        epoch=epoch + 1,
    )
    return moves.read(connection, task_id)


def leased_by_request(connection: Connection, worker_id: str, request_id: str) -> Row[Any] | None:
    """The task of a lease whose reply was lost, if its attempt still runs."""
    return connection.execute(
        select(tasks)
        .join(attempts, attempts.c.id == tasks.c.attempt_id)
        .where(
            attempts.c.worker_id == worker_id,
            attempts.c.request_id == request_id,
            attempts.c.state == AttemptState.RUNNING.value,
            tasks.c.state == State.RUNNING.value,
        )
    ).one_or_none()


def running(connection: Connection) -> list[Row[Any]]:
    """(task_id, attempt_id, epoch, worker_id, job_id) of every attempt that runs."""
    return list(
        connection.execute(
            select(
                attempts.c.task_id,
                attempts.c.id.label("attempt_id"),
                attempts.c.epoch,
                attempts.c.worker_id,
                attempts.c.job_id,
            ).where(attempts.c.state == AttemptState.RUNNING.value)
        )
    )


def commit(
    connection: Connection,
    *,
    task_id: str,
    attempt_id: str,
    epoch: int,
    receipt_key: str,
    files: list[dict[str, Any]],
    result: dict[str, Any],
    facts: dict[str, Any],
    children: Sequence[TaskSpec],
    child_ids: Sequence[str],
    now_us: int,
) -> Answer:
    """One transaction moves the task, books the cost and inserts the children. The receipt is verified already."""
    task, attempt, answer = _fence(connection, task_id, attempt_id, epoch, now_us, adopt=True)
    if answer is not Answer.ACCEPTED:
        return answer
    if attempt.state == AttemptState.RUNNING.value:
        _end_attempt(connection, attempt, AttemptState.SUCCEEDED, now_us, receipt_key=receipt_key, facts=facts)
    job = connection.execute(select(jobs.c.tenant, jobs.c.id).where(jobs.c.id == task.job_id)).one()
    for file in files:
        known = select(assets.c.sha256).where(assets.c.tenant == job.tenant, assets.c.sha256 == file["sha256"])
        if connection.execute(known).one_or_none() is None:
            connection.execute(
                insert(assets).values(
                    tenant=job.tenant,
                    sha256=file["sha256"],
                    key=file["key"],
                    size=file["size"],
                    media_type=file["media_type"],
                    created_us=now_us,
                )
            )
    if task.cacheable and task.content_key is not None:
        kept = select(takes.c.task_id).where(takes.c.tenant == job.tenant, takes.c.content_key == task.content_key)
        if connection.execute(kept).one_or_none() is None:
            connection.execute(
                insert(takes).values(
                    tenant=job.tenant,
                    content_key=task.content_key,
                    task_id=task_id,
                    attempt_id=attempt_id,
                    receipt_key=receipt_key,
                    files=files,
                    result=result,
                    created_us=now_us,
                )
            )
    if children:
        moves.insert_tasks(connection, task.job_id, children, ids=child_ids, now_us=now_us)
    moves.apply(
        connection,
        task,
        Move.COMMIT,
        now_us=now_us,
        attempt_id=attempt_id,
        data={"receipt": receipt_key, **({"adopted": True} if attempt.state == AttemptState.LOST.value else {})},
        receipt_key=receipt_key,
        files=files,
        result=result,
    )
    return Answer.ACCEPTED


def fail(
    connection: Connection,
    *,
    task_id: str,
    attempt_id: str,
    epoch: int,
    failure: FailureClass,
    code: str,
    message: str,
    facts: dict[str, Any],
    now_us: int,
) -> Answer:
    """The attempt failed: again after a back-off, or dead when the budget of its class is spent."""
    task, attempt, answer = _fence(connection, task_id, attempt_id, epoch, now_us)
    if answer is not Answer.ACCEPTED:
        return answer
    verdict = failures.judge(failure, task.failures)
    ends = {"failure": failure.value, "code": code, "message": message, "facts": facts}
    _end_attempt(connection, attempt, AttemptState.FAILED, now_us, **ends)
    money.waste(connection, attempt_id, now_us=now_us, note=failure.value)
    data = {"failure": failure.value, "code": code, "message": message}
    if verdict.dead:
        moves.apply(
            connection, task, Move.DIE, now_us=now_us, attempt_id=attempt_id, reason=message, data=data,
            failures=verdict.counts,
        )  # fmt: skip
    else:
        moves.apply(
            connection, task, Move.RETRY_LATER, now_us=now_us, attempt_id=attempt_id, reason=message, data=data,
            failures=verdict.counts, not_before_us=now_us + round(verdict.delay_s * 1e6),
        )  # fmt: skip
    return Answer.ACCEPTED


def interrupt(
    connection: Connection, *, task_id: str, attempt_id: str, epoch: int, facts: dict[str, Any], now_us: int
) -> Answer:
    """Drained or preempted: READY again at once, no retry used."""
    task, attempt, answer = _fence(connection, task_id, attempt_id, epoch, now_us)
    if answer is not Answer.ACCEPTED:
        return answer
    _end_attempt(connection, attempt, AttemptState.INTERRUPTED, now_us, facts=facts)
    if not facts.get("checkpoint"):
        money.waste(connection, attempt_id, now_us=now_us, note="interrupted")
    moves.apply(connection, task, Move.INTERRUPT, now_us=now_us, attempt_id=attempt_id)
    return Answer.ACCEPTED


def lose(connection: Connection, *, task_id: str, attempt_id: str, epoch: int, why: str, now_us: int) -> Answer:
    """The lease ran out, or the worker is gone. Costs one of the INFRA budget."""
    task, attempt, answer = _fence(connection, task_id, attempt_id, epoch, now_us)
    if answer is not Answer.ACCEPTED:
        return answer
    verdict = failures.judge(FailureClass.INFRA, task.failures)
    _end_attempt(connection, attempt, AttemptState.LOST, now_us, failure=FailureClass.INFRA.value, message=why)
    money.waste(connection, attempt_id, now_us=now_us, note="lost")
    how = Move.DIE if verdict.dead else Move.EXPIRE
    moves.apply(
        connection, task, how, now_us=now_us, attempt_id=attempt_id, reason=why, failures=verdict.counts,
        data={"failure": FailureClass.INFRA.value},
    )  # fmt: skip
    return Answer.ACCEPTED


def backoff_over(connection: Connection, *, now_us: int) -> list[str]:
    """Moves what has waited long enough back to READY; returns the ids."""
    due = connection.execute(
        select(tasks).where(tasks.c.state == State.BACKOFF.value, tasks.c.not_before_us <= now_us).limit(500)
    ).all()
    for task in due:
        moves.apply(connection, task, Move.BACKOFF_OVER, now_us=now_us, not_before_us=None)
    return [t.id for t in due]


def _fence(
    connection: Connection, task_id: str, attempt_id: str, epoch: int, now_us: int, *, adopt: bool = False
) -> tuple[Row[Any], Row[Any], Answer]:
    task = connection.execute(select(tasks).where(tasks.c.id == task_id)).one()
    attempt = connection.execute(select(attempts).where(attempts.c.id == attempt_id)).one()
    live = task.state == State.RUNNING.value and task.epoch == epoch and attempt.state == AttemptState.RUNNING.value
    if live:
        return task, attempt, Answer.ACCEPTED
    if adopt and attempt.state == AttemptState.LOST.value and task.epoch == epoch and task.generation == attempt.generation:
        if task.state in (State.READY.value, State.BACKOFF.value):
            return task, attempt, Answer.ACCEPTED
    if attempt.state == AttemptState.SUCCEEDED.value or (task.attempt_id == attempt_id and task.receipt_key):
        return task, attempt, Answer.DUPLICATE
    if attempt.state == AttemptState.RUNNING.value:
        _end_attempt(connection, attempt, AttemptState.SUPERSEDED, now_us)
        money.waste(connection, attempt_id, now_us=now_us, note="superseded")
    events.append(
        connection,
        attempt.job_id,
        at_us=now_us,
        kind="attempt.late_report",
        task_id=task_id,
        attempt_id=attempt_id,
        epoch=epoch,
    )
    return task, attempt, Answer.SUPERSEDED


def _end_attempt(
    connection: Connection, attempt: Row[Any], state: AttemptState, now_us: int, **columns: Any
) -> None:
    money.close_interval(connection, attempt.worker_id, now_us=now_us)
    connection.execute(
        update(attempts)
        .where(attempts.c.id == attempt.id, attempts.c.state == AttemptState.RUNNING.value)
        .values(state=state.value, ended_us=now_us, **columns)
    )


def cancel_running(connection: Connection, task: Row[Any], *, now_us: int) -> None:
    """Ends the running attempt of a task that is canceled or suspended; its worker learns of it by its heartbeat."""
    attempt = connection.execute(
        select(attempts).where(attempts.c.id == task.attempt_id, attempts.c.state == AttemptState.RUNNING.value)
    ).one_or_none()
    if attempt is not None:
        _end_attempt(connection, attempt, AttemptState.CANCELED, now_us)
        money.waste(connection, attempt.id, now_us=now_us, note="canceled")
