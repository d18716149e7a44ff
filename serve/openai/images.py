"""`/v1/images/generations`: a job of the recipe `image`, whose result the call waits for.

A call that has waited long enough answers 408 and may be sent again, as OpenAI's clients do by themselves: it finds the
same job, by its Idempotency-Key or because it says that it is a retry, and waits on. The job goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Query, Request
from starlette.responses import JSONResponse, Response

from actors.contract import Quality
from cluster.errors import (
    Expired,
    FailureClass,
    InvalidInput,
    InvalidSpec,
    NotFound,
    NotReady,
    TooSlow,
    Unavailable,
    UserMistake,
)
from cluster.graph import TaskSpec
from cluster.ledger import outcomes
from cluster.ledger.jobs import JobSpec
from cluster.ledger.outcomes import Outcome
from cluster.rates import usd
from cluster.states import JobState
from pipelines.recipes import image
from serve import bodies, clerk, prefer, submission
from serve.auth import Caller, Generator, Reader, Stopper
from serve.download import download, gone
from serve.openai import schemas
from serve.openai.documents import DOWNLOAD, body_of, bytes_of, headers, reads, refusals
from serve.openai.models import ready_model
from serve.openai.schemas import Image, Images, named, path_id
from serve.rows import JobRow
from serve.service import Service, off_the_loop, service_of

RECIPE = "pipelines.recipes.image"
FILE = "still.png"
LOOK_S = 0.25
QUALITIES = {"low": "draft", "medium": "standard", "auto": "standard", "high": "final", "hd": "final"}
"""OpenAI's words for ours; ours are understood too."""

TAKEN_ON: dict[int | str, dict[str, Any]] = {
    202: {
        "model": JobRow,
        "description": "Taken on, as `Prefer: respond-async` asked: the job",
        **headers("Preference-Applied"),
    }
}

router = APIRouter(prefix="/v1/images", tags=["images"])


@router.post(
    "/generations",
    operation_id="create_images",
    response_model=Images,
    responses=TAKEN_ON | refusals(400, 401, 402, 403, 408, 409, 410, 413, 422, 429, 503),
    openapi_extra=body_of(schemas.ImageRequest, forms=False) | reads("Idempotency-Key", "Prefer"),
)
async def generate(request: Request, caller: Generator, after: BackgroundTasks) -> Images | Response:
    """Draws stills and answers with them or, to `Prefer: respond-async`, at once with the job that draws them."""
    service = service_of(request)
    ends_s = time.monotonic() + service.settings.image_wait_s
    asked = schemas.checked(schemas.ImageRequest, await bodies.fields(request, wait_s=service.settings.http_read_s))
    job, graph = await planned(service, asked)
    question = submission.asked(request, caller, service, asked.model_dump(exclude_none=True))
    outcome, created = await submission.submit(service, caller, question, job, graph)
    if created:
        service.poke()
    if prefer.answer_at_once(request):
        return JSONResponse(
            clerk.job_row(outcome.job, outcome.spend.nano).plain(), 202, prefer.applied("respond-async")
        )
    outcome = await _until_over(service, caller, outcome, ends_s)
    if outcome.job.state is not JobState.SUCCEEDED:
        raise _why(outcome)
    return await _images(service, request, outcome, asked.response_format)


@router.post(
    "/{image_id}/cancel",
    operation_id="cancel_image",
    response_model=JobRow,
    responses=refusals(401, 403, 404, 429, 503),
)
async def cancel(request: Request, caller: Stopper, image_id: str, after: BackgroundTasks) -> JobRow:
    """Stops a call that is not over; of one that is, nothing changes."""
    service, job_id = service_of(request), path_id(image_id, "image")
    outcome = await _found(service, caller, job_id)
    if not outcome.job.over:
        await off_the_loop(lambda: service.ledger.cancel_job(job_id))
        after.add_task(service.poke)
        outcome = await _found(service, caller, job_id)
    return clerk.job_row(outcome.job, outcome.spend.nano)


@router.api_route(
    "/{image_id}/content",
    methods=["GET"],
    operation_id="download_image",
    name="content_of_image",
    response_class=Response,
    responses=bytes_of("image/png") | refusals(401, 403, 404, 409, 410, 416, 422, 429, 503),
    openapi_extra=DOWNLOAD,
)
@router.api_route("/{image_id}/content", methods=["HEAD"], include_in_schema=False)
async def content(
    request: Request, caller: Reader, image_id: str, index: Annotated[int, Query(ge=0, lt=image.MAX_COUNT)] = 0
) -> Response:
    """One still of a call, by its number."""
    service = service_of(request)
    outcome = await _found(service, caller, path_id(image_id, "image"))
    if outcome.job.state is not JobState.SUCCEEDED:
        raise NotReady(f"the image is {outcome.job.state.value}", field="image_id", remedy="ask again when it is done")
    file = outcome.file(image.key_of(index), FILE)
    if file is None:
        raise NotFound(f"{image_id} has no still {index}", field="index")
    name = f"{named(outcome.job.id, 'image')}-{index}.png"
    return await download(service, request, file, name=name, show=outcome.job.show)


async def planned(service: Service, asked: schemas.ImageRequest) -> tuple[JobSpec, list[TaskSpec]]:
    """What a request comes to, before it is anybody's job. Raises UserMistake."""
    model = await ready_model(service, asked.model)
    if model.limits is None:
        raise InvalidSpec(f"{model.id} draws nothing", field="model", remedy="GET /v1/models says which do")
    size = None if asked.size == "auto" else asked.size
    brief = image.Brief(
        prompt=asked.prompt,
        seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        quality=Quality(QUALITIES.get(asked.quality, asked.quality)),
        model=asked.model,
        size=schemas.sides(size) or model.limits.sizes[0],
        count=asked.n,
    )
    graph = await off_the_loop(lambda: image.plan(brief, service.catalog))
    job = JobSpec(
        recipe=RECIPE,
        version=image.VERSION,
        title=" ".join(asked.prompt.split())[:200],
        spec=brief.to_json(),
        tier=asked.tier,
        request={"user": asked.user} if asked.user else {},
    )
    return job, graph


async def _seen(service: Service, caller: Caller, job_id: str) -> Outcome:
    sight = caller.sight(RECIPE)
    return await off_the_loop(lambda: service.ledger.view(lambda c: outcomes.find(c, sight, job_id)))


async def _found(service: Service, caller: Caller, job_id: str) -> Outcome:
    """Raises NotFound, for what is not there and for what is somebody else's alike."""
    try:
        return await _seen(service, caller, job_id)
    except NotFound as error:
        raise NotFound("no such image", field="image_id") from error


async def _until_over(service: Service, caller: Caller, outcome: Outcome, ends_s: float) -> Outcome:
    """Raises TooSlow. A ledger that does not answer for a moment is waited for: the job is there."""
    job_id = outcome.job.id
    while not outcome.job.over:
        if time.monotonic() >= ends_s:
            raise _later(f"{named(job_id, 'image')} is {outcome.job.state.value} still")
        await asyncio.sleep(LOOK_S)
        try:
            outcome = await _seen(service, caller, job_id)
        except NotFound:
            raise NotReady(f"{named(job_id, 'image')} was deleted meanwhile") from None
        except Unavailable:
            continue
    return outcome


def _later(said: str) -> TooSlow:
    return TooSlow(
        said,
        remedy="send the same request with the same Idempotency-Key again: it waits on for the same image",
        retry_after_s=LOOK_S,
    )


def _why(outcome: Outcome) -> UserMistake:
    """After its commit a job makes no server error: whoever repeats those would pay twice."""
    if outcome.job.state is JobState.CANCELED:
        return NotReady("the image was canceled", remedy="ask for it again")
    broken = outcome.broken
    reason = next((task["reason"] for task in outcome.tasks if task["reason"]), None)
    said = (broken.message if broken else None) or reason or "the image could not be made"
    if broken is not None and broken.failure == FailureClass.INPUT.value:
        return InvalidInput(said)
    return NotReady(f"the image could not be made: {said}", remedy="ask again, with another seed")


async def _images(service: Service, request: Request, outcome: Outcome, wanted: str) -> Images:
    spec, image_id = outcome.job.spec, named(outcome.job.id, "image")
    data: list[Image] = []
    for at, task in enumerate(outcome.tasks):
        file = outcome.file(task["key"], FILE)
        if file is None:
            raise Expired("a still was deleted meanwhile")
        shown = {"revised_prompt": task["params"]["spec"]["prompt"]}
        if wanted == "url":
            url = request.url_for("content_of_image", image_id=image_id).include_query_params(index=at)
            data.append(Image(url=str(url), **shown))
        else:
            data.append(Image(b64_json=await off_the_loop(partial(_text_of, service, file)), **shown))
    return Images(
        created=outcome.job.created_us // 1_000_000,
        data=data,
        size="x".join(map(str, spec["size"])),
        quality=spec["quality"],
        reelfarm={"id": image_id, "seed": spec["seed"], "cost_usd": f"{usd(outcome.spend.nano):.9f}"},
    )


def _text_of(service: Service, file: dict[str, Any]) -> str:
    try:
        return base64.b64encode(service.store.get(file["key"])).decode()
    except NotFound as error:
        raise gone(service, file) from error
    except Unavailable as error:  # the job is there, and paid for: a 503 would say that nothing was taken on
        raise _later("the bytes of a still cannot be read for a moment") from error
