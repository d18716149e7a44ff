"""The bodies of webhook endpoints, in the shapes of OpenAI's clients; farm extras stand beside OpenAI's own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from cluster.ledger import hooks
from cluster.ledger.hooks import Hook
from serve.openai.schemas import Body
from serve.webhooks import TOPICS, TYPES, about_of


def _known(kind: str) -> str:
    if kind not in TOPICS:
        raise ValueError(f"{kind[:80]!r} is no type of an event; use one of {', '.join(TOPICS)}")
    return kind


EventType = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(TOPICS)})]
EventKinds = Annotated[list[EventType], Field(min_length=1, max_length=100)]


class EndpointRequest(Body):
    name: str = Field(min_length=1, max_length=128)
    url: str = Field(description="Where events are posted to: https, and of the internet")
    event_types: EventKinds
    show: str | None = Field(
        default=None, min_length=1, max_length=64, description="Only of this show; null: of all that the key may see"
    )


class EndpointChange(Body):
    name: str | None = Field(default=None, min_length=1, max_length=128)
    url: str | None = Field(default=None, description="A new one also ends that the endpoint is disabled")
    event_types: EventKinds | None = None
    enabled: bool | None = None


class Rotation(Body):
    keep_old_secret_active_for_24_hours: bool = False


class Probe(Body):
    event_type: EventType


class Endpoint(BaseModel):
    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int
    signing_secret_hint: str
    show: str | None
    enabled: bool
    disabled_reason: str | None


class EndpointWithSecret(Endpoint):
    signing_secret: str = Field(description="Shown now and never again: deliveries are signed with it")


class EndpointPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[Endpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool


class EndpointDeleted(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class EndpointTest(BaseModel):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int = Field(description="What the endpoint answered")
    success: Literal[True] = True


class EventTypes(BaseModel):
    object: Literal["list"] = "list"
    data: list[str]


class Attempt(BaseModel):
    at: int
    status_code: int | None = Field(description="null: nobody answered")
    ms: int
    error: str | None


class EventData(BaseModel):
    id: str


class Event(BaseModel):
    """What is posted to an endpoint."""

    id: str
    object: Literal["event"] = "event"
    type: EventType
    created_at: int
    data: EventData


class Delivery(BaseModel):
    id: str = Field(description="Of the event: the `webhook-id` of every attempt")
    object: Literal["webhook_delivery"] = "webhook_delivery"
    webhook_endpoint_id: str
    event_type: str
    data: EventData
    status: Literal["due", "delivered", "failed"]
    created_at: int
    next_attempt_at: int | None
    attempts: list[Attempt] = Field(description="The newest last, twenty at most")


class DeliveryPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[Delivery]
    first_id: str | None
    last_id: str | None
    has_more: bool


def endpoint(hook: Hook) -> Endpoint:
    return Endpoint(
        id=hook.id,
        name=hook.name,
        url=hook.url,
        event_types=[TYPES[topic] for topic in hook.topics],
        created_at=hook.created_us // 1_000_000,
        updated_at=hook.updated_us // 1_000_000,
        signing_secret_hint=hook.hint,
        show=hook.show,
        enabled=hook.disabled_us is None,
        disabled_reason=hook.disabled_reason,
    )


def with_secret(hook: Hook, secret: str) -> EndpointWithSecret:
    return EndpointWithSecret(**endpoint(hook).model_dump(), signing_secret=secret)


def delivery(line: hooks.Delivery) -> Delivery:
    kind = TYPES[line.topic]
    return Delivery(
        id=line.id,
        webhook_endpoint_id=line.hook_id,
        event_type=kind,
        data=EventData(id=about_of(kind, line.job_id)),
        status=line.progress.value,
        created_at=line.created_us // 1_000_000,
        next_attempt_at=None if line.next_us is None else line.next_us // 1_000_000,
        attempts=[
            Attempt(at=tried.at_us // 1_000_000, status_code=tried.status, ms=tried.ms, error=tried.error)
            for tried in line.tries
        ],
    )
