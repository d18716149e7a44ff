"""`/v1/jobs/{id}/events` and `/files`: all that a display of a job needs, and the bytes that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from actors.contract import Json
from cluster.errors import NotFound, NotReady
from cluster.ledger import outcomes
from cluster.ledger.outcomes import Outcome
from cluster.states import State
from serve import clerk
from serve.auth import Caller, Reader
from serve.download import download
from serve.events import EVENTS, After, stream
from serve.farm.access import whole
from serve.feed import News
from serve.finished import files_of, marks
from serve.openai.documents import DOWNLOAD, FOLLOWING, bytes_of, refusals
from serve.rows import EventRow, JobRow, Row
from serve.service import off_the_loop, service_of
from serve.watch import title_of, view_of

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class FollowedTask(Row):
    """A task as somebody watches it."""

    task: str = Field(description="Its key, unique within its job")
    id: str
    step: str
    role: str
    state: State
    stage: str = Field(description="What it does now: encode, denoise, decode, upload, ...; empty if it does not run")
    done: int
    total: int
    reason: str | None
    about: str = Field(description="What it makes: the prompt of a take")
    since: str = Field(description="When it came into this state")
    failures: int = Field(description="Of all its attempts in this generation")


class ResultFile(Row):
    name: str
    sha256: str
    size_bytes: int
    media_type: str


class FollowedJob(JobRow):
    """A job as it stands, and what happened to it since this stream told of it last."""

    now: str = Field(description="The farm's clock")
    status: str = Field(description="queued, in_progress, completed, failed or cancelled")
    progress: int
    queue_position: int | None
    eta_s: float | None
    headline: str | None = Field(description="The title of the film, once its script is there")
    happened: list[EventRow] = Field(description="Its events since then, without a gap")
    changed: list[FollowedTask] = Field(description="The tasks that they are about, and those that run")
    files: list[ResultFile] = Field(description="What it was made for, once it is there: GET .../files/{name}")
    marks_s: dict[str, float] = Field(description="Seconds from its submission to its marks, once it is over and made")


@router.get(
    "/{job_id}/events",
    operation_id="follow_job",
    response_class=Response,
    responses=EVENTS | refusals(401, 403, 404, 422, 429, 503),
    openapi_extra=FOLLOWING,
)
async def events(request: Request, caller: Reader, job_id: str, after: After = 0) -> Response:
    """Tells what happens to a job until it is over: its events, the tasks that move, what it costs by now."""
    ledger = service_of(request).ledger

    async def shape(news: News) -> FollowedJob:
        job = news.outcome.job
        at = await off_the_loop(lambda: marks(ledger, job.id, job.created_us)) if news.last else {}
        return _followed(news, at)

    return await stream(request, caller, await _found(request, caller, job_id), after, shape)


@router.api_route(
    "/{job_id}/files/{name}",
    methods=["GET"],
    operation_id="download_file",
    response_class=Response,
    responses=bytes_of("video/mp4", "image/png", "text/vtt", "application/json")
    | refusals(401, 403, 404, 409, 410, 416, 429, 503),
    openapi_extra=DOWNLOAD,
)
@router.api_route("/{job_id}/files/{name}", methods=["HEAD"], include_in_schema=False)
async def file(request: Request, caller: Reader, job_id: str, name: str) -> Response:
    """One of the files that a job was made for, by its name. Ranges are understood; its `ETag` is its SHA-256."""
    outcome = await _found(request, caller, job_id)
    found = next((one for one in files_of(outcome.job.recipe, outcome.tasks) if one["name"] == name), None)
    if found is None and not outcome.job.over:
        raise NotReady(f"the job is {outcome.job.state.value}", field="job_id", remedy="ask again when it is done")
    if found is None:
        raise NotFound("no such file", field="name", remedy="GET /v1/jobs/{id} lists them")
    return await download(service_of(request), request, found, name=str(found["name"]), show=outcome.job.show)


async def _found(request: Request, caller: Caller, job_id: str) -> Outcome:
    """Raises NotFound, for what is not there and for what is somebody else's alike."""
    own, sight, ledger = whole(job_id, "job"), caller.sight(), service_of(request).ledger
    try:
        return await off_the_loop(lambda: ledger.view(lambda c: outcomes.find(c, sight, own)))
    except NotFound as error:
        raise NotFound("no such job", field="job_id", remedy="GET /v1/jobs lists them") from error


def _followed(news: News, marks_s: Mapping[str, float]) -> FollowedJob:
    outcome, now = news.outcome, news.standing
    heard = {one["task_id"]: one for one in news.moving}
    about = {event.task_id for event in news.events} | set(heard)
    keys = {task["id"]: task["key"] for task in outcome.tasks}
    files = files_of(outcome.job.recipe, outcome.tasks)
    return FollowedJob(
        **clerk.job_row(outcome.job, news.nano).model_dump(),
        now=clerk.at(news.at_us),
        status=now.status,
        progress=now.progress,
        queue_position=now.queue_position,
        eta_s=None if now.eta_s is None else round(now.eta_s, 3),
        headline=title_of(outcome.job, outcome.tasks),
        happened=[clerk.event_row(event, keys) for event in news.events],
        changed=[_task(task, heard.get(task["id"])) for task in outcome.tasks if task["id"] in about],
        files=[ResultFile(**{name: one[name] for name in ResultFile.model_fields}) for one in files],
        marks_s=dict(marks_s) if files else {},
    )


def _task(row: Mapping[str, Any], heard: Json | None) -> FollowedTask:
    seen = view_of(row, heard)
    return FollowedTask(
        task=seen.key, id=seen.id, step=seen.step, role=seen.role, state=seen.state, stage=seen.stage, done=seen.done,
        total=seen.total, reason=seen.reason, about=seen.about, since=clerk.at(seen.since_us), failures=seen.failures,
    )  # fmt: skip
