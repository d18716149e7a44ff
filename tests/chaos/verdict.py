"""What a storm came to: every content compared, the log convicted of nothing, and what it cost."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.ledger.audit import Log, violations, wasted_nano
from cluster.ledger.balance import OF_MONEY
from cluster.ledger.events import Event
from cluster.ledger.ledger import Ledger
from cluster.ledger.replay import Injected
from cluster.rates import usd
from cluster.states import JobState, State
from tests.chaos import golden


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What was submitted, by job id."""

    films: Mapping[str, int]  # golden jobs with their seeds
    clips: Sequence[str]
    doomed: Sequence[str]
    injected: Sequence[Injected]


def print_verdict(ledger: Ledger, work: Work, hits: Sequence[tuple[int, str]], *, notes: Mapping[str, object]) -> int:
    """Prints a table; 0 if all is well. `hits`: when (microseconds) which worker was killed or stopped."""
    log = ledger.log()
    found = sorted({*violations(log, injected=work.injected, orders_per_worker=1, quiet=True), *ledger.flaws()})
    lost = list(_lost(ledger, work))
    leases = [e for e in log.events if e.kind == "task.lease"]
    unbalanced = [line for line in found if line.startswith(OF_MONEY)] + ledger.unbalanced_workers()
    noticed_s = sorted((end_us - hit_us) / 1e6 for hit_us, _, end_us in _hit(log, hits) if end_us < math.inf)
    again_s = sorted(_seconds_to_go_on(log, hits))
    num_tasks = sum(len(ledger.tasks(job_id)) for job_id in work.films)
    held, wasted = ledger.spent().held_s, ledger.spent(kind="wasted")
    lines = {
        "work": f"{num_tasks} quick tasks of {len(work.films)} jobs, {len(work.clips)} clips of the house model",
        "planted failures": len(work.injected),
        **notes,
        "lost": len(lost),
        "double commits": sum(line.startswith("one committed receipt") for line in found),
        "violations": len(found),
        "ledger": "balanced" if not unbalanced else f"NOT balanced: {unbalanced[:3]}",
        "extra executions": len(leases) - len({e.task_id for e in leases}),
        "wasted": f"{wasted.held_s:.0f} s of {held:.0f} s held",
        "waste": f"${usd(wasted.nano):.9f} booked, ${usd(wasted_nano(log)):.9f} by the event log alone",
        "adopted": sum(bool(e.data.get("adopted")) for e in log.events),
        "late reports": sum(e.kind == "attempt.late_report" for e in log.events),
        "time to notice": f"p50 {_quantile(noticed_s, 0.5):.1f} s, p99 {_quantile(noticed_s, 0.99):.1f} s",
        "time to re-lease": f"p50 {_quantile(again_s, 0.5):.1f} s, p99 {_quantile(again_s, 0.99):.1f} s",
    }
    for name, value in lines.items():
        tell(f"{name:>22}  {value}")
    for line in [*lost, *found][:40]:
        tell(f"  ! {line}")
    return 1 if lost or found or unbalanced else 0


def tell(line: str) -> None:
    """To whoever started the storm; what Ray prints meanwhile goes elsewhere."""
    print(line, file=sys.__stdout__, flush=True)


def _lost(ledger: Ledger, work: Work) -> Iterator[str]:
    """Jobs that did not end as they must, each with what it lacks."""
    for job_id, seed in work.films.items():
        state, rows = ledger.job(job_id).state, ledger.tasks(job_id)
        if state is not JobState.SUCCEEDED:
            ends = [(r["key"], r["state"], r["reason"]) for r in rows if r["state"] != State.SUCCEEDED]
            yield f"lost: {job_id} is {state}: {ends}"
        elif golden.digest_of_tasks(rows) != golden.digest(golden.expected(seed)):
            yield f"lost: {job_id} has another content"
    for job_id in work.clips:
        if (state := ledger.job(job_id).state) is not JobState.SUCCEEDED:
            yield f"lost: the clip {job_id} is {state}"
    for job_id in work.doomed:
        yield from (f"lost: {r['key']} should be dead" for r in ledger.tasks(job_id) if r["state"] != State.DEAD)


def _hit(log: Log, hits: Sequence[tuple[int, str]]) -> Iterator[tuple[int, Event, float]]:
    """When a worker was hit, the lease of each task that it ran then, and when that attempt ended."""
    ends = {e.attempt_id: e.at_us for e in log.events if e.attempt_id and "attempt" in e.data}
    leases = [e for e in log.events if e.kind == "task.lease"]
    for hit_us, worker in hits:
        for lease in leases:
            end_us = ends.get(lease.attempt_id, math.inf)
            if lease.data["worker"] == worker and lease.at_us <= hit_us < end_us:
                yield hit_us, lease, end_us


def _seconds_to_go_on(log: Log, hits: Sequence[tuple[int, str]]) -> Iterator[float]:
    """From the moment in which a worker was hit until its task was leased again or committed by a late report."""
    for hit_us, lease, _ in _hit(log, hits):
        mine = (e for e in log.events if e.task_id == lease.task_id and e.at_us > hit_us)
        if after := [e.at_us for e in mine if e.kind in ("task.lease", "task.commit")]:
            yield (min(after) - hit_us) / 1e6


def _quantile(values: Sequence[float], q: float) -> float:
    return values[min(len(values) - 1, int(q * len(values)))] if values else math.nan
