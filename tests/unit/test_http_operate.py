"""What operators see and do over HTTP: pages, orders and their dry runs, bounds of tenants, shows and keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import FailureClass
from cluster.ledger.keys import Scope
from cluster.settings import Settings
from cluster.states import Move, State
from cluster.store.directory import DirectoryStore
from tests.front_desk import FrontDesk
from tests.ledger_desk import LedgerDesk, task


class Operating:
    """A ledger with workers in the hand, and HTTP on it; `secret` may do all that a tenant can."""

    def __init__(self, url: str, home: Path) -> None:
        self.books = LedgerDesk(url)
        self.front = FrontDesk(self.books.ledger, DirectoryStore(home / "store"), Settings(home=home))
        self.secret = self.front.key(Scope.ADMIN)

    def ask(self, method: str, path: str, *, key: str | None = None, **more: Any) -> Any:
        return self.front.ask(method, path, key=key or self.secret, **more)

    def get(self, path: str, **more: Any) -> Any:
        response = self.ask("GET", path, **more)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, body: dict[str, Any] | None = None, **more: Any) -> Any:
        response = self.ask("POST", path, json=body or {}, **more)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, method: str, path: str, **more: Any) -> tuple[int, str | None, str]:
        """(status, field, message)."""
        response = self.ask(method, path, **more)
        error = response.json()["error"]
        return response.status_code, error["param"], error["message"]


@pytest.fixture
def farm(sqlite_url: str, tmp_path: Path) -> Iterator[Operating]:
    farm = Operating(sqlite_url, tmp_path)
    yield farm
    farm.books.close()


@pytest.fixture(scope="module")
def idle(fast_folder: Path) -> Iterator[Operating]:
    """For requests that change nothing."""
    farm = Operating(f"sqlite:///{fast_folder}/idle-operate.db", fast_folder / "idle-operate")
    yield farm
    farm.books.close()


def test_lists_come_in_pages_that_hold_each_thing_once(farm: Operating):
    jobs = [farm.books.submit(*(task(key) for key in "abc"), title=str(n)) for n in range(5)]
    seen: list[str] = []
    more: dict[str, Any] = {}
    while len(seen) < 5:
        page = farm.get("/v1/jobs", params={"limit": 2, "state": "queued", **more})
        seen += [row["job"] for row in page["data"]]
        assert page["has_more"] == (len(seen) < 5)
        more = {"after": page["last_id"]}
    assert sorted(seen) == sorted(jobs)
    first = farm.get(f"/v1/jobs/{jobs[0]}/tasks", params={"limit": 2})
    rest = farm.get(f"/v1/jobs/{jobs[0]}/tasks", params={"limit": 2, "after": first["last_id"]})
    assert [row["task"] for row in first["data"] + rest["data"]] == ["a", "b", "c"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    told = farm.get(f"/v1/jobs/{jobs[0]}/log", params={"limit": 3})
    after = farm.get(f"/v1/jobs/{jobs[0]}/log", params={"limit": 3, "after": told["last_id"]})
    assert [event["seq"] for event in told["data"] + after["data"]] == [1, 2, 3, 4]
    assert (told["has_more"], after["has_more"], after["over"]) == (True, False, False)


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("/v1/jobs", {"after": "job_none"}, "after"),
        ("/v1/jobs", {"state": "sleeping"}, "state.0"),
        ("/v1/jobs", {"limit": "0"}, "limit"),
        ("/v1/jobs", {"show": "a\x00"}, "show"),
        ("/v1/jobs/JOB/tasks", {"after": "task_none"}, "after"),
        ("/v1/jobs/JOB/log", {"after": str(2**63)}, "after"),
        ("/v1/names/jobs", {"part": "a\x00bcd"}, "id"),
        ("/v1/names/jobs", {}, "part"),
    ],
    ids=lambda value: str(value),
)
def test_a_query_that_cannot_be_is_refused_by_its_name(idle: Operating, path: str, query: dict[str, str], field: str):
    job = idle.books.submit(task("a"))
    status, param, _ = idle.refused("GET", path.replace("JOB", job), params=query)
    assert (status in (404, 422), param) == (True, field)


def test_a_dry_run_says_what_an_order_touches_and_changes_nothing(farm: Operating):
    job = farm.books.submit(task("a"), task("b", "a"), task("c"))
    farm.books.run(job, "a", seconds=3)
    farm.books.fail(farm.books.lease(job, "c"), FailureClass.INPUT)
    task_id = farm.books.task(job, "a")["id"]
    before = farm.books.kinds(job)
    for verb, touched in (("cancel", 1), ("retry", 1), ("requeue", 2), ("eat", 1)):
        deed = farm.post(f"/v1/jobs/{job}/{verb}", {"dry_run": True})
        assert (deed["tasks"], deed["done"]) == (touched, False), verb
    assert farm.post(f"/v1/jobs/{job}/hold", {"dry_run": True})["done"] is False
    deed = farm.post(f"/v1/tasks/{task_id}/requeue", {"dry_run": True})
    assert (deed["spent_usd"], deed["states"], deed["task"]) == ("0.003000000", {"succeeded": 1}, "a")
    farm.books.lease(job, "b")
    before += ["task.lease"]
    assert farm.post(f"/v1/tasks/{farm.books.task(job, 'b')['id']}/hold", {"dry_run": True})["states"] == {"running": 1}
    assert farm.post("/v1/workers/w1/drain", {"dry_run": True})["running"] == [f"{job}/b"]
    assert farm.books.kinds(job) == before
    assert farm.books.ledger.draining() == {}
    assert farm.books.ledger.job(job).held is False


def test_orders_do_what_they_say_and_again_is_fine(farm: Operating):
    job = farm.books.submit(task("a"), task("b"))
    assert farm.ask("POST", f"/v1/jobs/{job}/hold").json()["done"] is True  # without a body
    assert farm.books.ledger.job(job).held
    farm.books.ledger.move_tasks(job, Move.HOLD, states={State.READY}, keys=["b"], reason="x")
    deed = farm.post(f"/v1/jobs/{job}/release", {"with_tasks": True})
    assert (deed["tasks"], farm.books.ledger.job(job).held) == (1, False)
    assert farm.post(f"/v1/jobs/{job}/priority", {"priority": 9})["priority"] == 9
    assert farm.post(f"/v1/jobs/{job}/cancel")["tasks"] == 2
    assert farm.post(f"/v1/jobs/{job}/cancel")["tasks"] == 0
    assert farm.post(f"/v1/jobs/{job}/requeue", {"states": ["canceled"]})["tasks"] == 2
    assert farm.books.states(job) == {"a": "ready", "b": "ready"}
    farm.books.check()


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/jobs/JOB/cancel", {"dryrun": True}, 422, "dryrun"),
        ("/v1/jobs/JOB/requeue", {"states": ["running"]}, 422, "states"),
        ("/v1/jobs/JOB/requeue", {"states": ["done"]}, 422, "states.0"),
        ("/v1/jobs/JOB/priority", {}, 422, "priority"),
        ("/v1/jobs/JOB/priority", {"tier": "urgent"}, 422, "tier"),
        ("/v1/tasks/TASK/retry", {}, 409, "task"),
        ("/v1/tasks/TASK/release", {}, 409, "task"),
        ("/v1/workers/w1/drain", {"reason": "a\nb"}, 422, "reason"),
        ("/v1/workers/nobody/drain", {}, 404, None),
        ("/v1/keys", {"name": "x", "scopes": []}, 422, "scopes"),
        ("/v1/keys", {"name": "x", "scopes": ["root"]}, 422, "scopes.0"),
        ("/v1/keys", {"name": ""}, 422, "name"),
        ("/v1/keys", {"name": "x", "tenant": "other"}, 403, "tenant"),
    ],
    ids=lambda value: str(value),
)
def test_an_order_that_cannot_be_is_refused_by_its_field(
    idle: Operating, path: str, body: dict[str, Any], status: int, field: str | None
):
    job = idle.books.submit(task("a"))
    asked = path.replace("JOB", job).replace("TASK", idle.books.task(job, "a")["id"])
    before = idle.books.kinds(job)
    assert idle.refused("POST", asked, json=body)[:2] == (status, field)
    assert idle.books.kinds(job) == before


ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.text(max_size=5))
NAMES = ["dry_run", "states", "with_tasks", "priority", "tier", "reason", "share", "name", "scopes", "show", "tenant",
         "requests_per_minute", "in_flight_s", "tokens_per_minute", "keep_old_s"]  # fmt: skip
FIELDS = st.dictionaries(
    st.sampled_from(NAMES), ANY | st.sampled_from([True, 5, "batch", ["dead"], ["read"], "x", 2.5]), max_size=5
)


@settings(max_examples=10)  # each is a request to every route
@given(fields=FIELDS, text=st.text(max_size=12))
def test_whatever_is_ordered_the_answer_is_one_that_the_document_names(
    idle: Operating, fields: dict[str, Any], text: str
):
    paths: dict[str, dict[str, Any]] = idle.front.app.openapi()["paths"]
    job = next(iter(idle.books.ledger.jobs()), None)
    job_id = job.id if job else idle.books.submit(task("a"), task("b", "a"))
    known = {
        "name": "x.mp4",
        "job_id": job_id,
        "task_id": idle.books.task(job_id, "a")["id"],
        "worker_id": "w2",
        "show": "x",
        "budget_id": "x",
    }
    of_operators = re.compile(
        r"/v1/(jobs|tasks|workers|shows|budgets|keys|names)\b(?!.*/events)"
    )  # a stream has no end
    ours = [path for path in paths if of_operators.match(path)]
    for path in ours:
        for method, told in paths[path].items():
            named = path.format(**{"key_id": quote(text, safe=""), **known})
            query = dict.fromkeys(("part", "after", "limit", "show", "state", "gone", "tasks"), text)
            more = {"params": query} if method == "get" else {"content": json.dumps(fields)}
            response = idle.ask(method.upper(), named, **more)
            assert str(response.status_code) in told["responses"], (path, response.status_code, response.text)
            assert response.status_code < 500


def test_what_to_do_next_stands_alone_beside_the_message(farm: Operating):
    job = farm.books.submit(task("a"))
    response = farm.ask("POST", f"/v1/tasks/{farm.books.task(job, 'a')['id']}/retry")
    error = response.json()["error"]
    assert (response.headers["x-should-retry"], error["remedy"]) == ("false", "possible now: cancel, eat, hold")
    assert error["message"].endswith(f"a person cannot retry; {error['remedy']}")


def test_names_are_parts_of_ids_among_what_may_be_seen(farm: Operating):
    own, theirs = farm.books.submit(task("a"), show="one"), farm.books.submit(task("a"), tenant="other")
    assert farm.get("/v1/names/jobs", params={"part": own[-8:]})["job"] == own
    named = farm.get("/v1/names/jobs", params={"part": f"{own[-8:]}/a"})
    assert (named["task"], named["id"]) == ("a", farm.books.task(own, "a")["id"])
    bound = farm.front.key(Scope.READ, show="two")
    for part, key in ((theirs, None), (theirs[-8:], None), (own[-8:], bound), (farm.books.task(own, "a")["id"], bound)):
        status, _, said = farm.refused("GET", "/v1/names/jobs", params={"part": part}, key=key)
        assert (status, said) == (404, f"no job or task {part}; `farm ls` lists them")
    assert farm.get("/v1/names/jobs", params={"part": "job_"[:4] + own[4:12]}, key=farm.front.key(
        Scope.READ, show="one"))["job"] == own  # fmt: skip


def test_workers_are_the_farms_and_what_they_do_for_others_has_no_name(farm: Operating):
    own, theirs = farm.books.submit(task("a")), farm.books.submit(task("b"), tenant="other")
    farm.books.lease(theirs, "b", worker="w2")
    farm.books.lease(own, "a", worker="w1")
    for secret, seen in ((None, [(1, 0), (0, 1)]), (farm.front.key(Scope.OPERATE, tenant="other"), [(0, 1), (1, 0)])):
        rows = farm.get("/v1/workers", key=secret)["data"]
        assert [(len(row["running"]), row["others"]) for row in rows] == seen
        assert {row["state"] for row in rows} == {"busy"}
    deed = farm.post("/v1/workers/w2/drain", {"reason": "it is old"})
    assert (deed["workers"], deed["running"], deed["others"], deed["tasks"]) == (1, [], 1, 1)
    assert farm.post("/v1/workers/w2/drain")["workers"] == 0
    assert theirs not in str(deed)
    assert farm.books.ledger.draining() == {"w2": "it is old"}
    for key in (farm.front.key(Scope.OPERATE, tenant="other"), farm.front.key(Scope.OPERATE, show="one")):
        assert farm.refused("POST", "/v1/workers/w1/drain", key=key, json={})[0] == 403


def test_a_reader_is_told_why_and_not_whose(farm: Operating):
    """The same question is being answered for another show, which a bound key does not see."""
    same = {"spec": {"prompt": "same", "seed": 1}}
    first = farm.books.submit(task("one", params=same), show="one")
    second = farm.books.submit(task("two", params=same), show="two")
    farm.books.lease(first, "one")
    for show, name in ((None, f"{first}/one"), ("two", "a task of another show")):
        key = farm.front.key(Scope.READ, show=show)
        [reason] = farm.get(f"/v1/jobs/{second}/why", key=key)["tasks"]
        assert reason["holds"][0]["text"].startswith(f"{name} is answering the same question")
        assert farm.get(f"/v1/tasks/{farm.books.task(second, 'two')['id']}/why", key=key) == reason


def test_shares_are_set_for_a_tenant_by_its_admin_and_by_no_bound_key(farm: Operating):
    farm.books.submit(task("a"), show="one")
    response = farm.ask("PUT", "/v1/shows/one", json={"share": 2.5})
    assert (response.status_code, response.json()["share"], response.json()["waiting"]) == (200, 2.5, 1)
    assert farm.ask("PUT", "/v1/shows/a film of mine", json={"share": 1}).status_code == 200
    assert [row["show"] for row in farm.get("/v1/shows")["data"]] == ["a film of mine", "one"]
    bound = farm.front.key(Scope.ADMIN, show="one")
    assert [row["show"] for row in farm.get("/v1/shows", key=bound)["data"]] == ["one"]
    assert farm.refused("GET", "/v1/shows/a film of mine", key=bound)[0] == 404
    assert farm.refused("PUT", "/v1/shows/one", key=bound, json={"share": 9})[0] == 403
    foreign = farm.front.key(Scope.ADMIN, tenant="other")
    assert farm.get("/v1/shows", key=foreign)["data"] == []
    assert farm.refused("PUT", "/v1/shows/one", key=foreign, json={"share": 7})[:2] == (403, "share")
    assert farm.ask("PUT", "/v1/shows/one", key=foreign, json={"share": 0.5}).status_code == 200
    assert farm.books.ledger.shares() == {"studio/a film of mine": 1.0, "studio/one": 2.5, "other/one": 0.5}


def test_no_key_makes_one_that_may_do_more_than_itself(farm: Operating):
    small = farm.front.key(Scope.ADMIN, requests_per_minute=60, in_flight_s=30.0)
    more = {"name": "x", "requests_per_minute": 61}
    assert farm.refused("POST", "/v1/keys", key=small, json=more)[:2] == (403, "requests_per_minute")
    made = farm.post("/v1/keys", {"name": "x", "in_flight_s": 10, "tokens_per_minute": 500}, key=small)
    assert [made[name] for name in ("requests_per_minute", "in_flight_s", "tokens_per_minute")] == [60, 10.0, 500]


def test_no_key_gets_the_secret_of_one_that_may_do_more_than_itself(farm: Operating):
    small = farm.front.key(Scope.ADMIN, requests_per_minute=60, in_flight_s=30.0)
    limits = {"requests_per_minute": 60, "in_flight_s": 30.0}
    for more in (
        {"requests_per_minute": None},
        {"requests_per_minute": 61},
        {"in_flight_s": None},
        {"in_flight_s": 31},
    ):
        other = farm.post("/v1/keys", {"name": "x", **limits, **more})
        refused = farm.refused("POST", f"/v1/keys/{other['key']}/rotate", key=small)
        assert refused[:2] == (403, *more)
        assert farm.get("/v1/jobs", key=other["secret"])["data"] == []
    equal = farm.post("/v1/keys", {"name": "x", **limits, "tokens_per_minute": 5})
    own = farm.front.ledger.authenticate(small)
    assert own is not None
    for key_id in (equal["key"], own.key.id):
        assert farm.post(f"/v1/keys/{key_id}/rotate", {"keep_old_s": 60}, key=small)["requests_per_minute"] == 60


def test_keys_are_made_and_seen_within_the_bounds_of_the_key_that_asks(farm: Operating):
    bound = farm.front.key(Scope.ADMIN, show="one")
    made = farm.post("/v1/keys", {"name": "ci", "scopes": ["read", "read"]}, key=bound)
    assert (made["tenant"], made["show"], made["scopes"]) == ("studio", "one", ["read"])
    assert farm.refused("POST", "/v1/keys", key=bound, json={"name": "x", "show": "two"})[:2] == (403, "show")
    assert farm.get("/v1/jobs", key=made["secret"])["data"] == []
    seen = [row["key"] for row in farm.get("/v1/keys", key=bound)["data"]]
    assert made["key"] in seen
    assert farm.front.ledger.authenticate(farm.secret).key.id not in seen  # type: ignore[union-attr]
    assert "secret" not in farm.get("/v1/keys", key=bound)["data"][0]
    own = farm.front.ledger.authenticate(farm.secret)
    assert own is not None
    assert farm.refused("POST", f"/v1/keys/{own.key.id}/revoke", key=bound)[0] == 404
    assert farm.refused("GET", "/v1/names/keys", key=bound, params={"part": own.key.id})[0] == 404
    new = farm.post(f"/v1/keys/{made['key']}/rotate", {"keep_old_s": 60})
    assert farm.get("/v1/jobs", key=made["secret"]) == farm.get("/v1/jobs", key=new["secret"])
    assert farm.post(f"/v1/keys/{made['key']}/revoke")["revoked"] is not None
    assert farm.refused("GET", "/v1/jobs", key=new["secret"])[0] == 401
    assert farm.refused("POST", f"/v1/keys/{made['key']}/rotate")[:2] == (409, "key")
