"""HTTP by the byte, for what no client would send: a request as it is written, and whatever comes back."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

WAIT_S = 60.0
PIECE_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """`status` 0: the connection was closed without an answer; -1: nothing came within WAIT_S."""

    status: int
    headers: dict[str, str]
    body: bytes
    num_sent: int
    seconds: float

    @property
    def error(self) -> Any:
        """The envelope's member; None for an answer that has none."""
        try:
            return json.loads(self.body)["error"]
        except (ValueError, KeyError, TypeError):
            return None


def ask(url: str, pieces: Iterable[bytes], *, wait_s: float = WAIT_S, half_close: bool = False) -> Reply:
    """Sends the pieces until the other side has answered or closed; the first answer that comes."""
    where = urlsplit(url)
    began_s = time.monotonic()
    with socket.create_connection((where.hostname or "", where.port or 80), timeout=wait_s) as wire:
        sent = _Sender(wire, pieces, half_close)
        sent.start()
        status, headers, body = _answer(wire)
        sent.over.set()
        return Reply(
            status=status, headers=headers, body=body, num_sent=sent.num_bytes, seconds=time.monotonic() - began_s
        )


class _Sender(threading.Thread):
    """Writes until it is done, told so, or the other side wants no more."""

    def __init__(self, wire: socket.socket, pieces: Iterable[bytes], half_close: bool) -> None:
        super().__init__(daemon=True)
        self._wire, self._pieces, self._half_close = wire, pieces, half_close
        self.over, self.num_bytes = threading.Event(), 0

    def run(self) -> None:
        try:
            for piece in self._pieces:
                if self.over.is_set():
                    return
                self._wire.sendall(piece)
                self.num_bytes += len(piece)
            if self._half_close:
                self._wire.shutdown(socket.SHUT_WR)
        except OSError:
            return


def _answer(wire: socket.socket) -> tuple[int, dict[str, str], bytes]:
    try:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := wire.recv(PIECE_BYTES)):
                return 0, {}, data
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(body) < length and (more := wire.recv(PIECE_BYTES)):
            body += more
    except TimeoutError:
        return -1, {}, b""
    except OSError:
        return 0, {}, b""
    status = int(first.split(" ")[1])
    return (status, headers, body) if status != 100 else _after_continue(wire, body)


def _after_continue(wire: socket.socket, rest: bytes) -> tuple[int, dict[str, str], bytes]:
    assert rest == b""
    return _answer(wire)


def drip(url: str, start: bytes, each: bytes, *, num: int, until: threading.Event, every_s: float = 0.1) -> list[bytes]:
    """What `num` connections were told that began with `start` and went on with one `each` at a time, until all were
    closed by the other side or `until` is set; b"?" for one that was open still."""
    where = urlsplit(url)
    told = [b"?"] * num
    open_ = dict[int, socket.socket]()
    for n in range(num):  # each begins at once: the other side waits from when it is connected
        open_[n] = socket.create_connection((where.hostname or "", where.port or 80))
        open_[n].sendall(start)
        open_[n].settimeout(every_s / num)
    while open_ and not until.is_set():
        for n, wire in list(open_.items()):
            try:
                wire.sendall(each)
                said = wire.recv(PIECE_BYTES)
            except TimeoutError:
                continue
            except OSError:
                said = b""
            told[n] = told[n].removeprefix(b"?") + said
            if not said:
                wire.close()
                del open_[n]
    for wire in open_.values():
        wire.close()
    return told


def pipelined(url: str, requests: list[bytes]) -> list[int]:
    """The statuses of what was asked on one connection at once, in the order of the answers."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname or "", where.port or 80), timeout=WAIT_S) as wire:
        wire.sendall(b"".join(requests))
        data, statuses = b"", list[int]()
        while len(statuses) < len(requests) and (more := wire.recv(PIECE_BYTES)):
            data += more
            statuses = [int(line) for line in re.findall(rb"HTTP/1\.1 (\d{3})", data)]
        return statuses
