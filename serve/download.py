"""Bytes of the store on the wire: whole, in one range, or not again if the client has them (RFC 9110); or by a URL that
the store has signed, so that they do not pass through here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.errors import DamagedAsset, Expired, NotFound
from serve.envelope import refusal
from serve.prefer import through_here
from serve.service import Service, off_the_loop

CHUNK_BYTES = 256 << 10
SIGNED_S = 900
"""For so long a signed URL begins a download."""
_RANGE = re.compile(r"bytes=(?P<first>\d{0,18})-(?P<last>\d{0,18})")


async def download(service: Service, request: Request, file: Mapping[str, Any], *, name: str, show: str) -> Response:
    """The answer to a GET or HEAD of a committed file, called `name`. Raises Expired if the store has lost it.

    What is sent is counted for the tenant whose file it is, and for `show`.
    """
    etag, size = f'"{file["sha256"]}"', int(file["size_bytes"])
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=31536000, immutable",
        "content-disposition": f'inline; filename="{name}"',
        "x-content-type-options": "nosniff",
    }
    if etag in (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    span = _span(request.headers.get("range"), size)
    if request.headers.get("if-range") not in (None, etag):
        span = None
    if span == (0, 0):
        said = f"the file has {size} bytes, and none of those that were asked for"
        more = {"content-range": f"bytes */{size}"}
        return refusal(416, "invalid_request_error", said, param="Range", code="range_not_satisfiable", headers=more)
    first, last = span or (0, size)
    url = await _elsewhere(service, request, file, name)
    tenant = str(file["key"]).partition("/")[0]

    async def book(num_bytes: int) -> None:
        await off_the_loop(lambda: service.egress.book(tenant, show, num_bytes))

    if url is not None:
        await book(last - first)  # what is fetched there is not seen here
        return Response(status_code=302, headers={"location": url, "cache-control": "no-store", "vary": "prefer"})
    if span is not None:
        headers["content-range"] = f"bytes {first}-{last - 1}/{size}"
    headers["content-length"] = str(last - first)
    status, media_type = 200 if span is None else 206, str(file["media_type"])
    reader = await off_the_loop(lambda: _opened(service, file, size))
    if request.method == "HEAD":
        reader.close()
        return Response(status_code=status, headers=headers, media_type=media_type)
    return _Streamed(reader, first, last, book, status_code=status, headers=headers, media_type=media_type)


async def _elsewhere(service: Service, request: Request, file: Mapping[str, Any], name: str) -> str | None:
    """A signed URL of the file, if the store signs, the settings want it, and the client did not ask for the bytes from
    here (`Prefer: proxy`). Raises Expired."""
    if request.method != "GET" or service.settings.downloads != "redirect" or through_here(request):
        return None
    store, key = service.store, str(file["key"])

    def signed() -> str | None:
        url = store.presigned(key, name=name, media_type=str(file["media_type"]), seconds=SIGNED_S)
        if url is None or (_is_loopback(urlsplit(url).hostname) and not _is_loopback(request.url.hostname)):
            return None
        if not store.exists(key):
            raise gone(service, file)
        return url

    return await off_the_loop(signed)


def _is_loopback(host: str | None) -> bool:
    """Whether only this machine reaches it. A store that is there signs URLs for who came by loopback, too."""
    with suppress(ValueError):
        return ip_address(host or "").is_loopback
    return host == "localhost"


class _Streamed(StreamingResponse):
    """Closes what it reads, also if the client has gone before the first byte and nothing was ever read; and tells
    `book` how much of it was taken, however it ended."""

    def __init__(
        self, reader: BinaryIO, first: int, last: int, book: Callable[[int], Awaitable[None]], **more: Any
    ) -> None:
        super().__init__(self._read(first, last), **more)
        self._reader, self._book, self._num_sent = reader, book, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reader.close()
            await asyncio.shield(self._book(self._num_sent))

    def _read(self, first: int, last: int) -> Iterator[bytes]:
        self._reader.seek(first)
        left = last - first
        while left and (chunk := self._reader.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk
            self._num_sent += len(chunk)


def gone(service: Service, file: Mapping[str, Any]) -> Expired:
    """The store has lost a committed file."""
    _forget(service, file)
    return Expired("its bytes are kept no longer", remedy="ask for it again")


def _forget(service: Service, file: Mapping[str, Any]) -> None:
    """Whoever asks for it again has it made again."""
    service.ledger.forget_takes(str(file["key"]).partition("/")[0], str(file["sha256"]))


def _opened(service: Service, file: Mapping[str, Any], size: int) -> BinaryIO:
    try:
        reader = service.store.open(file["key"])
    except NotFound as error:
        raise gone(service, file) from error
    if reader.seek(0, 2) != size:
        reader.close()
        _forget(service, file)
        raise DamagedAsset(f"{file['key']} does not have its {size} bytes")
    return reader


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """[first, last) of one range; (0, 0) for one that is not in the file; None for no range, several, or nonsense."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or not (match["first"] or match["last"]):
        return None
    if not match["first"]:  # the last so many bytes
        count = min(int(match["last"]), size)
        return (size - count, size) if count else (0, 0)
    first = int(match["first"])
    if match["last"] and int(match["last"]) < first:
        return None
    last = int(match["last"]) + 1 if match["last"] else size
    return (first, min(last, size)) if first < size else (0, 0)
