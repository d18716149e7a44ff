"""What people ask the ledger: lists of jobs and tasks with what they cost, and what a verb would touch.

`live_us` is the instant up to which running attempts count as cost; None where no farm is at work: then nobody pays.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, not_, or_, select

from cluster.errors import NotFound
from cluster.fit import NOT_THE_WORKERS
from cluster.ledger import budgets, outcomes
from cluster.ledger import jobs as job_rows
from cluster.ledger.jobs import Job
from cluster.ledger.outcomes import Sight
from cluster.ledger.schema import attempts, cost_lines, edges, jobs, tasks, workers
from cluster.rates import cost_until, split
from cluster.states import DONE, OPEN, OVER, AttemptState, JobState, Move, State

BATCH = 5_000  # databases bound the parameters of a statement
FAILED = (AttemptState.FAILED.value, AttemptState.LOST.value, AttemptState.STUCK.value)


def _job_state() -> ColumnElement[str]:
    """`cluster.states.job_state`, as the database says it."""

    def has(*some: State) -> ColumnElement[bool]:
        return or_(*(jobs.c[f"n_{state.value}"] > 0 for state in some))

    waits, broken = has(*(OPEN - {State.PENDING})), has(State.DEAD, State.NOT_COMPATIBLE)
    active = has(*(OPEN - {State.PENDING, State.SUSPENDED}))
    return case(
        (and_(not_(waits), broken), JobState.FAILED.value),
        (and_(not_(waits), has(State.CANCELED)), JobState.CANCELED.value),
        (and_(not_(waits), has(State.PENDING, State.STALE)), JobState.FAILED.value),
        (not_(waits), JobState.SUCCEEDED.value),
        (not_(active), JobState.SUSPENDED.value),
        (broken, JobState.FAILING.value),
        (has(State.RUNNING), JobState.RUNNING.value),
        (and_(has(State.IN_REVIEW), not_(has(State.READY, State.BACKOFF))), JobState.IN_REVIEW.value),
        (has(*DONE), JobState.RUNNING.value),
        else_=JobState.QUEUED.value,
    )


JOB_STATE = _job_state()


@dataclass(frozen=True, kw_only=True, slots=True)
class JobLine:
    job: Job
    nano: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskLine:
    """A task with its newest attempt of this generation; `seconds` None: it has none."""

    id: str
    key: str
    step: str
    role: str
    model: str | None
    state: State
    reason: str | None
    generation: int
    failures: dict[str, int]
    num_attempts: int
    worker_id: str | None
    seconds: float | None
    nano: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Touched:
    """What a verb would do to the tasks of a job, and what was spent on them."""

    keys: tuple[str, ...]
    by_state: dict[State, int]
    nano: int
    num_stale: int  # tasks that are built on them and would be older than their inputs
    left_out: tuple[str, ...]  # cannot be opened again: an expansion was made from them, which is done once


def job_list(
    connection: Connection,
    *,
    sight: Sight,
    show: str | None,
    states: Collection[JobState],
    limit: int,
    live_us: int | None,
    after: str | None = None,
) -> list[JobLine]:
    """Newest first, at most `limit`, those that follow `after`; of all states if none is named. Raises NotFound."""
    query = select(jobs).where(sight.covers()).order_by(jobs.c.created_us.desc(), jobs.c.id.desc()).limit(limit)
    if show is not None:
        query = query.where(jobs.c.show == show)
    if states:
        query = query.where(JOB_STATE.in_([state.value for state in states]))
    if states and not set(states) & OVER:
        query = query.where(jobs.c.ended_us.is_(None))
    elif states and set(states) <= OVER:
        query = query.where(jobs.c.ended_us.is_not(None))
    if after is not None:
        query = query.where(outcomes.beyond(connection, sight, after, newest_first=True))
    found = [job_rows.as_job(row) for row in connection.execute(query)]
    nano = Counter[str]()
    for part in parts([job.id for job in found]):
        sums = select(cost_lines.c.job_id, func.sum(cost_lines.c.nano)).where(cost_lines.c.job_id.in_(part))
        nano.update({job: int(n) for job, n in connection.execute(sums.group_by(cost_lines.c.job_id))})
    for job_id, _, now in accruing(connection, live_us):
        nano[job_id] += now
    return [JobLine(job=job, nano=nano[job.id]) for job in found]


def task_list(
    connection: Connection,
    job_id: str,
    *,
    states: Collection[State],
    now_us: int,
    live_us: int | None,
    after: str | None = None,
    limit: int | None = None,
) -> list[TaskLine]:
    """The tasks of a job in the order of its graph, `limit` at most that follow `after` (an id), all if it is None;
    of all states if none is named. Raises NotFound for an unknown `after`."""
    columns = ("id", "key", "step", "role", "model", "state", "reason", "generation", "failures")
    query = select(*(tasks.c[name] for name in columns)).where(tasks.c.job_id == job_id).order_by(tasks.c.ordinal)
    if states:
        query = query.where(tasks.c.state.in_([state.value for state in states]))
    if after is not None:
        mark = select(tasks.c.ordinal).where(tasks.c.id == after, tasks.c.job_id == job_id)
        ordinal = connection.execute(mark).scalar_one_or_none()
        if ordinal is None:
            raise NotFound("no such task", field="after", remedy="use the id of a task of the job")
        query = query.where(tasks.c.ordinal > ordinal)
    query = query.limit(limit)
    names = ("task_id", "generation", "worker_id", "started_us", "ended_us")
    tried = select(*(attempts.c[name] for name in names)).where(attempts.c.job_id == job_id).order_by(attempts.c.epoch)
    by_task: dict[tuple[str, int], list[Row[Any]]] = defaultdict(list)
    for attempt in connection.execute(tried):
        by_task[attempt.task_id, attempt.generation].append(attempt)
    nano = nano_by_task(connection, job_id, live_us)
    lines = []
    for row in connection.execute(query):
        own = by_task[row.id, row.generation]
        last = own[-1] if own else None
        lines.append(
            TaskLine(
                **{**row._mapping, "state": State(row.state), "failures": dict(row.failures or {})},
                num_attempts=len(own),
                worker_id=last.worker_id if last else None,
                seconds=((last.ended_us or now_us) - last.started_us) / 1e6 if last else None,
                nano=nano[row.id],
            )
        )
    return lines


def nano_by_task(connection: Connection, job_id: str, live_us: int | None) -> Counter[str]:
    sums = select(cost_lines.c.task_id, func.sum(cost_lines.c.nano)).where(cost_lines.c.job_id == job_id)
    nano = Counter({t: int(n) for t, n in connection.execute(sums.group_by(cost_lines.c.task_id))})
    for its_job, task_id, now in accruing(connection, live_us):
        if its_job == job_id:
            nano[task_id] += now
    return nano


def nano_by_kind(connection: Connection, job_id: str, live_us: int | None) -> dict[str, int]:
    """busy, wasted, and `running`: what is not booked yet."""
    sums = select(cost_lines.c.kind, func.sum(cost_lines.c.nano)).where(cost_lines.c.job_id == job_id)
    nano = {kind: int(n) for kind, n in connection.execute(sums.group_by(cost_lines.c.kind))}
    running = sum(now for its_job, _, now in accruing(connection, live_us) if its_job == job_id)
    return {"busy": 0, "wasted": 0, **nano, "running": running}


def accruing(connection: Connection, live_us: int | None) -> list[tuple[str, str, int]]:
    """(job id, task id, nano-dollars) of each running attempt since its worker's time was last booked."""
    if live_us is None:
        return []
    query = (
        select(attempts.c.job_id, attempts.c.task_id, *workers.c)
        .join(workers, workers.c.id == attempts.c.worker_id)
        .where(attempts.c.state == AttemptState.RUNNING.value, workers.c.ended_us.is_(None))
        .order_by(attempts.c.started_us, attempts.c.id)
    )
    by_worker: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(query):
        by_worker[row.id].append(row)
    found = []
    for rows in by_worker.values():
        one = rows[0]
        until_us = max(live_us, one.since_us)
        nano = cost_until(one.nano_per_hour, until_us - one.spawned_us)
        nano -= cost_until(one.nano_per_hour, one.since_us - one.spawned_us)
        found += [(r.job_id, r.task_id, n) for r, n in zip(rows, split(nano, [1] * len(rows)), strict=True)]
    return found


def touched(
    connection: Connection,
    job_id: str,
    how: Move,
    *,
    keys: Collection[str],
    states: Collection[State],
    live_us: int | None,
) -> Touched:
    """Of the tasks of a job that have one of `keys` (any, if there are none) and are in one of `states`."""
    columns = ("id", "key", "state", "expands", "receipt_key")
    of_job = select(*(tasks.c[name] for name in columns)).where(tasks.c.job_id == job_id).order_by(tasks.c.ordinal)
    all_rows = {row.id: row for row in connection.execute(of_job)}
    asked = [r for r in all_rows.values() if r.state in set(states) and (not keys or r.key in set(keys))]
    fixed, stale = set[str](), set[str]()
    if how is Move.REOPEN:
        up, down = _edges(connection, job_id)
        expanded = [i for i, row in all_rows.items() if row.expands and row.receipt_key is not None]
        fixed = _reached(expanded, down, lambda _: True) | set(expanded)
        chosen = [row.id for row in asked if row.id not in fixed and State(row.state) in DONE]
        stale = _reached(chosen, up, lambda i: State(all_rows[i].state) in DONE)
    rows = [row for row in asked if row.id not in fixed]
    nano = nano_by_task(connection, job_id, live_us)
    return Touched(
        keys=tuple(row.key for row in rows),
        by_state={State(state): n for state, n in Counter(str(row.state) for row in rows).items()},
        nano=sum(nano[row.id] for row in rows),
        num_stale=len(stale - {row.id for row in rows}),
        left_out=tuple(row.key for row in asked if row.id in fixed),
    )


def _edges(connection: Connection, job_id: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Of a job: what is built on each task, and what each task needs."""
    up: dict[str, list[str]] = defaultdict(list)
    down: dict[str, list[str]] = defaultdict(list)
    pairs = select(edges.c.needs_id, edges.c.task_id).join(tasks, tasks.c.id == edges.c.task_id)
    for needed, task_id in connection.execute(pairs.where(tasks.c.job_id == job_id)):
        up[needed].append(task_id)
        down[task_id].append(needed)
    return up, down


def _reached(ids: Iterable[str], along: Mapping[str, list[str]], wanted: Callable[[str], bool]) -> set[str]:
    found: set[str] = set()
    ahead = list(ids)
    while ahead:
        for task_id in along.get(ahead.pop(), ()):
            if task_id not in found and wanted(task_id):
                found.add(task_id)
                ahead.append(task_id)
    return found


def job_files(connection: Connection, job_id: str) -> list[tuple[str, dict[str, Any]]]:
    """(key of its task, the file as in its receipt) of what nothing else in the job is built on."""
    inner = select(edges.c.needs_id).join(tasks, tasks.c.id == edges.c.task_id).where(tasks.c.job_id == job_id)
    query = select(tasks.c.key, tasks.c.files, tasks.c.result).where(tasks.c.job_id == job_id, tasks.c.id.not_in(inner))
    return [
        (row.key, file)
        for row in connection.execute(query.order_by(tasks.c.ordinal))
        for file in [*((row.result or {}).get("files") or ()), *(row.files or ())]
    ]


def up_since(connection: Connection, ids: Collection[str]) -> dict[str, int]:
    """When each of these workers had loaded and joined: the end of the first line of its bill."""
    query = select(cost_lines.c.worker_id, func.min(cost_lines.c.to_us))
    query = query.where(cost_lines.c.worker_id.in_(list(ids)), cost_lines.c.kind == "load")
    return {worker_id: int(us) for worker_id, us in connection.execute(query.group_by(cost_lines.c.worker_id))}


def failed_on(connection: Connection, task_id: str, generation: int) -> Counter[str]:
    """How often a task failed in this generation, by worker id and by node: what `fit.Asked` wants."""
    blames = or_(attempts.c.failure.is_(None), attempts.c.failure.not_in(NOT_THE_WORKERS))
    query = (
        select(attempts.c.worker_id, workers.c.node)
        .join(workers, workers.c.id == attempts.c.worker_id)
        .where(attempts.c.task_id == task_id, attempts.c.generation == generation, attempts.c.state.in_(FAILED), blames)
    )
    return Counter(place for row in connection.execute(query) for place in row)


def waiting_for(connection: Connection, *, most: int = 200) -> set[tuple[str, str | None]]:
    """(role, model) of READY tasks that may run: of the oldest and the newest `most` jobs, so that the look is short
    however long the queue is, and no kind of work is overlooked for ever."""
    may_run = select(jobs.c.id).where(jobs.c.n_ready > 0, jobs.c.held.is_(False), ~budgets.BLOCKED).limit(most)
    ids = {
        row.id
        for order in (jobs.c.created_us.asc(), jobs.c.created_us.desc())
        for row in connection.execute(may_run.order_by(order))
    }
    query = select(tasks.c.role, tasks.c.model).distinct()
    query = query.where(tasks.c.job_id.in_(ids), tasks.c.state == State.READY.value)
    return {(row.role, row.model) for row in connection.execute(query)}


def parts(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[first : first + BATCH] for first in range(0, len(ids), BATCH))
