"""Budgets in the ledger: what each has spent and what runs under it has reserved, kept by the transaction that does it.

An attempt under a budget carries what it still reserves (`attempts.reserved_nano`). As its time is booked, that much
of it becomes spent; what is over when it ends goes back. So a lease asks one row for each budget above it, and a farm
without budgets asks nothing: the statements that read jobs and attempts say so by themselves.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    Connection,
    Exists,
    Row,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from cluster import budgets as rules
from cluster.budgets import Action, Budget, BudgetSpec, Need, Period, Purse, Scope, Threshold
from cluster.errors import NotFound, OverBudget
from cluster.ledger import budget_recount, hooks
from cluster.ledger.database import padded
from cluster.ledger.schema import attempts, budget_events, jobs, revisions, tasks
from cluster.ledger.schema import budgets as table
from cluster.rates import split, usd
from cluster.states import AttemptState, State

SKEW_US = 300_000_000
"""Clocks of a farm's machines differ by less: else who is behind would turn back what who is ahead has turned."""
FILM_OF_JOB = select(revisions.c.film_id).where(revisions.c.job_id == jobs.c.id).scalar_subquery()
ABOVE = and_(
    table.c.tenant == jobs.c.tenant,
    or_(
        table.c.scope == Scope.TENANT.value,
        and_(table.c.scope == Scope.SHOW.value, table.c.subject == jobs.c.show),
        and_(table.c.scope == Scope.FILM.value, table.c.subject == FILM_OF_JOB),
    ),
)
"""The budgets above a job."""
BUDGETED = exists().where(table.c.tenant == jobs.c.tenant)
"""Of a job: whether its tenant has any budget at all."""
BLOCKED = exists().where(ABOVE, table.c.acting.in_(rules.BLOCKING))
"""Of a job: nothing of it starts, for a budget above it says so."""
OF_JOBS = (
    select(table, jobs.c.id.label("job_id"))
    .select_from(table)
    .join(jobs, ABOVE)
    .where(jobs.c.id.in_(bindparam("jobs", expanding=True)))
    .order_by(table.c.id)
)
SPENT = (
    update(table)
    .where(table.c.id == bindparam("budget"))
    .values(
        spent_nano=table.c.spent_nano + bindparam("more_spent"),
        reserved_nano=table.c.reserved_nano + bindparam("more_reserved"),
    )
)
RESERVED = (
    update(attempts)
    .where(attempts.c.id == bindparam("attempt"))
    .values(reserved_nano=attempts.c.reserved_nano + bindparam("more"))
)
HELD = select(attempts.c.id, attempts.c.job_id, attempts.c.reserved_nano).where(
    attempts.c.id.in_(bindparam("attempts", expanding=True)), attempts.c.reserved_nano.is_not(None)
)
OVER = update(attempts).where(attempts.c.id.in_(bindparam("attempts", expanding=True))).values(reserved_nano=None)


@dataclass(slots=True)
class _Open:
    row: Row[Any]
    purse: Purse
    more_spent: int = 0
    more_reserved: int = 0
    tied_nano: int = 0  # of what is reserved: what is used by the time that who has it would hear of a stop
    full: bool = False  # there was no more, and none could come back
    stopped: list[dict[str, Any]] = field(default_factory=list)


class Till:
    """The budgets above some jobs, in one transaction: read once, counted in memory, written by `close`."""

    def __init__(self, connection: Connection, job_ids: Collection[str], *, now_us: int) -> None:
        self._connection, self._now_us = connection, now_us
        self._open: dict[str, _Open] = {}
        self._above: dict[str, list[str]] = defaultdict(list)
        for row in connection.execute(OF_JOBS, {"jobs": padded(job_ids)}) if job_ids else ():
            if row.id not in self._open:
                self._open[row.id] = _opened(connection, row, now_us)
            self._above[row.job_id].append(row.id)

    def purses(self, job_id: str) -> list[Purse]:
        return [self._open[i].purse for i in self._above.get(job_id, ())]

    def place(self, purse: Purse) -> dict[str, str]:
        """Whose budget it is."""
        row = self._open[purse.id].row
        return {"tenant": row.tenant, "scope": row.scope, "subject": row.subject}

    def grant(self, job_id: str, need: Need, *, stopped: float | None = None) -> int | Purse | None:
        """What a task of the job reserves; the budget that has no room for it; None if there is none above it.
        `stopped` is its weight if a budget stopped it: where it cannot go on, nothing can come back and nothing lighter
        is ready, the cap counts as reached."""
        purses = self.purses(job_id)
        if not purses:
            return None
        found = rules.granted(purses, need)
        if isinstance(found, int):
            self.move(job_id, spent=0, reserved=found)
        elif stopped is not None and not found.blocks and found.reserved_nano == 0:
            one = self._open[found.id]
            lighter = self._connection.execute(select(_ready_below(one.row, stopped))).scalar_one()
            one.full = one.full or not lighter
        return found

    def tie(self, job_id: str, nano: int) -> None:
        """So much of what an attempt of the job has reserved will not come back."""
        for budget_id in self._above.get(job_id, ()):
            self._open[budget_id].tied_nano += nano

    def extend(self, job_id: str, *, more_nano: int, least_nano: int, stop: dict[str, Any]) -> int | None:
        """What an attempt reserves more; None if it has to stop, which `stop` tells in the log of that budget."""
        while isinstance(
            found := rules.extended(self.purses(job_id), more_nano=more_nano, least_nano=least_nano), Purse
        ):
            one = self._open[found.id]
            one.full = one.full or found.cap_nano - found.spent_nano - one.tied_nano < least_nano
            if _at_the_cap(one) is not Action.FINISH:
                one.stopped.append(stop)
                return None
            found.acting = Action.FINISH.value
        self.move(job_id, spent=0, reserved=found)
        return found

    def move(self, job_id: str, *, spent: int, reserved: int) -> None:
        for budget_id in self._above.get(job_id, ()):
            one = self._open[budget_id]
            one.purse.spent_nano += spent
            one.purse.reserved_nano += reserved
            one.more_spent += spent
            one.more_reserved += reserved

    def close(self) -> None:
        """Writes what has changed, and tells of the thresholds that were reached."""
        changed = [one for one in self._open.values() if one.more_spent or one.more_reserved]
        if changed:
            rows = [
                {"budget": x.purse.id, "more_spent": x.more_spent, "more_reserved": x.more_reserved} for x in changed
            ]
            self._connection.execute(SPENT, rows)
        for one in self._open.values():
            for data in one.stopped:
                _log(self._connection, one.purse.id, "budget.stop", data, now_us=self._now_us)
            if one.more_spent > 0 or one.full:
                _judge(self._connection, one.row, one.purse, full=one.full, now_us=self._now_us)


def book(connection: Connection, lines: Sequence[tuple[str, str, int, int]], *, now_us: int) -> None:
    """Time of attempts under budgets was booked: (job id, attempt id, nano-dollars, what it had reserved)."""
    till = Till(connection, sorted({job for job, _, _, _ in lines}), now_us=now_us)
    less = []
    for job_id, attempt_id, nano, reserved in lines:
        used = max(0, min(nano, reserved))
        till.move(job_id, spent=nano, reserved=-used)
        if used:
            less.append({"attempt": attempt_id, "more": -used})
    if less:
        connection.execute(RESERVED, less)
    till.close()


def charge(connection: Connection, tenant: str, show: str | None, nano: int, *, now_us: int) -> None:
    """What no attempt costs, as tokens, storage and egress do: of a tenant and, if it is one's, of a show."""
    of_show = [] if show is None else [and_(table.c.scope == Scope.SHOW.value, table.c.subject == show)]
    query = select(table).where(table.c.tenant == tenant, or_(table.c.scope == Scope.TENANT.value, *of_show))
    for row in connection.execute(query.order_by(table.c.id)).all():
        one = _opened(connection, row, now_us)
        one.purse.spent_nano += nano
        connection.execute(SPENT, [{"budget": row.id, "more_spent": nano, "more_reserved": 0}])
        _judge(connection, one.row, one.purse, full=False, now_us=now_us)


def settle(connection: Connection, attempt_ids: Collection[str], *, now_us: int) -> None:
    """These attempts are over and booked: what is left of what they reserved goes back."""
    held = connection.execute(HELD, {"attempts": padded(attempt_ids)}).all()
    if not held:
        return
    till = Till(connection, sorted({row.job_id for row in held}), now_us=now_us)
    for row in held:
        till.move(row.job_id, spent=0, reserved=-row.reserved_nano)
    till.close()
    connection.execute(OVER, {"attempts": padded(row.id for row in held)})


def check(
    connection: Connection, tenant: str, show: str, film_id: str | None, *, likely_nano: int, now_us: int
) -> None:
    """Whether a job of them may be taken on. Raises OverBudget with the first that has no room for it."""
    scopes = [table.c.scope == Scope.TENANT.value, and_(table.c.scope == Scope.SHOW.value, table.c.subject == show)]
    if film_id is not None:
        scopes.append(and_(table.c.scope == Scope.FILM.value, table.c.subject == film_id))
    rows = connection.execute(select(table).where(table.c.tenant == tenant, or_(*scopes)).order_by(table.c.id)).all()
    for row in rows:
        purse = _opened(connection, row, now_us).purse
        if purse.blocks or purse.room_nano < max(1, likely_nano):
            name = f"the {row.scope} {row.subject}".strip()
            why = f"{purse.acting} at its threshold" if purse.blocks else f"{_dollars(purse.room_nano)} left"
            again = "" if row.until_us is None else ", or wait for the next month"
            raise OverBudget(
                f"the budget of {name} is {_dollars(purse.cap_nano)}, {why}; this is estimated at "
                f"{_dollars(likely_nano)}",
                field=row.scope,
                remedy=f"ask for less, raise the cap (farm budget set {row.scope} {row.subject}".rstrip()
                + f" --cap USD){again}",
            )  # fmt: skip


def put(connection: Connection, budget_id: str, spec: BudgetSpec, *, now_us: int) -> Budget:
    """The one budget of this scope, as `spec` says from now on. What it has spent is counted from the cost lines: the
    caller has booked what runs under it."""
    subject = and_(table.c.tenant == spec.tenant, table.c.scope == spec.scope.value, table.c.subject == spec.subject)
    _check_subject(connection, spec)
    known = connection.execute(select(table.c.id, table.c.created_us).where(subject)).one_or_none()
    from_us, until_us = rules.month(now_us) if spec.period is Period.MONTH else (0, None)
    if known is None:
        values = {"id": budget_id, "tenant": spec.tenant, "scope": spec.scope.value, "subject": spec.subject}
        nothing: dict[str, Any] = {"spent_nano": 0, "reserved_nano": 0, "fired": []}
        terms: dict[str, Any] = {"cap_nano": spec.cap_nano, "period": spec.period.value, "thresholds": []}
        instants = {"created_us": now_us, "changed_us": now_us, "from_us": from_us, "until_us": until_us}
        connection.execute(insert(table).values(**values, **nothing, **terms, **instants))
        under = select(attempts.c.id).join(jobs, jobs.c.id == attempts.c.job_id).join(table, ABOVE)
        running = under.where(table.c.id == budget_id, attempts.c.state == AttemptState.RUNNING.value)
        connection.execute(
            update(attempts)
            .where(attempts.c.id.in_(running), attempts.c.reserved_nano.is_(None))
            .values(reserved_nano=0)
        )
    budget_id = budget_id if known is None else known.id
    connection.execute(
        update(table)
        .where(table.c.id == budget_id)
        .values(
            cap_nano=spec.cap_nano,
            period=spec.period.value,
            thresholds=[one.to_json() for one in spec.thresholds],
            from_us=from_us,
            until_us=until_us,
            changed_us=now_us,
            fired=[],
            acting=None,
        )
    )
    row = _row(connection, budget_id)
    spent_nano = budget_recount.spent(connection, row)
    _trim(connection, row, room_nano=max(0, spec.cap_nano - spent_nano), now_us=now_us)
    counted = {"spent_nano": spent_nano, "reserved_nano": budget_recount.reserved(connection, row)}
    connection.execute(update(table).where(table.c.id == budget_id).values(**counted))
    data = {
        "cap_nano": spec.cap_nano, "period": spec.period.value, "spent_nano": counted["spent_nano"],
        "thresholds": [one.to_json() for one in spec.thresholds],
        "slack_nano": budget_recount.slack(connection, row, rules.Reserves().slack_s),  # a dispatcher looks more often
    }  # fmt: skip
    _log(connection, budget_id, "budget.set", data, now_us=now_us)
    row = _row(connection, budget_id)
    _judge(connection, row, _purse(row), full=False, now_us=now_us)
    return find(connection, spec.tenant, budget_id)


def _trim(connection: Connection, row: Row[Any], *, room_nano: int, now_us: int) -> None:
    """What runs under a budget has reserved no more than there is room for. Whoever nears its part asks again."""
    query = select(attempts.c.id, attempts.c.job_id, attempts.c.reserved_nano).join(
        jobs, jobs.c.id == attempts.c.job_id
    )
    runs = (attempts.c.state == AttemptState.RUNNING.value, attempts.c.reserved_nano > 0)
    held = connection.execute(query.where(*runs, budget_recount.jobs_under(row)).order_by(attempts.c.id)).all()
    reserved = [one.reserved_nano for one in held]
    if sum(reserved) <= room_nano:
        return
    less = [part - had for part, had in zip(split(room_nano, reserved), reserved, strict=True)]
    till = Till(connection, sorted({one.job_id for one in held}), now_us=now_us)
    for one, more in zip(held, less, strict=True):
        till.move(one.job_id, spent=0, reserved=more)
    till.close()
    connection.execute(RESERVED, [{"attempt": one.id, "more": more} for one, more in zip(held, less, strict=True)])


def workers_under(connection: Connection, spec: BudgetSpec) -> list[str]:
    """Who runs something under a budget."""
    query = select(attempts.c.worker_id).distinct().join(jobs, jobs.c.id == attempts.c.job_id)
    runs = attempts.c.state == AttemptState.RUNNING.value
    return list(
        connection.execute(query.where(runs, budget_recount.jobs_under(spec)).order_by(attempts.c.worker_id)).scalars()
    )


def remove(connection: Connection, tenant: str, budget_id: str, *, now_us: int) -> None:
    """What it held goes on. Raises NotFound."""
    find(connection, tenant, budget_id)
    connection.execute(delete(table).where(table.c.id == budget_id))
    _log(connection, budget_id, "budget.remove", {}, now_us=now_us)


def find(connection: Connection, tenant: str | None, budget_id: str) -> Budget:
    """Raises NotFound."""
    row = connection.execute(select(table).where(table.c.id == budget_id)).one_or_none()
    if row is None or tenant not in (None, row.tenant):
        raise NotFound("no such budget", field="budget", remedy="`farm budget ls` lists them")
    return as_budget(row)


def listed(connection: Connection, *, tenant: str | None = None, show: str | None = None) -> list[Budget]:
    """Of a tenant; of one show of it, with its films, if `show` is given."""
    query = select(table).order_by(table.c.tenant, table.c.created_us, table.c.id)
    if tenant is not None:
        query = query.where(table.c.tenant == tenant)
    if show is not None:
        from cluster.ledger.schema import films

        own = select(films.c.id).where(films.c.tenant == table.c.tenant, films.c.show == show)
        of_film = and_(table.c.scope == Scope.FILM.value, table.c.subject.in_(own))
        query = query.where(or_(and_(table.c.scope == Scope.SHOW.value, table.c.subject == show), of_film))
    return [as_budget(row) for row in connection.execute(query)]


def astray(connection: Connection) -> list[Budget]:
    """Those of a show in which nothing was ever submitted, or of a film that was deleted."""
    from cluster.ledger.schema import films, shows

    show = exists().where(shows.c.tenant == table.c.tenant, shows.c.name == table.c.subject)
    film = exists().where(films.c.id == table.c.subject, films.c.deleted_us.is_(None))
    of_show, of_film = table.c.scope == Scope.SHOW.value, table.c.scope == Scope.FILM.value
    query = (
        select(table).where(or_(and_(of_show, ~show), and_(of_film, ~film))).order_by(table.c.created_us, table.c.id)
    )
    return [as_budget(row) for row in connection.execute(query)]


def history(connection: Connection, budget_id: str, limit: int = 50) -> list[Row[Any]]:
    """What happened to a budget, the newest first."""
    newest = select(budget_events).where(budget_events.c.budget_id == budget_id)
    return list(connection.execute(newest.order_by(budget_events.c.seq.desc()).limit(limit)))


def above(connection: Connection, job_id: str) -> list[Budget]:
    """The budgets of a job."""
    return [as_budget(row) for row in connection.execute(OF_JOBS, {"jobs": padded([job_id])})]


def as_budget(row: Row[Any]) -> Budget:
    spec = BudgetSpec(
        tenant=row.tenant,
        scope=Scope(row.scope),
        subject=row.subject,
        cap_nano=row.cap_nano,
        period=Period(row.period),
        thresholds=_thresholds(row),
    )
    names = ("id", "spent_nano", "reserved_nano", "from_us", "until_us", "created_us", "changed_us")
    acting = None if row.acting is None else Action(row.acting)
    return Budget(spec=spec, acting=acting, **{name: row._mapping[name] for name in names})


def turn(connection: Connection, row: Row[Any], *, now_us: int) -> Row[Any]:
    """Another month, if it is one: nothing is spent of it yet but what was booked since it began. One that a clock
    which was wrong began too early is turned back, and what the month before had spent still acts."""
    if row.until_us is None or row.from_us - SKEW_US <= now_us < row.until_us:
        return row
    from_us, until_us = rules.month(now_us)
    old = {"from_us": row.from_us, "spent_nano": row.spent_nano, "cap_nano": row.cap_nano}
    new = {"from_us": from_us, "until_us": until_us, "fired": [], "acting": None}
    connection.execute(update(table).where(table.c.id == row.id).values(**new))
    spent = budget_recount.spent(connection, _row(connection, row.id))
    connection.execute(update(table).where(table.c.id == row.id).values(spent_nano=spent))
    _log(connection, row.id, "budget.turn", {**old, "spent_now_nano": spent}, now_us=now_us)
    row = _row(connection, row.id)
    _judge(connection, row, _purse(row), full=False, now_us=now_us)
    return _row(connection, row.id)


def _opened(connection: Connection, row: Row[Any], now_us: int) -> _Open:
    row = turn(connection, row, now_us=now_us)
    return _Open(row, _purse(row))


def _purse(row: Row[Any]) -> Purse:
    names = ("id", "cap_nano", "spent_nano", "reserved_nano", "acting")
    return Purse(**{name: row._mapping[name] for name in names})


def _ready_below(row: Row[Any], weight: float) -> Exists:
    """Whether a task under this budget is ready that weighs less."""
    lighter = (tasks.c.state == State.READY.value, tasks.c.weight < weight, tasks.c.job_id == jobs.c.id)
    return exists().where(*lighter, budget_recount.jobs_under(row))


def _at_the_cap(one: _Open) -> Action | None:
    purse = one.purse
    reached = rules.reached(_thresholds(one.row), spent_nano=purse.spent_nano, cap_nano=purse.cap_nano, full=True)
    return rules.gravest(reached)


def _judge(connection: Connection, row: Row[Any], purse: Purse, *, full: bool, now_us: int) -> None:
    """Which thresholds were reached by now; each is told once in a period."""
    all_of_them = _thresholds(row)
    found = rules.reached(all_of_them, spent_nano=purse.spent_nano, cap_nano=purse.cap_nano, full=full)
    fired = [dict(one) for one in row.fired]
    new = [one for one in found if one.to_json() not in fired]
    if not new:
        return
    fired += [one.to_json() for one in new]
    acting = rules.gravest(one for one in all_of_them if one.to_json() in fired)
    purse.acting = None if acting is None else acting.value
    connection.execute(update(table).where(table.c.id == row.id).values(fired=fired, acting=purse.acting))
    for one in new:
        data = {**one.to_json(), "spent_nano": purse.spent_nano, "cap_nano": purse.cap_nano, "full": full}
        seq = _log(connection, row.id, "budget.reached", data, now_us=now_us)
        event_id = f"evt_{hashlib.sha256(f'{row.id} {seq}'.encode()).hexdigest()[:26]}"
        hooks.tell_of_budget(connection, row.tenant, _show(connection, row), row.id, event_id, now_us=now_us)


def _show(connection: Connection, row: Row[Any]) -> str | None:
    """The show that a budget is of, or its film."""
    from cluster.ledger.schema import films

    if row.scope == Scope.FILM.value:
        show: str | None = connection.execute(select(films.c.show).where(films.c.id == row.subject)).scalar()
        return show
    return row.subject if row.scope == Scope.SHOW.value else None


def _thresholds(row: Row[Any]) -> tuple[Threshold, ...]:
    return tuple(Threshold(at=one["at"], action=Action(one["action"])) for one in row.thresholds)


def _check_subject(connection: Connection, spec: BudgetSpec) -> None:
    """Raises NotFound for a film of nobody; a show may be yet to come."""
    from cluster.ledger.schema import films

    if spec.scope is Scope.FILM:
        own = select(films.c.id).where(films.c.id == spec.subject, films.c.tenant == spec.tenant)
        if connection.execute(own).one_or_none() is None:
            raise NotFound("no such film", field="subject", remedy="GET /v1/films lists them")


def _row(connection: Connection, budget_id: str) -> Row[Any]:
    return connection.execute(select(table).where(table.c.id == budget_id)).one()


def _log(connection: Connection, budget_id: str, kind: str, data: dict[str, Any], *, now_us: int) -> int:
    newest = select(func.coalesce(func.max(budget_events.c.seq), 0)).where(budget_events.c.budget_id == budget_id)
    seq = int(connection.execute(newest).scalar_one()) + 1
    row = {"budget_id": budget_id, "seq": seq, "at_us": now_us, "kind": kind, "data": data}
    connection.execute(insert(budget_events).values(**row))
    return seq


def _dollars(nano: int) -> str:
    return f"${usd(nano):.4f}"
