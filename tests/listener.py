"""Somebody who listens for webhooks: a real server on loopback that answers as it is told and keeps what it hears."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    path: str
    headers: dict[str, str]
    body: bytes


class Listener:
    """`statuses` are answered in turn, the last one for ever; nobody is answered while `answers` is not set."""

    def __init__(self) -> None:
        self.statuses = [200]
        self.heard: list[Heard] = []
        self.content = b""  # of what is fetched from it
        self.came, self.answers = threading.Event(), threading.Event()
        self.answers.set()
        self._lock = threading.Lock()
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = told._note(Heard(path=self.path, headers=dict(self.headers), body=body))
                told.answers.wait(60)
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                told._note(Heard(path=self.path, headers=dict(self.headers), body=b""))
                self.send_response(200)
                self.send_header("Content-Length", str(len(told.content)))
                self.end_headers()
                self.wfile.write(told.content)

            def log_message(self, *_: object) -> None:
                """Nothing on the terminal."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def _note(self, heard: Heard) -> int:
        with self._lock:
            self.heard.append(heard)
            self.came.set()
            return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


@contextmanager
def nobody() -> Iterator[int]:
    """A port of loopback at which nobody listens; who has it bound keeps others from it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def listening() -> Iterator[Listener]:
    listener = Listener()
    thread = threading.Thread(target=listener.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        listener.answers.set()
        listener.server.shutdown()
        thread.join(timeout=10)
        listener.server.server_close()
