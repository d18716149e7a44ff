"""`farm why`: of one task, or of those tasks of a job that something holds up."""

from __future__ import annotations

from collections import Counter

from rich.text import Text

from cluster.ledger import reasons, views
from cluster.ledger.views import TaskLine
from cluster.states import DONE, State
from cluster.timing import learned
from cluster.why import Explanation, why
from serve.cli import rows, tables
from serve.cli.office import Named, Office
from serve.cli.wording import plural

MOST = 12
"""Tasks of a job that are explained one by one."""
FIRST = (State.DEAD, State.NOT_COMPATIBLE, State.RUNNING, State.BACKOFF, State.READY, State.IN_REVIEW, State.SUSPENDED)


def ask(office: Office, where: Named, *, as_json: bool) -> None:
    """Prints the reasons; of a job: what is broken, what runs, what could, and how many wait for those."""
    if where.task_id is not None:
        found = _of(office, where.task_id)
        if as_json:
            rows.write([rows.reason_row(where.job_id, where.key or "", found)])
        else:
            tables.put(tables.reasons(where.job_id, where.key or "", found))
        return
    chosen, rest = _chosen(office, where.job_id)
    answers = [(line.key, _of(office, line.id)) for line in chosen]
    if as_json:
        rows.write(rows.reason_row(where.job_id, key, found) for key, found in answers)
        return
    job = office.ledger.job(where.job_id)
    tables.put(Text(f"{job.id} is {job.state.value}" + (", on hold" if job.held and not job.over else "")))
    for key, found in answers:
        tables.put(tables.reasons(where.job_id, key, found))
    for state, count in rest.items():
        more = "more task" if chosen else "task"
        tables.put(Text(f"{plural(count, more)} {'is' if count == 1 else 'are'} {state.value}", style="dim"))


def _of(office: Office, task_id: str) -> Explanation:
    ledger = office.ledger
    ratios, now_us = learned(ledger.durations()), ledger.clock.now_us()
    runs = office.farm_runs
    return why(ledger.view(lambda c: reasons.snapshot(c, task_id, now_us=now_us, ratios=ratios, farm_runs=runs)))


def _chosen(office: Office, job_id: str) -> tuple[list[TaskLine], Counter[State]]:
    """The tasks to explain, and how many others are in which state."""
    now_us = office.ledger.clock.now_us()
    lines = office.ledger.view(lambda c: views.task_list(c, job_id, states=(), now_us=now_us, live_us=None))
    matter = [line for state in FIRST for line in lines if line.state is state]
    if not matter:
        matter = [line for line in lines if line.state not in DONE]  # canceled, stale
    chosen = matter[:MOST]
    ids = {line.id for line in chosen}
    return chosen, Counter(line.state for line in lines if line.id not in ids)
