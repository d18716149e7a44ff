"""What happens to a job, as Server-Sent Events: the whole object at each event of its log, and progress in between.

`id:` is the number of the newest event that is told, so a client that comes back with `Last-Event-ID` is told exactly
what came later; `progress` has none. After `completed`, `failed` or `cancelled` the stream ends, and a client that
comes back after that is answered 204, at which browsers stop. Source: the HTML standard, section 9.2.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Send

from cluster.errors import InvalidInput, RateLimited, Unavailable
from cluster.ledger.outcomes import Outcome
from cluster.logs import say
from serve.feed import Feed, News
from serve.service import service_of

log = logging.getLogger(__name__)
Shape = Callable[[News], Awaitable[BaseModel]]
"""The object of a surface as it is now."""
After = Annotated[int, Query(ge=0, lt=2**63, description="Events up to this number are known: as `Last-Event-ID`")]
LAST = "last-event-id"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": (
            "Server-Sent Events `status`, `progress`, `completed`, `failed`, `cancelled`; the data of each is the "
            "object as JSON. All but `progress` have an id, which `Last-Event-ID` takes"
        ),
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "It is over, and the client knows"},
}
"""For the document."""


async def stream(request: Request, outcome: Outcome, after: int, shape: Shape) -> Response:
    """The answer to GET .../events of a job that the caller may see. Raises InvalidInput, RateLimited."""
    job, feed = outcome.job, service_of(request).feed
    field = LAST if LAST in request.headers else "after"
    text = request.headers.get(LAST, str(after))
    seen = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
    if not 0 <= seen <= job.seq:
        raise InvalidInput(
            f"{text[:40]!r} is no event of this job, which has had {job.seq}", field=field, remedy="leave it out"
        )
    if job.over and seen == job.seq:
        return Response(status_code=204)
    if feed.full:
        raise RateLimited("too many follow jobs here", remedy="ask for the job itself", retry_after_s=feed.pace.retry_s)
    return EventStream(_frames(feed, job.id, seen, shape), feed.pace.slow_s)


class EventStream(StreamingResponse):
    """Lets go of a client that reads nothing for `slow_s`, and of its feed as soon as a client has gone."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes], slow_s: float) -> None:
        super().__init__(frames, headers=HEADERS)
        self._frames, self._slow_s = frames, slow_s

    async def stream_response(self, send: Send) -> None:
        async def timely(message: Message) -> None:
            async with asyncio.timeout(self._slow_s):
                await send(message)

        async with aclosing(self._frames):
            try:
                await super().stream_response(timely)
            except TimeoutError:
                say(log, "Somebody who follows a job reads nothing.", action="stream.slow", level=logging.WARNING)


async def _frames(feed: Feed, job_id: str, seen: int, shape: Shape) -> AsyncGenerator[bytes]:
    pace = feed.pace
    ends_s = asyncio.get_running_loop().time() + pace.most_s
    async with feed.following(job_id, seen) as listener:
        yield format_sse_event(retry=round(pace.retry_s * 1000))
        while asyncio.get_running_loop().time() < ends_s:
            try:
                news = await listener.news(pace.heartbeat_s)
            except TimeoutError:
                yield format_sse_event(comment="nothing new")
                continue
            if news is None:
                return
            try:
                frame = await _frame(news, shape)
            except Unavailable:
                return  # it is told to whoever comes back
            yield frame
            if news.last:
                return


async def _frame(news: News, shape: Shape) -> bytes:
    name = news.standing.status if news.last else "status" if news.events else "progress"
    data = (await shape(news)).model_dump_json(ensure_ascii=True)  # no other sign ends a line than ours
    return format_sse_event(data_str=data, event=name, id=str(news.seen) if news.events else None)
