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
from typing import Annotated, Any, Protocol

from fastapi import Query, Request
from fastapi.sse import format_sse_event
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Send

from cluster.errors import FarmError, InvalidInput, RateLimited
from cluster.ledger.jobs import Job
from cluster.ledger.outcomes import Outcome
from cluster.logs import say
from serve.auth import Caller
from serve.feed import Feed, News
from serve.openai.documents import headers
from serve.service import service_of
from serve.standing import STATUS

log = logging.getLogger(__name__)


class Told(Protocol):
    """The object of a surface as it is now."""

    @property
    def status(self) -> str: ...

    def model_dump_json(self, *, ensure_ascii: bool) -> str: ...


Shape = Callable[[News], Awaitable[Told]]
ENDS = frozenset(STATUS.values()) - {"queued", "in_progress"}
After = Annotated[int, Query(ge=0, lt=2**63, description="Events up to this number are known: as `Last-Event-ID`")]
LAST = "last-event-id"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
EVENT = {
    "type": "object",
    "description": "One event",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["status", "progress", "completed", "failed", "cancelled"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string"},
    },
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": (
            "Server-Sent Events `status`, `progress`, `completed`, `failed`, `cancelled`; the data of each is the "
            "object as JSON. All but `progress` have an id, which `Last-Event-ID` takes"
        ),
        "content": {"text/event-stream": {"schema": EVENT}},
        **headers("Cache-Control", "X-Accel-Buffering"),
    },
    204: {"description": "It is over, and the client knows"},
}
"""For the document."""


async def stream(
    request: Request, caller: Caller, outcome: Outcome, after: int, shape: Shape, *, chapter: int | None = None
) -> Response:
    """The answer to GET .../events of a job that the caller may see. Raises InvalidInput, RateLimited.

    `chapter` is which of the jobs of an object this is, where it has several one after the other: its ids are
    CHAPTER.NUMBER then, and a client that knows an earlier chapter is told all of this one.
    """
    job, feed = outcome.job, service_of(request).feed
    seen = _seen(request, after, job, chapter)
    if job.over and seen == job.seq:
        return Response(status_code=204)
    if feed.full(caller.key.id):
        raise RateLimited("too many follow jobs here", remedy="ask for the job itself", retry_after_s=feed.pace.retry_s)
    return EventStream(_frames(feed, job.id, seen, shape, chapter, caller.key.id), feed.pace.slow_s)


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


def _seen(request: Request, after: int, job: Job, chapter: int | None) -> int:
    """The number of the newest event that the client knows."""
    header = request.headers.get(LAST)
    text = str(after) if header is None else header
    if header is not None and chapter is not None:
        known, _, text = header.partition(".")
        if known != str(chapter):
            return 0
    seen = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
    if not 0 <= seen <= job.seq:
        field = "after" if header is None else LAST
        raise InvalidInput(
            f"{text[:40]!r} is no event of this job, which has had {job.seq}", field=field, remedy="leave it out"
        )
    return seen


async def _frames(
    feed: Feed, job_id: str, seen: int, shape: Shape, chapter: int | None, key_id: str
) -> AsyncGenerator[bytes]:
    pace = feed.pace
    ends_s = asyncio.get_running_loop().time() + pace.most_s
    async with feed.following(job_id, seen, key_id) as listener:
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
                frame = await _frame(news, shape, chapter)
            except FarmError:
                return  # whoever comes back is told, or told why not
            yield frame
            if news.last:
                return


async def _frame(news: News, shape: Shape, chapter: int | None) -> bytes:
    told = await shape(news)
    ended = news.last and told.status in ENDS  # the last job of an object may not be its end
    name = told.status if ended else "status" if news.events else "progress"
    return format_sse_event(
        data_str=told.model_dump_json(ensure_ascii=True),  # no other sign ends a line than ours
        event=name,
        id=None if not (news.events or news.last) else str(news.seen) if chapter is None else f"{chapter}.{news.seen}",
    )
