"""Films: what people name. A film is a chain of revisions, each of them a job; it answers with the newest one.

A revision asks again for the whole film: what has not changed is answered already, so what it costs is what changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, or_, select, update

from cluster.errors import IllegalMove, NotFound
from cluster.graph import TaskSpec
from cluster.ledger import events, jobs, keys, moves, operations, outcomes, questions
from cluster.ledger import schema as s
from cluster.ledger.jobs import Job, JobSpec, Terms
from cluster.ledger.money import Spend
from cluster.ledger.outcomes import Outcome, Sight
from cluster.ledger.schema import films, revisions, tasks
from cluster.states import OPEN, Move, State

LONGEST_REASON = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Revision:
    number: int  # from 1
    reason: str
    job: Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """`now` is the newest revision; `spend` is what all of them cost, `spend_by_key` the same by the keys of tasks."""

    id: str
    created_us: int
    now: Outcome
    revisions: tuple[Revision, ...]
    spend_by_key: dict[str, Spend]

    @property
    def spend(self) -> Spend:
        some = self.spend_by_key.values()
        return Spend(nano=sum(one.nano for one in some), held_s=sum(one.held_s for one in some))


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a new revision is made of, and of which one it was made: if that is not the newest, it is refused."""

    film_id: str
    of_job: str
    reason: str
    spec: JobSpec
    graph: Sequence[TaskSpec]
    approved: str | None = None  # a task whose answer is approved by the same transaction
    most_in_flight_s: float | None = None
    only_show: str | None = None
    estimate: Mapping[str, Any] | None = None
    key: str | None = None  # as in Terms


def begin(
    connection: Connection,
    spec: JobSpec,
    graph: Sequence[TaskSpec],
    *,
    film_id: str,
    job_id: str,
    ids: Sequence[str],
    now_us: int,
    terms: Terms | None,
) -> tuple[str, bool]:
    """(film id, created), with its first revision. A retried submit gets the first film; errors as of `jobs.submit`."""
    spec = replace(spec, request={**spec.request, "film": film_id})
    job_id, created = jobs.submit(connection, spec, graph, job_id=job_id, ids=ids, now_us=now_us, terms=terms)
    known = of_job(connection, job_id)
    if known is not None:
        return known, created
    connection.execute(
        insert(films).values(id=film_id, tenant=spec.tenant, show=spec.show, job_id=job_id, created_us=now_us)
    )
    connection.execute(insert(revisions).values(job_id=job_id, film_id=film_id, number=1, reason="created"))
    return film_id, True


def revise(connection: Connection, change: Change, *, job_id: str, ids: Sequence[str], now_us: int) -> None:
    """Takes on a new revision; what the one before has not ended is canceled, but for what the new one waits for too.

    The same `job_id` again is this same call again. Raises NotFound, IllegalMove if there is a newer revision than
    the one that was changed, RateLimited, Unauthenticated.
    """
    if connection.execute(select(revisions.c.job_id).where(revisions.c.job_id == job_id)).one_or_none() is not None:
        return
    film = _row(connection, change.film_id)
    if film.job_id != change.of_job:
        raise IllegalMove("the film has been revised meanwhile", field="film", remedy="look at it again")
    if change.approved is not None:
        task = moves.read(connection, change.approved)
        assert task is not None
        questions.approve(connection, film.tenant, task, now_us=now_us)
        who = {"task_id": task.id, "attempt_id": task.attempt_id}
        events.append(connection, task.job_id, at_us=now_us, kind="job.approved", data={"key": task.key}, **who)
    _check_room(connection, change)
    terms = Terms(estimate=change.estimate, film=change.film_id, key=change.key)
    jobs.submit(connection, change.spec, change.graph, job_id=job_id, ids=ids, now_us=now_us, terms=terms)
    before = jobs.read(connection, change.of_job)
    if before.held and not before.over:
        operations.set_held(connection, job_id, True, now_us=now_us)
    _supersede(connection, change.of_job, job_id, now_us=now_us)
    newest = select(func.max(revisions.c.number)).where(revisions.c.film_id == film.id)
    number = connection.execute(newest).scalar_one() + 1
    reason = change.reason[:LONGEST_REASON]
    connection.execute(insert(revisions).values(job_id=job_id, film_id=film.id, number=number, reason=reason))
    connection.execute(update(films).where(films.c.id == film.id).values(job_id=job_id))


def cancel(connection: Connection, film_id: str, *, now_us: int) -> None:
    """Nothing of it goes on, in any revision. Raises NotFound."""
    for revision in _revisions(connection, [_row(connection, film_id).id])[film_id]:
        if not revision.job.over:
            operations.cancel_job(connection, revision.job.id, now_us=now_us)


def delete(connection: Connection, film_id: str, *, now_us: int) -> None:
    """Nobody is shown it any more; its events and its bill stay. Raises NotFound."""
    for revision in _revisions(connection, [_row(connection, film_id).id])[film_id]:
        operations.delete_job(connection, revision.job.id, now_us=now_us)
    connection.execute(update(films).where(films.c.id == film_id).values(deleted_us=now_us))


def of_job(connection: Connection, job_id: str) -> str | None:
    """The film that this job is a revision of."""
    return connection.execute(select(revisions.c.film_id).where(revisions.c.job_id == job_id)).scalar_one_or_none()


def newest(connection: Connection, film_id: str) -> str:
    """The job of its newest revision. Raises NotFound."""
    return str(_row(connection, film_id).job_id)


def find(connection: Connection, sight: Sight, film_id: str) -> Film:
    """Raises NotFound."""
    row = connection.execute(select(films).where(films.c.id == film_id, _covered(sight))).one_or_none()
    if row is None:
        raise NotFound(f"no film {film_id}")
    return _films(connection, [row])[0]


def read(connection: Connection, film_id: str) -> Film:
    """Whosever it is. Raises NotFound."""
    return _films(connection, [_row(connection, film_id)])[0]


def page(
    connection: Connection, sight: Sight, *, after: str | None, limit: int, newest_first: bool
) -> tuple[list[Film], bool]:
    """(the films that follow `after` in the order of their creation, whether there are more). Raises NotFound."""
    query = select(films).where(_covered(sight))
    at, by_id = films.c.created_us, films.c.id
    if after is not None:
        known = _covered(replace(sight, gone=True))
        mark = connection.execute(select(at, by_id).where(by_id == after, known)).one_or_none()
        if mark is None:
            raise NotFound(f"no film {after}", field="after")
        if newest_first:
            query = query.where(or_(at < mark.created_us, and_(at == mark.created_us, by_id < mark.id)))
        else:
            query = query.where(or_(at > mark.created_us, and_(at == mark.created_us, by_id > mark.id)))
    order = [c.desc() if newest_first else c.asc() for c in (at, by_id)]
    rows = connection.execute(query.order_by(*order).limit(limit + 1)).all()
    return _films(connection, rows[:limit]), len(rows) > limit


def _covered(sight: Sight) -> ColumnElement[bool]:
    of_show = [] if sight.show is None else [films.c.show == sight.show]
    there = [] if sight.gone else [films.c.deleted_us.is_(None)]
    return and_(films.c.tenant == sight.tenant, *there, *of_show)


def _row(connection: Connection, film_id: str) -> Row[Any]:
    row = connection.execute(select(films).where(films.c.id == film_id, films.c.deleted_us.is_(None))).one_or_none()
    if row is None:
        raise NotFound(f"no film {film_id}")
    return row


def _films(connection: Connection, rows: Sequence[Row[Any]]) -> list[Film]:
    """As many statements for a page of them as for one."""
    made = _revisions(connection, [row.id for row in rows])
    newest = [next(r.job for r in made[row.id] if r.job.id == row.job_id) for row in rows]
    of_newest = {outcome.job.id: outcome for outcome in outcomes.of_jobs(connection, newest)}
    lines = s.cost_lines
    sums = (
        select(revisions.c.film_id, tasks.c.key, func.sum(lines.c.nano), func.sum(lines.c.held_us))
        .join(lines, revisions.c.job_id == lines.c.job_id)
        .join(tasks, tasks.c.id == lines.c.task_id)
        .where(revisions.c.film_id.in_([row.id for row in rows]))
        .group_by(revisions.c.film_id, tasks.c.key)
    )
    spent: dict[str, dict[str, Spend]] = defaultdict(dict)
    for film, key, nano, held_us in connection.execute(sums):
        spent[film][key] = Spend(nano=int(nano), held_s=int(held_us) / 1e6)
    return [
        Film(
            id=row.id,
            created_us=row.created_us,
            now=of_newest[row.job_id],
            revisions=tuple(made[row.id]),
            spend_by_key=spent[row.id],
        )
        for row in rows
    ]


def _revisions(connection: Connection, film_ids: Sequence[str]) -> dict[str, list[Revision]]:
    query = (
        select(revisions.c.film_id, revisions.c.number, revisions.c.reason, s.jobs)
        .join(s.jobs, s.jobs.c.id == revisions.c.job_id)
        .where(revisions.c.film_id.in_(film_ids))
        .order_by(revisions.c.number)
    )
    found: dict[str, list[Revision]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.film_id].append(Revision(number=row.number, reason=row.reason, job=jobs.as_job(row)))
    return found


def _supersede(connection: Connection, old_id: str, new_id: str, *, now_us: int) -> None:
    """Work that runs and that the new job asks for goes on: its answer is for both, and the new one's gate to hold."""
    waits = [state.value for state in OPEN]
    asked = select(tasks.c.content_key).where(tasks.c.job_id == new_id, tasks.c.state.in_(waits))
    left = connection.execute(
        select(tasks.c.key, tasks.c.state, tasks.c.content_key.in_(asked).label("wanted")).where(
            tasks.c.job_id == old_id, tasks.c.state.in_(waits)
        )
    ).all()
    kept = [task.key for task in left if task.wanted and task.state == State.RUNNING.value]
    if kept:
        of_old = and_(tasks.c.job_id == old_id, tasks.c.key.in_(kept))
        connection.execute(update(tasks).where(of_old).values(gate=None))
    request = connection.execute(select(s.jobs.c.request).where(s.jobs.c.id == old_id)).scalar_one()
    marked = update(s.jobs).where(s.jobs.c.id == old_id).values(request={**request, "superseded_by": new_id})
    connection.execute(marked)  # so that nobody is told of its end
    if left:
        data = {"by": new_id, "keeps": kept}
        events.append(connection, old_id, at_us=now_us, kind="job.superseded", data=data)
    gone = [task.key for task in left if task.key not in kept]
    why = "there is a newer revision of the film"
    operations.move_tasks(connection, old_id, Move.CANCEL, states=OPEN, keys=gone, now_us=now_us, reason=why)


def unanswered(connection: Connection, spec: JobSpec, graph: Sequence[TaskSpec]) -> list[TaskSpec]:
    """What of a graph somebody has to work on: the rest was made for an earlier revision, or for another film."""
    asked = {
        task.key: questions.key_of(task.to_json(), (), spec.version)
        for task in graph
        if task.cacheable and not task.needs
    }
    answered = questions.answers(connection, spec.tenant, asked.values())
    return [task for task in graph if asked.get(task.key) not in answered]


def _check_room(connection: Connection, change: Change) -> None:
    """Only what is new counts: what nobody has answered, less what the revision before would still have done."""
    if change.most_in_flight_s is None:
        return
    spec = change.spec
    new_s = sum(task.weight for task in unanswered(connection, spec, change.graph))
    to_come_s = (change.estimate or {}).get(keys.TO_COME_S, 0.0)
    more_s = new_s + to_come_s - keys.open_s(connection, s.jobs.c.id == change.of_job)
    if more_s > 0:
        keys.check_room(
            connection,
            spec.tenant,
            change.only_show,
            more_s=more_s,
            most_s=change.most_in_flight_s,
            roles={task.role for task in change.graph},
        )


def same_job(job: Job, spec: JobSpec) -> JobSpec:
    """`spec` on the terms of `job`: whose it is, how urgent, what its owner wants to read back."""
    names = ("tenant", "show", "tier", "priority", "deadline_us")
    kept = {name: getattr(job, name) for name in names}
    request = {name: value for name, value in job.request.items() if name not in ("retry", "superseded_by")}
    return replace(spec, **kept, request=request)
