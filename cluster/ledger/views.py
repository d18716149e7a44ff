"""What people ask the ledger: lists of jobs, tasks and workers with what they cost, and what a verb would touch.

`live_us` is the instant up to which running attempts count as cost; None where no farm is at work: then nobody pays.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, or_, select

from cluster.ledger import jobs as job_rows
from cluster.ledger.jobs import Job
from cluster.ledger.schema import attempts, cost_lines, edges, jobs, tasks, workers
from cluster.rates import cost_until, split
from cluster.states import DONE, OVER, AttemptState, JobState, State

BATCH = 5_000  # databases bound the parameters of a statement
FAILED = (AttemptState.FAILED.value, AttemptState.LOST.value, AttemptState.STUCK.value)


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
class WorkerLine:
    """A worker with what it runs, as (job id, key of the task), and what it cost by kind, in nano-dollars."""

    row: Row[Any]
    running: tuple[tuple[str, str], ...]
    nano: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Touched:
    """What a verb would do: how many tasks, in which states, what was spent on them, and what would become stale."""

    num_tasks: int
    by_state: dict[State, int]
    nano: int
    num_stale: int


def like(
    connection: Connection, column: ColumnElement[str], part: str, *, prefix: str = "", most: int = 8
) -> list[str]:
    """Ids that begin with `part` (after `prefix` too) or end with it; one that is just `part` alone."""
    exact = connection.execute(select(column).where(column == part)).scalar_one_or_none()
    if exact is not None:
        return [exact]
    starts = or_(column.startswith(part, autoescape=True), column.startswith(prefix + part, autoescape=True))
    found = select(column).where(or_(starts, column.endswith(part, autoescape=True))).order_by(column).limit(most)
    return list(connection.execute(found).scalars())


def job_ids(connection: Connection, part: str) -> list[str]:
    return like(connection, jobs.c.id, part, prefix="job_")


def task_ids(connection: Connection, part: str) -> list[str]:
    return like(connection, tasks.c.id, part, prefix="task_")


def worker_ids(connection: Connection, part: str) -> list[str]:
    return like(connection, workers.c.id, part)


def job_list(
    connection: Connection, *, show: str | None, states: Collection[JobState], limit: int, live_us: int | None
) -> list[JobLine]:
    """Newest first, at most `limit`; of all states if none is named."""
    query = select(jobs).order_by(jobs.c.created_us.desc(), jobs.c.id.desc())
    if show is not None:
        query = query.where(jobs.c.show == show)
    if states and not set(states) & OVER:
        query = query.where(jobs.c.ended_us.is_(None))
    elif states and set(states) <= OVER:
        query = query.where(jobs.c.ended_us.is_not(None))
    found: list[Job] = []
    for row in connection.execute(query if states else query.limit(limit)):
        job = job_rows.as_job(row)
        if not states or job.state in states:
            found.append(job)
            if len(found) == limit:
                break
    nano = Counter[str]()
    for part in _parts([job.id for job in found]):
        sums = select(cost_lines.c.job_id, func.sum(cost_lines.c.nano)).where(cost_lines.c.job_id.in_(part))
        nano.update({job: int(n) for job, n in connection.execute(sums.group_by(cost_lines.c.job_id))})
    for job_id, _, now in accruing(connection, live_us):
        nano[job_id] += now
    return [JobLine(job=job, nano=nano[job.id]) for job in found]


def task_list(
    connection: Connection, job_id: str, *, states: Collection[State], now_us: int, live_us: int | None
) -> list[TaskLine]:
    """The tasks of a job in the order of its graph; of all states if none is named."""
    columns = ("id", "key", "step", "role", "model", "state", "reason", "generation", "failures")
    query = select(*(tasks.c[name] for name in columns)).where(tasks.c.job_id == job_id).order_by(tasks.c.ordinal)
    if states:
        query = query.where(tasks.c.state.in_([state.value for state in states]))
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


def worker_list(connection: Connection, *, gone: bool, limit: int, live_us: int | None) -> list[WorkerLine]:
    """Workers that are here, oldest first; with `gone` also those that have left, the last `limit` of all."""
    query = select(workers).order_by(workers.c.spawned_us.desc()).limit(limit)
    if not gone:
        query = query.where(workers.c.ended_us.is_(None))
    rows = list(reversed(connection.execute(query).all()))
    ids = [row.id for row in rows]
    running: dict[str, list[tuple[str, str]]] = defaultdict(list)
    nano: dict[str, Counter[str]] = defaultdict(Counter)
    for part in _parts(ids):
        sums = select(cost_lines.c.worker_id, cost_lines.c.kind, func.sum(cost_lines.c.nano))
        sums = sums.where(cost_lines.c.worker_id.in_(part)).group_by(cost_lines.c.worker_id, cost_lines.c.kind)
        for worker_id, kind, booked in connection.execute(sums):
            nano[worker_id][kind] = int(booked)
        runs = (
            select(attempts.c.worker_id, attempts.c.job_id, tasks.c.key)
            .join(tasks, tasks.c.id == attempts.c.task_id)
            .where(attempts.c.worker_id.in_(part), attempts.c.state == AttemptState.RUNNING.value)
        )
        for worker_id, job_id, key in connection.execute(runs.order_by(attempts.c.started_us)):
            running[worker_id].append((job_id, key))
    for row in rows:
        if live_us is not None and row.ended_us is None:
            held_us, booked_us = max(live_us, row.since_us) - row.spawned_us, row.since_us - row.spawned_us
            more = cost_until(row.nano_per_hour, held_us) - cost_until(row.nano_per_hour, booked_us)
            nano[row.id]["busy" if running[row.id] else "idle"] += more
    return [WorkerLine(row=row, running=tuple(running[row.id]), nano=dict(nano[row.id])) for row in rows]


def touched(
    connection: Connection, job_id: str, *, keys: Collection[str], states: Collection[State], live_us: int | None
) -> Touched:
    """Of the tasks of a job that have one of `keys` (any, if there are none) and are in one of `states`."""
    query = select(tasks.c.id, tasks.c.state).where(
        tasks.c.job_id == job_id, tasks.c.state.in_([state.value for state in states])
    )
    if keys:
        query = query.where(tasks.c.key.in_(list(keys)))
    rows = connection.execute(query).all()
    nano = nano_by_task(connection, job_id, live_us)
    ids = {row.id for row in rows}
    done = [row.id for row in rows if State(row.state) in DONE]
    return Touched(
        num_tasks=len(rows),
        by_state={State(state): n for state, n in Counter(row.state for row in rows).items()},
        nano=sum(nano[task_id] for task_id in ids),
        num_stale=len(_built_on(connection, job_id, done) - ids),
    )


def _built_on(connection: Connection, job_id: str, ids: Iterable[str]) -> set[str]:
    """The done tasks whose output would be older than an input if `ids` were opened again."""
    state = {row.id: row.state for row in connection.execute(select(tasks.c.id, tasks.c.state).where(_of(job_id)))}
    above: dict[str, list[str]] = defaultdict(list)
    pairs = select(edges.c.needs_id, edges.c.task_id).join(tasks, tasks.c.id == edges.c.task_id).where(_of(job_id))
    for needed, task_id in connection.execute(pairs):
        above[needed].append(task_id)
    found: set[str] = set()
    ahead = list(ids)
    while ahead:
        for task_id in above[ahead.pop()]:
            if task_id not in found and State(state[task_id]) in DONE:
                found.add(task_id)
                ahead.append(task_id)
    return found


def up_since(connection: Connection, ids: Collection[str]) -> dict[str, int]:
    """When each of these workers had loaded and joined: the end of the first line of its bill."""
    query = select(cost_lines.c.worker_id, func.min(cost_lines.c.to_us))
    query = query.where(cost_lines.c.worker_id.in_(list(ids)), cost_lines.c.kind == "load")
    return {worker_id: int(us) for worker_id, us in connection.execute(query.group_by(cost_lines.c.worker_id))}


def failed_on(connection: Connection, task_id: str, generation: int) -> Counter[str]:
    """How often a task failed in this generation, by worker id and by node: what `fit.Asked` wants."""
    query = (
        select(attempts.c.worker_id, workers.c.node)
        .join(workers, workers.c.id == attempts.c.worker_id)
        .where(attempts.c.task_id == task_id, attempts.c.generation == generation, attempts.c.state.in_(FAILED))
    )
    return Counter(place for row in connection.execute(query) for place in row)


def _of(job_id: str) -> ColumnElement[bool]:
    return tasks.c.job_id == job_id


def _parts(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[first : first + BATCH] for first in range(0, len(ids), BATCH))
