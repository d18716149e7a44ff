"""Cost lines as finance reads them: with what they were for, in the order in which `cluster.focus` wants them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, true

from cluster.clock import to_datetime
from cluster.errors import NotReady
from cluster.focus.lines import GRACE_US, Line, Period
from cluster.ledger.money import FARM_SHOW, FARM_TENANT
from cluster.ledger.schema import (
    UNBILLED_EGRESS,
    UNBILLED_TOKENS,
    cost_lines,
    egress_minutes,
    jobs,
    revisions,
    storage_meters,
    tasks,
    token_minutes,
    workers,
)
from cluster.rates import HOUR_US

PAGE = 2_000
"""Rows that are read at a time."""
NAMED: dict[str, ColumnElement[Any]] = {
    "model": func.coalesce(cost_lines.c.model, tasks.c.model, workers.c.model),
    "role": func.coalesce(tasks.c.role, workers.c.role),
    "nano_per_hour": workers.c.nano_per_hour,
    "num_accelerators": workers.c.num_accelerators,
    "task_key": tasks.c.key,
    "recipe": jobs.c.recipe,
    "film_id": revisions.c.film_id,
}
LINES = (
    select(*(NAMED[name] if name in NAMED else cost_lines.c[name] for name in Line._fields))
    .outerjoin(workers, workers.c.id == cost_lines.c.worker_id)
    .outerjoin(tasks, tasks.c.id == cost_lines.c.task_id)
    .outerjoin(jobs, jobs.c.id == cost_lines.c.job_id)
    .outerjoin(revisions, revisions.c.job_id == cost_lines.c.job_id)
    .select_from(cost_lines)
)
STORED = storage_meters.c
UNBOOKED = (
    select(func.min(workers.c.since_us)).where(workers.c.ended_us.is_(None)),
    select(func.min(token_minutes.c.minute_us)).where(UNBILLED_TOKENS),
    select(func.min(egress_minutes.c.minute_us)).where(UNBILLED_EGRESS),
    select(func.min(STORED.billed_us)).where(STORED.mib_seconds > STORED.billed_mib_seconds),
    select(func.min(STORED.since_us)).where(STORED.tenant == FARM_TENANT, STORED.show == FARM_SHOW),
)
"""Since when there may be something without a line, of each kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whose:
    """Of one tenant, or of its show; None: of all, and of the farm itself."""

    tenant: str | None = None
    show: str | None = None

    def covers(self) -> ColumnElement[bool]:
        return and_(
            true(),
            *(cost_lines.c[name] == value for name, value in (("tenant", self.tenant), ("show", self.show)) if value),
        )


def lines_of(connection: Connection, period: Period, whose: Whose) -> Iterator[Line]:
    """All that the charges of the period stand on: see `cluster.focus.charges.charges`. Meters come last."""
    from_us, to_us = _reach(connection, period, whose)
    query = LINES.where(whose.covers(), cost_lines.c.from_us < to_us, cost_lines.c.to_us >= from_us)
    held = query.where(cost_lines.c.worker_id.is_not(None))
    metered = query.where(cost_lines.c.worker_id.is_(None))
    reader = connection.execution_options(yield_per=PAGE)
    for part in (
        held.order_by(cost_lines.c.worker_id, cost_lines.c.from_us, cost_lines.c.id),
        metered.order_by(cost_lines.c.from_us, cost_lines.c.id),
    ):
        for row in reader.execute(part):
            yield Line._make(row)


def _reach(connection: Connection, period: Period, whose: Whose) -> tuple[int, int]:
    """From when to when lines are wanted: attempts that were booked again in the period, or in part of it, whole."""
    booked_us = cost_lines.c.at_us - GRACE_US
    again = select(func.min(cost_lines.c.from_us), func.max(cost_lines.c.to_us)).where(
        whose.covers(),
        cost_lines.c.note.is_not(None),
        or_(
            and_(cost_lines.c.from_us < period.to_us, cost_lines.c.to_us > period.from_us),
            and_(booked_us >= period.from_us, booked_us < period.to_us),
        ),
    )
    first_us, last_us = connection.execute(again).one()
    return min(period.from_us, first_us or period.from_us), max(period.to_us, last_us or period.to_us)


def check_closed(connection: Connection, period: Period, *, now_us: int) -> None:
    """Raises NotReady while something of the period may still be booked; it says up to when all is."""
    booked_us = (connection.execute(first).scalar_one() for first in UNBOOKED)
    closed_us = min(now_us - GRACE_US, *(us for us in booked_us if us is not None), now_us)
    if closed_us < period.to_us:
        raise NotReady(
            f"the period is open: what was held and counted is booked up to {_said(closed_us)} only",
            field="to",
            remedy=f"end it by {_said(closed_us // HOUR_US * HOUR_US)}, or take provisional figures; "
            "where no farm is up, `farm up` books the rest",
        )


def _said(at_us: int) -> str:
    return f"{to_datetime(at_us):%Y-%m-%dT%H:%MZ}"
