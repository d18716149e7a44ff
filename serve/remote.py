"""A farm that is elsewhere, over HTTP: its answers, and its errors as those of our own tree.

Time limits stand on every call. What changes nothing is asked again while the farm is away or says that it is busy;
what changes something is sent once. The key is in a header of the request and nowhere else.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx

from cluster.errors import FarmError, InvalidSettings, RateLimited, Unauthenticated, Unavailable, UserMistake
from cluster.settings import Settings

TIMEOUT = httpx.Timeout(30.0, connect=5.0)
TRIES = 4
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
AGAIN = frozenset({429, 502, 503, 504})
"""Statuses of a farm, or of a proxy before it, that may be another one soon."""
Ask = Mapping[str, Any]


class Remote:
    """Used as a context manager. Every call raises Unavailable, and whatever the farm itself says."""

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self._sleep = sleep
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {secret}", "User-Agent": "reelfarm", "Accept": "application/json"},
            timeout=TIMEOUT,
            transport=transport,
        )

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The farm at FARM_URL. Raises InvalidSettings."""
        return cls(settings.url, settings.secret())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        """The answer, as JSON. Members of the query that are None are left out."""
        params = {name: value for name, value in query.items() if value is not None}
        return self._patiently(lambda: self._once("GET", path, params=params))

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        wait_s = FIRST_WAIT_S
        for tries_left in reversed(range(TRIES)):
            try:
                return ask()
            except (Unavailable, RateLimited) as error:
                asked_s = error.retry_after_s or 0.0
                if not tries_left or asked_s > LONGEST_WAIT_S:
                    raise
                self._sleep(max(asked_s, wait_s * random.uniform(0.5, 1.0)))
                wait_s *= 2
        raise AssertionError("unreachable")

    def post(self, path: str, body: Ask | None = None) -> Any:
        return self._once("POST", path, json=dict(body or {}))

    def put(self, path: str, body: Ask) -> Any:
        return self._once("PUT", path, json=dict(body))

    def delete(self, path: str) -> Any:
        return self._once("DELETE", path)

    def submit(self, path: str, body: Ask, *, name: str, wanted: str | None = None) -> Any:
        """Asks for work. It may be sent more than once: by its `name` it is one job. `wanted` is a Prefer."""
        headers = {"Idempotency-Key": name, **({"Prefer": wanted} if wanted else {})}
        return self._patiently(lambda: self._once("POST", path, json=dict(body), headers=headers))

    @contextmanager
    def opened(self, path: str, *, wait_s: float, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """An answer that is read as it comes; between two pieces of it no more than `wait_s` pass. It may be elsewhere:
        the key does not go there."""
        more: dict[str, Any] = {"timeout": httpx.Timeout(wait_s, connect=TIMEOUT.connect), "follow_redirects": True}
        try:
            with self._client.stream("GET", path, headers=dict(headers or {}), **more) as response:
                if not response.is_success:
                    response.read()
                    raise self._error(response)
                yield response
        except httpx.TimeoutException as error:
            raise self._away("it took too long") from error
        except httpx.TransportError as error:
            raise self._away(str(error) or type(error).__name__) from error

    def _once(self, method: str, path: str, **more: Any) -> Any:
        try:
            response = self._client.request(method, path, **more)
        except httpx.TimeoutException as error:
            raise self._away("it took too long") from error
        except httpx.TransportError as error:
            raise self._away(str(error) or type(error).__name__) from error
        if response.is_success:
            try:
                return response.json()
            except ValueError as error:
                raise self._no_farm(f"{response.status_code} without JSON") from error
        raise self._error(response)

    def _away(self, why: str) -> Unavailable:
        return Unavailable(
            f"the farm at {self.url} does not answer: {why}", remedy="look whether it is up, and FARM_URL"
        )

    def _no_farm(self, what: str) -> InvalidSettings:
        return InvalidSettings(
            f"what answers at {self.url} is no farm: {what}",
            field="FARM_URL",
            remedy="set it to where the farm answers",
        )

    def _error(self, response: httpx.Response) -> FarmError:
        """What the farm said, as the error that it was there."""
        told = _told(response)
        if told is None and response.status_code in AGAIN:
            return self._away(f"status {response.status_code}")
        if told is None:
            where = response.headers.get("location")
            return self._no_farm(f"status {response.status_code}" + (f", which leads to {where}" if where else ""))
        if response.status_code == 401:
            return Unauthenticated(
                f"the farm at {self.url} knows no such key", field="FARM_API_KEY",
                remedy="`farm keys add` on a machine of the farm makes one",
            )  # fmt: skip
        remedy = _text(told.get("remedy"))
        message = str(told.get("message", ""))
        return _kind(str(told.get("code")), response.status_code)(
            message.removesuffix(f"; {remedy}") if remedy else message,
            field=_text(told.get("param")),
            remedy=remedy,
            retry_after_s=_seconds(response),
        )


def _told(response: httpx.Response) -> Ask | None:
    """The envelope, if it is ours."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return None
    return error if isinstance(error, dict) and "message" in error else None


def _kind(code: str, status: int) -> type[FarmError]:
    """The class of the tree with this code; one that this version does not know is as its status says."""
    ahead: list[type[FarmError]] = [FarmError]
    while ahead:
        kind = ahead.pop()
        if kind.code == code:
            return kind
        ahead += kind.__subclasses__()
    if status in AGAIN:
        return RateLimited if status == 429 else Unavailable
    return UserMistake if status < 500 else FarmError


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _seconds(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["retry-after-ms"]) / 1000
    except (KeyError, ValueError):
        return None
