"""Why a task does not run; of a job, those of its tasks that something holds up."""

from __future__ import annotations

from collections import Counter

from cluster.ledger import reasons, views
from cluster.ledger.jobs import Job
from cluster.ledger.ledger import Ledger
from cluster.ledger.outcomes import Sight
from cluster.ledger.views import TaskLine
from cluster.states import DONE, State
from cluster.timing import learned
from cluster.why import why
from serve.clerk import reason_row
from serve.rows import JobWhy, Named, ReasonRow

MOST = 12
"""Tasks of a job that are explained one by one."""
FIRST = (State.DEAD, State.NOT_COMPATIBLE, State.RUNNING, State.BACKOFF, State.READY, State.IN_REVIEW, State.SUSPENDED)


def of_task(ledger: Ledger, where: Named, *, sight: Sight, farm_runs: bool | None) -> ReasonRow:
    """Raises NotFound."""
    ratios, now_us = learned(ledger.durations()), ledger.clock.now_us()
    seen = ledger.view(
        lambda c: reasons.snapshot(
            c, where.id or "", now_us=now_us, ratios=ratios, farm_runs=farm_runs, sight=sight
        )
    )  # fmt: skip
    return reason_row(where.job, where.task or "", why(seen))


def of_job(ledger: Ledger, job: Job, *, sight: Sight, farm_runs: bool | None) -> JobWhy:
    """What is broken, what runs, what could, and how many wait for those."""
    chosen, others = _chosen(ledger, job.id)
    names = (Named(job=job.id, task=line.key, id=line.id) for line in chosen)
    return JobWhy(
        job=job.id,
        state=job.state,
        held=job.held,
        over=job.over,
        tasks=[of_task(ledger, name, sight=sight, farm_runs=farm_runs) for name in names],
        others={state.value: count for state, count in others.items()},
    )


def _chosen(ledger: Ledger, job_id: str) -> tuple[list[TaskLine], Counter[State]]:
    """The tasks to explain, and how many others are in which state."""
    now_us = ledger.clock.now_us()
    lines = ledger.view(lambda c: views.task_list(c, job_id, states=(), now_us=now_us, live_us=None))
    matter = [line for state in FIRST for line in lines if line.state is state]
    if not matter:
        matter = [line for line in lines if line.state not in DONE]  # canceled, stale
    chosen = matter[:MOST]
    ids = {line.id for line in chosen}
    return chosen, Counter(line.state for line in lines if line.id not in ids)
