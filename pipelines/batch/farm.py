"""The farm as a batch asks it, over HTTP. What is only a matter of time is waited for; what is not is said at once."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx

from actors.contract import Json
from cluster import disk
from cluster.errors import DamagedAsset, FarmError, Forbidden, Unauthenticated, Unavailable

T = TypeVar("T")
ANSWER_S, CONNECT_S = 60.0, 10.0
PATIENCE_S = 600.0
"""A farm that has not answered for so long will not be asked again: restarts take less."""
MAX_WAIT_S = 30.0
MIN_POLL_S = 1.0
TRIES = 3
"""A download that does not verify is tried so often."""
AWAY = (408, 500, 502, 503, 504)
_SHA256 = re.compile(r'"([0-9a-f]{64})"')


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """An answer that asking again would not change."""

    code: str
    message: str
    field: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A video as it was answered, and after how many seconds it is worth asking again."""

    video: Json
    again_s: float = MIN_POLL_S

    @property
    def over(self) -> bool:
        return self.video["status"] not in ("queued", "in_progress")


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """The bytes of a video."""

    sha256: str
    size_bytes: int
    media_type: str


class _Later(Exception):
    """Ask again. `wait_s` None: not said when. `alive`: the farm is there, it has no room now."""

    def __init__(self, trouble: str, wait_s: float | None = None, *, alive: bool = False) -> None:
        super().__init__(trouble)
        self.wait_s, self.alive = wait_s, alive


class Farm:
    """Each call waits until it is answered. Raises Unauthenticated, Forbidden, and Unavailable when patience ends."""

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        show: str = "",
        patience_s: float = PATIENCE_S,
        on_wait: Callable[[str], None] = lambda trouble: None,
    ) -> None:
        self._url, self._patience_s, self._on_wait = url, patience_s, on_wait
        headers = {"authorization": f"Bearer {secret}", **({"openai-project": show} if show else {})}
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S), follow_redirects=True
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def estimate(self, body: Json) -> Json | Refusal:
        """What the line would take and cost; it is refused as the video would be."""
        answered = await self._asked("POST", "/v1/estimates", json={"kind": "video", **body})
        return answered if isinstance(answered, Refusal) else _object(answered)

    async def submit(self, body: Json, key: str) -> Seen | Refusal:
        return _seen(await self._asked("POST", "/v1/videos", json=body, headers={"idempotency-key": key}))

    async def video(self, video_id: str) -> Seen | Refusal:
        return _seen(await self._asked("GET", f"/v1/videos/{video_id}"))

    async def content(self, video_id: str) -> Content | Refusal:
        """What would be downloaded."""
        answered = await self._asked("HEAD", f"/v1/videos/{video_id}/content")
        if isinstance(answered, Refusal):
            return answered
        size_bytes = int(answered.headers.get("content-length", 0))
        return _content(answered, _etag(answered) or "", size_bytes)

    async def download(self, video_id: str, path: Path, sha256: str | None) -> Content | Refusal:
        """The bytes at `path`, whole and of this `sha256` (None: of the farm's tag), or nothing.

        What is there already is not sent again.
        """
        known = await asyncio.to_thread(_sha256_of, path)
        for _ in range(TRIES):
            headers = {"if-none-match": f'"{known}"'} if known else {}
            answered = await self._asked("GET", f"/v1/videos/{video_id}/content", headers=headers)
            if isinstance(answered, Refusal):
                return answered
            if answered.status_code == HTTPStatus.NOT_MODIFIED and known:
                return _content(answered, known, await asyncio.to_thread(lambda: path.stat().st_size))
            found = _content(answered, hashlib.sha256(answered.content).hexdigest(), len(answered.content))
            if found.sha256 == (sha256 or _etag(answered)):
                await asyncio.to_thread(_put, path, answered.content)
                return found
        return Refusal(code=DamagedAsset.code, message=f"its bytes did not verify, {TRIES} times")

    async def _asked(self, method: str, path: str, **more: object) -> httpx.Response | Refusal:
        async def exchange() -> httpx.Response | Refusal:
            response = await self._http.request(method, path, **more)  # type: ignore[arg-type]
            return _refused(response) or response

        return await self._patiently(exchange)

    async def _patiently(self, exchange: Callable[[], Awaitable[T]]) -> T:
        heard_s = time.monotonic()
        for tries in itertools.count():
            try:
                return await exchange()
            except (_Later, httpx.TransportError) as error:
                trouble, wait_s = str(error) or type(error).__name__, None
                if isinstance(error, _Later):
                    wait_s = error.wait_s
                    heard_s = time.monotonic() if error.alive else heard_s
            if time.monotonic() - heard_s > self._patience_s:
                raise Unavailable(
                    f"the farm at {self._url} does not answer: {trouble}",
                    remedy="when it is back, the same command goes on where this one stopped",
                )
            self._on_wait(trouble)
            if wait_s is None:
                wait_s = min(MAX_WAIT_S, 0.5 * 2 ** min(tries, 10))
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.2))
        raise AssertionError("unreachable")


def _refused(response: httpx.Response) -> Refusal | None:
    """None: it is an answer. Raises _Later, Unauthenticated, Forbidden."""
    if response.is_success or response.status_code == HTTPStatus.NOT_MODIFIED:
        return None
    body = _error(response)
    message = str(body.get("message") or f"the farm answers {response.status_code}")
    match response.status_code:
        case HTTPStatus.TOO_MANY_REQUESTS:
            raise _Later(message, _retry_after_s(response), alive=True)
        case status if status in AWAY:
            raise _Later(message, _retry_after_s(response))
        case HTTPStatus.UNAUTHORIZED:
            raise Unauthenticated(message, field="FARM_API_KEY")
        case HTTPStatus.FORBIDDEN:
            raise Forbidden(message, field=body.get("param"))
    return Refusal(code=str(body.get("code") or response.status_code), message=message, field=body.get("param"))


def _error(response: httpx.Response) -> Json:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _object(response: httpx.Response) -> Json:
    """Raises FarmError if whoever answers is no farm."""
    try:
        answered = response.json()
    except ValueError:
        answered = None
    if not isinstance(answered, dict):
        raise FarmError(f"{response.url.host} does not answer as a farm does", remedy="look at FARM_URL")
    return answered


def _seen(answered: httpx.Response | Refusal) -> Seen | Refusal:
    if isinstance(answered, Refusal):
        return answered
    return Seen(video=_object(answered), again_s=_header_s(answered, "openai-poll-after-ms", 1000) or MIN_POLL_S)


def _content(response: httpx.Response, sha256: str, size_bytes: int) -> Content:
    kind = response.headers.get("content-type", "video/mp4").partition(";")[0]
    return Content(sha256=sha256, size_bytes=size_bytes, media_type=kind)


def _etag(response: httpx.Response) -> str | None:
    """The sha256 of the bytes, if the farm itself sends them."""
    match = _SHA256.fullmatch(response.headers.get("etag", ""))
    return match[1] if match else None


def _sha256_of(path: Path) -> str | None:
    return disk.sha256_of(path) if path.is_file() else None


def _put(path: Path, content: bytes) -> None:
    """Raises StoreFull, StoreUnavailable."""
    with disk.errors(path.parent), disk.whole_file(path) as part:
        part.write_bytes(content)


def _retry_after_s(response: httpx.Response) -> float | None:
    after_s = _header_s(response, "retry-after-ms", 1000)
    return _header_s(response, "retry-after", 1) if after_s is None else after_s


def _header_s(response: httpx.Response, name: str, per_second: float) -> float | None:
    """Seconds in a header. A proxy may write a date, or anything: then it says nothing."""
    try:
        value = float(response.headers[name]) / per_second
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None
