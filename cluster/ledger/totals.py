"""Totals over the whole ledger, for `/metrics`: what grows with the bill is read once, what changes is counted anew.

Cost lines are only ever added, so their sums move along: each look reads those that came since the look before. On
PostgreSQL a line may be committed after others with higher numbers; lines are therefore read again until they are older
than any transaction can be. Jobs that are over are counted in an index of their own, without their rows.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, and_, bindparam, case, func, select

from cluster.budgets import Scope
from cluster.ledger import chores
from cluster.ledger.hooks import Progress
from cluster.ledger.schema import budgets, cost_lines, dispatcher, films, jobs, shows, token_minutes, workers
from cluster.ledger.schema import webhook_deliveries as deliveries
from cluster.states import OPEN, JobState, State, job_state

T = TypeVar("T")
CHUNK = 20_000
"""Lines of one look, so that none takes long however long the bill is."""
LATE_S = 180.0
"""A line that is not committed so long after one with a higher number never will be: statements are cut off at 60 s."""
OUTCOME = (State.PENDING, State.STALE, State.CANCELED, State.DEAD, State.NOT_COMPATIBLE)
"""Counters that tell how a job ended; the order of the index of those that are over."""
TOKENS = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens")


class Reader(Protocol):
    def view(self, look: Callable[[Connection], T]) -> T: ...


class What(NamedTuple):
    """Which lines are summed together."""

    kind: str
    accelerator: str | None
    price_class: str
    tenant: str
    show: str
    note: str | None


class Sums(NamedTuple):
    """Of lines that book, and of lines that take back: both only grow. Nano-dollars, microseconds, and the units of
    what a meter counted."""

    nano: int = 0
    reversed_nano: int = 0
    held_us: int = 0
    reversed_held_us: int = 0
    quantity: int = 0

    def plus(self, more: Sequence[int]) -> Sums:
        return Sums(*(a + int(b) for a, b in zip(self, more, strict=True)))


BY = tuple(cost_lines.c[name] for name in What._fields)
RANGE = (cost_lines.c.id > bindparam("after"), cost_lines.c.id <= bindparam("upto"))
LINES = (
    select(
        *BY,
        *(
            func.coalesce(func.sum(case((sign * column > 0, sign * column), else_=0)), 0)
            for column in (cost_lines.c.nano, cost_lines.c.held_us)
            for sign in (1, -1)
        ),
        func.coalesce(func.sum(cost_lines.c.quantity), 0),
    )
    .where(*RANGE)
    .group_by(*BY)
)
NEWEST = select(func.coalesce(func.max(cost_lines.c.id), 0))


class Bill:
    """The sums of all cost lines. Not for several threads at once."""

    def __init__(self, *, lines_come_in_order: bool, now_s: Callable[[], float] = time.monotonic) -> None:
        self._late_s = 0.0 if lines_come_in_order else LATE_S
        self._now_s = now_s
        self._upto = 0  # the lines up to this number are in `_settled`
        self._settled: dict[What, Sums] = {}
        self._newest: deque[tuple[float, int]] = deque()  # when which number was the newest

    def read(self, ledger: Reader) -> dict[What, Sums]:
        newest = ledger.view(lambda c: int(c.execute(NEWEST).scalar_one()))
        now_s = self._now_s()
        self._newest.append((now_s, newest))
        settled = self._upto
        while self._newest and now_s - self._newest[0][0] >= self._late_s:
            settled = max(settled, self._newest.popleft()[1])
        self._settled, self._upto = self._plus(ledger, self._settled, self._upto, settled), settled
        return self._plus(ledger, self._settled, settled, newest)

    def _plus(self, ledger: Reader, sums: Mapping[What, Sums], after: int, upto: int) -> dict[What, Sums]:
        """A copy: a look that fails halfway has added nothing."""
        to = dict(sums)
        for first in range(after, upto, CHUNK):
            part = {"after": first, "upto": min(first + CHUNK, upto)}
            for row in ledger.view(lambda c, part=part: c.execute(LINES, part).all()):  # type: ignore[misc]
                what = What(*row[: len(BY)])
                to[what] = to.get(what, Sums()).plus(row[len(BY) :])
        return to


class Capped(NamedTuple):
    """A budget. `show`: that it is of, or its film; None for that of a tenant."""

    scope: str
    tenant: str
    show: str | None
    cap_nano: int
    left_nano: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What is now. Ages are by the ledger's clock."""

    jobs: Mapping[tuple[str, JobState], int]  # by recipe
    tasks: Mapping[State, int]  # of jobs that are not over
    workers: Mapping[tuple[str, str | None, str, str, bool], int]  # role, model, accelerator, price class, drains
    tokens: Mapping[str, Mapping[str, int]]  # by model, by column of TOKENS
    shows: frozenset[tuple[str, str]]  # tenant, name
    budgets: Sequence[Capped]
    num_webhooks: int
    oldest_webhook_us: int | None
    alive_us: int | None
    terms: int
    chores: Mapping[str, int | None]  # when each last succeeded


def standing(connection: Connection) -> Standing:
    """Nine statements."""
    by_state, tasks = _jobs(connection)
    waits = select(func.count(), func.min(deliveries.c.created_us)).where(deliveries.c.progress == Progress.DUE.value)
    num_webhooks, oldest_us = connection.execute(waits).one()
    told = connection.execute(select(dispatcher.c.term, dispatcher.c.alive_us)).one_or_none()
    return Standing(
        jobs=by_state,
        tasks=tasks,
        workers=_workers(connection),
        tokens=_tokens(connection),
        shows=frozenset((row.tenant, row.name) for row in connection.execute(select(shows.c.tenant, shows.c.name))),
        budgets=_budgets(connection),
        num_webhooks=int(num_webhooks),
        oldest_webhook_us=oldest_us,
        alive_us=told.alive_us if told else None,
        terms=int(told.term) if told else 0,
        chores={one.name: one.done_us for one in chores.read(connection)},
    )


def _jobs(connection: Connection) -> tuple[Counter[tuple[str, JobState]], Counter[State]]:
    found: Counter[tuple[str, JobState]] = Counter()
    ended = [jobs.c[f"n_{state.value}"] for state in OUTCOME]
    over = select(jobs.c.recipe, *ended, func.count()).where(jobs.c.ended_us.is_not(None))
    for row in connection.execute(over.group_by(jobs.c.recipe, *ended)):
        counts = dict(zip(OUTCOME, row[1:-1], strict=True))
        found[row.recipe, job_state(counts)] += int(row[-1])
    has = [case((jobs.c[f"n_{state.value}"] > 0, 1), else_=0).label(f"has_{state.value}") for state in State]
    sums = [func.sum(jobs.c[f"n_{state.value}"]) for state in sorted(OPEN)]
    still = select(jobs.c.recipe, *has, func.count(), *sums).where(jobs.c.ended_us.is_(None))
    tasks: Counter[State] = Counter(dict.fromkeys(OPEN, 0))
    for row in connection.execute(still.group_by(jobs.c.recipe, *(column.name for column in has))):
        counts = dict(zip(State, row[1 : 1 + len(has)], strict=True))
        found[row.recipe, job_state(counts)] += int(row[1 + len(has)])
        tasks.update({state: int(n) for state, n in zip(sorted(OPEN), row[2 + len(has) :], strict=True)})
    return found, tasks


def _workers(connection: Connection) -> dict[tuple[str, str | None, str, str, bool], int]:
    drains = case((workers.c.drain_us.is_(None), 0), else_=1).label("drains")
    by = (workers.c.role, workers.c.model, workers.c.accelerator, workers.c.price_class)
    here = select(*by, drains, func.count()).where(workers.c.ended_us.is_(None)).group_by(*by, drains.name)
    return {(*row[:4], bool(row.drains)): int(row[-1]) for row in connection.execute(here)}


def _budgets(connection: Connection) -> list[Capped]:
    c = budgets.c
    show = case((c.scope == Scope.SHOW.value, c.subject), else_=films.c.show)
    left = c.cap_nano - c.spent_nano - c.reserved_nano
    of_film = and_(c.scope == Scope.FILM.value, films.c.id == c.subject)
    query = select(c.scope, c.tenant, show, c.cap_nano, left).select_from(budgets.outerjoin(films, of_film))
    return [Capped(*row) for row in connection.execute(query.order_by(c.id))]


def _tokens(connection: Connection) -> dict[str, dict[str, int]]:
    sums = select(token_minutes.c.model, *(func.sum(token_minutes.c[name]).label(name) for name in TOKENS))
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in connection.execute(sums.group_by(token_minutes.c.model)):
        found[row.model] = {name: int(row._mapping[name]) for name in TOKENS}
    return found


def dearest(bill: Mapping[What, Sums], most: int, known: frozenset[tuple[str, str]]) -> set[tuple[str, str]]:
    """The shows (tenant, name), of those that are known, that have cost most."""
    nano: Counter[tuple[str, str]] = Counter()
    for what, sums in bill.items():
        if (what.tenant, what.show) in known:
            nano[what.tenant, what.show] += sums.nano - sums.reversed_nano
    return set(sorted(nano, key=lambda show: (-nano[show], show))[:most])


def age_s(at_us: int | None, now_us: int) -> float:
    return 0.0 if at_us is None else max(0.0, (now_us - at_us) / 1e6)
