"""`/v1/webhook_endpoints` by the client of OpenAI, by hand, and from a video to what a listener hears."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from cluster.ledger.keys import Scope
from serve.guard import Guard
from serve.webhooks import TOPICS, Deliverer
from tests.front_desk import FrontDesk, front_desk
from tests.listener import Listener, listening, nobody

URL = "https://example.com/hook"
BODY = {"name": "mine", "url": URL, "event_types": ["video.completed"]}


class Admins:
    """A front desk whose `ask` and `client` have a key that may change endpoints."""

    def __init__(self, desk: FrontDesk) -> None:
        self.desk, self.secret = desk, desk.key(Scope.ADMIN)

    def ask(self, method: str, path: str, *, key: str | None = None, **more: Any) -> Any:
        return self.desk.ask(method, f"/v1/{path}", key=key or self.secret, **more)

    def client(self) -> OpenAI:
        return self.desk.openai().with_options(api_key=self.secret)

    def made(self, **more: Any) -> dict[str, Any]:
        response = self.ask("POST", "webhook_endpoints", json={**BODY, **more})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def deliver(self) -> int:
        return asyncio.run(Deliverer(self.desk.ledger, Guard(private=True)).deliver_due())


@pytest.fixture
def admins(sqlite_url: str, tmp_path: Path) -> Iterator[Admins]:
    with front_desk(sqlite_url, tmp_path) as desk:
        yield Admins(desk)


@pytest.fixture
def opened(sqlite_url: str, tmp_path: Path) -> Iterator[Admins]:
    """Of a closed network: its endpoints may be on loopback."""
    with front_desk(sqlite_url, tmp_path, private_urls=True) as desk:
        yield Admins(desk)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as listener:
        yield listener


def error_of(response: Any) -> Any:
    return response.json()["error"]


def test_the_client_of_openai_keeps_its_endpoints_here(admins: Admins):
    hooks = admins.client().webhooks
    made = hooks.create(name="mine", url=URL, event_types=["video.completed", "video.failed"])
    assert made.signing_secret.startswith("whsec_")
    assert (made.object, made.name, made.url) == ("webhook_endpoint", "mine", URL)
    found = hooks.retrieve(made.id)
    assert (found.event_types, found.created_at) == (["video.completed", "video.failed"], made.created_at)
    assert found.signing_secret_hint == f"whsec_...{made.signing_secret[-4:]}"
    assert made.signing_secret not in admins.ask("GET", f"webhook_endpoints/{made.id}").text
    changed = hooks.update(made.id, name="ours", event_types=["video.failed"])
    assert (changed.name, changed.event_types, changed.url) == ("ours", ["video.failed"], URL)
    rotated = hooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made.signing_secret
    assert hooks.event_types.list().data == list(TOPICS)
    gone = hooks.delete(made.id)
    assert (gone.deleted, gone.object) == (True, "webhook_endpoint.deleted")
    with pytest.raises(openai.NotFoundError):
        hooks.retrieve(made.id)


def test_a_list_pages_through_all_of_them_newest_first(admins: Admins):
    made = [admins.made(name=f"hook {n}")["id"] for n in range(5)]
    assert {hook.id for hook in admins.client().webhooks.list(limit=2)} == set(made)
    page = admins.ask("GET", "webhook_endpoints", params={"limit": 3}).json()
    assert (len(page["data"]), page["has_more"], page["last_id"]) == (3, True, page["data"][2]["id"])
    assert admins.ask("GET", "webhook_endpoints", params={"after": "whe_x"}).status_code == 404


def test_a_video_that_ends_is_heard_of_and_the_log_tells_of_it(opened: Admins, listener: Listener):
    hook = opened.made(url=listener.url, event_types=["video.canceled"])
    video = opened.desk.create()["id"]
    assert opened.deliver() == 0
    opened.desk.ask("POST", f"/v1/videos/{video}/cancel")
    waiting = opened.ask("GET", f"webhook_endpoints/{hook['id']}/deliveries").json()["data"][0]
    assert (waiting["status"], waiting["attempts"], waiting["data"]) == ("due", [], {"id": video})
    assert opened.deliver() == 1
    [heard] = listener.heard
    told = opened.client().webhooks.unwrap(heard.body, heard.headers, secret=hook["signing_secret"])
    assert (told.type, told.data.id) == ("video.canceled", video)  # type: ignore[union-attr,comparison-overlap]
    line = opened.ask("GET", f"webhook_endpoints/{hook['id']}/deliveries").json()["data"][0]
    assert (line["status"], line["id"], line["next_attempt_at"]) == ("delivered", heard.headers["webhook-id"], None)
    assert [(a["status_code"], a["error"]) for a in line["attempts"]] == [(200, None)]
    again = opened.ask("POST", f"webhook_endpoints/{hook['id']}/deliveries/{line['id']}/redeliver").json()
    assert (again["status"], len(again["attempts"])) == ("due", 1)
    opened.deliver()
    assert [h.headers["webhook-id"] for h in listener.heard] == [line["id"]] * 2


def test_a_test_is_sent_at_once_and_tells_what_was_answered(opened: Admins, listener: Listener):
    hook = opened.made(url=listener.url)
    listener.statuses = [204, 302, 500]
    hooks = opened.client().webhooks
    assert [hooks.test(hook["id"], event_type="video.failed").status_code for _ in range(3)] == [204, 302, 500]
    told = hooks.unwrap(listener.heard[0].body, listener.heard[0].headers, secret=hook["signing_secret"])
    assert told.type == "video.failed"  # type: ignore[comparison-overlap]
    assert len(listener.heard) == 3
    assert opened.ask("GET", f"webhook_endpoints/{hook['id']}/deliveries").json()["data"] == []


def test_a_test_that_nobody_hears_says_why(opened: Admins):
    with nobody() as port:
        hook = opened.made(url=f"http://127.0.0.1:{port}/hook")
        refused = opened.ask("POST", f"webhook_endpoints/{hook['id']}/test", json={"event_type": "video.failed"})
    assert (refused.status_code, error_of(refused)["param"]) == (422, "url")
    assert "did not answer" in error_of(refused)["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"url": "http://example.com/"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "https://user:x@example.com/"}, "url"),
        ({"url": 7}, "url"),
        ({"url": "https://example.com/" + "x" * 3000}, "url"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["batch.completed"]}, "event_types.0"),
        ({"event_types": "video.completed"}, "event_types"),
        ({"name": ""}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "x" * 200}, "name"),
        ({"nothing": 1}, "nothing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_endpoint_is_refused_by_the_field(admins: Admins, change: dict[str, Any], param: str):
    hook = admins.made()
    for refused in (
        admins.ask("POST", "webhook_endpoints", json={**BODY, **change}),
        admins.ask("POST", f"webhook_endpoints/{hook['id']}", json=change),
    ):
        assert (refused.status_code, error_of(refused)["param"]) == (422, param)
    assert len(admins.ask("GET", "webhook_endpoints").json()["data"]) == 1


def test_an_endpoint_is_switched_off_and_on(admins: Admins):
    hook = admins.made()["id"]
    off = admins.ask("POST", f"webhook_endpoints/{hook}", json={"enabled": False}).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "switched off")
    assert admins.ask("POST", f"webhook_endpoints/{hook}", json={"name": "x"}).json()["enabled"] is False
    assert admins.ask("POST", f"webhook_endpoints/{hook}", json={"enabled": True}).json()["enabled"] is True


def test_a_rotation_needs_no_body(admins: Admins):
    hook = admins.made()
    rotated = admins.ask("POST", f"webhook_endpoints/{hook['id']}/rotate_secret")
    assert (rotated.status_code, rotated.json()["signing_secret"] != hook["signing_secret"]) == (200, True)


def test_a_key_that_is_bound_to_a_show_has_the_endpoints_of_that_show(admins: Admins):
    whole = admins.made()
    assert whole["show"] is None
    bound = admins.desk.key(Scope.ADMIN, show="trailer")
    made = admins.ask("POST", "webhook_endpoints", key=bound, json=BODY).json()
    assert made["show"] == "trailer"
    listed = admins.ask("GET", "webhook_endpoints", key=bound).json()["data"]
    assert [one["id"] for one in listed] == [made["id"]]
    refused = admins.ask("POST", "webhook_endpoints", key=bound, json={**BODY, "show": "feature"})
    assert (refused.status_code, error_of(refused)["param"]) == (403, "show")
    project = admins.ask("POST", "webhook_endpoints", json=BODY, headers={"OpenAI-Project": "feature"}).json()
    assert project["show"] == "feature"


def test_an_answer_of_another_endpoint_is_not_delivered_again(opened: Admins):
    one, other = (opened.made(event_types=["video.canceled"], name=name)["id"] for name in ("a", "b"))
    opened.ask("POST", f"webhook_endpoints/{other}", json={"enabled": False})
    opened.desk.ask("POST", f"/v1/videos/{opened.desk.create()['id']}/cancel")
    [line] = opened.ask("GET", f"webhook_endpoints/{one}/deliveries").json()["data"]
    assert opened.ask("POST", f"webhook_endpoints/{other}/deliveries/{line['id']}/redeliver").status_code == 404
    assert opened.ask("GET", f"webhook_endpoints/{one}/deliveries", params={"after": "evt_x"}).status_code == 404


def test_what_is_to_be_sent_again_to_a_disabled_endpoint_is_refused_until_it_is_enabled(opened: Admins):
    hook = opened.made(event_types=["video.canceled"])["id"]
    opened.desk.ask("POST", f"/v1/videos/{opened.desk.create()['id']}/cancel")
    [line] = opened.ask("GET", f"webhook_endpoints/{hook}/deliveries").json()["data"]
    again = f"webhook_endpoints/{hook}/deliveries/{line['id']}/redeliver"
    opened.ask("POST", f"webhook_endpoints/{hook}", json={"enabled": False})
    refused = opened.ask("POST", again)
    assert (refused.status_code, error_of(refused)["param"]) == (409, "enabled")
    assert "enable it first" in refused.text
    opened.ask("POST", f"webhook_endpoints/{hook}", json={"enabled": True})
    assert opened.ask("POST", again).status_code == 200


def test_the_document_tells_what_is_posted(admins: Admins):
    document = json.dumps(admins.desk.app.openapi())
    for kind in TOPICS:
        assert f'"{kind}"' in document
