"""What happened to some jobs since it was last looked, and how they stand now: one look for all who follow them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, and_, bindparam, or_, select

from cluster.ledger import outcomes, views
from cluster.ledger.database import padded
from cluster.ledger.events import Event
from cluster.ledger.outcomes import Outcome
from cluster.ledger.schema import events, jobs
from cluster.states import State

PAGE = 500
"""Events of one look, of all jobs together: who is further behind is told the rest by the next look."""
AT_ONCE = 64
"""Jobs of one statement: SQLite bounds how deep a condition may be."""
HEADS = select(jobs.c.id, jobs.c.seq).where(
    jobs.c.id.in_(bindparam("jobs", expanding=True)), jobs.c.deleted_us.is_(None)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    heads: dict[str, int]  # the number of its newest event, by the id of a job that is there
    events: dict[str, list[Event]]  # what came after those that were seen
    changed: dict[str, Outcome]  # jobs whose newest event is not the known one
    accruing_nano: Mapping[str, int]  # what their running attempts cost and is not booked yet


def look(
    connection: Connection, seen: Mapping[str, int], known: Mapping[str, Outcome], *, now_us: int, limit: int = PAGE
) -> Look:
    """Of the jobs in `seen`, each with the number of the event up to which somebody knows it.

    One statement while nothing happens. `known` are their outcomes as the last look told them.
    """
    heads = {row.id: int(row.seq) for row in connection.execute(HEADS, {"jobs": padded(seen)})} if seen else {}
    new = [job_id for job_id, seq in heads.items() if job_id not in known or known[job_id].job.seq != seq]
    changed = outcomes.of(connection, new) if new else {}
    running = any({**known, **changed}[job_id].job.counts.get(State.RUNNING) for job_id in heads)
    accruing = Counter[str]()
    for job_id, _, nano in views.accruing(connection, now_us if running else None):
        accruing[job_id] += nano
    behind = [(job_id, seen[job_id]) for job_id, seq in heads.items() if seq > seen[job_id]]
    return Look(
        heads=heads, events=_after(connection, behind, limit) if behind else {}, changed=changed, accruing_nano=accruing
    )


def _after(connection: Connection, behind: list[tuple[str, int]], limit: int) -> dict[str, list[Event]]:
    """The first `limit` events after those that were seen, job by job."""
    found: dict[str, list[Event]] = defaultdict(list)
    for first in range(0, len(behind), AT_ONCE):
        some = padded(sorted(behind)[first : first + AT_ONCE])
        newer = or_(*(and_(events.c.job_id == job_id, events.c.seq > seq) for job_id, seq in some))
        query = select(events).where(newer).order_by(events.c.job_id, events.c.seq).limit(limit)
        for row in connection.execute(query):
            found[row.job_id].append(Event(**row._mapping))
            limit -= 1
        if limit <= 0:
            break
    return dict(found)
