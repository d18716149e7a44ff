"""Errors on the wire: one table from the tree of errors to a status, one body, which the OpenAI clients read.

`{"error": {"message", "type", "param", "code"}}`; `param` is the path of the field, the message ends with what to do.
To whom says so by `Accept` it goes in a problem document, `error` and all. Source: RFC 9457.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.errors import (
    Expired,
    FarmError,
    Forbidden,
    IllegalMove,
    InvalidInput,
    NotFound,
    NotReady,
    OverBudget,
    RateLimited,
    StoreFull,
    TooLarge,
    TooLong,
    TooSlow,
    Unauthenticated,
    Unavailable,
    Unreadable,
    UserMistake,
)

log = logging.getLogger(__name__)
STATUS: Mapping[type[FarmError], tuple[int, str]] = {
    Unreadable: (400, "invalid_request_error"),
    TooLong: (400, "invalid_request_error"),
    Unauthenticated: (401, "authentication_error"),
    OverBudget: (402, "budget_error"),
    Forbidden: (403, "permission_error"),
    NotFound: (404, "not_found_error"),
    TooSlow: (408, "timeout_error"),
    IllegalMove: (409, "conflict_error"),
    NotReady: (409, "conflict_error"),
    Expired: (410, "gone_error"),
    TooLarge: (413, "invalid_request_error"),
    UserMistake: (422, "invalid_request_error"),
    RateLimited: (429, "rate_limit_error"),
    Unavailable: (503, "service_unavailable_error"),
    StoreFull: (503, "service_unavailable_error"),
    FarmError: (500, "server_error"),
}
AWAY_S = 2.0
"""When to ask again, if the error does not know: a dispatcher or a database is back after about so long."""
NEVER_AGAIN = (IllegalMove, NotReady)
"""Clients of OpenAI repeat any 409 twice; these will be answered the same."""

PROBLEM = "application/problem+json"
_WEIGHT = re.compile(r"q=[01](\.\d{0,3})?")


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None
    remedy: str | None = Field(default=None, description="What to do next; the message ends with it")


class ErrorAnswer(BaseModel):
    error: ErrorBody


class Problem(ErrorAnswer):
    """The same for clients that accept `application/problem+json`: RFC 9457, with the envelope beside it."""

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    detail: str


class Refusal(Response):
    """Its body is JSON; which document it is depends on what the client accepts."""

    media_type = "application/json"

    def __init__(self, status: int, error: ErrorBody, headers: Mapping[str, str]) -> None:
        self._error, self._own_headers = error, headers
        super().__init__(ErrorAnswer(error=error).model_dump_json(), status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _prefers_problems(",".join(Headers(scope=scope).getlist("accept"))):
            await super().__call__(scope, receive, send)
            return
        status, error = self.status_code, self._error
        told = Problem(title=HTTPStatus(status).phrase, status=status, detail=error.message, error=error)
        await Response(told.model_dump_json(), status, self._own_headers, media_type=PROBLEM)(scope, receive, send)


def status_of(error: FarmError) -> tuple[int, str]:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def answer(error: FarmError) -> Response:
    """What the client reads of `error`. Nothing of what is our fault but its code leaves the farm."""
    status, kind = status_of(error)
    headers: dict[str, str] = {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status == 429 or status == 503 or error.retry_after_s is not None:
        wait_s = AWAY_S if error.retry_after_s is None else error.retry_after_s
        headers |= {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}
    if isinstance(error, NEVER_AGAIN):
        headers["x-should-retry"] = "false"
    message = _sentence(error) if status != 500 else "something of ours broke; the request id finds it in the log"
    remedy = error.remedy if status != 500 else None
    return refusal(status, kind, message, param=error.field, code=error.code, remedy=remedy, headers=headers)


def refusal(
    status: int,
    kind: str,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    remedy: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    told = ErrorBody(
        message=_clean(message), type=kind, param=param and _clean(param), code=code, remedy=remedy and _clean(remedy)
    )
    return Refusal(status, told, headers or {})


def mistake(error: ValidationError | RequestValidationError, known: tuple[str, ...] = ()) -> InvalidInput:
    """The first thing that is wrong with the fields of a request. `known` are those that there are."""
    first: Mapping[str, Any] = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in ("query", "path", "header", "body")]
    name = ".".join(where) or None
    if first["type"] == "extra_forbidden":
        return InvalidInput(f"there is no parameter {name}", field=name, remedy=f"use {', '.join(known)}")
    if first["type"] == "missing":
        return InvalidInput(f"{name} is missing", field=name, remedy="give it")
    said = str(first["msg"]).removeprefix("Value error, ")
    return InvalidInput(f"{name}: {said[:1].lower()}{said[1:]}", field=name)


def install(app: FastAPI) -> None:
    """Every error of a route becomes an envelope here; what nobody foresaw is caught by the gate."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, FarmError)
        if status_of(error)[0] >= 500:
            log.error("A request failed.", exc_info=error)
        return answer(error)

    async def fields(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer(mistake(error))

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = f"there is nothing at {request.url.path}" if error.status_code == 404 else str(error.detail)
        kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        return refusal(error.status_code, kind, said, code=code, headers=error.headers)

    app.add_exception_handler(FarmError, ours)
    app.add_exception_handler(RequestValidationError, fields)
    app.add_exception_handler(HTTPException, routing)


def _prefers_problems(accept: str) -> bool:
    """Whether it names problem documents, and plain JSON no more than them."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        kind, *more = (piece.strip() for piece in part.split(";"))
        weight = next((piece for piece in more if piece.startswith("q=")), "q=1")
        weights[kind] = float(weight[2:]) if _WEIGHT.fullmatch(weight) else 0.0
    return 0.0 < weights.get(PROBLEM, 0.0) >= weights.get("application/json", 0.0)


def _sentence(error: FarmError) -> str:
    said = str(error.args[0]) if error.args and error.args[0] else error.code
    return f"{said}; {error.remedy}" if error.remedy else said


def _clean(text: str) -> str:
    """On one line, and what UTF-8 can say."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:2000]
