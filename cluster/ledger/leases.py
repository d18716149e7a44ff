"""Leases and what ends them. Every write of an attempt carries (task, epoch); every write of a dispatcher its term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, or_, select, update

from cluster import failures, faults
from cluster.errors import FailureClass, InvalidGraph, NotFound, StaleTerm, WorkerLost
from cluster.graph import TaskSpec, with_new_seed
from cluster.ledger import attempts, events, money, moves, questions
from cluster.ledger.schema import attempts as attempts_table
from cluster.ledger.schema import dispatcher, jobs, tasks, workers
from cluster.states import AttemptState, Move, State

LONGEST_MESSAGE = 4_000

TERM = select(dispatcher.c.term)
ATTEMPT = select(attempts_table).where(attempts_table.c.id == bindparam("attempt"))
ANSWERED_ELSEWHERE = select(tasks.c.id).where(tasks.c.id == bindparam("task"), questions.ANSWERED_ELSEWHERE)
BY_REQUEST = (
    select(tasks)
    .join(attempts_table, attempts_table.c.id == tasks.c.attempt_id)
    .where(
        attempts_table.c.worker_id == bindparam("worker"),
        attempts_table.c.request_id == bindparam("request"),
        attempts_table.c.state == AttemptState.RUNNING.value,
        tasks.c.state == State.RUNNING.value,
    )
)
RUNNING = (
    select(
        attempts_table.c.task_id,
        attempts_table.c.id.label("attempt_id"),
        attempts_table.c.epoch,
        attempts_table.c.worker_id,
        attempts_table.c.job_id,
        tasks.c.step,
        tasks.c.role,
        tasks.c.model,
        tasks.c.weight,
        tasks.c.failures,
        jobs.c.tenant,
        jobs.c.tier,
    )
    .join(tasks, tasks.c.id == attempts_table.c.task_id)
    .join(jobs, jobs.c.id == attempts_table.c.job_id)
    .where(attempts_table.c.state == AttemptState.RUNNING.value)
)
EARLIER_POISON = (
    select(attempts_table.c.facts)
    .where(
        attempts_table.c.task_id == bindparam("task"),
        attempts_table.c.generation == bindparam("of"),
        attempts_table.c.failure == FailureClass.POISON.value,
    )
    .order_by(attempts_table.c.epoch.desc())
    .limit(1)
)
BACKOFF_OVER = (
    select(tasks)
    .where(
        tasks.c.state == State.BACKOFF.value,
        or_(tasks.c.not_before_us <= bindparam("now"), tasks.c.not_before_us > bindparam("latest")),
    )
    .order_by(tasks.c.not_before_us, tasks.c.id)
    .limit(500)
)


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
    current = connection.execute(TERM).scalar_one_or_none()
    if current != term:
        raise StaleTerm(f"dispatcher of term {term} has been replaced by term {current}")


def lease(
    connection: Connection, task_id: str, *, epoch: int, attempt_id: str, worker_id: str, request_id: str, now_us: int
) -> Row[Any] | None:
    """Gives the task to the worker under epoch + 1, if it is still READY at `epoch`. Returns its row, or None.

    A request that has a lease already gets that one again, whatever it asks now: one request, one lease. None too if
    the job is on hold or canceled, the worker drains, or somebody else is answering the same question. Raises
    WorkerLost for a worker that is not here: nobody would pay for its time.
    """
    again = leased_by_request(connection, worker_id, request_id)
    if again is not None:
        return again
    task = moves.read(connection, task_id)
    if task is None or task.state != State.READY.value or task.epoch != epoch:
        return None
    job = connection.execute(select(jobs.c.held, jobs.c.target).where(jobs.c.id == task.job_id)).one()
    waits = connection.execute(ANSWERED_ELSEWHERE, {"task": task_id}).one_or_none() is not None
    if job.held or job.target != "run" or waits:
        return None
    worker = connection.execute(select(workers.c.drain_us, workers.c.ended_us).where(workers.c.id == worker_id)).first()
    if worker is None or worker.ended_us is not None:
        raise WorkerLost(f"worker {worker_id} has left, or never joined", remedy="join first")
    if worker.drain_us is not None:
        return None
    money.close_interval(connection, worker_id, now_us=now_us)
    connection.execute(
        insert(attempts_table).values(
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
        connection, task, Move.LEASE, now_us=now_us, attempt_id=attempt_id, data={"worker": worker_id}, epoch=epoch + 1
    )
    return moves.read(connection, task_id)


def leased_by_request(connection: Connection, worker_id: str, request_id: str) -> Row[Any] | None:
    """The task of a lease whose reply was lost, if its attempt still runs."""
    return connection.execute(BY_REQUEST, {"worker": worker_id, "request": request_id}).one_or_none()


def running(connection: Connection) -> list[Row[Any]]:
    """Every attempt that runs, with what its task asks for; the columns of RUNNING."""
    return list(connection.execute(RUNNING))


def commit(
    connection: Connection,
    *,
    task_id: str,
    attempt_id: str,
    epoch: int,
    receipt_key: str,
    files: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    facts: Mapping[str, Any],
    children: Sequence[TaskSpec],
    child_ids: Sequence[str],
    now_us: int,
) -> Answer:
    """One transaction moves the task, books the cost and inserts the children. The receipt is verified already.

    Who waits for an answer to the same question takes this one. Raises InvalidGraph for children that the job cannot
    take; then nothing has happened.
    """
    task, attempt, answer = _fence(connection, task_id, attempt_id, epoch, AttemptState.SUCCEEDED, now_us)
    if answer is not Answer.ACCEPTED:
        return answer
    if children and not task.expands:
        raise InvalidGraph(f"task {task.key!r} does not expand, but reports {len(children)} children", field="children")
    adopted = attempt.state == AttemptState.LOST.value
    if adopted:
        money.redeem(connection, attempt_id, now_us=now_us, note="adopted")
        connection.execute(
            update(attempts_table).where(attempts_table.c.id == attempt_id).values(receipt_key=receipt_key, facts=facts)
        )
    else:
        attempts.end(connection, attempt, AttemptState.SUCCEEDED, now_us=now_us, receipt_key=receipt_key, facts=facts)
    resumed = attempts.settle_resumed(connection, attempt, facts.get("resumed_from"), now_us=now_us)
    tenant = connection.execute(select(jobs.c.tenant).where(jobs.c.id == task.job_id)).scalar_one()
    committed: dict[str, Any] = {"receipt_key": receipt_key, "files": files, "result": result}
    questions.keep(connection, tenant, task, attempt_id=attempt_id, now_us=now_us, **committed)
    if children:
        with faults.point("ledger.expand"):
            moves.insert_tasks(connection, task.job_id, children, ids=child_ids, now_us=now_us, by=attempt_id)
    how = {"adopted": True} if adopted else {"attempt": AttemptState.SUCCEEDED.value}
    more = {"resumed_from": resumed} if resumed else {}
    moves.apply(
        connection, task, Move.COMMIT, now_us=now_us, attempt_id=attempt_id,
        data={"receipt": receipt_key, **how, **more}, **committed,
    )  # fmt: skip
    _share(connection, tenant, task, now_us=now_us)
    return Answer.ACCEPTED


def _share(connection: Connection, tenant: str, task: Row[Any], *, now_us: int) -> None:
    """Who waits for an answer to the same question takes this one."""
    twins = questions.waiting_twins(connection, task) if not task.expands else []
    if twins:
        take = questions.answers(connection, tenant, [task.content_key])[task.content_key]
        batch = moves.Batch(connection, now_us=now_us)
        for twin in twins:
            batch.apply(twin, Move.CACHE_HIT, **moves.from_take(take))
        batch.close()


def fail(
    connection: Connection,
    *,
    task_id: str,
    attempt_id: str,
    epoch: int,
    failure: FailureClass,
    code: str,
    message: str,
    facts: Mapping[str, Any],
    now_us: int,
) -> Answer:
    """The attempt failed: again after a back-off, or dead when the budget of its class is spent.

    After a QUALITY failure the next attempt draws another take: the seed is derived from the old one.
    """
    task, attempt, answer = _fence(connection, task_id, attempt_id, epoch, AttemptState.FAILED, now_us)
    if answer is not Answer.ACCEPTED:
        return answer
    deadline_us = connection.execute(select(jobs.c.deadline_us).where(jobs.c.id == task.job_id)).scalar_one()
    left_s = None if deadline_us is None else (deadline_us - now_us) / 1e6
    verdict = failures.judge(failure, task.failures, left_s=left_s)
    message, code = _storable(message), _storable(code)[:64]
    attempts.end(
        connection, attempt, AttemptState.FAILED, now_us=now_us,
        failure=failure.value, code=code, message=message, facts=facts,
    )  # fmt: skip
    money.waste(connection, attempt_id, now_us=now_us, note=failure.value)
    data = {"failure": failure.value, "code": code, "message": message, "attempt": AttemptState.FAILED.value}
    again: dict[str, Any] = {}
    if not verdict.dead:
        again["not_before_us"] = now_us + round(verdict.delay_s * 1e6)
        params = with_new_seed(task.params) if failure is FailureClass.QUALITY else None
        if params is not None:
            again |= {"params": params, "content_key": None}
            data["seed"] = params["spec"]["seed"]
    moves.apply(
        connection, task, Move.DIE if verdict.dead else Move.RETRY_LATER, now_us=now_us, attempt_id=attempt_id,
        reason=message, data=data, failures=verdict.counts, **again,
    )  # fmt: skip
    return Answer.ACCEPTED


def interrupt(
    connection: Connection, *, task_id: str, attempt_id: str, epoch: int, facts: Mapping[str, Any], now_us: int
) -> Answer:
    """Drained or preempted: READY again at once, no retry used. What a checkpoint keeps is not wasted."""
    task, attempt, answer = _fence(connection, task_id, attempt_id, epoch, AttemptState.INTERRUPTED, now_us)
    if answer is not Answer.ACCEPTED:
        return answer
    attempts.end(connection, attempt, AttemptState.INTERRUPTED, now_us=now_us, facts=facts)
    if not facts.get("checkpoint"):
        money.waste(connection, attempt_id, now_us=now_us, note="interrupted")
    ended = {"attempt": AttemptState.INTERRUPTED.value}
    moves.apply(connection, task, Move.INTERRUPT, now_us=now_us, attempt_id=attempt_id, data=ended)
    return Answer.ACCEPTED


def lose(
    connection: Connection,
    *,
    task_id: str,
    attempt_id: str,
    epoch: int,
    why: str,
    now_us: int,
    failure: FailureClass = FailureClass.INFRA,
    end: AttemptState = AttemptState.LOST,
    facts: Mapping[str, Any] | None = None,
) -> Answer:
    """The lease ran out, the worker is gone, or (`end` STUCK) it was killed because nothing moved.

    Costs one of the INFRA budget, or of POISON if the caller saw the worker die; deaths count as POISON only as long
    as they come in one stage, which is `facts["stage"]`.
    """
    task, attempt, answer = _fence(connection, task_id, attempt_id, epoch, end, now_us)
    if answer is not Answer.ACCEPTED:
        return answer
    facts, before = dict(facts or {}), task.failures
    if failure is FailureClass.POISON and _poison_was_elsewhere(connection, attempt, facts.get("stage")):
        before = {k: n for k, n in before.items() if k != failure.value}
    verdict = failures.judge(failure, before)
    why = _storable(why)
    attempts.end(connection, attempt, end, now_us=now_us, failure=failure.value, message=why, facts=facts)
    money.waste(connection, attempt_id, now_us=now_us, note=end.value)
    how = Move.DIE if verdict.dead else Move.EXPIRE
    moves.apply(
        connection, task, how, now_us=now_us, attempt_id=attempt_id, reason=why, failures=verdict.counts,
        data={"failure": failure.value, "attempt": end.value, "stage": facts.get("stage")},
    )  # fmt: skip
    return Answer.ACCEPTED


def _poison_was_elsewhere(connection: Connection, attempt: Row[Any], stage: object) -> bool:
    earlier = connection.execute(EARLIER_POISON, {"task": attempt.task_id, "of": attempt.generation}).first()
    return earlier is not None and (earlier.facts or {}).get("stage") != stage


def backoff_over(connection: Connection, *, now_us: int) -> list[str]:
    """Moves what has waited long enough back to READY; returns the ids.

    An end further off than any back-off is long was written by a clock that has been set back since: it is over too.
    """
    latest_us = now_us + round(failures.LONGEST_DELAY_S * 1e6)
    due = connection.execute(BACKOFF_OVER, {"now": now_us, "latest": latest_us}).all()
    batch = moves.Batch(connection, now_us=now_us)
    for task in due:
        batch.apply(task, Move.BACKOFF_OVER, not_before_us=None)
    batch.close()
    return [t.id for t in due]


def _fence(
    connection: Connection, task_id: str, attempt_id: str, epoch: int, end: AttemptState, now_us: int
) -> tuple[Row[Any], Row[Any], Answer]:
    """Whether the task is still this attempt's own. A late report is written down and changes nothing else.

    An attempt that was lost may commit all the same while nothing has happened to its task since: no newer lease, no
    input opened again (both raise the epoch), no generation. Raises NotFound for ids that no ledger gave out.
    """
    task = moves.read(connection, task_id)
    attempt = connection.execute(ATTEMPT, {"attempt": attempt_id}).one_or_none()
    if task is None or attempt is None or attempt.task_id != task_id or attempt.epoch != epoch:
        raise NotFound(f"no attempt {attempt_id} of task {task_id} under epoch {epoch}")
    own = task.epoch == epoch and task.generation == attempt.generation
    if own and task.state == State.RUNNING.value and attempt.state == AttemptState.RUNNING.value:
        return task, attempt, Answer.ACCEPTED
    commits, lost = end is AttemptState.SUCCEEDED, attempt.state == AttemptState.LOST.value
    if commits and lost and own and task.state in (State.READY.value, State.DEAD.value):
        return task, attempt, Answer.ACCEPTED
    if (attempt.receipt_key is not None) if commits else (attempt.state == end.value):
        return task, attempt, Answer.DUPLICATE
    data = {"report": end.value, "attempt": attempt.state}
    events.append(
        connection, attempt.job_id, at_us=now_us, kind="attempt.late_report",
        task_id=task_id, attempt_id=attempt_id, epoch=epoch, data=data,
    )  # fmt: skip
    return task, attempt, Answer.SUPERSEDED


def _storable(message: str) -> str:
    """An error's own text may hold anything; a database takes neither NUL nor a lone surrogate."""
    return message.encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")[:LONGEST_MESSAGE]
