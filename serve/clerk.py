"""Rows from what the ledger says: the one place where a column of the books becomes a member of an answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from cluster.budgets import CURRENCY, Budget
from cluster.clock import to_datetime
from cluster.collector import Found
from cluster.ledger.events import Event
from cluster.ledger.inventory import Asset
from cluster.ledger.jobs import Job
from cluster.ledger.keys import Key
from cluster.ledger.rosters import ShowLine, WorkerLine
from cluster.ledger.views import JobLine, TaskLine
from cluster.rates import usd
from cluster.why import Explanation
from serve.rows import (
    AssetRow,
    BudgetCard,
    BudgetEvent,
    BudgetRow,
    Collected,
    Estimated,
    EventRow,
    HoldRow,
    JobCard,
    JobRow,
    KeyRow,
    NewKey,
    ReasonRow,
    Running,
    ShowRow,
    TaskRow,
    ThresholdRow,
    WorkerRow,
)


def money(nano: int) -> str:
    return f"{usd(nano):.9f}"


def at(us: int) -> str:
    return to_datetime(us).isoformat()


def _at(us: int | None) -> str | None:
    return None if us is None else at(us)


def job_row(job: Job, nano: int) -> JobRow:
    return JobRow(**_of_job(job, nano))


def _of_job(job: Job, nano: int) -> dict[str, Any]:
    return {
        "job": job.id,
        "title": job.title,
        "state": job.state,
        "held": job.held,
        "tenant": job.tenant,
        "show": job.show,
        "recipe": job.recipe,
        "version": job.version,
        "tier": job.tier,
        "priority": job.priority,
        "deadline": _at(job.deadline_us),
        "tasks": job.num_tasks,
        "counts": {state.value: n for state, n in job.counts.items() if n},
        "events": job.seq,
        "created": at(job.created_us),
        "ended": _at(job.ended_us),
        "cost_usd": money(nano),
    }


def job_rows(lines: Iterable[JobLine]) -> list[JobRow]:
    return [job_row(line.job, line.nano) for line in lines]


def job_card(
    job: Job,
    *,
    estimate: Estimated | None,
    nano: Mapping[str, int],
    running: Iterable[TaskLine],
    files: Iterable[tuple[str, Mapping[str, Any]]],
) -> JobCard:
    return JobCard(
        **_of_job(job, sum(nano.values())),
        estimate=estimate,
        cost_by_kind_usd={kind: money(n) for kind, n in nano.items()},
        running=[task_row(job.id, line) for line in running],
        files=[{"task": key, **file} for key, file in files],
    )


def task_row(job_id: str, line: TaskLine) -> TaskRow:
    return TaskRow(
        job=job_id,
        task=line.key,
        id=line.id,
        step=line.step,
        role=line.role,
        model=line.model,
        state=line.state,
        reason=line.reason,
        generation=line.generation,
        attempts=line.num_attempts,
        failures=line.failures,
        worker=line.worker_id,
        seconds=round(line.seconds, 3) if line.seconds is not None else None,
        cost_usd=money(line.nano),
    )


def worker_row(line: WorkerLine) -> WorkerRow:
    row = line.row
    return WorkerRow(
        worker=row.id,
        fleet=row.fleet,
        role=row.role,
        model=row.model,
        node=row.node,
        accelerator=row.accelerator,
        accelerators=row.num_accelerators,
        price_class=row.price_class,
        state=_state_of(line),
        drain_reason=row.drain_reason,
        running=[Running(job=job_id, task=key) for job_id, key in line.running],
        others=line.num_others,
        held_since=at(row.spawned_us),
        left=_at(row.ended_us),
        cost_usd=money(sum(line.nano.values())),
        cost_by_kind_usd={kind: money(n) for kind, n in line.nano.items()},
    )


def _state_of(line: WorkerLine) -> str:
    if line.row.ended_us is not None:
        return "gone"
    if line.row.drain_us is not None:
        return "draining"
    return "busy" if line.running or line.num_others else "idle"


def event_row(event: Event, keys: Mapping[str, str]) -> EventRow:
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
    return EventRow(**{name: value for name, value in row.items() if value is not None})


def reason_row(job_id: str, key: str, found: Explanation) -> ReasonRow:
    return ReasonRow(
        job=job_id,
        task=key,
        state=found.state,
        said=found.said,
        holds=[
            HoldRow(what=hold.what.value, text=hold.text, eta_s=_rounded(hold.eta_s), remedy=hold.remedy)
            for hold in found.holds
        ],
        eta_s=_rounded(found.eta_s),
        waits_for_somebody=found.waits_for_somebody,
        remedy=found.remedy,
    )


def show_row(line: ShowLine, left_nano: int | None = None) -> ShowRow:
    return ShowRow(
        show=line.name,
        tenant=line.tenant,
        share=line.share,
        running=line.num_running,
        waiting=line.num_waiting,
        jobs=line.num_jobs,
        spent_usd=money(line.nano),
        budget_left_usd=None if left_nano is None else money(left_nano),
    )


def budget_row(budget: Budget) -> BudgetRow:
    return BudgetRow(**_of_budget(budget))


def budget_card(budget: Budget, log: Iterable[Any]) -> BudgetCard:
    """`log` are rows of its events."""
    told = [
        BudgetEvent(at=at(row.at_us), event=row.kind.removeprefix("budget."), text=_told(row.kind, row.data),
                    data=row.data)
        for row in log
    ]  # fmt: skip
    return BudgetCard(**_of_budget(budget), log=told)


def _of_budget(budget: Budget) -> dict[str, Any]:
    spec = budget.spec
    return {
        "budget": budget.id,
        "tenant": spec.tenant,
        "scope": spec.scope,
        "subject": spec.subject,
        "currency": CURRENCY,
        "cap_usd": money(spec.cap_nano),
        "spent_usd": money(budget.spent_nano),
        "reserved_usd": money(budget.reserved_nano),
        "left_usd": money(budget.left_nano),
        "used": round(budget.spent_nano / spec.cap_nano, 4) if spec.cap_nano else None,
        "period": spec.period,
        "period_began": at(budget.from_us) if budget.from_us else None,
        "period_ends": _at(budget.until_us),
        "thresholds": [ThresholdRow(at=one.at, action=one.action) for one in spec.thresholds],
        "acting": budget.acting,
        "created": at(budget.created_us),
        "changed": at(budget.changed_us),
    }


def _told(kind: str, data: Mapping[str, Any]) -> str:
    """An event of a budget, as a sentence."""

    def dollars(name: str) -> str:
        return f"${usd(data[name]):.4f}"

    match kind:
        case "budget.set":
            return f"to {dollars('cap_nano')}, {data['period']}; {dollars('spent_nano')} were spent by then"
        case "budget.reached":
            why = ": work had to stop" if data["full"] else ""
            return f"{data['action']} at {data['at']:.0%}: {dollars('spent_nano')} of {dollars('cap_nano')}{why}"
        case "budget.stop":
            return f"{data['attempt']} had to stop at its next checkpoint"
        case "budget.turn":
            return f"a new month; {dollars('spent_nano')} of {dollars('cap_nano')} in the one before"
    return "taken away"


def key_row(key: Key) -> KeyRow:
    return KeyRow(**_of_key(key))


def new_key(key: Key, secret: str) -> NewKey:
    return NewKey(**_of_key(key), secret=secret)


def _of_key(key: Key) -> dict[str, Any]:
    return {
        "key": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "show": key.show,
        "scopes": [scope.value for scope in key.scopes],
        "prefix": key.prefix,
        "requests_per_minute": key.requests_per_minute,
        "in_flight_s": key.in_flight_s,
        "tokens_per_minute": key.tokens_per_minute,
        "created": at(key.created_us),
        "used": _at(key.used_us),
        "rotated": _at(key.rotated_us),
        "old_until": _at(key.old_until_us),
        "revoked": _at(key.revoked_us),
    }


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 1) if seconds is not None else None


def asset_row(asset: Asset) -> AssetRow:
    return AssetRow(
        asset=asset.sha256,
        tenant=asset.tenant,
        show=asset.show,
        key=asset.key,
        size_bytes=asset.size_bytes,
        media_type=asset.media_type,
        created=at(asset.created_us),
        marked=_at(asset.marked_us),
    )


def collected(found: Found, *, done: bool) -> Collected:
    return Collected(**asdict(found), done=done)
