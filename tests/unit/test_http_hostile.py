"""The corpus of hostile requests against the farm's own listener and application, over real connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from serve.envelope import ErrorBody
from serve.listener import BoundedProtocol, Doorway
from tests import hostile, raw_http
from tests.front_desk import FrontDesk, front_desk
from tests.hostile import Attack

READ_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    desk: FrontDesk
    url: str


class Hasty(BoundedProtocol):
    read_s = READ_S


@pytest.fixture(scope="module")
def door(fast_folder: Path) -> Iterator[Door]:
    with standing(fast_folder, "hostile", BoundedProtocol) as door:
        yield door


@pytest.fixture(scope="module")
def hasty_door(fast_folder: Path) -> Iterator[Door]:
    with standing(fast_folder, "slow", Hasty) as door:
        yield door


@contextmanager
def standing(folder: Path, name: str, protocol: type[BoundedProtocol]) -> Iterator[Door]:
    with front_desk(f"sqlite:///{folder}/{name}.db", folder / name, http_read_s=protocol.read_s) as desk:
        settings = desk.settings
        app = Doorway(desk.app, body_bytes=settings.http_body_bytes, upload_bytes=settings.http_upload_bytes)
        server = uvicorn.Server(uvicorn.Config(app, port=0, http=protocol, log_config=None, lifespan="off"))
        listening = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield Door(desk=desk, url=f"http://127.0.0.1:{listening.getsockname()[1]}")
        server.should_exit = True
        thread.join(timeout=30)


@pytest.mark.parametrize("attack", [*hostile.CORPUS, *hostile.BIG], ids=lambda attack: attack.name)
def test_a_hostile_request_gets_a_typed_answer_and_leaves_nothing_behind(door: Door, attack: Attack):
    before = [job.id for job in door.desk.ledger.jobs()]
    reply = raw_http.ask(door.url, attack.pieces(door.desk.secret), half_close=attack.half_close)
    assert reply.status in attack.fair, (reply.status, reply.body[:300])
    if reply.status >= 400:
        error = reply.error
        assert error is not None, reply.body[:300]
        ErrorBody.model_validate(error)
        assert len(reply.body) < 3000
    assert [job.id for job in door.desk.ledger.jobs()] == before


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\nX-A: ", b"408"),
        (b"GET /", b"408"),
        (b"POST /v1/videos HTTP/1.1\r\nAuthorization: Bearer KEY\r\nContent-Length: 9999\r\n\r\n", b"408"),
        (b"POST /v1/videos HTTP/1.1\r\nAuthorization: Bearer KEY\r\nTransfer-Encoding: chunked\r\n\r\n2;", b"408"),
        (b"GET /v1/models HTTP/1.1\r\nContent-Length: 9999\r\n\r\n", b"401"),
    ],
    ids=["headers", "line", "body", "chunks", "unread"],
)
def test_fifty_slow_clients_are_given_up_and_others_are_served_meanwhile(hasty_door: Door, start: bytes, status: bytes):
    door, over, told = hasty_door, threading.Event(), list[bytes]()
    start = start.replace(b"KEY", door.desk.secret.encode())
    slow = threading.Thread(
        target=lambda: told.extend(raw_http.drip(door.url, start, b"G", num=50, until=over)), daemon=True
    )
    slow.start()
    served = raw_http.ask(door.url, [hostile.head("GET", "/v1/models", door.desk.secret)])
    slow.join(timeout=60)
    over.set()
    assert served.status == 200
    # A byte on its way to who has closed takes an answer that was not read yet with it.
    assert b"HTTP/1.1 " + status in {said[:12] for said in told} <= {b"HTTP/1.1 " + status, b""}
    assert len(told) == 50


def test_who_says_nothing_is_let_go(hasty_door: Door):
    assert raw_http.ask(hasty_door.url, []).status == hostile.CLOSED


def test_what_is_asked_at_once_on_one_connection_is_answered_in_its_order(door: Door):
    key = door.desk.secret
    asked = [hostile.head("GET", path, key) for path in ("/v1/models", "/v1/none", "/v1/videos", "/v1/videos/x")]
    assert raw_http.pipelined(door.url, asked * 5) == [200, 404, 200, 404] * 5
    broken = [hostile.head("GET", "/v1/models", key), b"BREW / HTTP/1.1\r\n\r\n"]
    assert raw_http.pipelined(door.url, broken) == [200]  # and then it is closed
