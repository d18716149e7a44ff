"""The OpenAPI document: every reference leads somewhere, and what a client may send or be answered stands in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.webhooks import TOPICS, event
from tests.front_desk import FrontDesk, front_desk

DOWNLOADS = ["videos/{video_id}", "images/{image_id}", "films/{film_id}", "takes/{take_id}", "assets/{asset}"]
PATHS = [f"/v1/{path}/content" for path in DOWNLOADS] + ["/v1/jobs/{job_id}/files/{name}"]
SENT = {
    **{("post", path): {"Idempotency-Key", "Prefer"} for path in ("/v1/videos", "/v1/images/generations")},
    ("post", "/v1/videos/{video_id}/remix"): {"Idempotency-Key", "Prefer"},
    ("post", "/v1/films"): {"Idempotency-Key"},
    ("get", "/v1/videos/{video_id}"): {"Prefer"},
    ("get", "/v1/jobs/{job_id}"): {"Prefer"},
    **{("get", f"/v1/{one}s/{{{one}_id}}/events"): {"Last-Event-ID"} for one in ("video", "film", "job")},
    **{("get", path): {"Range", "If-Range", "If-None-Match", "Prefer"} for path in PATHS},
}  # fmt: skip


@pytest.fixture(scope="module")
def desk(fast_folder: Path) -> Iterator[FrontDesk]:
    with front_desk(f"sqlite:///{fast_folder}/document.db", fast_folder / "document") as desk:
        yield desk


@pytest.fixture(scope="module")
def document(desk: FrontDesk) -> dict[str, Any]:
    return desk.app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def every(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from every(inner)


def found(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """What stands at a reference, or `node` if it is none."""
    for step in node["$ref"].split("/")[1:] if "$ref" in node else ():
        document = document[step]
    return document if "$ref" in node else node


def sent(document: dict[str, Any], operation: dict[str, Any]) -> set[str]:
    parameters = [found(document, one) for one in operation.get("parameters", ())]
    return {one["name"] for one in parameters if one["in"] == "header"}


def test_every_reference_leads_somewhere(document: dict[str, Any]):
    references = [node for node in every(document) if isinstance(node.get("$ref"), str)]
    assert references
    for reference in references:
        assert found(document, reference)
    assert not any("$defs" in node for node in every(document))


def test_headers_that_a_route_reads_stand_in_the_document(document: dict[str, Any]):
    own = {
        (method, path): sent(document, operation) - {"OpenAI-Project"}
        for method, path, operation in operations(document)
    }
    assert {key: names for key, names in own.items() if names} == SENT


def test_a_route_that_wants_a_key_tells_of_the_show_and_of_every_way_it_is_refused(document: dict[str, Any]):
    for method, path, operation in operations(document):
        if "security" in operation:
            assert "OpenAI-Project" in sent(document, operation), (method, path)
            assert {"401", "403", "422", "429", "503"} <= set(operation["responses"]), (method, path)


def test_headers_that_come_back_stand_in_the_document(desk: FrontDesk, document: dict[str, Any]):
    slow = desk.key(requests_per_minute=100, tokens_per_minute=100)
    video = desk.ask("POST", "/v1/videos", key=slow, json={"prompt": "a red boat"})
    plain = {"content-length", "content-type"}

    def told(method: str, path: str, status: int) -> set[str]:
        return {name.lower() for name in document["paths"][path][method]["responses"][str(status)]["headers"]}

    again = desk.ask("GET", f"/v1/videos/{video.json()['id']}", key=slow)
    unknown = desk.ask("GET", "/v1/videos/video_x", key="")
    assert set(video.headers) - plain <= told("post", "/v1/videos", 200)
    assert set(again.headers) - plain <= told("get", "/v1/videos/{video_id}", 200)
    assert set(unknown.headers) - plain <= told("get", "/v1/videos/{video_id}", 401)
    for path in PATHS:
        assert {"etag", "accept-ranges", "x-request-id"} <= told("get", path, 200)
        assert {"etag", "content-range"} <= told("get", path, 206)
        assert "500" in document["paths"][path]["get"]["responses"]  # bytes that are damaged
    limited = desk.key(requests_per_minute=1)
    refused = [desk.ask("GET", "/v1/models", key=limited) for _ in range(2)][1]
    assert refused.status_code == 429
    assert set(refused.headers) - plain <= told("get", "/v1/models", 429)


def test_what_is_posted_to_an_endpoint_is_a_webhook_of_the_document(document: dict[str, Any]):
    assert set(document["webhooks"]) == set(TOPICS)
    for kind, item in document["webhooks"].items():
        asked = item["post"]
        assert sent(document, asked) == {"webhook-id", "webhook-timestamp", "webhook-signature"}
        body = json.loads(event("evt_1", kind, "video_1", created_us=1_000_000))
        schema = found(document, asked["requestBody"]["content"]["application/json"]["schema"])
        assert set(body) == set(schema["properties"])
        assert kind in schema["properties"]["type"]["enum"]
