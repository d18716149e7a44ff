"""What budgets come to by the cost lines and attempts under them, counted again; and whether their counters say so."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select

from cluster.budgets import Action, BudgetSpec, Scope, nano_of
from cluster.ledger.schema import attempts, budget_events, cost_lines, jobs, revisions, workers
from cluster.ledger.schema import budgets as table
from cluster.states import AttemptState


def flaws(connection: Connection) -> list[str]:
    """Counters that a recount does not find, and budgets beyond their bound: what had to stop ran at most for as long
    as a heartbeat after there was no more, each at its rate, whether it was told or ended before. A worker that was
    lost by then heard nothing: its lease ran out first. One whose action lets work end is past its cap by that;
    and what is metered is charged when it has been used, whatever is left."""
    broken = []
    for row in connection.execute(select(table).order_by(table.c.id)).all():
        counted = spent(connection, row), reserved(connection, row)
        if counted != (row.spent_nano, row.reserved_nano):
            said = f"{row.id} says {row.spent_nano} and {row.reserved_nano}, is {counted[0]} and {counted[1]}"
            broken.append(f"budgets equal a recount: {said}")
        told = select(budget_events).where(budget_events.c.budget_id == row.id, budget_events.c.at_us >= row.from_us)
        allowed, since_us, untold = row.cap_nano, row.from_us, dict[str, int]()
        for e in connection.execute(told.order_by(budget_events.c.seq)):
            if e.kind == "budget.set":  # what was spent before it was set is not its doing
                allowed, since_us = max(e.data["cap_nano"], e.data["spent_nano"]), e.at_us
                untold = dict(e.data.get("slack_nano", {}))  # older ones have none
            elif e.kind == "budget.stop":
                untold.pop(e.data["attempt"], None)
                allowed += max(e.data["slack_nano"], _unheard(connection, e.data["attempt"], since_us=e.at_us))
        allowed += sum(untold.values())
        allowed += spent(connection, row, cost_lines.c.worker_id.is_(None), cost_lines.c.at_us >= since_us)
        if counted[0] > allowed and row.acting != Action.FINISH.value:
            broken.append(f"no budget overshoots its bound: {row.id} has spent {counted[0]} of {allowed}")
    return broken


def spent(connection: Connection, row: Row[Any], *which: ColumnElement[bool]) -> int:
    """The cost lines of its scope and period, or those `which` are asked for."""
    query = select(func.coalesce(func.sum(cost_lines.c.nano), 0)).where(cost_lines.c.at_us >= row.from_us, *which)
    if row.scope == Scope.FILM.value:
        own = select(revisions.c.job_id).where(revisions.c.film_id == row.subject)
        query = query.where(cost_lines.c.job_id.in_(own))
    else:
        query = query.where(cost_lines.c.tenant == row.tenant)
    if row.scope == Scope.SHOW.value:
        query = query.where(cost_lines.c.show == row.subject)
    return int(connection.execute(query).scalar_one())


def reserved(connection: Connection, row: Row[Any]) -> int:
    """By the attempts that run under it."""
    query = select(func.coalesce(func.sum(attempts.c.reserved_nano), 0)).join(jobs, jobs.c.id == attempts.c.job_id)
    runs = attempts.c.state == AttemptState.RUNNING.value
    return int(connection.execute(query.where(runs, jobs_under(row))).scalar_one())


def slack(connection: Connection, row: Row[Any], slack_s: float) -> dict[str, int]:
    """By attempt that runs under it, what it costs in a heartbeat beyond what it has reserved."""
    query = select(attempts.c.id, attempts.c.reserved_nano, workers.c.nano_per_hour).join_from(
        attempts, jobs, jobs.c.id == attempts.c.job_id
    )
    runs = attempts.c.state == AttemptState.RUNNING.value
    found = connection.execute(query.join(workers, workers.c.id == attempts.c.worker_id).where(runs, jobs_under(row)))
    beyond = {x.id: nano_of(slack_s, x.nano_per_hour) - (x.reserved_nano or 0) for x in found}
    return {attempt_id: nano for attempt_id, nano in beyond.items() if nano > 0}


def jobs_under(whose: Row[Any] | BudgetSpec) -> ColumnElement[bool]:
    """Of jobs: those under a budget of this tenant, scope and subject."""
    mine: ColumnElement[bool] = jobs.c.tenant == whose.tenant
    if whose.scope == Scope.SHOW.value:
        return mine & (jobs.c.show == whose.subject)
    if whose.scope == Scope.FILM.value:
        return mine & jobs.c.id.in_(select(revisions.c.job_id).where(revisions.c.film_id == whose.subject))
    return mine


def _unheard(connection: Connection, attempt_id: str, *, since_us: int) -> int:
    """What an attempt that was lost has cost since it had to stop."""
    query = select(func.coalesce(func.sum(cost_lines.c.nano), 0)).join(
        attempts, attempts.c.id == cost_lines.c.attempt_id
    )
    lost = attempts.c.state.in_((AttemptState.LOST.value, AttemptState.STUCK.value))
    of = (attempts.c.id == attempt_id, lost, cost_lines.c.from_us >= since_us)
    return int(connection.execute(query.where(*of)).scalar_one())
