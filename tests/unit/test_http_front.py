"""What every route has in common: keys and tenants, limits, bodies, retries, envelopes, health, the document."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import event
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from actors.contract import Json
from cluster.clock import ManualClock
from cluster.errors import FarmError, LedgerUnavailable
from cluster.ledger.jobs import JobSpec
from cluster.ledger.keys import KeySpec, Scope
from cluster.ledger.ledger import Ledger
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from serve import envelope
from serve.office import Verb
from serve.openai.schemas import due_us
from tests.front_desk import BOAT, CATALOG, FrontDesk, front_desk
from tests.ledger_desk import task
from tests.scripts import script_of

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
ROUTES = [
    ("POST", "/v1/videos", (Scope.GENERATE,)),
    ("GET", "/v1/videos", (Scope.READ,)),
    ("GET", "/v1/videos/{video}", (Scope.READ,)),
    ("DELETE", "/v1/videos/{video}", (Scope.GENERATE, Scope.OPERATE)),
    ("POST", "/v1/videos/{video}/cancel", (Scope.GENERATE, Scope.OPERATE)),
    ("POST", "/v1/videos/{video}/remix", (Scope.GENERATE,)),
    ("GET", "/v1/videos/{video}/events", (Scope.READ,)),
    ("GET", "/v1/videos/{video}/content", (Scope.READ,)),
    ("HEAD", "/v1/videos/{video}/content", (Scope.READ,)),
    ("POST", "/v1/images/generations", (Scope.GENERATE,)),
    ("POST", "/v1/images/{image}/cancel", (Scope.GENERATE, Scope.OPERATE)),
    ("GET", "/v1/images/{image}/content", (Scope.READ,)),
    ("HEAD", "/v1/images/{image}/content", (Scope.READ,)),
    ("POST", "/v1/chat/completions", (Scope.GENERATE,)),
    ("GET", "/v1/usage", (Scope.READ,)),
    ("GET", "/v1/assets", (Scope.READ,)),
    ("POST", "/v1/assets/collect", ()),
    ("GET", "/v1/assets/{asset}", (Scope.READ,)),
    ("GET", "/v1/assets/{asset}/content", (Scope.READ,)),
    ("HEAD", "/v1/assets/{asset}/content", (Scope.READ,)),
    ("POST", "/v1/assets/{asset}/verify", (Scope.OPERATE,)),
    ("GET", "/v1/costs/export", (Scope.READ, Scope.OPERATE)),
    ("GET", "/v1/costs", (Scope.READ,)),
    ("POST", "/v1/films", (Scope.GENERATE,)),
    ("GET", "/v1/films", (Scope.READ,)),
    ("GET", "/v1/films/{film}", (Scope.READ,)),
    ("DELETE", "/v1/films/{film}", (Scope.GENERATE, Scope.OPERATE)),
    ("POST", "/v1/films/{film}/cancel", (Scope.GENERATE, Scope.OPERATE)),
    ("GET", "/v1/films/{film}/events", (Scope.READ,)),
    ("GET", "/v1/films/{film}/content", (Scope.READ,)),
    ("HEAD", "/v1/films/{film}/content", (Scope.READ,)),
    ("GET", "/v1/films/{film}/script", (Scope.READ,)),
    ("PUT", "/v1/films/{film}/script", (Scope.GENERATE,)),
    ("GET", "/v1/takes/{take}", (Scope.READ,)),
    ("GET", "/v1/takes/{take}/content", (Scope.READ,)),
    ("HEAD", "/v1/takes/{take}/content", (Scope.READ,)),
    ("POST", "/v1/takes/{take}/circle", (Scope.GENERATE, Scope.OPERATE)),
    ("POST", "/v1/takes/{take}/approve", (Scope.GENERATE, Scope.OPERATE)),
    ("POST", "/v1/takes/{take}/reject", (Scope.GENERATE, Scope.OPERATE)),
    ("GET", "/v1/models", (Scope.READ,)),
    ("GET", "/v1/models/{model}", (Scope.READ,)),
    ("POST", "/v1/estimates", (Scope.READ, Scope.GENERATE)),
    ("POST", "/v1/webhook_endpoints", ()),
    ("GET", "/v1/webhook_endpoints", (Scope.READ,)),
    ("GET", "/v1/webhook_endpoints/{hook}", (Scope.READ,)),
    ("POST", "/v1/webhook_endpoints/{hook}", ()),
    ("DELETE", "/v1/webhook_endpoints/{hook}", ()),
    ("POST", "/v1/webhook_endpoints/{hook}/rotate_secret", ()),
    ("POST", "/v1/webhook_endpoints/{hook}/test", ()),
    ("GET", "/v1/webhook_endpoints/{hook}/deliveries", (Scope.READ,)),
    ("POST", "/v1/webhook_endpoints/{hook}/deliveries/{event}/redeliver", ()),
    ("GET", "/v1/webhook_event_types", (Scope.READ,)),
    ("GET", "/v1/jobs", (Scope.READ,)),
    *(("GET", f"/v1/jobs/{{job}}{what}", (Scope.READ,)) for what in ("", "/tasks", "/log", "/why", "/events")),
    *((method, "/v1/jobs/{job}/files/{file}", (Scope.READ,)) for method in ("GET", "HEAD")),
    *(("POST", f"/v1/jobs/{{job}}/{verb}", (Scope.OPERATE,)) for verb in (*Verb, "priority")),
    ("GET", "/v1/tasks/{task}/why", (Scope.READ,)),
    *(("POST", f"/v1/tasks/{{task}}/{verb}", (Scope.OPERATE,)) for verb in Verb),
    ("GET", "/v1/workers", (Scope.OPERATE,)),
    ("POST", "/v1/workers/{worker}/drain", (Scope.OPERATE,)),
    ("GET", "/v1/shows", (Scope.READ,)),
    ("GET", "/v1/shows/{show}", (Scope.READ,)),
    ("PUT", "/v1/shows/{show}", ()),
    ("GET", "/v1/budgets", (Scope.OPERATE,)),
    ("PUT", "/v1/budgets", ()),
    ("GET", "/v1/budgets/{budget}", (Scope.OPERATE,)),
    ("DELETE", "/v1/budgets/{budget}", ()),
    ("GET", "/v1/keys", ()),
    ("POST", "/v1/keys", ()),
    ("POST", "/v1/keys/{api_key}/rotate", ()),
    ("POST", "/v1/keys/{api_key}/revoke", ()),
    ("GET", "/v1/names/jobs", (Scope.READ,)),
    ("GET", "/v1/names/workers", (Scope.OPERATE,)),
    ("GET", "/v1/names/keys", ()),
    ("GET", "/metrics", (Scope.OPERATE,)),
]
NOWHERE = dict.fromkeys(("asset", "file", "job", "task", "worker", "show", "api_key", "budget"), "x")
OF_OBJECTS = [
    (method, path) for method, path, _ in ROUTES if re.search(r"\{(video|image|film|take)\}", path) is not None
]
PROBLEM, JSON = "application/problem+json", "application/json"
IDS = [f"{method} {path}" for method, path, _ in ROUTES]


@pytest.fixture
def desk(sqlite_url: str, tmp_path: Path) -> Iterator[FrontDesk]:
    with front_desk(sqlite_url, tmp_path, http_body_bytes=4096, http_upload_bytes=8192) as desk:
        yield desk


@pytest.fixture(scope="module")
def idle(fast_folder: Path) -> Iterator[FrontDesk]:
    """For requests that leave nothing behind but keys."""
    url = f"sqlite:///{fast_folder}/idle-front.db"
    with front_desk(url, fast_folder / "idle-front", http_body_bytes=4096, http_upload_bytes=8192) as desk:
        yield desk


def counted(desk: FrontDesk, ask: Callable[[], Any]) -> tuple[Any, int]:
    """(the response, how many statements it took)."""
    statements: list[str] = []

    def note(*args: Any) -> None:
        if not args[2].startswith("BEGIN"):
            statements.append(args[2])

    event.listen(desk.ledger.database.engine, "before_cursor_execute", note)
    try:
        return ask(), len(statements)
    finally:
        event.remove(desk.ledger.database.engine, "before_cursor_execute", note)


def error_of(response: Any) -> Any:
    return response.json()["error"]


def test_every_route_of_the_document_is_in_the_matrix(idle: FrontDesk):
    paths = {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path))
        for path, operations in idle.app.openapi()["paths"].items()
        for method in operations
        if path.startswith(("/v1", "/metrics"))
    }
    assert paths == {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path, _ in ROUTES if method != "HEAD"}


@pytest.mark.parametrize(("method", "path", "scopes"), ROUTES, ids=IDS)
def test_who_has_no_right_is_refused_in_one_way(idle: FrontDesk, method: str, path: str, scopes: tuple[Scope, ...]):
    path = path.format(
        video="video_x",
        image="image_x",
        film="film_x",
        take="take_x",
        model="house-video",
        hook="whe_x",
        event="evt_x",
        **NOWHERE,
    )
    key, revoked = idle.ledger.create_key(KeySpec(tenant="studio", name="test"))
    idle.ledger.revoke_key(key.id)
    none, unknown, gone = (
        counted(idle, lambda secret=secret: idle.ask(method, path, key=secret, json={}))  # type: ignore[misc]
        for secret in ("", "farm_" + "x" * 43, revoked)
    )
    assert none[1] == unknown[1] == gone[1] == 1
    assert {response.status_code for response, _ in (none, unknown, gone)} == {401}
    assert len({response.content for response, _ in (none, unknown, gone)}) == 1
    others = [scope for scope in Scope if scope not in (*scopes, Scope.ADMIN)]
    wrong = idle.ask(method, path, key=idle.key(*others), json={})
    assert wrong.status_code == 403
    if method != "HEAD":
        assert (error_of(none[0])["code"], error_of(wrong)["code"]) == ("invalid_api_key", "insufficient_scope")
    for scope in (*scopes, Scope.ADMIN):
        assert idle.ask(method, path, key=idle.key(scope), json={}).status_code not in (401, 403)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (PROBLEM, PROBLEM),
        (f"{JSON};q=0.5, {PROBLEM}", PROBLEM),
        (f"{JSON}, {PROBLEM};q=0.9", JSON),
        (f"{PROBLEM};q=0", JSON),
        (f"{PROBLEM};q=much", JSON),
        ("*/*", JSON),
    ],
)
def test_an_error_is_the_document_that_its_client_prefers(idle: FrontDesk, accept: str, kind: str):
    response = idle.ask("POST", "/v1/videos", json={}, headers={"Accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (422, kind)
    told, error = response.json(), error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", "prompt")
    if kind == PROBLEM:
        assert told == {
            "type": "about:blank", "title": HTTPStatus(422).phrase, "status": 422, "detail": error["message"],
            "error": error,
        }  # fmt: skip
    busy = idle.ask("POST", "/v1/videos/video_x/cancel", key="", headers={"Accept": accept})
    assert (busy.headers["content-type"], busy.headers["www-authenticate"]) == (kind, "Bearer")


@pytest.mark.parametrize(("method", "path"), OF_OBJECTS, ids=[f"{m} {p}" for m, p in OF_OBJECTS])
def test_what_is_anothers_is_not_there(desk: FrontDesk, method: str, path: str):
    video = desk.create()["id"]
    job = JobSpec(recipe="pipelines.recipes.image", title="x", spec={}, tenant="studio")
    image = desk.ledger.submit(job, [task("image")])[0].replace("job_", "image_")
    script = script_of(CATALOG, "boat")
    film = desk.ask("POST", "/v1/films", json={"script": script, "review": True}).json()["id"]

    def asked_of(own: str) -> str:
        of_film = film if own == video else own.replace("video_", "film_")
        of_image = image if own == video else own.replace("video_", "image_")
        take = f"{of_film.replace('film_', 'take_')}.sh010.t1"
        return path.format(video=own, image=of_image, film=of_film, take=take)

    asked = [asked_of(own) for own in (video, "video_01arz3ndektsv4rrffq69g5fav", "video_%00")]
    foreign = desk.key(tenant="other")
    bound = desk.key(show="another")
    answers = []
    for secret in (foreign, bound):
        desk.ask("GET", "/v1/models", key=secret)  # its first use is written down
        for one in asked:
            body = script if path.endswith("/script") else {"prompt": BOAT}
            answers.append(counted(desk, lambda a=one, s=secret, b=body: desk.ask(method, a, key=s, json=b)))  # type: ignore[misc]
    seen = {(response.status_code, response.content) for response, _ in answers[:2] + answers[3:5]}
    assert len(seen) == 1
    assert seen.pop()[0] == 404
    assert answers[0][1] == answers[1][1]
    assert answers[3][1] == answers[4][1]
    assert answers[2][0].status_code == 404
    assert [job.state for job in desk.ledger.jobs()] == ["queued"] * 3


def test_a_list_holds_what_the_key_may_see(desk: FrontDesk):
    own = desk.create()["id"]
    bound = desk.key(show="trailer")
    other = desk.ask("POST", "/v1/videos", key=bound, json={"prompt": BOAT}).json()["id"]
    listed = [[v["id"] for v in desk.ask("GET", "/v1/videos", key=k).json()["data"]] for k in (None, bound)]
    assert listed == [[other, own], [other]]
    assert desk.ask("GET", "/v1/videos", key=desk.key(tenant="other")).json()["data"] == []


def test_a_project_of_the_client_is_a_show_and_a_bound_key_keeps_to_its_own(desk: FrontDesk):
    video = desk.openai().with_options(project="feature").videos.create(prompt=BOAT)
    assert desk.ledger.job(video.id.replace("video_", "job_")).show == "feature"
    bound = desk.key(show="trailer")
    refused = desk.ask("GET", "/v1/videos", key=bound, headers={"OpenAI-Project": "feature"})
    assert (refused.status_code, error_of(refused)["param"]) == (403, "openai-project")
    assert desk.ask("GET", "/v1/videos", headers={"OpenAI-Project": "a\x01"}).status_code in (400, 422)


def test_a_key_that_asks_too_often_is_told_when_to_come_back(sqlite_url: str, tmp_path: Path):
    with front_desk(sqlite_url, tmp_path, clock=(clock := ManualClock())) as desk:
        slow = desk.key(requests_per_minute=2)
        first, second, third = (desk.ask("GET", "/v1/models", key=slow) for _ in range(3))
        clock.advance(30)
        assert desk.ask("GET", "/v1/models", key=slow).status_code == 200
    assert [r.headers["x-ratelimit-remaining-requests"] for r in (first, second, third)] == ["1", "0", "0"]
    resets = [r.headers["x-ratelimit-reset-requests"] for r in (first, second, third)]
    assert resets == ["30.000s", "60.000s", "60.000s"]
    assert second.headers["ratelimit-policy"] == '"requests";q=2;w=60'
    assert second.headers["ratelimit"] == '"requests";r=0;t=60'
    assert (third.status_code, error_of(third)["code"]) == (429, "rate_limited")
    assert (third.headers["retry-after"], third.headers["retry-after-ms"]) == ("30", "30000")


def test_work_beyond_what_a_key_may_have_in_flight_is_refused_by_what_the_queue_holds(desk: FrontDesk):
    small = desk.key(in_flight_s=8.0)

    def ask() -> Any:
        return desk.ask("POST", "/v1/videos", key=small, json={"prompt": BOAT})

    assert ask().status_code == 200  # 6 s of work
    refused = ask()
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "4")  # 12 - 8 s, one worker at least
    assert "6 accelerator-seconds are in flight" in error_of(refused)["message"]
    assert len(desk.ledger.jobs()) == 1


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b'{"prompt": NaN}', {}, 400),
        (b'{"prompt": "\\ud800"}', {}, 400),
        (b"[" * 3000, {}, 400),
        (b'{"seed": ' + b"9" * 4000 + b"}", {}, 422),
        (b'{"prompt": "\\u0000"}', {}, 422),
        (b"<xml/>", {"Content-Type": "text/xml"}, 400),
        (b"prompt=a&prompt=b", {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        (b"[=1&]=2", {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        (b"a[b][c][d][e]=1", {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        (b"a=1&a[b]=2", {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        (b"nothing", {"Content-Type": "multipart/form-data"}, 400),
        (b"--x\r\nnothing", {"Content-Type": "multipart/form-data; boundary=x"}, 422),
        (b"x" * 5000, {}, 413),
        (b"x" * 9000, {"Content-Type": "multipart/form-data; boundary=x"}, 413),
        (b"{}", {"Content-Length": "9" * 40}, 413),
        (b"{}", {"Content-Length": "-1"}, 400),
        (b"{}", {"Idempotency-Key": "a" * 256}, 422),
    ],
    ids=[
        *(
            "cut",
            "list",
            "empty",
            "no-utf8",
            "nan",
            "surrogate",
            "deep",
            "huge-number",
            "nul",
            "xml",
            "twice",
            "unnamed",
        ),
        *("deep-name", "two-ways", "no-boundary", "no-form", "large", "large-form", "length", "negative", "long-name"),
    ],
)
def test_a_hostile_body_gets_a_typed_answer(idle: FrontDesk, body: bytes, headers: dict[str, str], status: int):
    response = idle.ask("POST", "/v1/videos", content=body, headers={"Content-Type": "application/json", **headers})
    assert response.status_code == status
    assert error_of(response)["message"]
    assert response.headers["x-request-id"].startswith("req_")
    assert idle.ledger.jobs() == []


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/films", "/v1/estimates", "/v1/chat/completions"])
@pytest.mark.parametrize("depth", [65, 900, 985, 990, 2000])
def test_a_body_that_is_nested_too_deeply_is_refused_with_the_bound(idle: FrontDesk, path: str, depth: int):
    body = b'{"model": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    response = idle.ask("POST", path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert "64" in error_of(response)["message"]


def test_a_body_that_is_nested_as_deeply_as_may_be_is_read(idle: FrontDesk):
    response = idle.ask("POST", "/v1/videos", content=b'{"prompt": ' + b"[" * 63 + b"]" * 63 + b"}")
    assert (response.status_code, error_of(response)["param"]) == (422, "prompt")


def test_a_body_that_says_nothing_of_its_length_is_cut_off(idle: FrontDesk):
    read: list[int] = []

    def endless() -> Iterator[bytes]:
        for n in range(1000):
            read.append(n)
            yield b"x" * 1000

    response = idle.ask("POST", "/v1/videos", content=endless(), headers={"Content-Type": "application/json"})
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


def test_a_body_that_never_comes_is_given_up(sqlite_url: str, tmp_path: Path):
    with front_desk(sqlite_url, tmp_path, http_read_s=0.05) as desk:
        sent: list[Message] = []

        async def never() -> Message:
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

        async def keep(message: Message) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {desk.secret}".encode()), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/videos", "headers": headers, "query_string": b""}
        asyncio.run(desk.app({**scope, "http_version": "1.1", "scheme": "http", "server": ("t", 80)}, never, keep))
        assert sent[0]["status"] == 408
        assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"


class Losing:
    """A proxy that loses the first `lost` answers to POST, after the farm has given them."""

    def __init__(self, app: ASGIApp, lost: int) -> None:
        self.app, self.lost, self.seen = app, lost, 0

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        self.seen += 1
        lose = self.seen <= self.lost

        async def maybe(message: Message) -> None:
            if lose and message["type"] == "http.response.start":
                message = {**message, "status": 502, "headers": [(b"retry-after-ms", b"1")]}
            elif lose:
                message = {**message, "body": b""}
            await send(message)

        await self.app(scope, receive, maybe)


def test_the_retries_of_the_client_make_one_job_whatever_is_lost(desk: FrontDesk):
    losing = Losing(desk.app, lost=2)
    video = desk.openai(losing).videos.create(prompt=BOAT)
    assert losing.seen == 3
    assert [job.id.replace("job_", "video_") for job in desk.ledger.jobs()] == [video.id]
    assert desk.openai().videos.create(prompt=BOAT).id != video.id  # asked twice on purpose
    assert len(desk.ledger.jobs()) == 2


def test_an_idempotency_key_names_one_request_for_ever(desk: FrontDesk):
    def ask(key: str, **fields: Any) -> Any:
        body = {"prompt": BOAT, **fields}
        return desk.ask("POST", "/v1/videos", json=body, headers={"Idempotency-Key": key})

    first = ask("k1")
    assert ask("k1").json()["id"] == first.json()["id"]
    assert ask("k1").json()["seed"] == first.json()["seed"]
    clash = ask("k1", seconds="2.0", quality="final")
    assert (clash.status_code, error_of(clash)["param"]) == (422, "idempotency_key")
    assert ask("k2").json()["id"] != first.json()["id"]
    theirs = desk.ask("POST", "/v1/videos", key=desk.key(tenant="other"), json={"prompt": BOAT},
                      headers={"Idempotency-Key": "k1"})  # fmt: skip
    assert theirs.json()["id"] != first.json()["id"]
    with pytest.raises(openai.BadRequestError):
        desk.openai().videos.create(prompt=BOAT, extra_headers={"Idempotency-Key": "a b"})
    desk.ask("DELETE", f"/v1/videos/{first.json()['id']}")
    gone = ask("k1")
    assert (gone.status_code, error_of(gone)["param"]) == (410, "Idempotency-Key")


def test_many_at_once_with_one_idempotency_key_are_one_job_on_any_replica(desk: FrontDesk):
    """Two applications, each with a ledger of its own on one database, as replicas have."""
    other = Ledger(desk.ledger.database.url, durable=False)
    second = FrontDesk(other, desk.store, desk.settings)

    def ask(n: int) -> Any:
        headers = {"Authorization": f"Bearer {desk.secret}", "Idempotency-Key": "one"}
        client = TestClient((desk, second)[n % 2].app, raise_server_exceptions=False)
        return client.post("/v1/videos", json={"prompt": BOAT}, headers=headers)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert {answer.status_code for answer in answers} == {200}
    [video_id] = {answer.json()["id"] for answer in answers}
    assert len(desk.ledger.jobs()) == 1
    paths = (f"/v1/videos/{video_id}", "/v1/videos")
    for path in paths:
        assert desk.ask("GET", path).json() == second.ask("GET", path, key=desk.secret).json()
    second.ask("POST", f"{paths[0]}/cancel", key=desk.secret)
    assert desk.ask("GET", paths[0]).json()["status"] == "cancelled"
    other.close()


def test_a_ledger_that_goes_away_after_the_commit_makes_no_error(desk: FrontDesk, monkeypatch: pytest.MonkeyPatch):
    submit = desk.ledger.submit

    def away(_: Any) -> Any:
        raise LedgerUnavailable("the ledger does not answer")

    def submit_and_go(*args: Any) -> Any:
        made = submit(*args)
        monkeypatch.setattr(desk.ledger, "view", away)
        return made

    monkeypatch.setattr(desk.ledger, "submit", submit_and_go)
    video = desk.create(seconds="2")
    assert (video["status"], video["progress"], video["seed"], video["size"]) == ("queued", 0, 7, "512x512")
    monkeypatch.undo()
    assert desk.ask("GET", f"/v1/videos/{video['id']}").json()["id"] == video["id"]


@pytest.mark.parametrize(("route", "field"), [("videos", "prompt"), ("films", "logline")], ids=["video", "film"])
def test_a_request_that_comes_again_after_its_deadline_is_the_same(desk: FrontDesk, route: str, field: str):
    body = {field: BOAT, "deadline": "2150-01-01T00:00:00Z"}

    def ask(name: str) -> Any:
        return desk.ask("POST", f"/v1/{route}", json=body, headers={"Idempotency-Key": name})

    first = ask("k1")
    desk.ledger.clock = ManualClock(due_us(datetime(2150, 1, 1, tzinfo=UTC)) or 0)
    assert (ask("k1").json()["id"], error_of(ask("k2"))["param"]) == (first.json()["id"], "deadline")
    assert len(desk.ledger.jobs()) == 1


@pytest.mark.parametrize("route", ["videos", "images/generations", "films"])
def test_what_is_asked_for_while_its_tenant_is_erased_is_not_taken_on(
    desk: FrontDesk, monkeypatch: pytest.MonkeyPatch, route: str
):
    method = "submit_film" if route == "films" else "submit"
    submit = getattr(desk.ledger, method)

    def late(*args: Any) -> Any:
        assert desk.ledger.close_tenant("rival") == []
        return submit(*args)

    monkeypatch.setattr(desk.ledger, method, late)
    body = {"logline" if route == "films" else "prompt": BOAT}
    refused = desk.ask(
        "POST", f"/v1/{route}", key=desk.key(tenant="rival"), json=body, headers={"Prefer": "respond-async"}
    )
    assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")
    assert desk.ledger.jobs() == []


def test_a_ledger_that_is_away_is_said_with_when_to_ask_again(desk: FrontDesk, monkeypatch: pytest.MonkeyPatch):
    def away(*_: Any) -> Any:
        raise LedgerUnavailable("the ledger does not answer")

    monkeypatch.setattr(desk.ledger, "submit", away)
    refused = desk.ask("POST", "/v1/videos", json={"prompt": BOAT})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert error_of(refused)["code"] == "ledger_unavailable"
    assert desk.ledger.jobs() == []


def test_what_nobody_foresaw_is_one_envelope_and_stays_inside(
    desk: FrontDesk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("secret of the house")

    monkeypatch.setattr(desk.ledger, "view", broken)
    with caplog.at_level(logging.ERROR):
        response = desk.ask("GET", "/v1/videos")
    assert (response.status_code, error_of(response)["code"]) == (500, "internal")
    assert "secret" not in response.text
    assert "secret of the house" in caplog.text
    assert response.headers["x-request-id"].startswith("req_")


def every_error() -> list[type[FarmError]]:
    found, ahead = [], [FarmError]
    while ahead:
        kind = ahead.pop()
        found.append(kind)
        ahead += kind.__subclasses__()
    return found


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_has_a_status(kind: type[FarmError]):
    answered = envelope.answer(kind("it broke", field="shots", remedy="use 1"))
    body = json.loads(bytes(answered.body))["error"]
    assert (body["param"], body["code"]) == ("shots", kind.code)
    assert ("it broke; use 1" in body["message"]) == (answered.status_code != 500)
    assert ("retry-after" in answered.headers) == (answered.status_code in (429, 503))


def test_a_process_is_alive_and_ready_while_a_dispatcher_is(sqlite_url: str, tmp_path: Path):
    clock = ManualClock()
    desk = FrontDesk(Ledger(sqlite_url, clock=clock, durable=False), DirectoryStore(tmp_path), Settings(home=tmp_path))
    assert desk.ask("GET", "/healthz", key="").json() == {"status": "ok"}
    assert desk.ask("GET", "/readyz", key="").status_code == 503
    term = desk.ledger.take_term()
    assert desk.ask("GET", "/readyz", key="").status_code == 503
    desk.ledger.say_alive(term)
    clock.advance(10)
    assert desk.ask("GET", "/readyz", key="").json() == {"status": "ready", "dispatcher_term": term}
    clock.advance(60)
    away = desk.ask("GET", "/readyz", key="")
    assert (away.status_code, "retry-after" in away.headers) == (503, True)
    assert "dispatcher" in error_of(away)["message"]
    desk.ledger.say_alive(desk.ledger.take_term())
    assert desk.ask("GET", "/readyz", key="").json()["dispatcher_term"] == term + 1
    desk.ledger.close()


def test_what_is_not_there_or_not_so_is_said_in_the_envelope(idle: FrontDesk):
    missing, method = idle.ask("GET", "/v1/nothing"), idle.ask("PUT", "/v1/videos")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "unknown_url")
    assert (method.status_code, error_of(method)["code"]) == (405, "method_not_allowed")


def test_models_are_the_catalog_with_what_can_be_used_here(idle: FrontDesk):
    client = idle.openai()
    ready = {model.id: model.reelfarm["ready"] for model in client.models.list()}  # type: ignore[attr-defined]
    assert (ready["house-video"], ready["ltx-video"]) == (True, False)
    house = client.models.retrieve("house-video")
    assert house.reelfarm["sizes"] == ["512x512"]  # type: ignore[attr-defined]
    assert "red" in str(house.reelfarm["vocabulary"])  # type: ignore[attr-defined]
    assert str(idle.settings.home) not in idle.ask("GET", "/v1/models").text
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such-model")


def test_the_document_says_openapi_3_1_and_only_statuses_that_have_our_envelope(idle: FrontDesk):
    document = idle.app.openapi()
    assert document["openapi"].startswith("3.1")
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    for reference in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert reference in document["components"]["schemas"]
    create = document["paths"]["/v1/videos"]["post"]
    assert set(create["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert {"200", "400", "401", "403", "413", "422", "429", "503"} <= set(create["responses"])
    names = [o["operationId"] for path in document["paths"].values() for o in path.values()]
    assert len(set(names)) == len(names)


def test_a_dispatcher_that_hangs_keeps_nobody_waiting(sqlite_url: str, tmp_path: Path):
    hangs, ends = threading.Event(), threading.Event()

    class Hung:
        def poke(self) -> None:
            hangs.set()
            ends.wait(60)

        def progress(self, *job_ids: str) -> list[Json]:
            return []

    with front_desk(sqlite_url, tmp_path) as front:
        desk = FrontDesk(front.ledger, front.store, front.settings, Hung())
        try:
            answers = [desk.create(), desk.create()]
            still = {"json": {"prompt": BOAT}, "headers": {"Prefer": "respond-async"}}
            assert desk.ask("POST", "/v1/images/generations", **still).status_code == 202
            assert hangs.wait(30)
            assert not ends.is_set()
            assert [answer["status"] for answer in answers] == ["queued", "queued"]
        finally:
            ends.set()


def test_the_dispatcher_hears_of_what_came_while_it_was_told_of_something_else(sqlite_url: str, tmp_path: Path):
    first, again, goes_on = threading.Event(), threading.Event(), threading.Event()

    class Slow:
        def poke(self) -> None:
            (again if first.is_set() else first).set()
            goes_on.wait(60)

        def progress(self, *job_ids: str) -> list[Json]:
            return []

    with front_desk(sqlite_url, tmp_path) as front:
        desk = FrontDesk(front.ledger, front.store, front.settings, Slow())
        desk.create()
        assert first.wait(30)
        desk.create()
        goes_on.set()
        assert again.wait(30)
