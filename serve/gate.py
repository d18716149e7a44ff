"""The way in and out of every request: its id, its size, its time, and the last net for what nobody foresaw."""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

from cluster.errors import TooLarge, Unreadable
from cluster.logs import about
from serve.envelope import answer, refusal

log = logging.getLogger(__name__)
HEADERS = "farm.headers"
"""In the scope of a request: headers that its answer gets, whatever kind of answer it is."""
OPEN = "farm.open"
"""In the scope of a request: forms whose files are there until it is answered."""


class Gate:
    """ASGI middleware. A body that says it is too long is refused unread; one that lies is cut off on the way."""

    def __init__(self, app: ASGIApp, *, body_bytes: int, upload_bytes: int, replica: str | None = None) -> None:
        self._app, self._body_bytes, self._upload_bytes = app, body_bytes, upload_bytes
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, began_s, started = f"req_{ULID()}".lower(), time.monotonic(), False
        if self._replica is not None:  # then the proxy before it names each request, and says so in the answer
            request_id = Headers(scope=scope).get("x-request-id", request_id)[:64]
        scope[HEADERS], scope[OPEN] = {}, []

        async def named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                if self._replica is None:
                    headers["x-request-id"] = request_id
                else:
                    headers["farm-replica"] = self._replica
                headers["openai-processing-ms"] = str(round((time.monotonic() - began_s) * 1000))
                for name, value in scope[HEADERS].items():
                    headers[name] = value
            await send(message)

        with about(request=request_id):
            try:
                await self._pass(scope, receive, named)
            except ClientDisconnect:
                log.info("A client went away before it had sent its request.")
            except Exception:
                log.exception("Something unforeseen happened in a request.")
                if started:
                    raise  # half an answer: the connection has to break
                said = "something of ours broke; the request id finds it in the log"
                await refusal(500, "server_error", said, code="internal")(scope, receive, named)
            finally:
                for form in scope[OPEN]:
                    await form.close()

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        is_form = headers.get("content-type", "").lower().startswith("multipart/")
        most = self._upload_bytes if is_form else self._body_bytes
        too_large = TooLarge(f"the body has more than {most:,} bytes", remedy="send less")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            await answer(Unreadable("Content-Length is no number", field="Content-Length"))(scope, receive, send)
            return
        if len(length) > 18 or int(length) > most:
            scope[HEADERS]["connection"] = "close"
            await answer(too_large)(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > most:
                scope[HEADERS]["connection"] = "close"
                raise too_large
            return message

        await self._app(scope, counted, send)
