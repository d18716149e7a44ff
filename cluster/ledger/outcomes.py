"""Jobs as those who asked for them see them, one or a page: how far they are, what came out, why not, what it cost.

Who asks sees the jobs of one tenant, of one show if the key is bound to one, of the recipe whose page it is. What is
not among them is not there: another tenant's job takes the same statements as one that never was.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, true

from cluster.errors import NotFound
from cluster.ledger import budgets
from cluster.ledger import jobs as job_rows
from cluster.ledger.database import padded
from cluster.ledger.jobs import Job
from cluster.ledger.money import Spend
from cluster.ledger.schema import attempts, cost_lines, dispatcher, jobs, tasks, workers
from cluster.states import AttemptState, State

TASK = (
    *("id", "job_id", "key", "step", "role", "state", "weight", "files", "result", "params", "reason", "changed_us"),
    *("gate", "failures", "expands", "model"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """Whose jobs somebody may see; what is None bounds nothing."""

    tenant: str | None = None
    recipe: str | None = None
    show: str | None = None
    gone: bool = False  # what was deleted too: nobody is shown that, but it keeps its place and its name

    def covers(self) -> ColumnElement[bool]:
        bounds = ((jobs.c.tenant, self.tenant), (jobs.c.recipe, self.recipe), (jobs.c.show, self.show))
        there = true() if self.gone else jobs.c.deleted_us.is_(None)
        return and_(there, *(column == value for column, value in bounds if value is not None))


@dataclass(frozen=True, kw_only=True, slots=True)
class Broken:
    """Of the newest attempt of a job that failed."""

    code: str
    message: str
    failure: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    job: Job
    tasks: tuple[Mapping[str, Any], ...]  # the columns of TASK, in the order of the graph
    spend: Spend
    broken: Broken | None = None

    def file(self, key: str, name: str) -> dict[str, Any] | None:
        """A file, as in its receipt, that the task `key` has committed."""
        files = next((t["files"] for t in self.tasks if t["key"] == key and t["state"] == State.SUCCEEDED.value), None)
        return next((dict(f) for f in files or () if f["name"] == name), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    outcomes: tuple[Outcome, ...]
    has_more: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """All that may run or runs on the farm, as one look saw it."""

    before: tuple[str, ...]  # ids of the jobs with READY work that may run, the likely next one first
    ready_s: dict[str, float]  # predicted seconds of their READY tasks, by role
    running_s: dict[str, float]
    num_ready: dict[str, int]
    num_workers: dict[str, int]
    num_running: dict[str, int] = field(default_factory=dict)
    ready_by_tier_s: dict[tuple[str, str], float] = field(default_factory=dict)  # the same as ready_s, by tier too
    oldest_ready_us: dict[str, int] = field(default_factory=dict)  # since when the oldest of them is READY, by role


def find(connection: Connection, sight: Sight, job_id: str) -> Outcome:
    """Raises NotFound."""
    return of_jobs(connection, [seen(connection, sight, job_id)])[0]


def seen(connection: Connection, sight: Sight, job_id: str) -> Job:
    """The job alone. Raises NotFound."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id, sight.covers())).one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return job_rows.as_job(row)


def of(connection: Connection, ids: Sequence[str]) -> dict[str, Outcome]:
    """By id, of those of them that are there: for who has found each of them before."""
    rows = connection.execute(select(jobs).where(jobs.c.id.in_(padded(ids)), jobs.c.deleted_us.is_(None)))
    return {one.job.id: one for one in of_jobs(connection, [job_rows.as_job(row) for row in rows])}


def page(connection: Connection, sight: Sight, *, after: str | None, limit: int, newest_first: bool) -> Page:
    """The jobs that follow `after` (an id) in the order of their creation. Raises NotFound for an unknown `after`."""
    query = select(jobs).where(sight.covers())
    if after is not None:
        query = query.where(beyond(connection, sight, after, newest_first=newest_first))
    order = [c.desc() if newest_first else c.asc() for c in (jobs.c.created_us, jobs.c.id)]
    found = [job_rows.as_job(row) for row in connection.execute(query.order_by(*order).limit(limit + 1))]
    return Page(outcomes=tuple(of_jobs(connection, found[:limit])), has_more=len(found) > limit)


def beyond(connection: Connection, sight: Sight, after: str, *, newest_first: bool) -> ColumnElement[bool]:
    """Of the jobs that follow `after`, which may be deleted by now, in the order of their creation. Raises NotFound for
    an unknown `after`."""
    mark = connection.execute(
        select(jobs.c.created_us, jobs.c.id).where(jobs.c.id == after, replace(sight, gone=True).covers())
    ).one_or_none()
    if mark is None:
        raise NotFound(f"no job {after}", field="after")
    at, by_id = jobs.c.created_us, jobs.c.id
    if newest_first:
        return or_(at < mark.created_us, and_(at == mark.created_us, by_id < mark.id))
    return or_(at > mark.created_us, and_(at == mark.created_us, by_id > mark.id))


def backlog(connection: Connection) -> Backlog:
    """Three statements over what waits and runs. The true order follows shares; this one tier, deadline, priority and
    age."""
    rank = {tier: place for place, tier in enumerate(job_rows.TIERS)}
    waiting = connection.execute(
        select(jobs.c.id, jobs.c.tier, jobs.c.priority, jobs.c.deadline_us, jobs.c.created_us).where(
            jobs.c.n_ready > 0, jobs.c.held.is_(False), jobs.c.target == "run", ~budgets.BLOCKED
        )
    ).all()
    may_run = and_(jobs.c.held.is_(False), jobs.c.target == "run", ~budgets.BLOCKED)
    sums = (
        select(
            *(tasks.c.role, tasks.c.state, jobs.c.tier),
            *(func.count(), func.sum(tasks.c.weight), func.min(tasks.c.changed_us)),
        )
        .join(jobs, jobs.c.id == tasks.c.job_id)
        .where(or_(tasks.c.state == State.RUNNING.value, and_(tasks.c.state == State.READY.value, may_run)))
        .group_by(tasks.c.role, tasks.c.state, jobs.c.tier)
    )
    num: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    by_tier: dict[tuple[str, str], float] = {}
    oldest_us: dict[str, int] = {}
    for role, state, tier, count, sum_s, first_us in connection.execute(sums):
        num[state][role] += int(count)
        seconds[state][role] += float(sum_s)
        if state == State.READY.value:
            by_tier[role, tier] = float(sum_s)
            oldest_us[role] = min(first_us, oldest_us.get(role, first_us))

    def place(job: Any) -> tuple[Any, ...]:
        due_us = math.inf if job.deadline_us is None else job.deadline_us
        return rank[job.tier], due_us, -job.priority, job.created_us, job.id

    here = select(workers.c.role, func.count()).where(workers.c.ended_us.is_(None), workers.c.drain_us.is_(None))
    return Backlog(
        before=tuple(job.id for job in sorted(waiting, key=place)),
        ready_s=dict(seconds[State.READY.value]),
        running_s=dict(seconds[State.RUNNING.value]),
        num_ready=dict(num[State.READY.value]),
        num_workers={role: int(n) for role, n in connection.execute(here.group_by(workers.c.role))},
        num_running=dict(num[State.RUNNING.value]),
        ready_by_tier_s=by_tier,
        oldest_ready_us=oldest_us,
    )


def models_here(connection: Connection) -> set[str]:
    """Models that some worker holds now."""
    query = select(workers.c.model).distinct().where(workers.c.ended_us.is_(None), workers.c.model.is_not(None))
    return set(connection.execute(query).scalars())


def newest_dispatcher(connection: Connection) -> tuple[int, int | None]:
    """(its term, when it or one before it last said that it was alive); (0, None) if there has been none."""
    row = connection.execute(select(dispatcher.c.term, dispatcher.c.alive_us)).one_or_none()
    return (0, None) if row is None else (int(row.term), row.alive_us)


def newest_term(connection: Connection) -> int:
    """Of the dispatchers that this ledger has seen; 0 if it has seen none."""
    return int(connection.execute(select(func.coalesce(func.max(dispatcher.c.term), 0))).scalar_one())


def of_jobs(connection: Connection, found: Sequence[Job]) -> list[Outcome]:
    """Three statements, however many jobs: at most a page of them."""
    ids = [job.id for job in found]
    made: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    columns = [tasks.c[name] for name in TASK]
    for row in connection.execute(select(*columns).where(tasks.c.job_id.in_(ids)).order_by(tasks.c.ordinal)):
        made[row.job_id].append(dict(row._mapping))
    sums = (
        select(cost_lines.c.job_id, func.sum(cost_lines.c.nano), func.sum(cost_lines.c.held_us))
        .where(cost_lines.c.job_id.in_(ids))
        .group_by(cost_lines.c.job_id)
    )
    spends = {job: Spend(nano=int(nano), held_s=int(held) / 1e6) for job, nano, held in connection.execute(sums)}
    failed = (
        select(attempts.c.job_id, attempts.c.code, attempts.c.message, attempts.c.failure)
        .where(attempts.c.job_id.in_(ids), attempts.c.state == AttemptState.FAILED.value)
        .order_by(attempts.c.started_us)
    )
    broken = {
        row.job_id: Broken(code=row.code or "failed", message=row.message or "", failure=row.failure or "")
        for row in connection.execute(failed)
    }
    nothing = Spend(nano=0, held_s=0.0)
    return [
        Outcome(job=job, tasks=tuple(made[job.id]), spend=spends.get(job.id, nothing), broken=broken.get(job.id))
        for job in found
    ]
