"""A tenant who goes: what is theirs is gone for good, what they owe stays.

Titles, briefs, prompts, scripts, results, messages, events, keys and webhooks go. Of each job its tasks and states
stay, for the checker, its cost lines and its show, for the bill, and one event that says when it was erased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, null, select, update

from cluster.ledger import events, operations, retention
from cluster.ledger.schema import (
    api_keys,
    assets,
    budget_events,
    budgets,
    cost_lines,
    films,
    jobs,
    takes,
    tasks,
    webhook_deliveries,
    webhook_endpoints,
)

ERASED = "job.erased"
NOBODYS = ""
"""The fingerprint of what an erased job was asked for; any other job has one. Its title is for people to read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """What the ledger has of a tenant. `nano` is what their cost lines come to: these stay."""

    jobs: int
    films: int
    keys: int
    webhooks: int
    assets: int
    asset_bytes: int
    nano: int


def holding(connection: Connection, tenant: str) -> Holding:
    def count(table: Table, *more: ColumnElement[bool]) -> int:
        query = select(func.count()).select_from(table).where(table.c.tenant == tenant, *more)
        return int(connection.execute(query).scalar_one())

    stored = select(func.coalesce(func.sum(assets.c.size), 0)).where(assets.c.tenant == tenant)
    owed = select(func.coalesce(func.sum(cost_lines.c.nano), 0)).where(cost_lines.c.tenant == tenant)
    return Holding(
        jobs=count(jobs, jobs.c.fingerprint != NOBODYS),
        films=count(films, films.c.deleted_us.is_(None)),
        keys=count(api_keys),
        webhooks=count(webhook_endpoints),
        assets=count(assets),
        asset_bytes=int(connection.execute(stored).scalar_one()),
        nano=int(connection.execute(owed).scalar_one()),
    )


def close(connection: Connection, tenant: str, *, now_us: int) -> list[str]:
    """Nobody asks for them any more: their keys and webhooks are gone. Returns the ids of their jobs."""
    hooks = select(webhook_endpoints.c.id).where(webhook_endpoints.c.tenant == tenant)
    connection.execute(delete(webhook_deliveries).where(webhook_deliveries.c.endpoint_id.in_(hooks)))
    connection.execute(delete(webhook_endpoints).where(webhook_endpoints.c.tenant == tenant))
    connection.execute(delete(api_keys).where(api_keys.c.tenant == tenant))
    gone = and_(films.c.tenant == tenant, films.c.deleted_us.is_(None))
    connection.execute(update(films).where(gone).values(deleted_us=now_us))
    return list(connection.execute(select(jobs.c.id).where(jobs.c.tenant == tenant).order_by(jobs.c.id)).scalars())


def erase_job(connection: Connection, job_id: str, *, now_us: int) -> None:
    """What does not run any more is stopped first. Again is fine. Raises NotFound, DamagedLedger."""
    if connection.execute(select(jobs.c.fingerprint).where(jobs.c.id == job_id)).scalar_one_or_none() == NOBODYS:
        return
    operations.delete_job(connection, job_id, now_us=now_us)
    retention.sum_up(connection, job_id, before_us=now_us + 1)
    retention.blank_attempts(connection, [job_id])  # the rows stay: a worker may not have heard yet that it shall stop
    nothing: dict[str, Any] = {
        "params": {},
        "files": null(),
        "result": null(),
        "reason": None,
        "content_key": None,
        "failures": {},
    }
    connection.execute(update(tasks).where(tasks.c.job_id == job_id).values(**nothing))
    blank: dict[str, Any] = {
        "title": "erased",
        "spec": {},
        "request": {},
        "idempotency_key": None,
        "fingerprint": NOBODYS,
        "released_us": now_us,
    }
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(**blank))
    events.append(connection, job_id, at_us=now_us, kind=ERASED)


def forget(connection: Connection, tenant: str) -> None:
    """Their budgets, what answered their questions, and the rows of what their bytes were: these are gone by now."""
    theirs = select(budgets.c.id).where(budgets.c.tenant == tenant)
    connection.execute(delete(budget_events).where(budget_events.c.budget_id.in_(theirs)))
    connection.execute(delete(budgets).where(budgets.c.tenant == tenant))
    connection.execute(delete(takes).where(takes.c.tenant == tenant))
    connection.execute(delete(assets).where(assets.c.tenant == tenant))
