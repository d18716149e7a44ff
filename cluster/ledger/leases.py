"""Leases and what ends them. Every write of an attempt carries (task, epoch); every write of a dispatcher its term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, literal, or_, select, update

from cluster import failures, faults
from cluster.budgets import REASON, Purse, Reserves, nano_of
from cluster.errors import FailureClass, InvalidGraph, NotFound, StaleTerm, WorkerLost
from cluster.graph import TaskSpec, with_new_seed
from cluster.ledger import attempts, budgets, events, inventory, money, moves, questions
from cluster.ledger.database import padded
from cluster.ledger.schema import attempts as attempts_table
from cluster.ledger.schema import dispatcher, jobs, tasks, workers
from cluster.states import AttemptState, Move, State

LONGEST_MESSAGE = 4_000
LOST = "worker {} has left, or never joined"
S = AttemptState

TERM = select(dispatcher.c.term)
ATTEMPTS = select(attempts_table).where(attempts_table.c.id.in_(bindparam("attempts", expanding=True)))
JOBS = select(jobs).where(jobs.c.id.in_(bindparam("jobs", expanding=True)))
JOBS_TO_LEASE = select(jobs, budgets.BUDGETED.label("budgeted")).where(jobs.c.id.in_(bindparam("jobs", expanding=True)))
WORKERS = select(workers.c.id, workers.c.drain_us, workers.c.nano_per_hour, workers.c.accelerator).where(
    workers.c.id.in_(bindparam("workers", expanding=True)), workers.c.ended_us.is_(None)
)
ANSWERED_ELSEWHERE = select(tasks.c.id).where(
    tasks.c.id.in_(bindparam("tasks", expanding=True)), questions.ANSWERED_ELSEWHERE
)
BY_REQUEST = (
    select(tasks, attempts_table.c.worker_id, attempts_table.c.request_id)
    .join(attempts_table, attempts_table.c.id == tasks.c.attempt_id)
    .where(
        attempts_table.c.worker_id.in_(bindparam("workers", expanding=True)),
        attempts_table.c.request_id.in_(bindparam("requests", expanding=True)),
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
        attempts_table.c.reserved_nano,
        workers.c.nano_per_hour,
        workers.c.since_us,
        workers.c.ended_us,
    )
    .join(tasks, tasks.c.id == attempts_table.c.task_id)
    .join(jobs, jobs.c.id == attempts_table.c.job_id)
    .join(workers, workers.c.id == attempts_table.c.worker_id)
    .where(attempts_table.c.state == literal(AttemptState.RUNNING.value, literal_execute=True))  # finds its index
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
    MARKED = "marked"  # a file was about to be removed, for nobody needed it: put the files again, then report again
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A call of a worker for the task that a dispatcher has chosen for it."""

    task_id: str
    epoch: int
    worker_id: str
    request_id: str
    attempt_id: str  # of the attempt, if it comes to one


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """No lease, for a budget has no room: nothing of this `weight` gets one under it until something of it ends."""

    scope: str
    subject: str
    tenant: str
    job_id: str
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Leased:
    """What a worker needs to know of the task that it got."""

    task: Mapping[str, Any]
    job: Row[Any]
    inputs: list[Row[Any]]
    spends: dict[str, money.Spend]  # on the inputs, by task


def lease(
    connection: Connection, asks: Sequence[Ask], *, now_us: int, reserves: Reserves | None = None
) -> list[Leased | Held | WorkerLost | None]:
    """Gives each task to its worker under epoch + 1, if it is still READY at `epoch`; else None in its place.

    A request that has a lease already gets that one again, whatever it asks now: one request, one lease. None too if
    the job is on hold or canceled, the worker drains, or somebody else is answering the same question. WorkerLost
    stands for a worker that is not here: nobody would pay for its time, and Held for a task whose budget has no room
    for what `reserves` says that it takes. Many asks take about as many statements as one.
    """
    by_request: dict[tuple[str, str], Mapping[str, Any]] = {
        (row.worker_id, row.request_id): row._asdict() for row in _by_request(connection, asks)
    }
    new = [ask for ask in asks if (ask.worker_id, ask.request_id) not in by_request]
    of_asks = moves.read_all(connection, [ask.task_id for ask in new]) if new else {}
    job_ids = sorted({t.job_id for t in of_asks.values()} | {t["job_id"] for t in by_request.values()})
    its_job = {row.id: row for row in connection.execute(JOBS_TO_LEASE, {"jobs": padded(job_ids)})} if job_ids else {}
    here = (
        {row.id: row for row in connection.execute(WORKERS, {"workers": padded({a.worker_id for a in new})})}
        if new
        else {}
    )
    keyed = [t.id for t in of_asks.values() if t.content_key is not None and t.generation == 0]
    waits = set(connection.execute(ANSWERED_ELSEWHERE, {"tasks": padded(keyed)}).scalars()) if keyed else set[str]()
    till = budgets.Till(connection, [i for i, row in its_job.items() if row.budgeted], now_us=now_us)
    given: dict[tuple[str, str], Ask] = {}
    reserved: dict[str, int] = {}
    held: dict[tuple[str, str], Held] = {}
    taken: set[object] = set()
    for ask in new:
        task = of_asks.get(ask.task_id)
        if task is None or task.state != State.READY.value or task.epoch != ask.epoch:
            continue
        job, question = its_job[task.job_id], (its_job[task.job_id].tenant, task.content_key)
        fits = ask.worker_id in here and here[ask.worker_id].drain_us is None
        first = ask.task_id not in taken and (ask.worker_id, ask.request_id) not in given
        twin = task.id in waits or (task.generation == 0 and question in taken)
        if fits and first and not twin and not job.held and job.target == "run":
            grant = _reserve(till, task, here[ask.worker_id], reserves or Reserves())
            if isinstance(grant, Held):
                held[ask.worker_id, ask.request_id] = grant
                continue
            if grant is not None:
                reserved[ask.attempt_id] = grant
            given[ask.worker_id, ask.request_id] = ask
            taken |= {ask.task_id, question} if task.content_key is not None else {ask.task_id}
    if given:
        pairs = [(of_asks[ask.task_id], ask) for ask in given.values()]
        by_request |= _give(connection, pairs, reserved, now_us=now_us)
    till.close()
    orders = _orders(connection, by_request, its_job)
    found: list[Leased | Held | WorkerLost | None] = []
    for ask in asks:
        order = orders.get((ask.worker_id, ask.request_id))
        is_lost = order is None and ask.task_id in of_asks and ask.worker_id not in here
        held_back = order or held.get((ask.worker_id, ask.request_id))
        found.append(WorkerLost(LOST.format(ask.worker_id), remedy="join first") if is_lost else held_back)
    return found


def _reserve(till: budgets.Till, task: Row[Any], worker: Any, reserves: Reserves) -> int | Held | None:
    """Nano-dollars of the budgets above the task; None if there is none."""
    if not till.purses(task.job_id):
        return None
    need = reserves.need(
        step=task.step, model=task.model, params=task.params, weight=task.weight,
        nano_per_hour=worker.nano_per_hour, accelerator=worker.accelerator,
    )  # fmt: skip
    found = till.grant(task.job_id, need, stopped=task.weight if task.reason == REASON else None)
    if isinstance(found, Purse):
        return Held(**till.place(found), job_id=task.job_id, weight=task.weight)
    return found


def _by_request(connection: Connection, asks: Sequence[Ask]) -> list[Row[Any]]:
    wanted = {(ask.worker_id, ask.request_id) for ask in asks}
    names = {"workers": padded({w for w, _ in wanted}), "requests": padded({r for _, r in wanted})}
    return [row for row in connection.execute(BY_REQUEST, names) if (row.worker_id, row.request_id) in wanted]


def _give(
    connection: Connection, given: Sequence[tuple[Row[Any], Ask]], reserved: Mapping[str, int], *, now_us: int
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Returns the rows of the tasks as they are now, by request."""
    money.close_intervals(connection, sorted({ask.worker_id for _, ask in given}), now_us=now_us)
    rows = [
        {
            "id": ask.attempt_id,
            "task_id": task.id,
            "job_id": task.job_id,
            "epoch": ask.epoch + 1,
            "generation": task.generation,
            "worker_id": ask.worker_id,
            "request_id": ask.request_id,
            "state": AttemptState.RUNNING.value,
            "started_us": now_us,
            "reserved_nano": reserved.get(ask.attempt_id),
        }
        for task, ask in given
    ]
    connection.execute(insert(attempts_table), rows)
    moving = [
        {"attempt_id": ask.attempt_id, "epoch": ask.epoch + 1, "data": {"worker": ask.worker_id}} for _, ask in given
    ]
    batch = moves.Batch(connection, now_us=now_us)
    batch.apply_all(Move.LEASE, [(task, more) for (task, _), more in zip(given, moving, strict=True)])
    batch.close()
    now = {"state": State.RUNNING.value, "reason": None, "changed_us": now_us}
    return {
        (ask.worker_id, ask.request_id): {
            **task._asdict(), "attempt_id": ask.attempt_id, "epoch": ask.epoch + 1, **now
        }
        for task, ask in given
    }  # fmt: skip


def _orders(
    connection: Connection, by_request: Mapping[tuple[str, str], Mapping[str, Any]], its_job: Mapping[str, Row[Any]]
) -> dict[tuple[str, str], Leased]:
    inputs = moves.inputs_of_all(connection, [task["id"] for task in by_request.values()]) if by_request else {}
    spends = money.spent_on(connection, sorted({i.id for some in inputs.values() for i in some}))
    return {
        request: Leased(task=task, job=its_job[task["job_id"]], inputs=inputs.get(task["id"], []), spends=spends)
        for request, task in by_request.items()
    }


def leased_by_request(connection: Connection, worker_id: str, request_id: str, *, now_us: int) -> Leased | None:
    """The lease of a call whose reply was lost, if its attempt still runs."""
    ask = Ask(task_id="", epoch=0, worker_id=worker_id, request_id=request_id, attempt_id="")
    found = lease(connection, [ask], now_us=now_us)[0]
    assert not isinstance(found, WorkerLost | Held)
    return found


def extend(connection: Connection, attempt_ids: Sequence[str], *, now_us: int, reserves: Reserves) -> dict[str, bool]:
    """Attempts that are about to have spent what they reserved: what they cost so far is booked, and more is reserved.
    By id, whether they may go on; those that have ended are left out."""
    runs = [row for row in running(connection) if row.reserved_nano is not None and row.ended_us is None]
    rows = {row.attempt_id: row for row in runs if row.attempt_id in set(attempt_ids)}
    money.book_running(connection, sorted({row.worker_id for row in rows.values()}), now_us=now_us)
    till = budgets.Till(connection, sorted({row.job_id for row in runs}), now_us=now_us)
    for row in runs:
        used_s = 0.0 if row.attempt_id in rows else (now_us - row.since_us) / 1e6
        tied_nano = nano_of(used_s + reserves.slack_of(row.attempt_id), row.nano_per_hour)
        till.tie(row.job_id, min(row.reserved_nano, tied_nano))
    found, more = dict[str, bool](), list[dict[str, Any]]()
    for attempt_id, row in rows.items():
        slack_nano = nano_of(reserves.slack_of(attempt_id), row.nano_per_hour)
        told = {"attempt": attempt_id, "task": row.task_id, "worker": row.worker_id, "slack_nano": slack_nano}
        wanted = reserves.more_nano(attempt_id, weight=row.weight, nano_per_hour=row.nano_per_hour)
        grant = till.extend(row.job_id, more_nano=wanted, least_nano=slack_nano, stop=told)
        found[attempt_id] = grant is not None
        if grant:
            more.append({"attempt": attempt_id, "more": grant})
    if more:
        connection.execute(budgets.RESERVED, more)
    till.close()
    return found


def running(connection: Connection) -> list[Row[Any]]:
    """Every attempt that runs, with what its task asks for; the columns of RUNNING."""
    return list(connection.execute(RUNNING))


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """What an attempt made, by its receipt, which is verified already."""

    task_id: str
    attempt_id: str
    epoch: int
    receipt_key: str
    files: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]
    facts: Mapping[str, Any]
    children: Sequence[TaskSpec] = ()
    child_ids: Sequence[str] = ()


def commit(connection: Connection, commits: Sequence[Commit], *, now_us: int) -> list[Answer]:
    """One transaction moves the tasks, books the cost and inserts the children.

    Who waits for an answer to the same question takes this one. A commit that names a file which a collection has
    marked is answered MARKED, and nothing has happened to its task. Raises InvalidGraph for children that a job cannot
    take, and NotFound; then nothing has happened to any of them. Many commits take about as many statements as one.
    """
    claims = [(c.task_id, c.attempt_id, c.epoch) for c in commits]
    answers, accepted = list[Answer](), dict[str, tuple[Row[Any], Row[Any], Commit]]()
    for c, (task, attempt, answer) in zip(
        commits, _fence_all(connection, claims, S.SUCCEEDED, now_us=now_us), strict=True
    ):
        if answer is Answer.ACCEPTED and c.attempt_id in accepted:
            answer = Answer.DUPLICATE
        elif answer is Answer.ACCEPTED:
            accepted[c.attempt_id] = (task, attempt, c)
        answers.append(answer)
    if not accepted:
        return answers
    asked = {"jobs": padded({task.job_id for task, _, _ in accepted.values()})}
    its_job = {row.id: row for row in connection.execute(JOBS, asked)}
    named = {c.attempt_id: _named(its_job[task.job_id], c) for task, _, c in accepted.values()}
    rows = inventory.known(connection, {name for files in named.values() for name in files})
    marked = inventory.refused(connection, rows, now_us=now_us)
    late = {attempt_id for attempt_id, files in named.items() if marked & files.keys()}
    made = [accepted[attempt_id] for attempt_id in named if attempt_id not in late]
    if made:
        inventory.keep(
            connection, {n: f for _, _, c in made for n, f in named[c.attempt_id].items()}, rows, now_us=now_us
        )
        _book(connection, made, its_job, now_us=now_us)
    return [Answer.MARKED if c.attempt_id in late else answer for c, answer in zip(commits, answers, strict=True)]


def _named(job: Row[Any], c: Commit) -> dict[inventory.Name, Mapping[str, Any]]:
    return {(job.tenant, str(file["sha256"])): {**file, "show": job.show} for file in c.files}


def _book(
    connection: Connection,
    accepted: Sequence[tuple[Row[Any], Row[Any], Commit]],
    its_job: Mapping[str, Row[Any]],
    *,
    now_us: int,
) -> None:
    for task, _, c in accepted:
        if c.children and not task.expands:
            what = f"task {task.key!r} does not expand, but reports {len(c.children)} children"
            raise InvalidGraph(what, field="children")
    ending = [(a, {"receipt_key": c.receipt_key, "facts": c.facts}) for _, a, c in accepted if a.state != S.LOST.value]
    attempts.end_all(connection, ending, S.SUCCEEDED, now_us=now_us)
    kept = list[questions.Committed]()
    moving: dict[Move, list[tuple[Row[Any], dict[str, Any]]]] = {Move.COMMIT: [], Move.GATE: []}
    for task, attempt, c in accepted:
        adopted = attempt.state == S.LOST.value
        if adopted:
            _adopt(connection, c, now_us=now_us)
        resumed = list[str]()
        if c.epoch > 1:
            resumed = attempts.settle_resumed(connection, attempt, c.facts.get("resumed_from"), now_us=now_us)
        committed: dict[str, Any] = {"receipt_key": c.receipt_key, "files": c.files, "result": c.result}
        tenant = its_job[task.job_id].tenant
        kept.append(questions.Committed(tenant=tenant, task=task, attempt_id=c.attempt_id, **committed))
        if c.children:
            with faults.point("ledger.expand"):
                moves.insert_tasks(connection, task.job_id, c.children, ids=c.child_ids, now_us=now_us, by=c.attempt_id)
        ended = {"adopted": True} if adopted else {"attempt": S.SUCCEEDED.value}
        data = {"receipt": c.receipt_key, **ended, **({"resumed_from": resumed} if resumed else {})}
        how = Move.COMMIT if task.gate is None else Move.GATE
        moving[how].append((task, {"attempt_id": c.attempt_id, "data": data, **committed}))
    questions.keep(connection, kept, now_us=now_us)
    batch = moves.Batch(connection, now_us=now_us)
    for how, some in moving.items():
        if some:
            batch.apply_all(how, some)
    batch.close()
    _share(connection, kept, now_us=now_us)


def _adopt(connection: Connection, c: Commit, *, now_us: int) -> None:
    money.redeem(connection, c.attempt_id, now_us=now_us, note="adopted")
    connection.execute(
        update(attempts_table)
        .where(attempts_table.c.id == c.attempt_id)
        .values(receipt_key=c.receipt_key, facts=c.facts)
    )


def _share(connection: Connection, kept: Sequence[questions.Committed], *, now_us: int) -> None:
    """Who waits for an answer to the same question takes this one."""
    asked = {(c.tenant, c.task.content_key) for c in kept if c.task.content_key is not None and not c.task.expands}
    batch = moves.Batch(connection, now_us=now_us)
    for twin in questions.waiting_twins(connection, asked):
        take = questions.answers(connection, twin.tenant, [twin.content_key])[twin.content_key]
        batch.answer(twin, take)
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
    data = {
        "failure": failure.value, "code": code, "message": message,
        "attempt": AttemptState.FAILED.value, "kept_s": facts.get("kept_s", 0.0),
    }  # fmt: skip
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
    connection: Connection,
    *,
    task_id: str,
    attempt_id: str,
    epoch: int,
    facts: Mapping[str, Any],
    now_us: int,
    suspend: str | None = None,
) -> Answer:
    """Drained or preempted: READY again at once, no retry used; or SUSPENDED with the reason `suspend`. The commit that
    goes on from its checkpoint takes back that it was wasted."""
    task, attempt, answer = _fence(connection, task_id, attempt_id, epoch, AttemptState.INTERRUPTED, now_us)
    if answer is not Answer.ACCEPTED:
        return answer
    attempts.end(connection, attempt, AttemptState.INTERRUPTED, now_us=now_us, facts=facts)
    money.waste(connection, attempt_id, now_us=now_us, note="interrupted")
    ended = {"attempt": AttemptState.INTERRUPTED.value, "checkpoint": bool(facts.get("checkpoint"))}
    how = Move.INTERRUPT if suspend is None else Move.HOLD
    moves.apply(connection, task, how, now_us=now_us, attempt_id=attempt_id, data=ended, reason=suspend)
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
        data={
            "failure": failure.value, "attempt": end.value, "stage": facts.get("stage"),
            "kept_s": facts.get("kept_s", 0.0),
        },
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
    return _fence_all(connection, [(task_id, attempt_id, epoch)], end, now_us=now_us)[0]


def _fence_all(
    connection: Connection, claims: Sequence[tuple[str, str, int]], end: AttemptState, *, now_us: int
) -> list[tuple[Row[Any], Row[Any], Answer]]:
    """Whether each task is still the attempt's own. A late report is written down and changes nothing else.

    An attempt that was lost may commit all the same while nothing has happened to its task since: no newer lease, no
    input opened again (both raise the epoch), no generation. Raises NotFound for ids that no ledger gave out.
    """
    its_task = moves.read_all(connection, [task_id for task_id, _, _ in claims])
    attempt_ids = [attempt_id for _, attempt_id, _ in claims]
    its_attempt = {row.id: row for row in connection.execute(ATTEMPTS, {"attempts": padded(attempt_ids)})}
    fenced = list[tuple[Row[Any], Row[Any], Answer]]()
    for task_id, attempt_id, epoch in claims:
        task, attempt = its_task.get(task_id), its_attempt.get(attempt_id)
        if task is None or attempt is None or attempt.task_id != task_id or attempt.epoch != epoch:
            raise NotFound(f"no attempt {attempt_id} of task {task_id} under epoch {epoch}")
        own = task.epoch == epoch and task.generation == attempt.generation
        runs = task.state == State.RUNNING.value and attempt.state == S.RUNNING.value
        commits = end is S.SUCCEEDED
        adopted = commits and attempt.state == S.LOST.value and task.state in (State.READY.value, State.DEAD.value)
        if own and (runs or adopted):
            fenced.append((task, attempt, Answer.ACCEPTED))
        elif (attempt.receipt_key is not None) if commits else (attempt.state == end.value):
            fenced.append((task, attempt, Answer.DUPLICATE))
        else:
            data = {"report": end.value, "attempt": attempt.state}
            events.append(
                connection, attempt.job_id, at_us=now_us, kind="attempt.late_report",
                task_id=task_id, attempt_id=attempt_id, epoch=epoch, data=data,
            )  # fmt: skip
            fenced.append((task, attempt, Answer.SUPERSEDED))
    return fenced


def _storable(message: str) -> str:
    """An error's own text may hold anything; a database takes neither NUL nor a lone surrogate."""
    return message.encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")[:LONGEST_MESSAGE]
