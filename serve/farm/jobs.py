"""`/v1/jobs`: whatever the farm was asked for, by whichever route, as its operators see it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Query, Request

from cluster.states import JobState, State
from serve import prefer
from serve.auth import Operator, Reader
from serve.books import EVENTS
from serve.farm.access import asked, books, line, whole
from serve.farm.orders import STATUSES, PriorityRequest, add_verbs, extra_of
from serve.openai.documents import answers_with, reads, refusals
from serve.rows import Deed, EventPage, JobCard, JobRow, JobWhy, Named, Page, TaskRow
from serve.service import off_the_loop, service_of

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("", operation_id="list_jobs", response_model=Page[JobRow], responses=refusals(401, 403, 404, 422, 429, 503))
async def listed(
    request: Request,
    caller: Reader,
    state: Annotated[list[JobState] | None, Query(description="Only these; may be given several times")] = None,
    show: Annotated[str | None, Query(description="Only of this show", max_length=64)] = None,
    after: Annotated[str | None, Query(description="The last id of the page before", max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 30,
) -> Page[JobRow]:
    """The jobs that the key may see, newest first."""
    desk = books(request, caller)
    of_show = None if show is None else line(show, "show")
    mark = None if after is None else whole(after, "job")
    return await off_the_loop(
        lambda: desk.job_page(show=of_show, states=state or (), limit=limit, after=mark)
    )  # fmt: skip


@router.get(
    "/{job_id}",
    operation_id="retrieve_job",
    response_model=JobCard,
    responses=answers_with("Preference-Applied") | refusals(401, 403, 404, 429, 503),
    openapi_extra=reads("Prefer"),
)
async def retrieve(request: Request, caller: Reader, job_id: str) -> JobCard:
    """All about one job: its state, its cost by kind, the tasks that run, its files. With `Prefer: wait=30` the answer
    waits so many seconds for its end."""
    desk = books(request, caller)
    card = await off_the_loop(lambda: desk.job(whole(job_id, "job")))
    if await prefer.waited(request, caller, card.job, seen=card.events, over=card.ended is not None):
        card = await off_the_loop(lambda: desk.job(card.job))
    return card


@router.get(
    "/{job_id}/tasks",
    operation_id="list_tasks",
    response_model=Page[TaskRow],
    responses=refusals(401, 403, 404, 422, 429, 503),
)
async def tasks(
    request: Request,
    caller: Reader,
    job_id: str,
    state: Annotated[list[State] | None, Query(description="Only these; may be given several times")] = None,
    after: Annotated[str | None, Query(description="The last id of the page before", max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=2000)] = 200,
) -> Page[TaskRow]:
    """The tasks of a job in the order of its graph: state, attempts, worker, seconds, cost."""
    desk, mark = books(request, caller), None if after is None else whole(after, "task")
    return await off_the_loop(
        lambda: desk.task_page(whole(job_id, "job"), states=state or (), limit=limit, after=mark)
    )  # fmt: skip


@router.get(
    "/{job_id}/log",
    operation_id="list_events",
    response_model=EventPage,
    response_model_exclude_none=True,
    responses=refusals(401, 403, 404, 422, 429, 503),
)
async def log(
    request: Request,
    caller: Reader,
    job_id: str,
    after: Annotated[int, Query(ge=0, lt=2**63, description="Only events with a higher number")] = 0,
    limit: Annotated[int, Query(ge=1, le=EVENTS)] = 200,
) -> EventPage:
    """What happened to a job, event by event, numbered without gaps. Members without a value are left out."""
    desk = books(request, caller)
    return await off_the_loop(lambda: desk.events(whole(job_id, "job"), after=after, limit=limit))


@router.get(
    "/{job_id}/why", operation_id="explain_job", response_model=JobWhy, responses=refusals(401, 403, 404, 429, 503)
)
async def why(request: Request, caller: Reader, job_id: str) -> JobWhy:
    """Of a job that does not move: each task that something holds up, all that does, until when, and what to do."""
    desk = books(request, caller)
    return await off_the_loop(lambda: desk.why_job(whole(job_id, "job")))


@router.post(
    "/{job_id}/priority",
    operation_id="set_job_priority",
    response_model=Deed,
    response_model_exclude_none=True,
    responses=refusals(*(status for status in STATUSES if status != 409)),
    openapi_extra=extra_of(PriorityRequest),
)
async def priority(request: Request, caller: Operator, job_id: str, after: BackgroundTasks) -> Deed:
    """Sets the priority inside its tier, the tier, or both."""
    desk, body = books(request, caller), await asked(request, PriorityRequest)
    deed = await off_the_loop(
        lambda: desk.set_priority(whole(job_id, "job"), priority=body.priority, tier=body.tier)
    )  # fmt: skip
    after.add_task(service_of(request).poke)
    return deed


add_verbs(router, "job", lambda _, job_id: Named(job=job_id))
