"""What a person orders over HTTP, to a job or to one task: the same verbs for both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Request
from pydantic import Field

from cluster.states import State
from serve.auth import Operator
from serve.books import Books
from serve.farm.access import asked, books, whole
from serve.office import Order, Verb
from serve.openai.documents import body_of, refusals
from serve.openai.schemas import Body, Tier
from serve.rows import Deed, Named
from serve.service import off_the_loop, service_of

STATUSES = (400, 401, 403, 404, 408, 409, 413, 422, 429, 503)
MEANS = {
    Verb.CANCEL: "Stops {it} for good; of a job all that has not ended.",
    Verb.HOLD: "A job gets no new work, and what runs goes on; a task stops, and what it has done is lost.",
    Verb.RELEASE: "Undoes hold.",
    Verb.RETRY: "Dead tasks run again, with fresh budgets for failures.",
    Verb.REQUEUE: "What has ended runs again, whatever its state, without the cache. What is built on it is stale.",
    Verb.EAT: "Dead tasks are accepted as done without output, and what needs them goes on.",
}
DryRun = Annotated[bool, Field(description="Say only what it would touch, and what was spent on that")]


class OrderRequest(Body):
    dry_run: DryRun = False


class ReleaseRequest(OrderRequest):
    with_tasks: bool = Field(default=False, description="Of a job: also its tasks that are on hold on their own")


class RequeueRequest(OrderRequest):
    states: list[State] = Field(
        default=[], max_length=len(State), description="Only tasks in these; all that have ended"
    )


class PriorityRequest(Body):
    priority: int | None = Field(default=None, ge=0, le=100, description="Inside its tier")
    tier: Tier | None = None


BODIES: dict[Verb, type[OrderRequest]] = {Verb.RELEASE: ReleaseRequest, Verb.REQUEUE: RequeueRequest}


def add_verbs(router: APIRouter, what: str, named: Callable[[Books, str], Named]) -> None:
    """A route for each verb: `/{job_id}/cancel` if `what` is "job". `named` raises NotFound."""
    for verb in Verb:
        body = BODIES.get(verb, OrderRequest)
        router.add_api_route(
            f"/{{{what}_id}}/{verb}",
            _route(verb, body, what, named),
            methods=["POST"],
            operation_id=f"{verb}_{what}",
            summary=f"{verb.capitalize()} a {what}",
            description=MEANS[verb].format(it=f"a {what}"),
            response_model=Deed,
            response_model_exclude_none=True,
            responses=refusals(*STATUSES),
            openapi_extra=body_of(body, forms=False, required=False)
            | {"parameters": [{"name": f"{what}_id", "in": "path", "required": True, "schema": {"type": "string"}}]},
        )


def _route(
    verb: Verb, body: type[OrderRequest], what: str, named: Callable[[Books, str], Named]
) -> Callable[..., Awaitable[Deed]]:
    async def perform(request: Request, caller: Operator, after: BackgroundTasks) -> Deed:
        text = str(request.path_params[f"{what}_id"])
        said = (await asked(request, body)).model_dump()
        if "states" in said:
            said["states"] = frozenset(said["states"])

        def do(desk: Books) -> Deed:
            return desk.perform(Order(verb=verb, where=named(desk, whole(text, what)), **said))

        desk = books(request, caller)
        deed = await off_the_loop(lambda: do(desk))
        if deed.done:
            after.add_task(service_of(request).poke)
        return deed

    return perform


def extra_of(kind: type[Body]) -> dict[str, Any]:
    """Of a route that reads a body in which all may be left out."""
    return body_of(kind, forms=False, required=False)
