"""The HTTP application on a real port of loopback: streams, disconnects and slow readers are real there."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from serve.sse import frames


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Its URL. Connections wait from the beginning; the end is an orderly one, within ten seconds."""
    door = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=5)
    )
    feed = app.state.service.feed
    feed.draining = lambda: server.should_exit
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        door.close()
        feed.draining = lambda: False
        assert not thread.is_alive()


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """One event of a stream, its data read."""

    name: str
    id: Any  # a number; None: it has none; text where there are chapters
    data: dict[str, Any]


@contextmanager
def stream(url: str, secret: str, *, seen: int | str | None = None, **params: Any) -> Iterator[Iterator[Told]]:
    """What a stream tells, until the block ends: then the client goes away."""
    headers = {"Authorization": f"Bearer {secret}", **({} if seen is None else {"Last-Event-ID": str(seen)})}
    with httpx.stream("GET", url, headers=headers, params=params, timeout=30) as response:
        assert response.status_code == 200, response.read()
        yield (
            Told(name=one.event, id=int(one.id) if one.id and one.id.isdigit() else one.id, data=json.loads(one.data))
            for one in frames(response.iter_lines())
        )
