"""Jobs: submitting them, adding to them, reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, bindparam, func, insert, or_, select, tuple_

from cluster.assets import canonical_json, check_tenant
from cluster.errors import InvalidInput, NotFound
from cluster.graph import TaskSpec, flaw_of_text
from cluster.ledger import budgets, events, keys, moves, questions, shares
from cluster.ledger.database import padded
from cluster.ledger.schema import jobs, shows, tasks
from cluster.states import JobState, State, job_state

TIERS = ("interactive", "normal", "batch")
WITH_READY = (
    select(
        jobs.c.id,
        jobs.c.seq,
        jobs.c.n_ready,
        jobs.c.tenant,
        jobs.c.show,
        jobs.c.tier,
        jobs.c.priority,
        jobs.c.deadline_us,
        shows.c.share,
    )
    .join(shows, and_(shows.c.tenant == jobs.c.tenant, shows.c.name == jobs.c.show))
    .where(jobs.c.n_ready > 0, jobs.c.held.is_(False), jobs.c.target == "run", ~budgets.BLOCKED)
)


def _ready_tasks() -> Select[Any]:
    numbered = (
        select(
            tasks.c.id,
            tasks.c.job_id,
            tasks.c.role,
            tasks.c.model,
            tasks.c.epoch,
            tasks.c.weight,
            tasks.c.changed_us,
            tasks.c.key,
            tasks.c.failures,
            tasks.c.ordinal,
            func.row_number()
            .over(partition_by=(tasks.c.job_id, tasks.c.role, tasks.c.model), order_by=tasks.c.ordinal)
            .label("place"),
        )
        .join(jobs, jobs.c.id == tasks.c.job_id)
        .where(
            tasks.c.job_id.in_(bindparam("jobs", expanding=True)),
            tasks.c.state == State.READY.value,
            or_(
                tasks.c.generation > 0,
                tasks.c.content_key.is_(None),
                tuple_(jobs.c.tenant, tasks.c.content_key).not_in(questions.BEING_ANSWERED),
            ),
        )
        .subquery()
    )
    return select(numbered).where(numbered.c.place <= bindparam("most")).order_by(numbered.c.job_id, numbered.c.ordinal)


READY_TASKS = _ready_tasks()
PUBLIC = (
    *("id", "tenant", "show", "recipe", "version", "title", "spec", "tier", "priority", "deadline_us", "held"),
    *("seq", "num_tasks", "created_us", "ended_us", "request", "deleted_us", "estimate"),
)
"""Columns of a job that people see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """What is submitted: who asks, how urgent it is, and the brief as the recipe reads it."""

    recipe: str  # import string, "pipelines.recipes.film"
    title: str
    spec: dict[str, Any]
    version: int = 1
    tenant: str = "studio"
    show: str = "default"
    tier: str = "normal"
    priority: int = 50  # 0-100 inside the tier
    deadline_us: int | None = None
    idempotency_key: str | None = None
    request: dict[str, Any] = field(default_factory=dict)  # who asked, and what they want to read back
    asked: str | None = None  # SHA-256 of the request as it came, where that is not the spec

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise InvalidInput(f"no tier {self.tier!r}", field="tier", remedy=f"use one of {', '.join(TIERS)}")
        if not 0 <= self.priority <= 100:
            raise InvalidInput(f"priority must be from 0 to 100, got {self.priority}", field="priority")
        check_tenant(self.tenant)
        lines = {"recipe": 128, "title": 1000, "show": 64, "idempotency_key": 255}
        for name, longest in lines.items():
            value = getattr(self, name)
            text = value.replace("\n", " ") if name == "title" else value
            flaw = flaw_of_text(text, longest) if value is not None else None
            if flaw:
                raise InvalidInput(f"{name} {flaw}", field=name)

    def check_in_time(self, now_us: int) -> None:
        """Raises InvalidInput."""
        if self.deadline_us is not None and self.deadline_us <= now_us:
            raise InvalidInput("the deadline is over", field="deadline", remedy="use a later one, or none")

    def fingerprint(self) -> str:
        """Raises InvalidInput for a spec that is no JSON."""
        if self.asked is not None:
            return self.asked
        return hashlib.sha256(canonical_json([self.recipe, self.version, self.show, self.spec])).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """On what terms a job is taken. Predicted seconds are those of the tasks' weights."""

    most_in_flight_s: float | None = None  # of the tenant, or of `only_show`
    only_show: str | None = None
    same_since_us: int | None = None
    """An equal request of the same key since then is this one again, if one of the two calls itself a retry."""
    estimate: Mapping[str, Any] | None = None
    """Spans of `nano`, `elapsed_s` and `held_s` (p50, p95), and of a job that expands `to_come_s`: kept with the job,
    and held against its budgets and what may be in flight."""
    film: str | None = None  # that the job is a revision of, if it is there
    key: str | None = None  # the id of the one it was asked for with, which has to be good still; None: none was needed


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job as people see it."""

    id: str
    tenant: str
    show: str
    recipe: str
    version: int
    title: str
    spec: dict[str, Any]
    tier: str
    priority: int
    deadline_us: int | None
    held: bool
    seq: int
    num_tasks: int
    counts: dict[State, int] = field(default_factory=dict)
    created_us: int = 0
    ended_us: int | None = None
    request: dict[str, Any] = field(default_factory=dict)
    deleted_us: int | None = None
    estimate: dict[str, Any] | None = None  # as it was at submit: that of its `Terms`

    @property
    def state(self) -> JobState:
        return job_state(self.counts)

    @property
    def over(self) -> bool:
        return self.ended_us is not None


def submit(
    connection: Connection,
    spec: JobSpec,
    graph: Sequence[TaskSpec],
    *,
    job_id: str,
    ids: Sequence[str],
    now_us: int,
    terms: Terms | None = None,
) -> tuple[str, bool]:
    """Commits a job with its first tasks. Returns (id, created): a retried submit gets the id of the first.

    A `job_id` that is there already is this same call again, after a commit whose outcome nobody heard.
    Raises InvalidGraph, InvalidInput when the idempotency key was used for another question, RateLimited,
    OverBudget, and Unauthenticated.
    """
    if connection.execute(select(jobs.c.id).where(jobs.c.id == job_id)).one_or_none() is not None:
        return job_id, True
    before = made_before(connection, spec, terms)
    if before is not None:
        return before, False
    estimate = None if terms is None else terms.estimate
    if terms is not None and terms.key is not None:
        keys.check_known(connection, terms.key)
    if terms is not None and terms.film is None:  # one that is late may be changed still
        spec.check_in_time(now_us)
    if terms is not None and terms.most_in_flight_s is not None:
        keys.check_room(
            connection,
            spec.tenant,
            terms.only_show,
            more_s=sum(task.weight for task in graph) + (estimate or {}).get(keys.TO_COME_S, 0.0),
            most_s=terms.most_in_flight_s,
            roles={task.role for task in graph},
        )
    if shares.ensure(connection, spec.tenant, spec.show, now_us=now_us):
        film, likely_nano = None if terms is None else terms.film, round((estimate or {}).get("nano", {}).get("p50", 0))
        budgets.check(connection, spec.tenant, spec.show, film, likely_nano=likely_nano, now_us=now_us)
    connection.execute(
        insert(jobs).values(
            id=job_id,
            tenant=spec.tenant,
            show=spec.show,
            recipe=spec.recipe,
            version=spec.version,
            title=spec.title,
            spec=spec.spec,
            tier=spec.tier,
            priority=spec.priority,
            deadline_us=spec.deadline_us,
            held=False,
            target="run",
            idempotency_key=spec.idempotency_key,
            fingerprint=spec.fingerprint(),
            request=spec.request,
            estimate=None if estimate is None else dict(estimate),
            seq=0,
            num_tasks=0,
            created_us=now_us,
        )
    )
    events.append(
        connection,
        job_id,
        at_us=now_us,
        kind="job.created",
        data={
            "title": spec.title,
            "recipe": spec.recipe,
            "tier": spec.tier,
            "tenant": spec.tenant,
            "show": spec.show,
        },
    )
    moves.insert_tasks(connection, job_id, graph, ids=ids, now_us=now_us)
    return job_id, True


def made_before(connection: Connection, spec: JobSpec, terms: Terms | None) -> str | None:
    """The job that an equal request has made already, by its name or for it calls itself a retry.

    Raises InvalidInput when the idempotency key was used for another question.
    """
    if spec.idempotency_key is not None:
        known = connection.execute(
            select(jobs.c.id, jobs.c.fingerprint).where(
                jobs.c.tenant == spec.tenant, jobs.c.idempotency_key == spec.idempotency_key
            )
        ).one_or_none()
        if known is not None:
            if known.fingerprint != spec.fingerprint():
                raise InvalidInput(
                    "the idempotency key was used for another request",
                    field="idempotency_key",
                    remedy="use a new key for a new request",
                )
            return str(known.id)
        return None
    if terms is None or terms.same_since_us is None:
        return None
    return _asked_before(connection, spec, since_us=terms.same_since_us)


def _asked_before(connection: Connection, spec: JobSpec, *, since_us: int) -> str | None:
    """The newest job of an equal request without a name: what a client sent again has no name but its content."""
    query = (
        select(jobs.c.id, jobs.c.request)
        .where(
            jobs.c.tenant == spec.tenant,
            jobs.c.idempotency_key.is_(None),
            jobs.c.fingerprint == spec.fingerprint(),
            jobs.c.created_us >= since_us,
        )
        .order_by(jobs.c.created_us.desc())
        .limit(100)
    )
    for row in connection.execute(query):
        retries = spec.request.get("retry") or row.request.get("retry")
        if retries and row.request.get("key") == spec.request.get("key"):
            return str(row.id)
    return None


def read(connection: Connection, job_id: str) -> Job:
    """Raises NotFound."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}", remedy="`farm ls` lists them")
    return as_job(row)


def with_ready_tasks(connection: Connection) -> list[Row[Any]]:
    """What orders them, of each job with READY tasks that may run; `seq` tells of any change, `share` is its show's."""
    return list(connection.execute(WITH_READY))


def ready_tasks(connection: Connection, job_ids: Sequence[str], most: int) -> list[Row[Any]]:
    """The first READY tasks, `most` at most for each role and model of a job, in their order.

    A task whose question somebody is answering right now is left out: it will take that answer, or be told by an event
    of its job that the other one gave up.
    """
    found: list[Row[Any]] = []
    for first in range(0, len(job_ids), 256):  # of 20,000 tasks each: a statement has a bound of time
        found += connection.execute(READY_TASKS, {"jobs": padded(job_ids[first : first + 256]), "most": most})
    return found


def tasks_of(connection: Connection, job_id: str) -> list[Row[Any]]:
    return list(connection.execute(select(tasks).where(tasks.c.job_id == job_id).order_by(tasks.c.ordinal)))


def as_job(row: Row[Any]) -> Job:
    return Job(
        **{name: row._mapping[name] for name in PUBLIC},
        counts={s: n for s, n in moves.counts_of(row).items() if n},
    )
