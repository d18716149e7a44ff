"""What was spent, on what: sums of cost lines by show, film, shot, model, fleet or day, beside what they brought.

A line counts at the instant in which its time ended, or its hour was over; a correction counts where the line does that
it corrects. Minutes are those of moving pictures: finished is every take that is drawn, accepted one that is in a film
(and passed its gate, if it has one) or was asked for alone. Of a film its newest revision counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, literal, or_, select

from cluster.clock import to_datetime
from cluster.ledger.database import padded
from cluster.ledger.schema import attempts, cost_lines, edges, events, films, jobs, revisions, tasks, workers
from cluster.states import State

DAY_US = 86_400_000_000
BY_METER = {"storage": "(storage)", "egress": "(egress)", "tokens": "(tokens)"}
UNDONE = ("adopted", "resumed")
"""Why what had been booked as wasted was none: no reasons of waste."""
DRAWN = (State.SUCCEEDED.value, State.IN_REVIEW.value)


class By(StrEnum):
    SHOW = "show"
    FILM = "film"
    SHOT = "shot"
    MODEL = "model"
    FLEET = "fleet"
    DAY = "day"


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Whose lines, and of when; what is None bounds nothing. `until_us` is not part of it."""

    tenant: str | None = None
    show: str | None = None
    since_us: int | None = None
    until_us: int | None = None

    def of(self, tenant: ColumnElement[str], show: ColumnElement[str], at: ColumnElement[int]) -> ColumnElement[bool]:
        bounds = [
            *([] if self.tenant is None else [tenant == self.tenant]),
            *([] if self.show is None else [show == self.show]),
            *([] if self.since_us is None else [at >= self.since_us]),
            *([] if self.until_us is None else [at < self.until_us]),
        ]
        return and_(True, *bounds)


@dataclass(kw_only=True, slots=True)
class Group:
    """What one thing cost and brought. `nano_by_kind` has the kinds of cost lines."""

    name: str
    title: str | None = None
    nano_by_kind: Counter[str] = field(default_factory=Counter)
    held_us: int = 0
    finished_s: Fraction = Fraction(0)
    accepted_s: Fraction = Fraction(0)
    hits: int = 0
    saved_nano: int = 0
    saved_s: float = 0.0

    @property
    def nano(self) -> int:
        return self.nano_by_kind.total()


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """`groups`: the dearest first, days in their order. `wasted`: nano-dollars by reason, the most first."""

    groups: Sequence[Group]
    total: Group
    wasted: Mapping[str, int]


def costs(connection: Connection, by: By, span: Span) -> Costs:
    """Three looks: at the lines, at what was saved, at the takes."""
    naming = _Naming(connection, by)
    groups: dict[str, Group] = {}

    def group(where: _Where) -> Group:
        name, title = naming.of(where)
        return groups.setdefault(name, Group(name=name, title=title))

    lines = [*_sums(connection, by, span)]
    cached = [*_cached(connection, span)]
    takes = [*_takes(connection, span)]
    naming.learn([where for where, *_ in lines] + [where for where, *_ in cached] + [where for where, *_ in takes])
    for where, kind, nano, held_us in lines:
        one = group(where)
        one.nano_by_kind[kind] += nano
        one.held_us += held_us
    for where, data in cached:
        one = group(where)
        one.hits += 1
        one.saved_nano += int(data.get("saved_nano", 0))
        one.saved_s += float(data.get("saved_s", 0.0))
    for where, seconds, accepted in takes:
        one = group(where)
        one.finished_s += seconds
        one.accepted_s += seconds if accepted else 0
    found = sorted(groups.values(), key=(lambda g: (0, g.name)) if by is By.DAY else (lambda g: (-g.nano, g.name)))
    return Costs(groups=found, total=_total(found), wasted=_wasted(connection, span))


def fold(groups: Sequence[Group], name: str) -> Group:
    """Many as one."""
    return replace(_total(groups), name=name)


def _total(groups: Iterable[Group]) -> Group:
    whole = Group(name="total")
    for one in groups:
        whole.nano_by_kind.update(one.nano_by_kind)
        whole.held_us += one.held_us
        whole.finished_s += one.finished_s
        whole.accepted_s += one.accepted_s
        whole.hits += one.hits
        whole.saved_nano += one.saved_nano
        whole.saved_s += one.saved_s
    return whole


@dataclass(frozen=True, kw_only=True, slots=True)
class _Where:
    """Where a sum belongs, as far as the kind of group needs to know."""

    tenant: str | None = None
    show: str | None = None
    job_id: str | None = None
    task_id: str | None = None
    model: str | None = None
    worker_id: str | None = None
    day: int | None = None
    kind: str | None = None


def _sums(connection: Connection, by: By, span: Span) -> Iterator[tuple[_Where, str, int, int]]:
    """(where, kind, nano, held_us), summed by the database."""
    c = cost_lines.c
    keys: dict[By, dict[str, ColumnElement[Any]]] = {
        By.SHOW: {"tenant": c.tenant, "show": c.show},
        By.FILM: {"job_id": c.job_id},
        By.SHOT: {"task_id": c.task_id},
        By.MODEL: {"model": func.coalesce(c.model, tasks.c.model, workers.c.model)},
        By.FLEET: {"worker_id": c.worker_id},
        By.DAY: {"day": c.to_us - c.to_us % DAY_US},
    }
    chosen = keys[by]
    sums = (func.sum(c.nano).label("nano"), func.sum(c.held_us).label("held_us"))
    query = select(*(column.label(name) for name, column in chosen.items()), c.kind.label("of"), *sums)
    if by is By.MODEL:
        joined = cost_lines.outerjoin(tasks, tasks.c.id == c.task_id).outerjoin(workers, workers.c.id == c.worker_id)
        query = query.select_from(joined)
    query = query.where(span.of(c.tenant, c.show, c.to_us), *_booked_after(span))
    for row in connection.execute(query.group_by(*chosen.values(), c.kind)):
        where = _Where(**{name: row._mapping[name] for name in chosen}, kind=row.of)
        yield where, row.of, int(row.nano), int(row.held_us)


def _booked_after(span: Span) -> list[ColumnElement[bool]]:
    """No line is booked before its time is over: this finds the index."""
    return [] if span.since_us is None or span.tenant is None else [cost_lines.c.at_us >= span.since_us]


def _cached(connection: Connection, span: Span) -> Iterator[tuple[_Where, Mapping[str, Any]]]:
    """What each hit of the take cache saved."""
    query = (
        select(
            events.c.job_id,
            events.c.task_id,
            events.c.at_us,
            events.c.data,
            jobs.c.tenant,
            jobs.c.show,
            tasks.c.model,
            attempts.c.worker_id,
        )
        .join(jobs, jobs.c.id == events.c.job_id)
        .outerjoin(tasks, tasks.c.id == events.c.task_id)
        .outerjoin(attempts, attempts.c.id == events.c.attempt_id)
        .where(
            events.c.kind == literal("task.cached", literal_execute=True),
            span.of(jobs.c.tenant, jobs.c.show, events.c.at_us),
        )
    )
    for row in connection.execute(query):
        where = _Where(
            tenant=row.tenant, show=row.show, job_id=row.job_id, task_id=row.task_id, model=row.model,
            worker_id=row.worker_id, day=row.at_us - row.at_us % DAY_US,
        )  # fmt: skip
        yield where, row.data


def _takes(connection: Connection, span: Span) -> Iterator[tuple[_Where, Fraction, bool]]:
    """The moving takes that are drawn, how long each plays, and whether it is accepted."""
    cut = tasks.alias("cut")
    in_film = (
        select(edges.c.needs_id)
        .join(cut, cut.c.id == edges.c.task_id)
        .where(edges.c.needs_id == tasks.c.id, cut.c.step == "conform", cut.c.state == State.SUCCEEDED.value)
        .exists()
    )
    has_film = select(cut.c.id).where(cut.c.job_id == tasks.c.job_id, cut.c.step == "conform").exists()
    query = (
        select(
            tasks.c.id, tasks.c.job_id, tasks.c.model, tasks.c.result, tasks.c.changed_us, jobs.c.tenant, jobs.c.show,
            attempts.c.worker_id,
            and_(tasks.c.state == State.SUCCEEDED.value, or_(in_film, ~has_film)).label("accepted"),
        )
        .join(jobs, jobs.c.id == tasks.c.job_id)
        .outerjoin(attempts, attempts.c.id == tasks.c.attempt_id)
        .outerjoin(revisions, revisions.c.job_id == jobs.c.id)
        .outerjoin(films, films.c.id == revisions.c.film_id)
        .where(
            tasks.c.step == "render",
            tasks.c.state.in_(DRAWN),
            or_(films.c.id.is_(None), films.c.job_id == jobs.c.id),
            span.of(jobs.c.tenant, jobs.c.show, tasks.c.changed_us),
        )
    )  # fmt: skip
    for row in connection.execute(query):
        spec = (row.result or {}).get("spec") or {}
        num_frames = int(spec.get("num_frames", 0))
        if num_frames > 1 and (fps := Fraction(spec.get("fps", 0))) > 0:
            where = _Where(
                tenant=row.tenant, show=row.show, job_id=row.job_id, task_id=row.id, model=row.model,
                worker_id=row.worker_id, day=row.changed_us - row.changed_us % DAY_US,
            )  # fmt: skip
            yield where, num_frames / fps, bool(row.accepted)


def _wasted(connection: Connection, span: Span) -> dict[str, int]:
    c = cost_lines.c
    query = (
        select(c.attempt_id, c.note, func.sum(c.nano).label("nano"))
        .where(c.kind == "wasted", span.of(c.tenant, c.show, c.to_us), *_booked_after(span))
        .group_by(c.attempt_id, c.note)
    )
    by_attempt: dict[str, Counter[str]] = defaultdict(Counter)
    for row in connection.execute(query):
        by_attempt[row.attempt_id][row.note or "unknown"] += int(row.nano)
    wasted: Counter[str] = Counter()
    for notes in by_attempt.values():
        reason = next((note for note in notes if note not in UNDONE), "unknown")
        wasted[reason] += notes.total()
    return {reason: nano for reason, nano in wasted.most_common() if nano}


class _Naming:
    """How sums become groups: what their ids are called."""

    def __init__(self, connection: Connection, by: By) -> None:
        self._connection = connection
        self._by = by
        self._tasks: dict[str, Any] = {}
        self._jobs: dict[str, Any] = {}
        self._fleets: dict[str, str] = {}

    def learn(self, wheres: Sequence[_Where]) -> None:
        if self._by is By.SHOT:
            columns = (tasks.c.id, tasks.c.job_id, tasks.c.key, tasks.c.step)
            self._tasks = self._rows(select(*columns), tasks.c.id, {w.task_id for w in wheres})
        if self._by in (By.FILM, By.SHOT):
            of_tasks = {row.job_id for row in self._tasks.values()}
            source = select(jobs.c.id, jobs.c.title, revisions.c.film_id).outerjoin(
                revisions, revisions.c.job_id == jobs.c.id
            )
            self._jobs = self._rows(source, jobs.c.id, of_tasks | {w.job_id for w in wheres})
        if self._by is By.FLEET:
            here = select(workers.c.id, workers.c.fleet)
            found = self._rows(here, workers.c.id, {w.worker_id for w in wheres})
            self._fleets = {worker_id: row.fleet for worker_id, row in found.items()}

    def _rows(self, query: Any, key: ColumnElement[str], ids: set[str | None]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        asked = sorted(i for i in ids if i is not None)
        for first in range(0, len(asked), 5_000):  # databases bound the parameters of a statement
            rows = self._connection.execute(query.where(key.in_(padded(asked[first : first + 5_000]))))
            found |= {row.id: row for row in rows}
        return found

    def of(self, where: _Where) -> tuple[str, str | None]:
        """(name, title)."""
        return NAMES[self._by](self, where)

    def _show(self, where: _Where) -> tuple[str, str | None]:
        return f"{where.tenant}/{where.show}", None

    def _film(self, where: _Where) -> tuple[str, str | None]:
        job = self._jobs.get(where.job_id or "")
        if job is None:
            return _of_nobody(where), None
        return job.film_id or job.id, job.title

    def _shot(self, where: _Where) -> tuple[str, str | None]:
        task = self._tasks.get(where.task_id or "")
        if task is None:
            return _of_nobody(where), None
        name, title = self._film(replace(where, job_id=task.job_id))
        return f"{name}/{task.key.partition('.')[0]}", title

    def _model(self, where: _Where) -> tuple[str, str | None]:
        if where.model is not None:
            return where.model, None
        return (_of_nobody(where) if where.kind in (*BY_METER, "idle", "load") else "(no model)"), None

    def _fleet(self, where: _Where) -> tuple[str, str | None]:
        return self._fleets.get(where.worker_id or "", _of_nobody(where)), None

    def _day(self, where: _Where) -> tuple[str, str | None]:
        return f"{to_datetime(where.day or 0):%Y-%m-%d}", None


def _of_nobody(where: _Where) -> str:
    return BY_METER.get(where.kind or "", f"({where.kind})" if where.kind else "(others)")


NAMES: dict[By, Callable[[_Naming, _Where], tuple[str, str | None]]] = {
    By.SHOW: _Naming._show,
    By.FILM: _Naming._film,
    By.SHOT: _Naming._shot,
    By.MODEL: _Naming._model,
    By.FLEET: _Naming._fleet,
    By.DAY: _Naming._day,
}
