"""Whatever is sent, the answer is one that the document names, in the shape that it names; and never a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.envelope import ErrorAnswer
from tests.echo_writer import EchoWriter
from tests.front_desk import BOAT, CATALOG, FrontDesk, front_desk
from tests.scripts import script_of

TEXT = st.text(max_size=20) | st.sampled_from(
    [BOAT, "512x512", "2", "-1", "1e999", "NaN", "../../x", "\x00", "é" * 300]
)
NUMBER = st.integers() | st.floats() | st.sampled_from([0, 1, 2, 2**63, 10**40, -1])
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FILM = {"logline": BOAT, "shots": 2, "takes": 2, "review": True, "script": script_of(CATALOG, "boat"),
        "deadline": "2199-01-01T00:00:00Z", "writer": "house-writer"}  # fmt: skip
NAMES = [
    "prompt",
    "model",
    "seconds",
    "size",
    "seed",
    "quality",
    "tier",
    "metadata",
    "input_reference",
    "n",
    "user",
    "kind",
]
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from([BOAT, "house-video", "2", 2, "512x512", 7, "draft", "video"]) | ANYTHING
        for name in NAMES
    },
) | st.dictionaries(st.sampled_from(NAMES) | TEXT, ANYTHING, max_size=4)
FIELDS = FIELDS | st.fixed_dictionaries({}, optional={name: st.just(value) | ANYTHING for name, value in FILM.items()})
POSTS = [
    "/v1/films",
    "/v1/videos",
    "/v1/images/generations",
    "/v1/estimates",
    "/v1/videos/{video}/remix",
    "/v1/videos/{video}/cancel",
]
PATHS = {path: path for path in POSTS} | {"/v1/videos/{video}/remix": "/v1/videos/{video_id}/remix",
                                          "/v1/videos/{video}/cancel": "/v1/videos/{video_id}/cancel"}  # fmt: skip


@pytest.fixture(scope="module")
def desk(fast_folder: Path) -> Iterator[FrontDesk]:
    with front_desk(f"sqlite:///{fast_folder}/any.db", fast_folder / "any", EchoWriter(), image_wait_s=0.001) as desk:
        yield desk


@pytest.fixture(scope="module")
def video(desk: FrontDesk) -> str:
    return str(desk.create()["id"])


@pytest.fixture(scope="module")
def film(desk: FrontDesk) -> str:
    return str(desk.ask("POST", "/v1/films", json={"script": FILM["script"], "review": True}).json()["id"])


def check(desk: FrontDesk, response: Any, path: str, method: str) -> None:
    told = desk.app.openapi()["paths"][path][method]["responses"]
    assert str(response.status_code) in told, (response.status_code, response.text)
    assert response.status_code < 500
    if response.status_code >= 400:
        ErrorAnswer.model_validate(response.json())


@pytest.mark.parametrize("path", POSTS)
@given(fields=FIELDS)
def test_any_object_as_json(desk: FrontDesk, video: str, path: str, fields: dict[str, Any]):
    body = json.dumps(fields)  # with NaN, Infinity and lone surrogates, as Python writes them
    response = desk.ask("POST", path.format(video=video), content=body, headers={"Content-Type": "application/json"})
    check(desk, response, PATHS[path], "post")


WORDS = ["messages", "model", "stream", "stop", "n", "tools", "max_tokens", "seed", "response_format", "temperature"]
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "tool"]), "content": TEXT}) | ANYTHING
FORM = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema"])},
    optional={
        "json_schema": st.fixed_dictionaries({"name": TEXT, "schema": st.dictionaries(TEXT, ANYTHING)}) | ANYTHING
    },
)
CHAT = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=3)}, optional=dict.fromkeys(WORDS[1:], ANYTHING | FORM)
) | st.dictionaries(st.sampled_from(WORDS) | TEXT, ANYTHING, max_size=4)


@given(fields=CHAT)
def test_any_object_as_a_chat(desk: FrontDesk, fields: dict[str, Any]):
    response = desk.ask(
        "POST", "/v1/chat/completions", content=json.dumps(fields), headers={"Content-Type": "application/json"}
    )
    if not response.headers["content-type"].startswith("text/event-stream"):
        check(desk, response, "/v1/chat/completions", "post")


@given(
    script=ANYTHING | st.fixed_dictionaries({}, optional={k: st.just(v) | ANYTHING for k, v in FILM["script"].items()})
)
def test_any_script(desk: FrontDesk, film: str, script: Any):
    response = desk.ask("PUT", f"/v1/films/{film}/script", content=json.dumps(script))
    check(desk, response, "/v1/films/{film_id}/script", "put")


@given(
    pairs=st.lists(
        st.tuples(st.sampled_from(["prompt", "a[b]", "a[]", "a", "metadata[x]", "[", "]"]) | TEXT, TEXT), max_size=5
    )
)
def test_any_pairs_as_a_form(desk: FrontDesk, pairs: list[tuple[str, str]]):
    files = [(name, (None, value)) for name, value in pairs]
    check(desk, desk.ask("POST", "/v1/videos", files=files), "/v1/videos", "post")


@given(
    body=st.binary(max_size=200),
    kind=st.sampled_from(["application/json", "multipart/form-data; boundary=x", "", "a/b;"]),
)
def test_any_bytes(desk: FrontDesk, body: bytes, kind: str):
    for wrapped in (body, b"--x\r\n" + body, b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n' + body):
        response = desk.ask("POST", "/v1/videos", content=wrapped, headers={"Content-Type": kind})
        check(desk, response, "/v1/videos", "post")


@given(name=st.text(max_size=30), value=st.text(max_size=30))
def test_any_path_and_query(desk: FrontDesk, name: str, value: str):
    from urllib.parse import quote

    own = quote(name, safe="")
    for path in (*(f"/v1/{kind}/{own}{end}" for kind in ("videos", "films", "takes") for end in ("", "/content")),
                 f"/v1/films/{own}/script", f"/v1/takes/take_{own}"):  # fmt: skip
        response = desk.ask("GET", path, params={"variant": value, "after": value, "limit": value})
        assert response.status_code in (200, 404, 422)
    listed = desk.ask("GET", "/v1/videos", params={"after": value or "x", "limit": name})
    check(desk, listed, "/v1/videos", "get")
    listed = desk.ask("GET", "/v1/films", params={"after": value or "x", "limit": name})
    check(desk, listed, "/v1/films", "get")


@given(header=st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40))
def test_any_header(desk: FrontDesk, video: str, header: str):
    names = ["Idempotency-Key", "x-stainless-retry-count", "OpenAI-Project", "Range", "If-None-Match", "If-Range"]
    headers = {name: header.strip().encode("latin-1") for name in names}
    response = desk.ask("POST", "/v1/videos", json={"prompt": BOAT}, headers=headers)
    check(desk, response, "/v1/videos", "post")
    assert desk.ask("GET", f"/v1/videos/{video}/content", headers=headers).status_code in (403, 409, 422)
    bare = desk.client.get("/v1/videos", headers={"Authorization": header.strip().encode("latin-1")})
    assert bare.status_code == 401
