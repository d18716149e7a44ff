"""The OpenAPI document of all routes: what they have in common, the headers that they name, and what is posted."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve.envelope import PROBLEM, Problem
from serve.farm.webhook_schemas import Event
from serve.openai.documents import MEANINGS, MODEL, headers, reads, schema_of
from serve.webhooks import TOPICS

ANSWERS = ("x-request-id", "openai-processing-ms", "farm-replica")
OF_KEYS = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "RateLimit-Policy",
    "RateLimit",
)
TEXT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}
HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "x-request-id": (TEXT, "The log of the farm knows the request by it"),
    "openai-processing-ms": (NUMBER, "How long it took to answer"),
    "farm-replica": (TEXT, "Who answered, where several stand behind one proxy"),
    "x-ratelimit-limit-requests": (NUMBER, "Requests a minute, of a key that has a limit"),
    "x-ratelimit-remaining-requests": (NUMBER, "How many of them are left"),
    "x-ratelimit-reset-requests": (TEXT, "When all of them are there again, as in `6.000s`"),
    "RateLimit-Policy": (TEXT, 'The same limit as in the draft of the IETF: `"requests";q=60;w=60`'),
    "RateLimit": (TEXT, 'What is left, and when all is there again: `"requests";r=59;t=1`'),
    "x-ratelimit-limit-tokens": (NUMBER, "Tokens a minute, of a key that has a limit"),
    "x-ratelimit-remaining-tokens": (NUMBER, "How many of them are left"),
    "x-ratelimit-reset-tokens": (TEXT, "When all of them are there again, as in `6.000s`"),
    "openai-poll-after-ms": (NUMBER, "When to ask again, while it is not over"),
    "Preference-Applied": (TEXT, "What of `Prefer` was done"),
    "Retry-After": (NUMBER, "Seconds until it may be sent again"),
    "retry-after-ms": (NUMBER, "The same in milliseconds"),
    "x-should-retry": (TEXT, "`false`: asking again changes nothing"),
    "WWW-Authenticate": (TEXT, "`Bearer`"),
    "ETag": (TEXT, "The SHA-256 of the file, in quotes"),
    "Accept-Ranges": (TEXT, "`bytes`"),
    "Content-Range": (TEXT, "Which bytes these are, of how many"),
    "Content-Disposition": (TEXT, "The name of the file"),
    "X-Content-Type-Options": (TEXT, "`nosniff`"),
    "Cache-Control": (TEXT, "How long it may be kept"),
    "Location": (TEXT, "The signed URL; it begins a download for 15 minutes"),
    "Vary": (TEXT, "`prefer`"),
    "X-Accel-Buffering": (TEXT, "`no`: a proxy hands the stream on as it comes"),
}
PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "OpenAI-Project": (
        {"type": "string", "pattern": "^[!-~]{1,64}$"},
        "The show, 64 characters at most; without it that of the key, or the usual one",
    ),
    "Idempotency-Key": (
        {"type": "string", "pattern": "^[!#-~]{1,255}$"},
        "Names the request: sent again with the same one, it is the same job. With another body it is refused",
    ),
    "Prefer": (
        TEXT,
        "`wait=30`: the answer waits so many seconds for the end, 60 at most; `respond-async`: it does not wait; "
        "`proxy`: bytes come from the farm and not from its store. A route takes what fits it",
    ),
    "Last-Event-ID": (TEXT, "The id of the newest event that the client knows: it hears what came later"),
    "Range": (TEXT, "One range of bytes, as in `bytes=0-1023`"),
    "If-Range": (TEXT, "The range only of the file with this `ETag`, else all of it"),
    "If-None-Match": (TEXT, "`ETag`s of files that the client has"),
    "webhook-id": (TEXT, "Of the event, the same at every try"),
    "webhook-timestamp": (NUMBER, "When this try was signed, in seconds since 1970"),
    "webhook-signature": (TEXT, "`v1,` and the signature by Standard Webhooks 1.0; two while a secret is rotated"),
}
REFUSED = {"$ref": MODEL.format(model="ErrorAnswer")}
SIGNED = ("webhook-id", "webhook-timestamp", "webhook-signature")


def document_of(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1. FastAPI's own 422 is taken out where it stands: nobody is ever answered so."""
    if app.openapi_schema is None:
        told = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        document = copy.deepcopy(told)  # parts of it are those of the routes
        components = document["components"]
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        problem = Problem.model_json_schema(ref_template=MODEL, mode="serialization")
        del problem["$defs"]  # what it refers to stands there already
        components["schemas"]["Problem"] = problem
        components["headers"] = {
            name: {"description": about, "schema": schema} for name, (schema, about) in HEADERS.items()
        }
        components["parameters"] = {
            name: {"name": name, "in": "header", "required": name in SIGNED, "description": about, "schema": schema}
            for name, (schema, about) in PARAMETERS.items()
        }
        for path in document["paths"].values():
            for operation in path.values():
                _complete(operation)
        document["webhooks"] = {kind: {"post": _webhook(kind)} for kind in TOPICS}
        _put_in_place(document, components["schemas"])
        app.openapi_schema = document
    return app.openapi_schema


def _complete(operation: dict[str, Any]) -> None:
    """With what every route that wants a key reads and answers."""
    responses, keyed = operation["responses"], "security" in operation
    if keyed:
        operation["parameters"] = [*operation.get("parameters", ()), *reads("OpenAI-Project")["parameters"]]
    told = responses.get("422")
    if "HTTPValidationError" in str(told) or (keyed and told is None):
        responses["422"] = {"description": MEANINGS[422], "content": {"application/json": {"schema": REFUSED}}}
    for status, answer in responses.items():
        if answer.get("content", {}).get("application/json", {}).get("schema") == REFUSED:
            answer["content"][PROBLEM] = {"schema": {"$ref": MODEL.format(model="Problem")}}
        common = headers(*ANSWERS, *(OF_KEYS if keyed and status != "401" else ()))
        answer["headers"] = answer.get("headers", {}) | common["headers"]


def _webhook(kind: str) -> dict[str, Any]:
    return {
        "operationId": "hear_" + kind.replace(".", "_"),
        "summary": kind,
        "tags": ["webhooks"],
        "parameters": reads(*SIGNED)["parameters"],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema_of(Event)}}},
        "responses": {
            "2XX": {"description": "Heard; after any other answer it is posted again later"},
            "410": {"description": "Nothing more is wanted here: the endpoint is disabled"},
        },
    }


def _put_in_place(node: Any, models: dict[str, Any]) -> None:
    """Models that stand beside the references to them go where the references look."""
    if isinstance(node, dict):
        for name, model in node.pop("$defs", {}).items():
            assert models.setdefault(name, model) == model, f"two models are called {name}"
    for inner in list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else ():
        _put_in_place(inner, models)
