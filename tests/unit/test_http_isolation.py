"""Whoever may not see or do something is refused alike, by the same statements, on every route that there is.

Driven by `ROUTES`, which the document is compared with: a route that nobody listed fails, and so does an id in a path
that `World` does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from cluster.budgets import BudgetSpec
from cluster.budgets import Scope as Budgeted
from cluster.ledger.hooks import HookSpec
from cluster.ledger.jobs import JobSpec
from cluster.ledger.keys import KeySpec, Scope
from serve.webhooks import TOPICS
from tests.front_desk import BOAT, CATALOG, FrontDesk, front_desk
from tests.ledger_desk import task
from tests.scripts import script_of
from tests.unit.test_http_front import ROUTES

ABSENT = "01arz3ndektsv4rrffq69g5fav"
SHARED = {"model": "house-video", "file": "clip.mp4", "worker": "w1", "show": "feature"}
"""Ids in paths that belong to no tenant, and names that each has for itself."""
OWNED = {
    "video": "video_",
    "image": "image_",
    "film": "film_",
    "take": "take_",
    "hook": "whe_",
    "event": "evt_",
    "job": "job_",
    "task": "task_",
    "api_key": "key_",
    "asset": "abab",
    "budget": "budget_",
}
"""Ids in paths of what a tenant owns, and how they begin."""
SCRIPT = script_of(CATALOG, "boat")
BODIES: dict[str, Any] = {
    "POST /v1/estimates": {"prompt": BOAT, "kind": "video"},
    "PUT /v1/films/{film}/script": SCRIPT,
}
"""What a route needs so that it looks for its object; else a prompt."""
OF_OPERATORS = re.compile(r"/v1/(assets|jobs|tasks|workers|shows|budgets|keys|names)\b")
"""Whose bodies may be empty."""
QUERIES = {path: {"part": f"job_{ABSENT}"} for path in ("/v1/names/jobs", "/v1/names/workers", "/v1/names/keys")}
OF_ONE = {*QUERIES, "/v1/shows/{show}"}
"""Without an id of the farm's in the path, and yet of one thing that a stranger has not."""
OF_THE_FARM = {"/metrics", "/v1/workers/{worker}/drain"}
"""For keys of the farm's own tenant alone."""
IDS = [f"{method} {path}" for method, path, _ in ROUTES]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    status: int
    body: bytes
    headers: frozenset[str]
    statements: tuple[str, ...]


class World:
    """A farm where the tenant `studio` owns one object of each kind in the show `feature`."""

    def __init__(self, desk: FrontDesk) -> None:
        self.desk = desk
        feed = desk.app.state.service.feed
        feed.pace = replace(feed.pace, most_s=0.01)  # streams end
        self.term = desk.ledger.take_term()
        self.owner = desk.key(*Scope, show="feature")
        image = JobSpec(recipe="pipelines.recipes.image", title="x", spec={}, tenant="studio", show="feature")
        self.ids = {
            "video": desk.ask("POST", "/v1/videos", key=self.owner, json={"prompt": BOAT, "seed": 7}).json()["id"],
            "image": desk.ledger.submit(image, [task("image")])[0].replace("job_", "image_"),
            **self._heard(),
        }
        film = desk.ask("POST", "/v1/films", key=self.owner, json={"script": SCRIPT, "review": True}).json()["id"]
        self.ids |= {"film": film, "take": f"{film.replace('film_', 'take_')}.sh010.t1"}
        self.ids["job"] = self.ids["video"].replace("video_", "job_")
        self.ids["task"] = desk.ledger.tasks(self.ids["job"])[0]["id"]
        self.ids["api_key"] = desk.ledger.create_key(KeySpec(tenant="studio", name="theirs", show="feature"))[0].id
        file = {"sha256": "ab" * 32, "key": f"studio/assets/sha256/ab/ab/{'ab' * 32}", "size_bytes": 3}
        desk.ledger.name_asset("studio", {**file, "media_type": "image/png", "show": "feature"})
        self.ids["asset"] = "ab" * 32
        capped = BudgetSpec(tenant="studio", scope=Budgeted.SHOW, subject="feature", cap_nano=10**12)
        self.ids["budget"] = desk.ledger.set_budget(capped).id
        self.ledger_events = {job.id: job.seq for job in desk.ledger.jobs()}

    def _heard(self) -> dict[str, str]:
        """An endpoint of webhooks, and the event of a video that was canceled."""
        topics = (TOPICS["video.canceled"],)
        spec = HookSpec(tenant="studio", show="feature", name="x", url="https://example.com/", topics=topics)
        hook = self.desk.ledger.create_hook(spec)[0].id
        video = self.desk.ask("POST", "/v1/videos", key=self.owner, json={"prompt": BOAT}).json()["id"]
        self.desk.ask("POST", f"/v1/videos/{video}/cancel", key=self.owner)
        [line] = self.desk.ask("GET", f"/v1/webhook_endpoints/{hook}/deliveries", key=self.owner).json()["data"]
        return {"hook": hook, "event": line["id"]}

    def key(self, *scopes: Scope, **more: Any) -> str:
        """A key whose first use is written down already."""
        secret = self.desk.key(*scopes, **more)
        self.desk.ledger.authenticate(secret)
        return secret

    def ask(self, method: str, path: str, key: str, **ids: str) -> Answer:
        """The answer, and what the ledger was asked for it. `ids`: other ones than the owner's."""
        statements: list[str] = []

        def note(*args: Any) -> None:
            statements.append(args[2])

        asked = path.format(**{**SHARED, **self.ids, **ids})
        event.listen(self.desk.ledger.database.engine, "before_cursor_execute", note)
        try:
            usual = {} if OF_OPERATORS.match(path) else {"prompt": BOAT}
            body, query = BODIES.get(f"{method} {path}", usual), QUERIES.get(path)
            got = self.desk.ask(method, asked, key=key, json=body, params=query)
        finally:
            event.remove(self.desk.ledger.database.engine, "before_cursor_execute", note)
        names = frozenset(got.headers) - {"content-length"}
        return Answer(status=got.status_code, body=got.content, headers=names, statements=tuple(statements))


@pytest.fixture(scope="module")
def world(fast_folder: Path) -> Iterator[World]:
    home = fast_folder / "isolation"
    with front_desk(f"sqlite:///{fast_folder}/isolation.db", home, image_wait_s=0.001) as desk:
        yield World(desk)


def owned(path: str) -> list[str]:
    return [name for name in re.findall(r"\{(\w+)\}", path) if name in OWNED]


@pytest.mark.parametrize(("method", "path", "scopes"), ROUTES, ids=IDS)
def test_no_key_an_unknown_and_a_revoked_one_are_one_refusal_of_one_statement(
    world: World, method: str, path: str, scopes: tuple[Scope, ...]
):
    key, revoked = world.desk.ledger.create_key(KeySpec(tenant="studio", name="test", scopes=tuple(Scope)))
    world.desk.ledger.authenticate(revoked)
    world.desk.ledger.revoke_key(key.id)
    rotated, old = world.desk.ledger.create_key(KeySpec(tenant="studio", name="test", scopes=tuple(Scope)))
    world.desk.ledger.rotate_key(rotated.id, keep_old_s=0.0)
    none, *others = (world.ask(method, path, secret) for secret in ("", "farm_" + "x" * 43, revoked, old, "x y"))
    assert (none.status, len(none.statements)) == (401, 2)  # BEGIN, and one that looks for the key
    assert others == [none] * 4
    absent = {name: OWNED[name] + ABSENT for name in owned(path)}
    assert world.ask(method, path, revoked, **absent) == none


@pytest.mark.parametrize(("method", "path", "scopes"), ROUTES, ids=IDS)
def test_a_wrong_scope_is_refused_before_anything_is_looked_for(
    world: World, method: str, path: str, scopes: tuple[Scope, ...]
):
    wrong = [scope for scope in Scope if scope not in (*scopes, Scope.ADMIN)]
    mine, foreign = world.key(*wrong), world.key(*wrong, tenant="other")
    absent = {name: OWNED[name] + ABSENT for name in owned(path)}
    refused = world.ask(method, path, mine)
    assert (refused.status, len(refused.statements)) == (403, 2)
    assert [world.ask(method, path, foreign), world.ask(method, path, mine, **absent)] == [refused] * 2
    for scope in (*scopes, Scope.ADMIN):
        status = world.ask(method, path, world.key(scope, tenant="other")).status
        assert (status in (401, 403)) is (path in OF_THE_FARM)


@pytest.mark.parametrize(
    ("method", "path", "scopes"), [r for r in ROUTES if owned(r[1])], ids=[i for i in IDS if owned(i)]
)
@pytest.mark.parametrize("whose", [{"tenant": "other"}, {"show": "another"}], ids=["tenant", "show"])
def test_what_is_anothers_is_not_there(
    world: World, method: str, path: str, scopes: tuple[Scope, ...], whose: dict[str, str]
):
    foreign = world.key(*(scopes or Scope), **whose)
    theirs = world.ask(method, path, foreign)
    assert theirs.status == 404
    for ending in (ABSENT, "x", "..", "%00", "'%20or%201=1--", "\u00e9"):
        assert world.ask(method, path, foreign, **{name: OWNED[name] + ending for name in owned(path)}) == theirs
    assert not any(world.ids[name].encode() in theirs.body for name in owned(path))
    assert {job.id: job.seq for job in world.desk.ledger.jobs() if job.id in world.ledger_events} == world.ledger_events


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [r for r in ROUTES if r[0] == "GET" and not owned(r[1])],
    ids=[i for i in IDS if i.startswith("GET") and not owned(i)],
)
def test_what_is_answered_to_others_is_what_a_stranger_reads(
    world: World, method: str, path: str, scopes: tuple[Scope, ...]
):
    """Tenants of whom nothing is here, but a key."""
    first, second = (world.ask(method, path, world.key(*(scopes or Scope), tenant=t)) for t in ("idle", "stranger"))
    status = 404 if path in OF_ONE else 403 if path in OF_THE_FARM else 200
    assert (first.status, second.status, first.statements) == (status, status, second.statements)
    assert not any(name.encode() in first.body for name in (*world.ids.values(), "feature", "studio"))


def test_every_id_in_a_path_is_known_to_this_matrix():
    names = {name for _, path, _ in ROUTES for name in re.findall(r"\{(\w+)\}", path)}
    assert names == SHARED.keys() | OWNED.keys()
