"""What work is likely to take and to cost, by what a farm knows now: before it is submitted, and while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.contract import Json
from cluster import forecast
from cluster.clock import to_datetime
from cluster.forecast import Before, Crew, Forecast, Kind, Span, Step
from cluster.graph import TaskSpec
from cluster.ledger import history, holdings, outcomes
from cluster.ledger.jobs import TIERS
from cluster.ledger.keys import TO_COME_S
from cluster.ledger.ledger import Ledger
from cluster.ledger.outcomes import Backlog, Outcome
from cluster.rates import RateCard, load_rate_card, usd
from cluster.settings import Settings
from cluster.states import ENDED, State
from cluster.timing import Paces, shape_of
from serve.rows import Dollars, Estimate, Estimated, EstimatedStep, Seconds
from serve.standing import fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class Foresight:
    """As one look saw it. `unknown` does what nobody ever did."""

    backlog: Backlog
    paces: Paces
    crews: Sequence[Crew]
    unknown: Crew

    @classmethod
    def of_ledger(cls, ledger: Ledger, settings: Settings) -> Foresight:
        return cls(
            backlog=ledger.view(outcomes.backlog),
            paces=Paces(ledger.view(history.samples)),
            crews=ledger.view(holdings.crews),
            unknown=nobody_yet(load_rate_card(settings.rate_card), settings, ledger.clock.now_us()),
        )

    def forecast(self, kinds: Sequence[Kind], *, tier: str) -> Forecast:
        role = kinds[0].role if kinds else ""
        return forecast.forecast(
            kinds, paces=self.paces, crews=self.crews, unknown=self.unknown, before=_before(self.backlog, role, tier)
        )

    def of_graph(self, graph: Sequence[TaskSpec], *, tier: str, to_come: Sequence[TaskSpec] = ()) -> Json:
        """What a job keeps of its estimate at submit; `to_come` is what its expansion will bring."""
        found = self.forecast(kinds_of([*graph, *to_come]), tier=tier)
        spans = {"nano": _json(found.nano), "elapsed_s": _json(found.elapsed_s), "held_s": _json(found.held_s)}
        return spans | ({TO_COME_S: sum(task.weight for task in to_come)} if to_come else {})


def estimated(seen: Foresight | None, outcome: Outcome, moving: Sequence[Json] = ()) -> Estimated | None:
    """Of a job that runs: what is booked, and what its open tasks are likely to take. Of one that is over, or has yet
    to be written, or while the ledger is away: what was said at submit; None if nothing was."""
    job = outcome.job
    to_be_written = any(task["expands"] and State(task["state"]) not in ENDED for task in outcome.tasks)
    if seen is None or job.over or to_be_written or not outcome.tasks:
        return None if job.estimate is None else _estimated(job.estimate, made="at submit")
    heard = {one["task_id"]: one for one in moving}
    left = Counter(_left(task, heard.get(task["id"])) for task in outcome.tasks)
    kinds = [
        Kind(step=step, role=role, model=model, shape=shape, predicted_s=predicted_s, num_tasks=num)
        for (step, role, model, shape, predicted_s), num in left.items()
        if predicted_s > 0
    ]
    found, spent = seen.forecast(kinds, tier=job.tier), outcome.spend.nano
    nano = {"p50": spent + found.nano.p50, "p95": spent + found.nano.p95}
    return _estimated({"nano": nano, "elapsed_s": _json(found.elapsed_s)}, made="while it runs")


def kinds_of(graph: Sequence[TaskSpec]) -> list[Kind]:
    """The tasks of a graph, those of one kind together, in its order."""
    alike = Counter((t.step, t.role, t.model, _shape(t.params), t.weight) for t in graph)
    return [
        Kind(step=step, role=role, model=model, shape=shape, predicted_s=weight, num_tasks=count)
        for (step, role, model, shape, weight), count in alike.items()
    ]


def nobody_yet(card: RateCard, settings: Settings, now_us: int) -> Crew:
    """Of work that no worker of this farm has ever been here for: a cpu, bought as this machine is."""
    rate = card.rate("cpu", settings.price_class, to_datetime(now_us))
    return Crew(
        role="",
        model=None,
        accelerator=rate.accelerator,
        num_accelerators=0,
        price_class=rate.price_class,
        rate_card=rate.card,
        nano_per_hour=rate.nano_per_hour,
        num_workers=0,
    )


def answer(kind: str, found: Forecast) -> Estimate:
    return Estimate(
        kind=kind,
        wait_seconds=None if found.wait_s is None else _seconds(found.wait_s),
        seconds=_seconds(found.elapsed_s),
        accelerator_seconds=_seconds(found.held_s),
        cost=_dollars(found.nano),
        steps=[_step(step) for step in found.steps],
    )


def _before(queue: Backlog, role: str, tier: str) -> Before:
    """What is ready in the same tier comes first, and all that is more urgent."""
    no_later = TIERS[: TIERS.index(tier) + 1]
    return Before(
        running_s=queue.running_s.get(role, 0.0),
        num_running=queue.num_running.get(role, 0),
        ready_s=sum(queue.ready_by_tier_s.get((role, one), 0.0) for one in no_later),
    )


def _shape(params: Mapping[str, Any]) -> str | None:
    return shape_of(params.get("spec") or params)


def _left(task: Mapping[str, Any], heard: Json | None) -> tuple[str, str, str | None, str | None, float]:
    """The kind of a task, with the predicted seconds that are left of it."""
    over = State(task["state"]) in ENDED or State(task["state"]) is State.IN_REVIEW
    left_s = 0.0 if over else task["weight"] * (1.0 - fraction(task, heard))
    return task["step"], task["role"], task["model"], _shape(task["params"]), left_s


def _step(step: Step) -> EstimatedStep:
    kind, crew, pace = step.kind, step.crew, step.pace
    return EstimatedStep(
        step=kind.step,
        role=kind.role,
        model=kind.model,
        tasks=kind.num_tasks,
        predicted_seconds=kind.predicted_s,
        ratio=Seconds(p50=round(pace.p50, 4), p95=round(pace.p95, 4)),
        samples=pace.num_samples,
        workers=crew.num_workers,
        accelerator=crew.accelerator,
        accelerators=crew.num_accelerators,
        price_class=crew.price_class,
        usd_per_hour=f"{usd(crew.nano_per_hour):f}",
        rate_card=crew.rate_card,
        accelerator_seconds=_seconds(step.held_s),
        cost=_dollars(step.nano),
    )


def _estimated(document: Mapping[str, Any], *, made: str) -> Estimated:
    return Estimated(
        cost=_dollars(Span(**document["nano"])),
        seconds=_seconds(Span(**document["elapsed_s"])),
        made=made,  # type: ignore[arg-type]  # one of the two
    )


def _json(span: Span) -> Json:
    return {"p50": round(span.p50, 6), "p95": round(span.p95, 6)}


def _seconds(span: Span) -> Seconds:
    return Seconds(p50=round(span.p50, 3), p95=round(span.p95, 3))


def _dollars(nano: Span) -> Dollars:
    return Dollars(p50=f"{usd(round(nano.p50)):.9f}", p95=f"{usd(round(nano.p95)):.9f}")
