"""`/v1/videos`: a video is a job of the recipe `clip`. OpenAI's shapes, and what they lack: cancel, cost, ETA."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Query, Request
from starlette.responses import Response

from actors.contract import Quality
from actors.limits import Limits
from cluster.errors import InvalidInput, InvalidSpec, NotFound, NotReady, Unavailable, Unsupported
from cluster.graph import TaskSpec
from cluster.ledger import outcomes
from cluster.ledger.jobs import JobSpec
from cluster.ledger.outcomes import Outcome
from cluster.rates import usd
from cluster.states import State
from pipelines.recipes import clip
from serve import bodies, prefer, submission
from serve.auth import Caller, Generator, Reader, Stopper
from serve.download import download
from serve.events import EVENTS, After, stream
from serve.feed import News
from serve.finished import files_of
from serve.foresight import estimated
from serve.gate import HEADERS
from serve.openai import first_frames, schemas
from serve.openai.documents import DOWNLOAD, FOLLOWING, answers_with, body_of, bytes_of, reads, refusals
from serve.openai.first_frames import Reference
from serve.openai.models import ready_model
from serve.openai.schemas import Cost, Failure, Usage, Video, VideoDeleted, VideoPage, named, path_id
from serve.openai.sprites import spritesheet
from serve.rows import Estimated
from serve.service import Service, off_the_loop, service_of
from serve.standing import Standing, standing

RECIPE = "pipelines.recipes.clip"
KEY = "clip"  # of the one task of the recipe
FILES = {"video": "clip.mp4", "thumbnail": "poster.png"}
ID = "The id of a video, as it was answered at its creation."
ANSWERS = answers_with("openai-poll-after-ms", "Preference-Applied")

router = APIRouter(prefix="/v1/videos", tags=["videos"])


@router.post(
    "",
    operation_id="create_video",
    response_model=Video,
    responses=ANSWERS | refusals(400, 401, 402, 403, 408, 410, 413, 422, 429, 503),
    openapi_extra=body_of(schemas.VideoRequest) | reads("Idempotency-Key", "Prefer"),
)
async def create(request: Request, caller: Generator, after: BackgroundTasks) -> Video:
    """Takes a video on and answers at once, or when it is done if that is within the n seconds of `Prefer: wait=n`.
    The job is durable before the answer."""
    service = service_of(request)
    fields = await bodies.fields(request, wait_s=service.settings.http_read_s)
    asked = request_of(fields)
    reference = first_frames.reference_of(asked.input_reference)
    return await _submitted(service, request, caller, after, asked, {}, reference=reference)


@router.get("", operation_id="list_videos", response_model=VideoPage, responses=refusals(401, 403, 404, 422, 429, 503))
async def listed(
    request: Request,
    caller: Reader,
    after: Annotated[str | None, Query(description="The last id of the page before", max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoPage:
    """The videos that the key may see, newest first."""
    service, sight = service_of(request), caller.sight(RECIPE)
    mark = None if after is None else path_id(after, "video")
    try:
        page = await off_the_loop(
            lambda: service.ledger.view(
                lambda c: outcomes.page(c, sight, after=mark, limit=limit, newest_first=order == "desc")
            )
        )
    except NotFound as error:
        raise NotFound(f"no video {after}", field="after", remedy="use the id of a video that is there") from error
    data = [video for video, _ in await _videos(service, page.outcomes)]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return VideoPage(data=data, first_id=first, last_id=last, has_more=page.has_more)


@router.get(
    "/{video_id}",
    operation_id="retrieve_video",
    response_model=Video,
    responses=ANSWERS | refusals(401, 403, 404, 429, 503),
    openapi_extra=reads("Prefer"),
)
async def retrieve(request: Request, caller: Reader, video_id: str) -> Video:
    """How a video stands. While it is not over, `openai-poll-after-ms` says when to ask again; with `Prefer: wait=30`
    the answer waits so many seconds for its end."""
    service = service_of(request)
    outcome = await _found(service, caller, video_id)
    job = outcome.job
    if await prefer.waited(request, caller, job.id, seen=job.seq, over=job.over):
        outcome = await _found(service, caller, video_id)
    return await _answered(request, outcome)


@router.delete(
    "/{video_id}", operation_id="delete_video", response_model=VideoDeleted, responses=refusals(401, 403, 404, 429, 503)
)
async def delete(request: Request, caller: Stopper, video_id: str, after: BackgroundTasks) -> VideoDeleted:
    """Takes a video away; one that is being made is canceled first. What it cost stays on the bill."""
    service = service_of(request)
    outcome = await _found(service, caller, video_id)
    await off_the_loop(lambda: service.ledger.delete_job(outcome.job.id))
    after.add_task(service.poke)
    return VideoDeleted(id=named(outcome.job.id, "video"))


@router.post(
    "/{video_id}/cancel",
    operation_id="cancel_video",
    response_model=Video,
    responses=ANSWERS | refusals(401, 403, 404, 429, 503),
)
async def cancel(request: Request, caller: Stopper, video_id: str, after: BackgroundTasks) -> Video:
    """Stops a video that is not over; of one that is, nothing changes."""
    service = service_of(request)
    outcome = await _found(service, caller, video_id)
    if not outcome.job.over:
        await off_the_loop(lambda: service.ledger.cancel_job(outcome.job.id))
        after.add_task(service.poke)
        outcome = await _found(service, caller, video_id)
    return await _answered(request, outcome)


@router.post(
    "/{video_id}/remix",
    operation_id="remix_video",
    response_model=Video,
    responses=ANSWERS | refusals(400, 401, 402, 403, 404, 408, 409, 410, 413, 422, 429, 503),
    openapi_extra=body_of(schemas.RemixRequest) | reads("Idempotency-Key", "Prefer"),
)
async def remix(request: Request, caller: Generator, video_id: str, after: BackgroundTasks) -> Video:
    """A completed video again with another prompt: all else is as it was, the seed too, if none is given."""
    service = service_of(request)
    source = await _found(service, caller, video_id, gone=True)
    fields = await bodies.fields(request, wait_s=service.settings.http_read_s)
    asked = schemas.checked(schemas.RemixRequest, fields)
    gone = source.job.deleted_us is not None
    if not gone:
        _completed(source)
    elif not source.job.spec:  # it is erased
        raise _missing()
    brief = clip.Brief.from_json(source.job.spec)
    again = schemas.VideoRequest(
        prompt=asked.prompt,
        model=brief.model,
        seconds=brief.seconds,
        size=_size(source),
        seed=brief.seed if asked.seed is None else asked.seed,
        quality=brief.quality.value,
        tier=source.job.tier,  # type: ignore[arg-type]  # one of jobs.TIERS
        metadata=source.job.request.get("metadata"),
    )
    more = {"remix_of": named(source.job.id, "video")}
    return await _submitted(service, request, caller, after, again, more, frame=brief.first_frame, gone=gone)


@router.get(
    "/{video_id}/events",
    operation_id="follow_video",
    response_class=Response,
    responses=EVENTS | refusals(401, 403, 404, 422, 429, 503),
    openapi_extra=FOLLOWING,
)
async def events(request: Request, caller: Reader, video_id: str, after: After = 0) -> Response:
    """Tells what happens to a video until it is over: progress is where its denoise steps are."""
    service = service_of(request)

    async def told(news: News) -> Video:
        seen = None if news.standing.over else await off_the_loop(service.foresight_now)
        return _video(news.outcome, news.standing, estimated(seen, news.outcome, news.moving))

    return await stream(request, caller, await _found(service, caller, video_id), after, told)


@router.api_route(
    "/{video_id}/content",
    methods=["GET"],
    operation_id="download_video",
    response_class=Response,
    responses=bytes_of("video/mp4", "image/png") | refusals(401, 403, 404, 409, 410, 416, 422, 429, 503),
    openapi_extra=DOWNLOAD,
)
@router.api_route("/{video_id}/content", methods=["HEAD"], include_in_schema=False)
async def content(
    request: Request,
    caller: Reader,
    video_id: str,
    variant: Literal["video", "thumbnail", "spritesheet"] = "video",
) -> Response:
    """The bytes: the clip, a picture of its middle, or sixteen of its frames on one sheet. Ranges are understood."""
    service = service_of(request)
    outcome = await _found(service, caller, video_id)
    _completed(outcome)
    file = outcome.file(KEY, FILES.get(variant, FILES["video"]))
    if file is None:
        raise NotFound(f"{video_id} has no {variant}", field="variant")
    if variant == "spritesheet":
        clip_file = file
        file = await off_the_loop(lambda: spritesheet(service.store, caller.tenant, clip_file))
    ending = str(file["name"]).rpartition(".")[2]
    name = f"{named(outcome.job.id, 'video')}.{ending}"
    return await download(service, request, file, name=name, show=outcome.job.show)


def request_of(fields: dict[str, Any]) -> schemas.VideoRequest:
    """By our names, whichever it was written in. Raises InvalidInput, Unsupported."""
    for name, remedy in schemas.NOT_TAKEN.items():
        if fields.get(name) not in (None, ""):
            raise Unsupported(f"no model here takes {name}", field=name, remedy=remedy)
    asked = schemas.checked(
        schemas.VideoRequest, {name: value for name, value in fields.items() if name not in schemas.NOT_TAKEN}
    )
    if (asked.width is None) != (asked.height is None):
        missing = "width" if asked.width is None else "height"
        raise InvalidInput("width and height go together", field=missing, remedy="give both, or size")
    named: dict[str, Any] = {}
    if asked.width is not None:
        named["size"] = f"{asked.width}x{asked.height}"
        if asked.size not in (None, named["size"]):
            raise InvalidInput(f"it is not {named['size']}", field="size", remedy="give one of them")
    if asked.image_reference is not None:
        if asked.input_reference is not None:
            raise InvalidInput("input_reference is the same", field="image_reference", remedy="give one of them")
        named["input_reference"] = asked.image_reference
    return asked.model_copy(update={**named, "width": None, "height": None, "image_reference": None})


async def _submitted(
    service: Service,
    request: Request,
    caller: Caller,
    after: BackgroundTasks,
    asked: schemas.VideoRequest,
    more: dict[str, Any],
    *,
    frame: str | None = None,
    reference: Reference | None = None,
    gone: bool = False,
) -> Video:
    """`frame` is a first frame that is kept, `reference` the way to one that is not: that makes two requests equal.
    Nothing is made anew from what is `gone`."""
    kept = {name: value for name, value in (("metadata", asked.metadata), ("user", asked.user)) if value}
    more = {**kept, **more}
    fields = asked.model_dump(mode="json", exclude_none=True, exclude={"input_reference"}) | more
    if reference is not None:
        fields["input_reference"] = reference
    question = submission.asked(request, caller, service, fields)
    if reference is not None or gone:
        unseen = frame if reference is None else first_frames.UNSEEN
        job, _ = await planned(service, asked, more, frame=unseen)  # refused before anything is fetched
        before = await submission.before(service, caller, question, job)
        if before is not None:
            return await _taken_on(service, request, caller, before)
        if reference is None:
            raise _missing()
        frame = await first_frames.kept(service, caller, reference, clip.Brief.from_json(job.spec).sides)
    job, graph = await planned(service, asked, more, frame=frame)
    outcome, created = await submission.submit(service, caller, question, job, graph)
    if created:
        after.add_task(service.poke)
    return await _taken_on(service, request, caller, outcome)


async def _taken_on(service: Service, request: Request, caller: Caller, outcome: Outcome) -> Video:
    taken = outcome.job
    if await prefer.waited(request, caller, taken.id, seen=taken.seq, over=taken.over):
        with contextlib.suppress(NotFound, Unavailable):  # it is taken on: that is no error any more
            outcome = await _found(service, caller, named(outcome.job.id, "video"))
    return await _answered(request, outcome)


async def planned(
    service: Service, asked: schemas.VideoRequest, more: dict[str, Any], *, frame: str | None = None
) -> tuple[JobSpec, list[TaskSpec]]:
    """What a request comes to, before it is anybody's job; `frame` is its first frame. Raises UserMistake."""
    model = await ready_model(service, asked.model)
    if model.limits is None:
        raise InvalidSpec(f"{model.id} draws nothing", field="model", remedy="GET /v1/models says which do")
    brief = clip.Brief(
        prompt=asked.prompt,
        seconds=_seconds(asked, model.id, model.limits),
        seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        quality=Quality(asked.quality),
        model=asked.model,
        size=schemas.sides(asked.size) or model.limits.sizes[0],
        first_frame=frame,
    )
    graph = await off_the_loop(lambda: clip.plan(brief, service.catalog))
    job = JobSpec(
        recipe=RECIPE,
        version=clip.VERSION,
        title=" ".join(asked.prompt.split())[:200],
        spec=brief.to_json(),
        tier=asked.tier,
        deadline_us=schemas.due_us(asked.deadline),
        request=more,
    )
    return job, graph


def _seconds(asked: schemas.VideoRequest, model: str, limits: Limits) -> float:
    """Of a clip, if need be from its frames. Raises InvalidInput, Unsupported."""
    rate = float(limits.fps)
    if asked.fps is not None and abs(asked.fps - rate) > 0.01:
        raise Unsupported(f"{model} draws at {rate:g} fps", field="fps", remedy="leave it out")
    if asked.num_frames is None:
        return asked.seconds
    if asked.num_frames == 1 or not limits.allows_frames(asked.num_frames):
        raise Unsupported(
            f"num_frames {asked.num_frames} cannot be drawn by {model}",
            field="num_frames",
            remedy=f"it draws clips of {limits.seconds()} at {rate:g} fps",
        )
    seconds = asked.num_frames / rate
    if "seconds" in asked.model_fields_set and abs(asked.seconds - seconds) > 0.01:
        said = f"{asked.num_frames} frames are {seconds:g} s, not {asked.seconds:g} s"
        raise InvalidInput(said, field="num_frames", remedy="give one of them")
    return seconds


async def _found(service: Service, caller: Caller, video_id: str, *, gone: bool = False) -> Outcome:
    """Raises NotFound, for what is not there and for what is somebody else's alike; `gone` finds deleted ones."""
    job_id, sight = path_id(video_id, "video"), replace(caller.sight(RECIPE), gone=gone)
    try:
        return await off_the_loop(lambda: service.ledger.view(lambda c: outcomes.find(c, sight, job_id)))
    except NotFound as error:
        raise _missing() from error


def _missing() -> NotFound:
    return NotFound("no such video", field="video_id", remedy="GET /v1/videos lists them")


def _completed(outcome: Outcome) -> None:
    """Raises NotReady."""
    status = standing(outcome, (), backlog=None, place=None, ratios={}, now_us=0).status
    if status != "completed":
        remedy = "ask again when it is completed" if status in ("queued", "in_progress") else "create another one"
        raise NotReady(f"the video is {status.replace('_', ' ')}", field="video_id", remedy=remedy)


async def _answered(request: Request, outcome: Outcome) -> Video:
    [(video, now)] = await _videos(service_of(request), [outcome])
    if not now.over:
        request.scope[HEADERS]["openai-poll-after-ms"] = str(now.poll_after_ms)
    return video


async def _videos(service: Service, found: Sequence[Outcome]) -> list[tuple[Video, Standing]]:
    """What nobody knows now (the queue, the dispatcher's memory) is left out; that never makes an error."""
    moving = await service.moving([one.job.id for one in found if one.job.counts.get(State.RUNNING)])
    waits = any(not one.job.over for one in found)
    queue = await off_the_loop(service.queue_now) if waits else None
    seen = await off_the_loop(service.foresight_now) if waits else None
    now_us = service.ledger.clock.now_us()
    made = []
    for one in found:
        now = standing(
            one,
            moving.get(one.job.id, ()),
            backlog=queue,
            place=service.queue.place(one.job.id),
            ratios=service.queue.ratios,
            now_us=now_us,
        )
        made.append((_video(one, now, estimated(seen, one, moving.get(one.job.id, ()))), now))
    return made


def _video(outcome: Outcome, now: Standing, estimate: Estimated | None) -> Video:
    job, spec = outcome.job, outcome.job.spec
    completed = now.status == "completed"
    return Video(
        id=named(job.id, "video"),
        model=spec["model"],
        status=now.status,  # type: ignore[arg-type]  # a value of standing.STATUS
        progress=now.progress,
        created_at=job.created_us // 1_000_000,
        completed_at=job.ended_us // 1_000_000 if completed and job.ended_us is not None else None,
        expires_at=None,
        seconds=f"{spec['seconds']:g}",
        size=_size(outcome),
        prompt=spec["prompt"],
        remixed_from_video_id=job.request.get("remix_of"),
        error=_failure(outcome) if now.status == "failed" else None,
        seed=spec["seed"],
        quality=spec["quality"],
        metadata=job.request.get("metadata"),
        deadline=None if job.deadline_us is None else job.deadline_us // 1_000_000,
        queue_position=now.queue_position,
        eta_seconds=None if now.eta_s is None else round(now.eta_s, 1),
        usage=_usage(outcome) if completed else None,
        cost=Cost(amount=f"{usd(outcome.spend.nano):.9f}", estimated=not now.over),
        assets=schemas.assets_of(files_of(RECIPE, outcome.tasks)) if completed else [],
        estimate=estimate,
    )


def _size(outcome: Outcome) -> str:
    width_px, height_px = outcome.job.spec["size"]
    return f"{width_px}x{height_px}"


def _failure(outcome: Outcome) -> Failure:
    broken = outcome.broken
    reason = next((task["reason"] for task in outcome.tasks if task["reason"]), None)
    return Failure(
        code=broken.code if broken else "job_failed",
        message=(broken.message if broken else None) or reason or "the video could not be made",
    )


def _usage(outcome: Outcome) -> Usage:
    shot = next((task["params"]["spec"] for task in outcome.tasks if task["key"] == KEY), None)
    frames = shot["num_frames"] if shot else 0
    return Usage(
        duration_seconds=round(float(frames / Fraction(shot["fps"])), 6) if shot else 0.0,
        frames=frames,
        accelerator_seconds=round(outcome.spend.held_s, 6),
    )
