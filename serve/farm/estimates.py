"""`/v1/estimates`: what a video, an image or a film would take and cost, and why so much, before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from cluster import forecast
from cluster.clock import to_datetime
from cluster.errors import InvalidInput
from cluster.forecast import Before, Crew, Forecast, Kind, Span, Step
from cluster.graph import TaskSpec
from cluster.ledger.jobs import TIERS, JobSpec
from cluster.ledger.keys import Scope
from cluster.ledger.outcomes import Backlog
from cluster.rates import load_rate_card, usd
from cluster.timing import shape_of
from pipelines.recipes import film
from serve import bodies
from serve.auth import Caller, caller_with
from serve.farm import films
from serve.farm.schemas import FilmRequest
from serve.openai import first_frames, images, schemas, videos
from serve.openai.documents import refusals
from serve.service import Service, off_the_loop, service_of

Planned = tuple[JobSpec, list[TaskSpec]]


class VideoToBe(schemas.VideoRequest):
    kind: Literal["video"]


class ImageToBe(schemas.ImageRequest):
    kind: Literal["image"]


class FilmToBe(FilmRequest):
    kind: Literal["film"]


class Seconds(BaseModel):
    p50: float = Field(description="The median")
    p95: float = Field(description="What 19 of 20 stay below")


class Dollars(BaseModel):
    p50: str
    p95: str
    currency: Literal["USD"] = "USD"


class EstimatedStep(BaseModel):
    """Tasks of one kind. Dollars are tasks x predicted seconds x ratio x price of the worker."""

    step: str
    role: str
    model: str | None
    tasks: int
    predicted_seconds: float = Field(description="Of each task, as its recipe says")
    ratio: Seconds = Field(description="Actual over predicted seconds, learned from earlier attempts")
    samples: int = Field(description="How many attempts that was learned from; 0: nothing is known, and p95 is a guess")
    workers: int = Field(description="Who takes such tasks now; 0: nobody, the price is that of the last who did")
    accelerator: str
    accelerators: int = Field(description="Of each worker; 0: it is a cpu")
    price_class: str
    usd_per_hour: str = Field(description="Of a whole worker")
    rate_card: str
    accelerator_seconds: Seconds
    cost: Dollars


class Estimate(BaseModel):
    object: Literal["estimate"] = "estimate"
    kind: str
    wait_seconds: Seconds | None = Field(description="In the queue as it is now; null: nobody is here who could begin")
    seconds: Seconds = Field(description="From its beginning to its end")
    accelerator_seconds: Seconds
    cost: Dollars
    steps: list[EstimatedStep]


Asker = Annotated[Caller, Depends(caller_with(Scope.READ, Scope.GENERATE))]
router = APIRouter(prefix="/v1/estimates", tags=["estimates"])


async def _video(service: Service, fields: dict[str, Any]) -> Planned:
    asked = videos.request_of(fields)
    frame = first_frames.UNSEEN if first_frames.reference_of(asked.input_reference) is not None else None
    return await videos.planned(service, asked, {}, frame=frame)


async def _image(service: Service, fields: dict[str, Any]) -> Planned:
    return await images.planned(service, schemas.checked(schemas.ImageRequest, fields))


async def _film(service: Service, fields: dict[str, Any]) -> Planned:
    """With the takes of a script that is yet to be written."""
    job, graph = await films.planned(service, schemas.checked(FilmRequest, fields))
    if any(task.expands for task in graph):
        brief = film.Brief.from_json(job.spec)
        graph = graph + await off_the_loop(lambda: film.to_come(brief, service.catalog))
    return job, graph


KINDS: dict[str, Callable[[Service, dict[str, Any]], Awaitable[Planned]]] = {
    "video": _video,
    "image": _image,
    "film": _film,
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"oneOf": [body.model_json_schema() for body in (VideoToBe, ImageToBe, FilmToBe)]}
            }
        },
    }
}


@router.post(
    "",
    operation_id="create_estimate",
    response_model=Estimate,
    responses=refusals(400, 401, 403, 408, 413, 422, 429, 503),
    openapi_extra=BODY,
)
async def create(request: Request, caller: Asker) -> Estimate:
    """What the same body, less its `kind`, would take and cost if it were created now. Nothing is kept.

    It is refused as it would be refused there. What was asked before and needs no work again is not taken off, and
    neither is the time in which a person looks at the takes of a film.
    """
    service = service_of(request)
    fields = await bodies.fields(request, wait_s=service.settings.http_read_s)
    kind = fields.pop("kind", None)
    plan = KINDS.get(kind) if isinstance(kind, str) else None
    if plan is None:
        raise InvalidInput("kind says what the body is of", field="kind", remedy=f"use {', '.join(KINDS)}")
    job, graph = await plan(service, fields)
    return await off_the_loop(lambda: _answer(str(kind), _forecast(service, job, kinds_of(graph))))


def kinds_of(graph: Sequence[TaskSpec]) -> list[Kind]:
    """The tasks of a graph, those of one kind together, in its order."""
    alike = Counter((t.step, t.role, t.model, shape_of(t.params.get("spec") or t.params), t.weight) for t in graph)
    return [
        Kind(step=step, role=role, model=model, shape=shape, predicted_s=weight, num_tasks=count)
        for (step, role, model, shape, weight), count in alike.items()
    ]


def _forecast(service: Service, job: JobSpec, kinds: Sequence[Kind]) -> Forecast:
    queue = service.queue.look()
    return forecast.forecast(
        kinds,
        paces=service.queue.paces,
        crews=service.queue.crews,
        unknown=_nobody_yet(service),
        before=_before(queue, kinds[0].role, job.tier),
    )


def _before(queue: Backlog, role: str, tier: str) -> Before:
    """What is ready in the same tier comes first, and all that is more urgent."""
    no_later = TIERS[: TIERS.index(tier) + 1]
    return Before(
        running_s=queue.running_s.get(role, 0.0),
        num_running=queue.num_running.get(role, 0),
        ready_s=sum(queue.ready_by_tier_s.get((role, one), 0.0) for one in no_later),
    )


def _nobody_yet(service: Service) -> Crew:
    """Of work that no worker of this farm has ever been here for: a cpu, bought as this machine is."""
    settings = service.settings
    now = to_datetime(service.ledger.clock.now_us())
    rate = load_rate_card(settings.rate_card).rate("cpu", settings.price_class, now)
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


def _answer(kind: str, found: Forecast) -> Estimate:
    return Estimate(
        kind=kind,
        wait_seconds=None if found.wait_s is None else _seconds(found.wait_s),
        seconds=_seconds(found.elapsed_s),
        accelerator_seconds=_seconds(found.held_s),
        cost=_dollars(found.nano),
        steps=[_step(step) for step in found.steps],
    )


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


def _seconds(span: Span) -> Seconds:
    return Seconds(p50=round(span.p50, 3), p95=round(span.p95, 3))


def _dollars(nano: Span) -> Dollars:
    return Dollars(p50=f"{usd(round(nano.p50)):.9f}", p95=f"{usd(round(nano.p95)):.9f}")
