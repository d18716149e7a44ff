"""One chat over HTTP without a server between, so that its client can hang up in the middle."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.front_desk import FrontDesk

PATH = "/v1/chat/completions"


class Line:
    """One request to the application, as a server would hand it on; its client may hang up."""

    def __init__(self, desk: FrontDesk, body: dict[str, Any], *, secret: str | None = None) -> None:
        self.sent = bytearray()
        self.status: int | None = None
        self._body: bytes | None = json.dumps(body).encode()
        self._left, self._heard = asyncio.Event(), asyncio.Event()
        headers = {"authorization": f"Bearer {secret or desk.secret}", "content-type": "application/json"}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": PATH,
            "query_string": b"",
            "server": ("test", 80),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        self.task = asyncio.create_task(desk.app(scope, self._receive, self._send))

    async def hear(self, text: str, *, times: int = 1) -> None:
        while self.sent.count(text.encode()) < times:
            self._heard.clear()
            await asyncio.wait_for(self._heard.wait(), 20)

    async def hang_up(self) -> None:
        self._left.set()
        await asyncio.wait_for(self.task, 20)

    async def _receive(self) -> Any:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.sent += message.get("body", b"")
        self._heard.set()
