"""What the OpenAPI document says of a route beyond its types: what it reads by itself, and how it answers.

Headers and models are named here and stand in `serve.document`, which makes one document of all routes.
"""

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
    500: "The bytes in the store are damaged",
    503: "A part of the farm is away: nothing was accepted, and the same request may be sent again",
}
MODEL = "#/components/schemas/{model}"
ANSWERED = {
    401: ("WWW-Authenticate",),
    408: ("Retry-After", "retry-after-ms"),
    409: ("x-should-retry",),
    416: ("Content-Range",),
    429: ("Retry-After", "retry-after-ms"),
    503: ("Retry-After", "retry-after-ms"),
}
"""Headers of a refusal, by its status."""
BYTES = ("ETag", "Accept-Ranges", "Cache-Control", "Content-Disposition", "X-Content-Type-Options")


def headers(*names: str) -> dict[str, Any]:
    return {"headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names}}


def answers_with(*names: str) -> dict[int | str, dict[str, Any]]:
    """Headers that tell more than the body of an answer."""
    return {200: headers(*names)}


def reads(*names: str) -> dict[str, Any]:
    """Headers that a route reads by itself."""
    return {"parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names]}


DOWNLOAD = reads("Range", "If-Range", "If-None-Match", "Prefer")
FOLLOWING = reads("Last-Event-ID")


def bytes_of(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a download."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    elsewhere = "A URL that the store has signed has them; `Prefer: proxy` asks for them from here"
    return {
        200: {"description": "All bytes", "content": content, **headers(*BYTES)},
        206: {"description": "The range that was asked for", "content": content, **headers(*BYTES, "Content-Range")},
        302: {"description": elsewhere, **headers("Location", "Cache-Control", "Vary")},
        304: {"description": "The client has these bytes", **headers(*BYTES)},
        **refusals(500),
    }


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            "model": ErrorAnswer,
            "description": MEANINGS[status],
            **(headers(*ANSWERED[status]) if status in ANSWERED else {}),
        }
        for status in statuses
    }


def body_of(kind: type[BaseModel], *, forms: bool = True, required: bool = True) -> dict[str, Any]:
    """The body of a route that reads it by itself: as JSON and, with `forms`, as OpenAI's clients send it."""
    schema = schema_of(kind)
    kinds = ["application/json", *(["multipart/form-data"] if forms else [])]
    return {"requestBody": {"required": required, "content": {name: {"schema": schema} for name in kinds}}}


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """A reference to a model, and the models that it stands for, for the document to put in their place."""
    schema = kind.model_json_schema(ref_template=MODEL)
    models = schema.pop("$defs", {}) | {kind.__name__: schema}
    return {"$ref": MODEL.format(model=kind.__name__), "$defs": models}
