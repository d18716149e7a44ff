"""`/v1/estimates`: what a video, an image or a film would take and cost, and why so much, before anything runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request

from cluster.errors import InvalidInput
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from cluster.ledger.keys import Scope
from serve import bodies
from serve.auth import Caller, caller_with
from serve.farm import films
from serve.farm.schemas import FilmRequest
from serve.foresight import answer, kinds_of
from serve.openai import first_frames, images, schemas, videos
from serve.openai.documents import refusals, schema_of
from serve.rows import Estimate
from serve.service import Service, off_the_loop, service_of

Planned = tuple[JobSpec, list[TaskSpec]]


class VideoToBe(schemas.VideoRequest):
    kind: Literal["video"]


class ImageToBe(schemas.ImageRequest):
    kind: Literal["image"]


class FilmToBe(FilmRequest):
    kind: Literal["film"]


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
    return job, graph + await films.what_comes(service, job, graph)


KINDS: dict[str, Callable[[Service, dict[str, Any]], Awaitable[Planned]]] = {
    "video": _video,
    "image": _image,
    "film": _film,
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"oneOf": [schema_of(body) for body in (VideoToBe, ImageToBe, FilmToBe)]}}
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
    job.check_in_time(service.ledger.clock.now_us())
    return await off_the_loop(lambda: answer(str(kind), service.foresight().forecast(kinds_of(graph), tier=job.tier)))
