"""Jobs, tasks, workers and reasons as data: one JSON object a line. Money is text, exact; instants are ISO 8601."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.clock import to_datetime
from cluster.ledger.events import Event
from cluster.ledger.jobs import Job
from cluster.ledger.views import JobLine, TaskLine, WorkerLine
from cluster.rates import usd
from cluster.why import Explanation
from serve.cli.tables import state_of


def write(rows: Iterable[Mapping[str, Any]]) -> None:
    """Each on a line of its own, at once."""
    for row in rows:
        print(json.dumps(row, ensure_ascii=False), file=sys.stdout, flush=True)


def money(nano: int) -> str:
    return f"{usd(nano):.9f}"


def at(us: int | None) -> str | None:
    return to_datetime(us).isoformat() if us is not None else None


def job_row(job: Job, nano: int) -> dict[str, Any]:
    return {
        "job": job.id,
        "title": job.title,
        "state": job.state.value,
        "held": job.held,
        "tenant": job.tenant,
        "show": job.show,
        "recipe": job.recipe,
        "tier": job.tier,
        "priority": job.priority,
        "deadline": at(job.deadline_us),
        "tasks": job.num_tasks,
        "counts": {state.value: n for state, n in job.counts.items() if n},
        "events": job.seq,
        "created": at(job.created_us),
        "ended": at(job.ended_us),
        "cost_usd": money(nano),
    }


def job_rows(lines: Iterable[JobLine]) -> list[dict[str, Any]]:
    return [job_row(line.job, line.nano) for line in lines]


def task_row(job_id: str, line: TaskLine) -> dict[str, Any]:
    return {
        "job": job_id,
        "task": line.key,
        "id": line.id,
        "step": line.step,
        "role": line.role,
        "model": line.model,
        "state": line.state.value,
        "reason": line.reason,
        "generation": line.generation,
        "attempts": line.num_attempts,
        "failures": line.failures,
        "worker": line.worker_id,
        "seconds": round(line.seconds, 3) if line.seconds is not None else None,
        "cost_usd": money(line.nano),
    }


def worker_row(line: WorkerLine) -> dict[str, Any]:
    row = line.row
    return {
        "worker": row.id,
        "fleet": row.fleet,
        "role": row.role,
        "model": row.model,
        "node": row.node,
        "accelerator": row.accelerator,
        "accelerators": row.num_accelerators,
        "price_class": row.price_class,
        "state": state_of(line)[0],
        "drain_reason": row.drain_reason,
        "running": [{"job": job_id, "task": key} for job_id, key in line.running],
        "held_since": at(row.spawned_us),
        "left": at(row.ended_us),
        "cost_usd": money(sum(line.nano.values())),
        "cost_by_kind_usd": {kind: money(n) for kind, n in line.nano.items()},
    }


def event_row(event: Event, keys: Mapping[str, str]) -> dict[str, Any]:
    """`keys` are the keys of tasks by id."""
    row = {
        "seq": event.seq,
        "at": at(event.at_us),
        "job": event.job_id,
        "event": event.kind,
        "task": keys.get(event.task_id or "") or event.data.get("key"),
        "attempt": event.attempt_id,
        "epoch": event.epoch,
        "from": event.from_state,
        "state": event.to_state,
        **{name: value for name, value in event.data.items() if name != "key"},
    }
    return {name: value for name, value in row.items() if value is not None}


def reason_row(job_id: str, key: str, found: Explanation) -> dict[str, Any]:
    return {
        "job": job_id,
        "task": key,
        "state": found.state.value,
        "said": found.said,
        "holds": [
            {"what": hold.what.value, "text": hold.text, "eta_s": _rounded(hold.eta_s), "remedy": hold.remedy}
            for hold in found.holds
        ],
        "eta_s": _rounded(found.eta_s),
        "waits_for_somebody": found.waits_for_somebody,
        "remedy": found.remedy,
    }


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 1) if seconds is not None else None
