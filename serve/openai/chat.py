"""`/v1/chat/completions`: straight to a writer's continuous batching. A chat is no job: asked again, it is answered
again.

A request that a writer refuses, or that no writer can take, is answered with a status as any other. Once a stream has
begun, what goes wrong is an event of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from ulid import ULID

from actors.contract import Json, Piece
from cluster.errors import FarmError, NoWriter, RateLimited
from serve import bodies, envelope
from serve.auth import Caller, Generator
from serve.chats import Answer
from serve.gate import HEADERS
from serve.openai import chat_schemas
from serve.openai.chat_schemas import ChatCompletion, ChatRequest, ChatUsage, Choice, Said, TokenDetails
from serve.openai.documents import body_of, headers, refusals
from serve.service import Service, off_the_loop, service_of

log = logging.getLogger(__name__)
SSE = "text/event-stream"
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            SSE: {
                "schema": {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]},
                "example": 'data: {"object":"chat.completion.chunk","choices":[...]}\n\ndata: [DONE]\n\n',
            }
        },
        **headers(
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
            "Cache-Control",
            "X-Accel-Buffering",
        ),
    }
}

router = APIRouter(prefix="/v1/chat", tags=["chat"])


@router.post(
    "/completions",
    operation_id="create_chat_completion",
    response_model=ChatCompletion,
    responses=EVENTS | refusals(400, 401, 403, 408, 413, 422, 429, 503),
    openapi_extra=body_of(ChatRequest, forms=False),
)
async def complete(request: Request, caller: Generator) -> Any:
    """Answers a chat, at once or as a stream of events. What was read and made is metered, even if nobody waits for
    the end; `GET /v1/usage` tells it."""
    service = service_of(request)
    asked = chat_schemas.chat_request(await bodies.fields(request, wait_s=service.settings.http_read_s))
    service.catalog.model(asked.model, role="writer", field="model")
    _check_tokens(request, caller)
    answer = _begun(service, caller, asked)
    try:
        if not asked.stream:
            return await _unless_gone(request, _whole(answer))
        first = await _unless_gone(request, _first(answer, service.settings.chat_keepalive_s))
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        return Events(answer, first, with_usage=with_usage, keepalive_s=service.settings.chat_keepalive_s)
    except _Gone:
        answer.close()
        return Response(status_code=499)  # nobody reads it
    except BaseException:
        answer.close()
        raise


class Events(StreamingResponse):
    """The stream. Whatever ends it, the answer is closed."""

    def __init__(self, answer: Answer, first: list[Piece], *, with_usage: bool, keepalive_s: float) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(_events(answer, first, with_usage, keepalive_s), media_type=SSE, headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()


async def _events(answer: Answer, first: list[Piece], with_usage: bool, keepalive_s: float) -> AsyncIterator[bytes]:
    head: Json = {
        "id": answer.chat.id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": answer.chat.model,
    }
    if with_usage:
        head["usage"] = None

    def chunk(delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event(head | {"choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    last: Piece | None = None
    try:
        while True:
            try:
                piece = first.pop(0) if first else await answer.next(keepalive_s)
            except TimeoutError:
                yield b": keepalive\n\n"
                continue
            if piece is None:
                break
            last = piece
            if piece.text:
                yield chunk({"content": piece.text})
            if piece.finish_reason:
                yield chunk({}, piece.finish_reason)
        if with_usage and last is not None:
            yield _event(head | {"choices": [], "usage": _usage(last).model_dump()})
        yield b"data: [DONE]\n\n"
    except FarmError as error:
        log.error("A stream broke.", exc_info=error)
        yield b"data: " + bytes(envelope.answer(error).body) + b"\n\n"


async def _first(answer: Answer, wait_s: float) -> list[Piece]:
    """All until the first that has text, or as many as came in time: what goes wrong so far still gets a status."""
    found: list[Piece] = []
    ends_s = time.monotonic() + wait_s
    while not found or not (found[-1].text or found[-1].finish_reason):
        try:
            piece = await answer.next(max(0.0, ends_s - time.monotonic()))
        except TimeoutError:
            break
        if piece is None:
            break
        found.append(piece)
    return found


async def _whole(answer: Answer) -> ChatCompletion:
    pieces: list[Piece] = []
    while (piece := await answer.next()) is not None:
        pieces.append(piece)
    last = pieces[-1]
    said = Choice(message=Said(content="".join(p.text for p in pieces)), finish_reason=last.finish_reason)  # type: ignore[arg-type]  # of the last piece it is one
    return ChatCompletion(
        id=answer.chat.id, created=int(time.time()), model=answer.chat.model, choices=[said], usage=_usage(last)
    )


def _begun(service: Service, caller: Caller, asked: ChatRequest) -> Answer:
    """Raises NoWriter, RateLimited."""
    if service.chat is None:
        raise NoWriter("nobody here answers chats", field="model", remedy="ask a farm that has a writer")
    chat = asked.chat(f"chatcmpl-{ULID()}".lower(), timeout_s=service.settings.chat_s)

    async def book(last: Piece) -> None:
        await off_the_loop(lambda: service.meter.book(caller.key, caller.show, chat.model, last))

    return Answer(service.chat, chat, place=service.places.one(caller.key), book=book)


def _check_tokens(request: Request, caller: Caller) -> None:
    """What is being answered counts when it has ended. Raises RateLimited."""
    tokens = caller.tokens
    if tokens is None:
        return
    request.scope[HEADERS] |= {
        "x-ratelimit-limit-tokens": str(tokens.limit),
        "x-ratelimit-remaining-tokens": str(tokens.left),
        "x-ratelimit-reset-tokens": f"{tokens.full_s:.3f}s",
    }
    if tokens.left <= 0:
        raise RateLimited(
            f"this key may have {tokens.limit} tokens a minute",
            remedy=f"wait {tokens.wait_s:.1f} s",
            retry_after_s=tokens.wait_s,
        )


class _Gone(Exception):
    """The client has left."""


async def _unless_gone(request: Request, work: Any) -> Any:
    """What `work` returns or raises, unless its client leaves first: _Gone."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Gone
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _usage(last: Piece) -> ChatUsage:
    return ChatUsage(
        prompt_tokens=last.prompt_tokens,
        completion_tokens=last.completion_tokens,
        total_tokens=last.prompt_tokens + last.completion_tokens,
        prompt_tokens_details=TokenDetails(cached_tokens=last.cached_tokens),
    )


def _event(document: Json) -> bytes:
    return f"data: {json.dumps(document, separators=(',', ':'))}\n\n".encode()
