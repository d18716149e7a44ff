"""`/v1/usage`: the tokens of a tenant's chats, by the minute."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from cluster.errors import InvalidInput
from cluster.ledger import tokens
from cluster.ledger.tokens import Minute
from serve.auth import Reader
from serve.openai.documents import refusals
from serve.service import off_the_loop, service_of

HOUR_S = 3600
LATEST_S = 2**40
"""Unix seconds that no ledger can hold in microseconds are nobody's minute."""

router = APIRouter(prefix="/v1/usage", tags=["usage"])
UnixSeconds = Annotated[int, Query(ge=0, le=LATEST_S)]


class Used(BaseModel):
    object: Literal["usage.tokens"] = "usage.tokens"
    key_id: str
    show: str
    model: str
    price_class: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class UsedMinute(BaseModel):
    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[Used]


class Usage(BaseModel):
    object: Literal["page"] = "page"
    data: list[UsedMinute]
    has_more: bool
    next_page: int | None


@router.get("", operation_id="list_usage", response_model=Usage, responses=refusals(401, 403, 422, 429, 503))
async def usage(
    request: Request,
    caller: Reader,
    start_time: Annotated[UnixSeconds | None, Query(description="Unix seconds; an hour ago if it is not given")] = None,
    end_time: Annotated[UnixSeconds | None, Query(description="Not part of it; now if it is not given")] = None,
    limit: Annotated[int, Query(ge=1, le=1440, description="Minutes")] = 60,
) -> Usage:
    """The minutes in which the tenant of the key chatted, oldest first; a key that is bound to a show sees that show.
    A page goes on with `next_page` as its `start_time`. What is being answered is not in it yet."""
    service = service_of(request)
    now_s = service.ledger.clock.now_us() // 1_000_000
    until_s = now_s + 1 if end_time is None else end_time
    since_s = max(0, until_s - HOUR_S) if start_time is None else start_time
    if since_s >= until_s:
        raise InvalidInput("start_time is not before end_time", field="start_time", remedy="give an earlier one")
    found = await off_the_loop(
        lambda: service.ledger.view(
            lambda c: tokens.minutes(
                c,
                tenant=caller.tenant,
                show=caller.key.show,
                since_us=since_s * 1_000_000,
                until_us=until_s * 1_000_000,
                limit=limit + 1,
            )
        )
    )
    more = found[limit:]
    return Usage(
        data=[_minute(one) for one in found[:limit]],
        has_more=bool(more),
        next_page=more[0].minute_us // 1_000_000 if more else None,
    )


def _minute(minute: Minute) -> UsedMinute:
    start_s = minute.minute_us // 1_000_000
    results = [
        Used(
            key_id=meter.key_id,
            show=meter.show,
            model=meter.model,
            price_class=meter.price_class,
            requests=counts.requests,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            cached_tokens=counts.cached_tokens,
        )
        for meter, counts in minute.rows
    ]
    return UsedMinute(start_time=start_s, end_time=start_s + 60, results=results)
