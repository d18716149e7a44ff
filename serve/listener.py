"""The outermost part of HTTP, in the process of Ray Serve's proxy: what a client may send before anybody looks at it.

uvicorn bounds neither the headers of a request nor the time that they take, and Ray's proxy takes in a body as fast as
it comes and obeys some headers of its own, whoever sent them. Ray calls `callback` (a setting of its environment,
see `serve.host`) before the proxy listens.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import uvicorn.config
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cluster import settings as settings_module
from cluster.errors import TooSlow, Unreadable
from serve.envelope import answer, refusal

HEAD_BYTES = 64 << 10
"""The line of a request and its headers together."""
TO_RAY = re.compile(rb"x[-_]request[-_](timeout[-_]seconds|disconnect[-_]disabled)|serve[-_]multiplexed[-_]model[-_]id"
                    rb"|x[-_]session[-_]id|x[-_]serve[-_]router[-_].*")  # fmt: skip
"""Orders to Ray Serve, which a stranger has none to give: the first would give up a request behind its answer."""
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,64}")


def callback() -> list[Middleware]:
    """What Ray's proxy puts around itself. Its uvicorn is told by name which protocol it speaks."""
    settings = settings_module.load()
    BoundedProtocol.read_s = settings.http_read_s
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"
    return [Middleware(Doorway, body_bytes=settings.http_body_bytes, upload_bytes=settings.http_upload_bytes)]


def most_bytes(headers: list[tuple[bytes, bytes]], *, body: int, upload: int) -> int:
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    return upload if kind.lower().startswith(b"multipart/") else body


class Doorway:
    """ASGI middleware: headers that nobody may send are taken out, and no more of a body is taken in than anybody
    reads. Who stands behind it answers a body that is too long; this only stops reading it."""

    def __init__(self, app: ASGIApp, *, body_bytes: int, upload_bytes: int) -> None:
        self._app, self._body_bytes, self._upload_bytes = app, body_bytes, upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > HEAD_BYTES:
            await _too_long()(scope, receive, send)
            return
        scope["headers"] = [pair for pair in headers if _passes(*pair)]
        if not scope["path"].startswith("/"):  # `OPTIONS *`, which Ray would answer itself
            scope["path"] = "/" + scope["path"]
        most, num_bytes = most_bytes(headers, body=self._body_bytes, upload=self._upload_bytes), 0

        async def bounded() -> Message:
            nonlocal num_bytes
            if num_bytes > most:
                await asyncio.Event().wait()  # until the answer, which ends whoever reads
            message = await receive()
            num_bytes += len(message.get("body", b""))
            return message

        await self._app(scope, bounded, send)


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 of a connection: a request has to be whole within `read_s`, its head within HEAD_BYTES too. What is no
    HTTP is answered in the envelope as well."""

    read_s = 30.0
    linger_s = 5.0
    """How long who is late with a body may read the answer that says so."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        self._head_bytes, self._in_head, self._in_body = 0, False, False
        self._hurry(self.read_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._late is None and not self._in_body:
            self._hurry(self.read_s)
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > HEAD_BYTES:
            self._refuse(_too_long())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._in_body = True, False

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._hurry(self.read_s + self.linger_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._rest()
        super().on_message_complete()

    def _should_upgrade_to_ws(self) -> bool:
        return False  # nothing here speaks it: such a request is one like any other

    def send_400_response(self, msg: str) -> None:
        self._refuse(answer(Unreadable("this is no HTTP/1.1", remedy="look at the first line, headers and lengths")))

    def _hurry(self, within_s: float) -> None:
        self._rest()
        self._late = self.loop.call_later(within_s, self._too_late)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        if self.pipeline:  # it is not read while an answer before it is on its way
            self._hurry(self.read_s)
        elif self._in_head:
            said = f"the headers did not come within {self.read_s:g} s"
            self._refuse(answer(TooSlow(said, remedy="send them faster")))
        else:
            self.transport.close()

    def _refuse(self, said: Response) -> None:
        """A request before it that is whole is answered first."""
        if self.cycle is not None and not self.cycle.response_complete and not self._in_body:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            lines = [b"HTTP/1.1 %d Refused" % said.status_code, *(b"%s: %s" % pair for pair in said.raw_headers)]
            self.transport.write(b"\r\n".join([*lines, b"connection: close", b"", bytes(said.body)]))
        self.transport.close()


def _too_long() -> Response:
    said = f"the headers have more than {HEAD_BYTES:,} bytes; send less"
    return refusal(431, "invalid_request_error", said, param="headers", code="headers_too_large")


def _passes(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        return REQUEST_ID.fullmatch(value) is not None
    return TO_RAY.fullmatch(name) is None
