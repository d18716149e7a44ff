"""Who works, and for whom: workers and shows, with what they do and cost. `live_us` is as in `views`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, literal, select

from cluster.errors import NotFound
from cluster.ledger.outcomes import Sight
from cluster.ledger.schema import attempts, cost_lines, jobs, shows, tasks, workers
from cluster.ledger.views import parts
from cluster.rates import cost_until
from cluster.states import AttemptState, State

WAITING = (State.READY, State.PENDING, State.BACKOFF)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerLine:
    """A worker with what it runs, as (job id, key of the task), and what it cost by kind, in nano-dollars."""

    row: Row[Any]
    running: tuple[tuple[str, str], ...]
    num_others: int  # that it runs too, out of sight
    nano: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowLine:
    tenant: str
    name: str
    share: float
    num_jobs: int  # that are not over
    num_running: int  # tasks, as are those that wait
    num_waiting: int
    nano: int


def worker_list(
    connection: Connection, *, sight: Sight, gone: bool, limit: int, live_us: int | None
) -> list[WorkerLine]:
    """Workers that are here, oldest first; with `gone` also those that have left, the last `limit` of all."""
    query = select(workers).order_by(workers.c.spawned_us.desc(), workers.c.id.desc()).limit(limit)
    if not gone:
        query = query.where(workers.c.ended_us.is_(None))
    return _worker_lines(connection, list(reversed(connection.execute(query).all())), sight, live_us)


def worker(connection: Connection, worker_id: str, *, sight: Sight, live_us: int | None) -> WorkerLine:
    """Raises NotFound."""
    rows = connection.execute(select(workers).where(workers.c.id == worker_id)).all()
    if not rows:
        raise NotFound(f"no worker {worker_id}", remedy="`farm workers` lists them")
    return _worker_lines(connection, rows, sight, live_us)[0]


def _worker_lines(
    connection: Connection, rows: Sequence[Row[Any]], sight: Sight, live_us: int | None
) -> list[WorkerLine]:
    ids = [row.id for row in rows]
    running: dict[str, list[tuple[str, str]]] = defaultdict(list)
    others = Counter[str]()
    nano: dict[str, Counter[str]] = defaultdict(Counter)
    for part in parts(ids):
        sums = select(cost_lines.c.worker_id, cost_lines.c.kind, func.sum(cost_lines.c.nano))
        sums = sums.where(cost_lines.c.worker_id.in_(part)).group_by(cost_lines.c.worker_id, cost_lines.c.kind)
        for worker_id, kind, booked in connection.execute(sums):
            nano[worker_id][kind] = int(booked)
        runs = (
            select(attempts.c.worker_id, attempts.c.job_id, tasks.c.key, sight.covers().label("seen"))
            .join(tasks, tasks.c.id == attempts.c.task_id)
            .join(jobs, jobs.c.id == attempts.c.job_id)
            .where(attempts.c.worker_id.in_(part), attempts.c.state == AttemptState.RUNNING.value)
        )
        for worker_id, job_id, key, seen in connection.execute(runs.order_by(attempts.c.started_us)):
            if seen:
                running[worker_id].append((job_id, key))
            else:
                others[worker_id] += 1
    for row in rows:
        if live_us is not None and row.ended_us is None:
            held_us, booked_us = max(live_us, row.since_us) - row.spawned_us, row.since_us - row.spawned_us
            more = cost_until(row.nano_per_hour, held_us) - cost_until(row.nano_per_hour, booked_us)
            nano[row.id]["busy" if running[row.id] or others[row.id] else "idle"] += more
    return [
        WorkerLine(row=row, running=tuple(running[row.id]), num_others=others[row.id], nano=dict(nano[row.id]))
        for row in rows
    ]


def show_list(connection: Connection, *, tenant: str | None, show: str | None) -> list[ShowLine]:
    """By name; of one tenant, and one show alone, if they are named."""
    bounds = [(name, value) for name, value in (("tenant", tenant), ("name", show)) if value is not None]
    query = select(shows).order_by(shows.c.tenant, shows.c.name)
    query = query.where(*(shows.c[name] == value for name, value in bounds))
    num_waiting = sum((jobs.c[f"n_{state.value}"] for state in WAITING), start=literal(0))
    of_jobs = (
        select(jobs.c.tenant, jobs.c.show, func.count(), func.sum(jobs.c.n_running), func.sum(num_waiting))
        .where(jobs.c.ended_us.is_(None))
        .group_by(jobs.c.tenant, jobs.c.show)
    )
    spent = select(cost_lines.c.tenant, cost_lines.c.show, func.sum(cost_lines.c.nano))
    spent = spent.group_by(cost_lines.c.tenant, cost_lines.c.show)
    for name, value in bounds:
        of_jobs = of_jobs.where(jobs.c["show" if name == "name" else name] == value)
        spent = spent.where(cost_lines.c["show" if name == "name" else name] == value)
    busy = {(row[0], row[1]): tuple(map(int, row[2:])) for row in connection.execute(of_jobs)}
    nano = {(row[0], row[1]): int(row[2]) for row in connection.execute(spent)}
    lines = []
    for row in connection.execute(query):
        num_jobs, num_running, waits = busy.get((row.tenant, row.name), (0, 0, 0))
        lines.append(
            ShowLine(
                tenant=row.tenant,
                name=row.name,
                share=row.share,
                num_jobs=num_jobs,
                num_running=num_running,
                num_waiting=waits,
                nano=nano.get((row.tenant, row.name), 0),
            )
        )
    return lines
