"""`/v1/films`: from a sentence, or a script, to a film. Its script can be changed; only what changed is drawn again.

A film is a chain of jobs of the recipe `film`, of which it answers with the newest.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Query, Request
from starlette.responses import JSONResponse, Response

from actors.contract import Quality
from cluster.assets import canonical_json
from cluster.errors import InvalidInput, InvalidSpec, NotFound, NotReady, Unavailable
from cluster.graph import TaskSpec
from cluster.ledger import films
from cluster.ledger.films import Film as FilmRow
from cluster.ledger.jobs import JobSpec
from cluster.ledger.keys import Scope
from pipelines.recipes import film as recipe
from pipelines.script import Script
from serve import bodies, submission
from serve.auth import Caller, Generator, Reader, Stopper
from serve.download import download
from serve.events import EVENTS, After, stream
from serve.farm import schemas, showing
from serve.farm.schemas import Film, FilmDeleted, FilmPage
from serve.feed import News
from serve.gate import HEADERS
from serve.openai.documents import DOWNLOAD, FOLLOWING, answers_with, body_of, bytes_of, reads, refusals
from serve.openai.models import ready_model
from serve.openai.schemas import checked, due_us
from serve.revision import RECIPE, Editor, script_of
from serve.service import Service, off_the_loop, service_of

router = APIRouter(prefix="/v1/films", tags=["films"])
SCRIPT = {"requestBody": {"required": True, "content": {
    "application/json": {"schema": {"$ref": "#/components/schemas/Script"}}}}}  # fmt: skip
ANSWERS = answers_with("openai-poll-after-ms")
Variant = Literal["film", "poster", "contact_sheet", "captions", "timeline", "script", "manifest"]


@router.post(
    "",
    operation_id="create_film",
    response_model=Film,
    responses=ANSWERS | refusals(400, 401, 402, 403, 408, 410, 413, 422, 429, 503),
    openapi_extra=body_of(schemas.FilmRequest, forms=False) | reads("Idempotency-Key"),
)
async def create(request: Request, caller: Generator, after: BackgroundTasks) -> Film:
    """Takes a film on, as a brief that is to be written or as a ready script, and answers at once."""
    service = service_of(request)
    asked = checked(schemas.FilmRequest, await bodies.fields(request, wait_s=service.settings.http_read_s))
    job, graph = await planned(service, asked)
    question = submission.asked(request, caller, service, asked.model_dump(mode="json", exclude_none=True))
    to_come = await what_comes(service, job, graph)
    estimate = await off_the_loop(lambda: service.foretold(graph, tier=job.tier, to_come=to_come))
    spec, terms = submission.accepted(caller, question, job, estimate)
    film_id, created = await off_the_loop(lambda: service.ledger.submit_film(spec, graph, terms))
    if created:
        after.add_task(service.poke)
    try:
        film = await off_the_loop(reader(service, caller, film_id))
    except NotFound as error:
        raise submission.deleted_since() from error
    except Unavailable:
        if not created:
            raise  # nothing was committed for this request: it may be sent again
        outcome = submission.just_submitted("", spec, len(graph), question.arrived_us)
        film = FilmRow(id=film_id, created_us=question.arrived_us, now=outcome, revisions=(), spend_by_key={})
    return await _answered(request, film)


@router.get("", operation_id="list_films", response_model=FilmPage, responses=refusals(401, 403, 404, 422, 429, 503))
async def listed(
    request: Request,
    caller: Reader,
    after: Annotated[str | None, Query(description="The last id of the page before", max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> FilmPage:
    """The films that the key may see, newest first."""
    service, sight = service_of(request), caller.sight(RECIPE)
    mark = None if after is None else _id(after)
    try:
        some, has_more = await off_the_loop(
            lambda: service.ledger.view(
                lambda c: films.page(c, sight, after=mark, limit=limit, newest_first=order == "desc")
            )
        )
    except NotFound as error:
        raise NotFound("no such film", field="after", remedy="use the id of a film that is there") from error
    data = [film for film, _ in await showing.shown(service, some)]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return FilmPage(data=data, first_id=first, last_id=last, has_more=has_more)


@router.get(
    "/{film_id}",
    operation_id="retrieve_film",
    response_model=Film,
    responses=ANSWERS | refusals(401, 403, 404, 429, 503),
)
async def retrieve(request: Request, caller: Reader, film_id: str) -> Film:
    """How a film stands, down to its takes. While it is not over, `openai-poll-after-ms` says when to ask again."""
    return await _answered(request, await found(service_of(request), caller, film_id))


@router.delete(
    "/{film_id}", operation_id="delete_film", response_model=FilmDeleted, responses=refusals(401, 403, 404, 429, 503)
)
async def delete(request: Request, caller: Stopper, film_id: str, after: BackgroundTasks) -> FilmDeleted:
    """Takes a film away; one that is being made is canceled first. What it cost stays on the bill."""
    service = service_of(request)
    film = await found(service, caller, film_id)
    await off_the_loop(lambda: service.ledger.delete_film(film.id))
    after.add_task(service.poke)
    return FilmDeleted(id=film.id)


@router.post(
    "/{film_id}/cancel",
    operation_id="cancel_film",
    response_model=Film,
    responses=ANSWERS | refusals(401, 403, 404, 429, 503),
)
async def cancel(request: Request, caller: Stopper, film_id: str, after: BackgroundTasks) -> Film:
    """Stops a film that is not over; of one that is, nothing changes."""
    service = service_of(request)
    film = await found(service, caller, film_id)
    if not all(revision.job.over for revision in film.revisions):
        await off_the_loop(lambda: service.ledger.cancel_film(film.id))
        after.add_task(service.poke)
        film = await found(service, caller, film_id)
    return await _answered(request, film)


@router.get(
    "/{film_id}/events",
    operation_id="follow_film",
    response_class=Response,
    responses=EVENTS | refusals(401, 403, 404, 422, 429, 503),
    openapi_extra=FOLLOWING,
)
async def events(request: Request, caller: Reader, film_id: str, after: After = 0) -> Response:
    """Tells what happens to a film until it is over. Ids are REVISION.NUMBER: where another revision takes the place of
    this one the stream ends, and goes on with that one for who comes back."""
    service = service_of(request)
    film = await found(service, caller, film_id)

    async def shape(news: News) -> Film:
        nonlocal film
        film = await found(service, caller, film_id) if news.events else replace(film, now=news.outcome)
        [(shown, _)] = await showing.shown(service, [film], {news.outcome.job.id: news.moving})
        return shown

    return await stream(request, caller, film.now, after, shape, chapter=len(film.revisions))


@router.api_route(
    "/{film_id}/content",
    methods=["GET"],
    operation_id="download_film",
    response_class=Response,
    responses=bytes_of("video/mp4", "image/png", "text/vtt", "application/json")
    | refusals(401, 403, 404, 409, 410, 416, 422, 429, 503),
    openapi_extra=DOWNLOAD,
)
@router.api_route("/{film_id}/content", methods=["HEAD"], include_in_schema=False)
async def content(request: Request, caller: Reader, film_id: str, variant: Variant = "film") -> Response:
    """The film as it was cut last, or what lies beside it. Ranges are understood."""
    service = service_of(request)
    film = await found(service, caller, film_id)
    file = showing.file_of(film, variant)
    if file is None:
        remedy = "look at it: `error` and `waits_for` say why not" if film.now.job.over else "ask again when it is done"
        raise NotReady(f"the film is {film.now.job.state.value}", field="film_id", remedy=remedy)
    ending = str(file["name"]).rpartition(".")[2]
    return await download(service, request, file, name=f"{film.id}.{ending}", show=film.now.job.show)


@router.get(
    "/{film_id}/script",
    operation_id="retrieve_script",
    response_model=Script,
    responses=refusals(401, 403, 404, 409, 429, 503),
)
async def script(request: Request, caller: Reader, film_id: str) -> Response:
    """The script that is being filmed, to be read and changed."""
    return _script_answer(await found(service_of(request), caller, film_id))


@router.put(
    "/{film_id}/script",
    operation_id="replace_script",
    response_model=Film,
    responses=ANSWERS | refusals(400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 503),
    openapi_extra=SCRIPT,
)
async def rewrite(request: Request, caller: Generator, film_id: str, after: BackgroundTasks) -> Film:
    """Films another script on the same terms: shots that are in both are not drawn again. What still runs of the
    revision before is canceled, but for work that this one needs too. The same script again changes nothing, but that a
    film which failed or was canceled goes on."""
    service = service_of(request)
    film = await found(service, caller, film_id)
    fields = await bodies.fields(request, wait_s=service.settings.http_read_s)
    new = checked_script(service, fields, film.now.job.spec["model"])
    changed = await off_the_loop(lambda: editor(service, caller, film_id).rewrite(new))
    if changed:
        after.add_task(service.poke)
    try:
        film = await found(service, caller, film_id)
    except Unavailable:
        if not changed:
            raise  # nothing was committed for this request: it may be sent again
        film = _just_rewritten(film, new, service.ledger.clock.now_us())
    return await _answered(request, film)


def _just_rewritten(film: FilmRow, script: Script, now_us: int) -> FilmRow:
    """A film whose new script was committed a moment ago, by a ledger that has stopped answering since."""
    job = film.now.job
    new = {**job.spec, "script": script.model_dump(mode="json")}
    spec = films.same_job(job, JobSpec(recipe=RECIPE, version=recipe.VERSION, title=job.title, spec=new))
    return replace(film, now=submission.just_submitted("", spec, 1, now_us))


async def planned(service: Service, asked: schemas.FilmRequest) -> tuple[JobSpec, list[TaskSpec]]:
    """What a request comes to, before it is anybody's job. Raises UserMistake."""
    model = await ready_model(service, asked.model)
    if model.limits is None:
        raise InvalidSpec(f"{model.id} draws nothing", field="model", remedy="GET /v1/models says which do")
    script = None if asked.script is None else checked_script(service, asked.script, asked.model, under="script.")
    if script is None:
        await ready_model(service, asked.writer, role="writer", field="writer")
    brief = recipe.Brief(
        logline=asked.logline,
        num_shots=asked.shots,
        seconds=asked.seconds,
        seed=secrets.randbelow(2**31) if asked.seed is None and script is None else asked.seed,
        quality=Quality(asked.quality),
        model=asked.model,
        writer=asked.writer,
        script=asked.script,
        num_takes=asked.takes,
        review=asked.review,
        seeds=asked.seeds,
        fresh=asked.fresh,
    )
    graph = await off_the_loop(lambda: recipe.plan(brief, service.catalog))
    told = asked.logline or (script.title if script is not None else "")
    job = JobSpec(
        recipe=RECIPE,
        version=recipe.VERSION,
        title=" ".join(told.split())[:200],
        spec=brief.to_json(),
        tier=asked.tier,
        deadline_us=due_us(asked.deadline),
        request={"metadata": asked.metadata} if asked.metadata else {},
    )
    return job, graph


async def what_comes(service: Service, job: JobSpec, graph: list[TaskSpec]) -> list[TaskSpec]:
    """The takes, and what follows them, of a script that is yet to be written."""
    brief = recipe.Brief.from_json(job.spec)
    return await off_the_loop(lambda: recipe.to_come(brief, service.catalog, graph))


def checked_script(service: Service, document: dict[str, Any], model_id: str, *, under: str = "") -> Script:
    """Raises InvalidInput with the path of the field, as in `script.scenes.0.shots.1.prompt`."""
    try:
        script = Script.from_json(canonical_json(document))
        script.validate_against(service.catalog.model(model_id, role="render", field="model"))
        return script
    except InvalidInput as error:
        path = re.sub(r"\[(\d+)\]", r".\1", error.field or "script")
        said = re.sub(r"\[(\d+)\]", r".\1", str(error))
        field = path if path == "script" else f"{under}{path}"
        raise InvalidInput(said, field=field, remedy=error.remedy) from error


def reader(service: Service, caller: Caller, film_id: str) -> Callable[[], FilmRow]:
    """Looks for a film, as often as it is called. Raises NotFound, for what is somebody else's too."""

    sight, own = caller.sight(RECIPE), _id(film_id)

    def read() -> FilmRow:
        try:
            return service.ledger.view(lambda c: films.find(c, sight, own))
        except NotFound as error:
            raise NotFound("no such film", field="film_id", remedy="GET /v1/films lists them") from error

    return read


def _id(text: str) -> str:
    """What is no id becomes that of nothing, which is looked for all the same."""
    return text if re.fullmatch(r"film_[0-9a-hjkmnp-tv-z]{26}", text) else "film_none"


def editor(service: Service, caller: Caller, film_id: str) -> Editor:
    key = caller.key
    read = reader(service, caller, film_id)
    limits: dict[str, Any] = {"most_in_flight_s": key.in_flight_s, "only_show": key.show, "key": key.id}
    may_draw = key.may([Scope.GENERATE])
    return Editor(service.ledger, service.catalog, read, service.foretold, may_draw=may_draw, **limits)


async def found(service: Service, caller: Caller, film_id: str) -> FilmRow:
    return await off_the_loop(reader(service, caller, film_id))


def _script_answer(film: FilmRow) -> Response:
    script = script_of(film)
    if script is None:
        raise NotReady("the script is not written yet", field="film_id", remedy="ask again in some seconds")
    return JSONResponse(script.model_dump(mode="json"))


async def _answered(request: Request, film: FilmRow) -> Film:
    [(shown, now)] = await showing.shown(service_of(request), [film])
    if not now.over:
        request.scope[HEADERS]["openai-poll-after-ms"] = str(now.poll_after_ms)
    return shown
