"""What the OpenAPI document says of a route beyond its types: statuses that it answers, bodies that it reads."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from serve.envelope import ErrorAnswer

MEANINGS = {
    400: "The body, or a header, cannot be read",
    401: "No key, or none that is known",
    402: "A budget has no room for what this is estimated to cost",
    403: "The key may not do this",
    404: "Not there, or not to be seen with this key",
    408: "The body or the result did not come in time; the same request may be sent again",
    409: "It has not got that far, or its state does not allow that; asking again changes nothing",
    410: "It was there, and is kept no longer",
    413: "The body is too large",
    416: "No byte of the range is in the file",
    422: "A field is wrong: `param` says which",
    429: "Too much at once: `Retry-After` says when there is room",
    503: "A part of the farm is away: nothing was accepted, and the same request may be sent again",
}
WAITS = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}


def bytes_of(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a download."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    return {
        200: {"description": "All bytes", "content": content},
        206: {"description": "The range that was asked for", "content": content},
        302: {"description": "A URL that the store has signed has them; `Prefer: proxy` asks for them from here"},
        304: {"description": "The client has these bytes"},
    }


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            "model": ErrorAnswer,
            "description": MEANINGS[status],
            **({"headers": WAITS} if status in (429, 503) else {}),
        }
        for status in statuses
    }


def body_of(kind: type[BaseModel], *, forms: bool = True, required: bool = True) -> dict[str, Any]:
    """The body of a route that reads it by itself: as JSON and, with `forms`, as OpenAI's clients send it."""
    schema = kind.model_json_schema()
    kinds = ["application/json", *(["multipart/form-data"] if forms else [])]
    return {"requestBody": {"required": required, "content": {name: {"schema": schema} for name in kinds}}}
