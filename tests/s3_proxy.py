"""A proxy between a farm and its S3 server that breaks what it is told to; whatever it changes it signs anew."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.seaweedfs import SeaweedFS, keys_of

CHECKSUMS = ("x-amz-checksum-", "x-amz-sdk-checksum-algorithm", "x-amz-checksum-algorithm")


@dataclass(slots=True)
class Trouble:
    """What is wrong now; a test changes it while requests go on. Functions are asked of (method, path)."""

    down: bool = False
    """Connections break before anything is read."""
    error_rate: float = 0.0
    """So many requests of a hundredth are answered 503."""
    slow_s: float = 0.0
    deaf: bool = False
    """The server is told of no checksum and of no condition, and answers none: as one that knows neither."""
    lost: Callable[[str, str], bool] = lambda method, path: False
    """The server does it; nobody hears of it."""
    refused: Callable[[str, str], bytes | None] = lambda method, path: None
    """The server hears nothing of it; the answer is a status and a code, as in `b"409 Conflict"`."""
    damaged: Callable[[str, str], bool] = lambda method, path: False
    """A bit of what is written is turned over on its way."""
    authorized: list[str] = field(default_factory=list)
    """Methods and paths of requests that had a header with a key."""
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    count: dict[str, int] = field(default_factory=dict)
    """How often each trouble was made."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def strikes(self, name: str) -> None:
        with self.lock:
            self.count[name] = self.count.get(name, 0) + 1

    def errs(self) -> bool:
        with self.lock:
            return self.dice.random() < self.error_rate


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _pass(self) -> None:
        trouble, method = self.server.trouble, self.command
        if trouble.down:
            trouble.strikes("down")
            self.close_connection = True
            return
        if trouble.slow_s:
            time.sleep(trouble.slow_s)
        if "Authorization" in self.headers:
            trouble.authorized.append(f"{method} {self.path}")
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if trouble.errs():
            trouble.strikes("error")
            self._answer(503, [("content-type", "application/xml")], SLOW_DOWN)
            return
        if refusal := trouble.refused(method, self.path):
            status, code = refusal.split()
            said = b"<?xml version='1.0'?><Error><Code>" + code + b"</Code></Error>"
            self._answer(int(status), [("content-type", "application/xml")], said)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "expect")}
        changed = self._deafened(headers) if trouble.deaf else False
        if body and method in ("PUT", "POST") and trouble.damaged(method, self.path):
            trouble.strikes("damaged")
            body, changed = body[:-1] + bytes([body[-1] ^ 1]), True
        if changed and "Authorization" in headers:
            self._sign(method, headers, body)
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=120)
        try:
            upstream.request(method, self.path, body=body, headers=headers)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if trouble.lost(method, self.path):
            trouble.strikes("lost")
            self.close_connection = True
            return
        kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("connection", "transfer-encoding")]
        if trouble.deaf:
            kept = [(n, v) for n, v in kept if not n.lower().startswith(CHECKSUMS)]
        self._answer(answer.status, kept, data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    def _deafened(self, headers: dict[str, str]) -> bool:
        silenced = [n for n in headers if n.lower() == "if-none-match" or n.lower().startswith(CHECKSUMS)]
        for name in silenced:
            del headers[name]
        return bool(silenced)

    def _sign(self, method: str, headers: dict[str, str], body: bytes) -> None:
        for name in [n for n in headers if n.lower() in ("authorization", "x-amz-date", "x-amz-content-sha256")]:
            del headers[name]
        request = AWSRequest(method, f"http://{headers['Host']}{self.path}", headers=headers, data=body)
        keys = keys_of("farm")
        S3SigV4Auth(Credentials(*keys.values()), "s3", "us-east-1").add_auth(request)
        headers.clear()
        headers.update(dict(request.headers.items()))

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your rate.</Message></Error>"


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    trouble: Trouble
    upstream: str

    def handle_error(self, request: object, client_address: object) -> None:
        """What breaks here is meant to."""


@contextmanager
def proxied(server: SeaweedFS) -> Iterator[tuple[SeaweedFS, Trouble]]:
    """The server as it is reached through the proxy, and what the proxy shall break."""
    proxy = _Proxy(("127.0.0.1", 0), _Handler)
    proxy.trouble, proxy.upstream = Trouble(), urlsplit(server.endpoint).netloc
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield SeaweedFS(endpoint=f"http://127.0.0.1:{proxy.server_address[1]}"), proxy.trouble
    finally:
        proxy.shutdown()
        thread.join(timeout=10)
        with suppress(OSError):
            proxy.server_close()
