"""`/v1/takes`: candidates of a shot. Somebody looks at them, circles one, approves one, has one drawn again."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, BackgroundTasks, Request
from starlette.responses import Response

from cluster.errors import NotFound, Unavailable
from cluster.ledger.films import Film as FilmRow
from cluster.states import State
from serve.auth import Caller, Reader, Stopper
from serve.download import download
from serve.farm import showing
from serve.farm.films import editor, found
from serve.farm.schemas import Take
from serve.openai.documents import DOWNLOAD, bytes_of, refusals
from serve.revision import Task, film_and_key, not_drawn, takes_of
from serve.service import Service, off_the_loop, service_of

router = APIRouter(prefix="/v1/takes", tags=["takes"])
REFUSALS = refusals(401, 403, 404, 409, 422, 429, 503)
REVISING = REFUSALS | refusals(402)


@router.get(
    "/{take_id}", operation_id="retrieve_take", response_model=Take, responses=refusals(401, 403, 404, 429, 503)
)
async def retrieve(request: Request, caller: Reader, take_id: str) -> Take:
    """A take, as the newest revision of its film has it."""
    service = service_of(request)
    film, task = await _found(service, caller, take_id)
    moving = (await service.moving([film.now.job.id])).get(film.now.job.id, [])
    return showing.take(film, task, next((one for one in moving if one["task_id"] == task["id"]), None))


@router.api_route(
    "/{take_id}/content",
    methods=["GET"],
    operation_id="download_take",
    response_class=Response,
    responses=bytes_of("video/mp4", "image/png") | refusals(401, 403, 404, 409, 410, 416, 422, 429, 503),
    openapi_extra=DOWNLOAD,
)
@router.api_route("/{take_id}/content", methods=["HEAD"], include_in_schema=False)
async def content(
    request: Request, caller: Reader, take_id: str, variant: Literal["video", "thumbnail"] = "video"
) -> Response:
    """The bytes of a take that is drawn, approved or not. Ranges are understood."""
    service = service_of(request)
    film, task = await _found(service, caller, take_id)
    file = showing.clip_of(task, variant)
    if file is None:
        raise not_drawn(task)
    name = f"{take_id}.{str(file['name']).rpartition('.')[2]}"
    return await download(service, request, file, name=name, show=film.now.job.show)


@router.post("/{take_id}/circle", operation_id="circle_take", response_model=Take, responses=REVISING)
async def circle(request: Request, caller: Stopper, take_id: str, after: BackgroundTasks) -> Take:
    """Chooses the take for its shot: the film is cut again with it, and nothing else is made again. A film that has
    failed goes on with it: what was lost is drawn again, for which a key needs `generate`."""
    service = service_of(request)
    film, task = await _found(service, caller, take_id)
    await off_the_loop(lambda: editor(service, caller, film.id).circle(task["key"]))
    return await _answered(service, caller, take_id, after)


@router.post("/{take_id}/approve", operation_id="approve_take", response_model=Take, responses=REVISING)
async def approve(request: Request, caller: Stopper, take_id: str, after: BackgroundTasks) -> Take:
    """Accepts the take for its shot, and circles it: other takes of the shot need nobody's approval any more. Once each
    shot has an approved take the film is cut."""
    service = service_of(request)
    film, task = await _found(service, caller, take_id)
    await off_the_loop(lambda: editor(service, caller, film.id).approve(task["key"]))
    return await _answered(service, caller, take_id, after, (film, {**task, "state": State.SUCCEEDED.value}))


@router.post("/{take_id}/reject", operation_id="reject_take", response_model=Take, responses=REFUSALS)
async def reject(request: Request, caller: Stopper, take_id: str, after: BackgroundTasks) -> Take:
    """Has a take that is in review drawn again with another seed; the third time it is dead, and its shot has to be
    changed or another take circled."""
    service = service_of(request)
    film, task = await _found(service, caller, take_id)
    state = await off_the_loop(lambda: editor(service, caller, film.id).reject(task["key"]))
    return await _answered(service, caller, take_id, after, (film, {**task, "state": state.value}))


async def _found(service: Service, caller: Caller, take_id: str) -> tuple[FilmRow, Task]:
    """Raises NotFound, for what is somebody else's too."""
    film_id, key = film_and_key(take_id)
    missing = NotFound("no such take", field="take_id", remedy="GET /v1/films/{film_id} lists them")
    try:
        film = await found(service, caller, film_id)
    except NotFound as error:
        raise missing from error
    task = takes_of(film).get(key)
    if task is None:
        raise missing
    return film, task


async def _answered(
    service: Service,
    caller: Caller,
    take_id: str,
    after: BackgroundTasks,
    known: tuple[FilmRow, Task] | None = None,
) -> Take:
    """As it is now. What was done is committed: with `known`, a ledger that is away makes no error of it."""
    after.add_task(service.poke)
    try:
        return showing.take(*await _found(service, caller, take_id))
    except Unavailable:
        if known is None:
            raise  # to circle it again changes nothing
        return showing.take(*known)
