"""`/v1/webhook_endpoints`: who hears what becomes of videos, films and images. OpenAI's shapes, and a log.

A key that is bound to a show has the endpoints of that show; who may look needs `read`, who changes one `admin`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from ulid import ULID

from cluster.errors import Forbidden, InvalidInput, NotFound
from cluster.ledger import hooks
from cluster.ledger.hooks import HookSight, HookSpec
from serve import bodies
from serve.auth import PROJECT, Admin, Caller, Reader
from serve.farm import webhook_schemas as schemas
from serve.openai.documents import body_of, refusals
from serve.openai.schemas import checked
from serve.service import Service, off_the_loop, service_of
from serve.webhooks import TOPICS, event, send

T = TypeVar("T")
KEEP_OLD_S = 24 * 3600.0
NOBODY = "0" * 26
"""The id of what a test tells of: it names nothing."""

router = APIRouter(prefix="/v1", tags=["webhooks"])


@router.post(
    "/webhook_endpoints",
    operation_id="create_webhook_endpoint",
    response_model=schemas.EndpointWithSecret,
    responses=refusals(400, 401, 403, 408, 413, 422, 429, 503),
    openapi_extra=body_of(schemas.EndpointRequest),
)
async def create(request: Request, caller: Admin) -> schemas.EndpointWithSecret:
    """A new endpoint: from now on it hears of these events. Its secret is in this answer only."""
    service = service_of(request)
    asked = checked(schemas.EndpointRequest, await bodies.fields(request, wait_s=service.settings.http_read_s))
    service.guard.check(asked.url, field="url")
    show = asked.show or request.headers.get(PROJECT) or caller.key.show
    if caller.key.show not in (None, show):
        raise Forbidden("this API key is bound to another show", field="show", remedy="leave show out")
    spec = HookSpec(tenant=caller.tenant, name=asked.name, url=asked.url, topics=_topics(asked.event_types), show=show)
    hook, secret = await off_the_loop(lambda: service.ledger.create_hook(spec))
    return schemas.with_secret(hook, secret)


@router.get(
    "/webhook_endpoints",
    operation_id="list_webhook_endpoints",
    response_model=schemas.EndpointPage,
    responses=refusals(401, 403, 404, 422, 429, 503),
)
async def listed(
    request: Request,
    caller: Reader,
    after: Annotated[str | None, Query(description="The last id of the page before", max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> schemas.EndpointPage:
    """The endpoints that the key may see, newest first."""
    service, mark = service_of(request), None if after is None else _id(after, "whe")
    found, more = await _asked(
        lambda: service.ledger.view(lambda c: hooks.page(c, _sight(caller), after=mark, limit=limit)), "after"
    )
    data = [schemas.endpoint(hook) for hook in found]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return schemas.EndpointPage(data=data, first_id=first, last_id=last, has_more=more)


@router.get(
    "/webhook_endpoints/{webhook_endpoint_id}",
    operation_id="retrieve_webhook_endpoint",
    response_model=schemas.Endpoint,
    responses=refusals(401, 403, 404, 429, 503),
)
async def retrieve(request: Request, caller: Reader, webhook_endpoint_id: str) -> schemas.Endpoint:
    """One endpoint, and whether it is enabled."""
    service, hook_id = service_of(request), _id(webhook_endpoint_id, "whe")
    return schemas.endpoint(await _asked(lambda: service.ledger.view(lambda c: hooks.find(c, _sight(caller), hook_id))))


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}",
    operation_id="update_webhook_endpoint",
    response_model=schemas.Endpoint,
    responses=refusals(400, 401, 403, 404, 408, 413, 422, 429, 503),
    openapi_extra=body_of(schemas.EndpointChange),
)
async def change(request: Request, caller: Admin, webhook_endpoint_id: str) -> schemas.Endpoint:
    """Changes what is given. What has not been delivered yet goes to the new URL."""
    service, hook_id = service_of(request), _id(webhook_endpoint_id, "whe")
    await _asked(lambda: service.ledger.view(lambda c: hooks.find(c, _sight(caller), hook_id)))
    asked = checked(schemas.EndpointChange, await _fields(request, service))
    if asked.url is not None:
        service.guard.check(asked.url, field="url")
    changes: dict[str, Any] = asked.model_dump(include={"name", "url", "enabled"})
    changes["topics"] = None if asked.event_types is None else _topics(asked.event_types)
    return schemas.endpoint(await _asked(lambda: service.ledger.change_hook(_sight(caller), hook_id, **changes)))


@router.delete(
    "/webhook_endpoints/{webhook_endpoint_id}",
    operation_id="delete_webhook_endpoint",
    response_model=schemas.EndpointDeleted,
    responses=refusals(401, 403, 404, 429, 503),
)
async def delete(request: Request, caller: Admin, webhook_endpoint_id: str) -> schemas.EndpointDeleted:
    """Takes an endpoint away, with its log and what it has not heard yet."""
    service, hook_id = service_of(request), _id(webhook_endpoint_id, "whe")
    await _asked(lambda: service.ledger.remove_hook(_sight(caller), hook_id))
    return schemas.EndpointDeleted(id=hook_id)


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/rotate_secret",
    operation_id="rotate_webhook_secret",
    response_model=schemas.EndpointWithSecret,
    responses=refusals(400, 401, 403, 404, 408, 413, 422, 429, 503),
    openapi_extra=body_of(schemas.Rotation),
)
async def rotate_secret(request: Request, caller: Admin, webhook_endpoint_id: str) -> schemas.EndpointWithSecret:
    """A new secret. If the old one is kept for 24 hours, deliveries are signed with both until then. While an older one
    still signs, that one is kept and the one in between ends: so a call whose answer was lost can be made again."""
    service, hook_id = service_of(request), _id(webhook_endpoint_id, "whe")
    await _asked(lambda: service.ledger.view(lambda c: hooks.find(c, _sight(caller), hook_id)))
    asked = checked(schemas.Rotation, await _fields(request, service))
    keep_old_s = KEEP_OLD_S if asked.keep_old_secret_active_for_24_hours else 0.0
    hook, secret = await _asked(lambda: service.ledger.rotate_hook(_sight(caller), hook_id, keep_old_s=keep_old_s))
    return schemas.with_secret(hook, secret)


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/test",
    operation_id="test_webhook_endpoint",
    response_model=schemas.EndpointTest,
    responses=refusals(400, 401, 403, 404, 408, 413, 422, 429, 503),
    openapi_extra=body_of(schemas.Probe),
)
async def test(request: Request, caller: Admin, webhook_endpoint_id: str) -> schemas.EndpointTest:
    """Sends an event of this type about nothing, once, now, and says what was answered. It is not in the log."""
    service, hook_id = service_of(request), _id(webhook_endpoint_id, "whe")
    now_us = service.ledger.clock.now_us()
    hook, secrets = await _asked(
        lambda: service.ledger.view(lambda c: hooks.signing(c, _sight(caller), hook_id, now_us=now_us))
    )
    asked = checked(schemas.Probe, await _fields(request, service))
    event_id = f"evt_{ULID()}".lower()
    body = event(event_id, asked.event_type, f"{asked.event_type.partition('.')[0]}_{NOBODY}", created_us=now_us)
    tried = await send(service.guard, hook.url, secrets, event_id, body, now_us=service.ledger.clock.now_us())
    if tried.status is None:
        raise InvalidInput(
            f"nobody heard it: {tried.error}", field="url", remedy="see that the endpoint can be reached"
        )
    return schemas.EndpointTest(webhook_endpoint_id=hook_id, event_type=asked.event_type, status_code=tried.status)


@router.get(
    "/webhook_endpoints/{webhook_endpoint_id}/deliveries",
    operation_id="list_webhook_deliveries",
    response_model=schemas.DeliveryPage,
    responses=refusals(401, 403, 404, 422, 429, 503),
)
async def deliveries(
    request: Request,
    caller: Reader,
    webhook_endpoint_id: str,
    after: Annotated[str | None, Query(description="The last id of the page before", max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> schemas.DeliveryPage:
    """What was, and what will be, delivered to an endpoint, newest first; what is over is kept for 30 days."""
    service, hook_id = service_of(request), _id(webhook_endpoint_id, "whe")
    mark = None if after is None else _id(after, "evt")
    found, more = await _asked(
        lambda: service.ledger.view(lambda c: hooks.log(c, _sight(caller), hook_id, after=mark, limit=limit))
    )
    data = [schemas.delivery(line) for line in found]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return schemas.DeliveryPage(data=data, first_id=first, last_id=last, has_more=more)


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/deliveries/{event_id}/redeliver",
    operation_id="redeliver_webhook",
    response_model=schemas.Delivery,
    responses=refusals(401, 403, 404, 409, 429, 503),
)
async def redeliver(request: Request, caller: Admin, webhook_endpoint_id: str, event_id: str) -> schemas.Delivery:
    """Sends an event again under the same id, whatever became of it, from now on by the whole schedule of attempts; not
    while the endpoint is disabled."""
    service, hook_id, of = service_of(request), _id(webhook_endpoint_id, "whe"), _id(event_id, "evt")
    return schemas.delivery(await _asked(lambda: service.ledger.redeliver(_sight(caller), hook_id, of)))


@router.get(
    "/webhook_event_types",
    operation_id="list_webhook_event_types",
    response_model=schemas.EventTypes,
    responses=refusals(401, 403, 429, 503),
)
async def event_types(caller: Reader) -> schemas.EventTypes:
    """What an endpoint can hear of."""
    return schemas.EventTypes(data=list(TOPICS))


async def _asked(work: Callable[[], T], field: str = "webhook_endpoint_id") -> T:
    """Raises NotFound, for what is not there and for what is somebody else's alike."""
    try:
        return await off_the_loop(work)
    except NotFound as error:
        raise NotFound(str(error), field=field, remedy="GET /v1/webhook_endpoints lists them") from error


async def _fields(request: Request, service: Service) -> dict[str, Any]:
    """None at all is as good as an empty object."""
    headers = request.headers
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return {}
    return await bodies.fields(request, wait_s=service.settings.http_read_s)


def _topics(event_types: list[str]) -> tuple[str, ...]:
    return tuple(TOPICS[kind] for kind in dict.fromkeys(event_types))


def _sight(caller: Caller) -> HookSight:
    return HookSight(tenant=caller.tenant, show=caller.key.show)


def _id(text: str, prefix: str) -> str:
    """What is no id becomes one of nothing: it is looked for all the same."""
    return text if re.fullmatch(rf"{prefix}_[0-9a-z]{{26}}", text) else f"{prefix}_none"
