"""Films over HTTP, on a farm that works: from a brief to a film, takes, the gate, and what a change makes anew."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from actors.contract import Json
from cluster import media
from cluster.budgets import BudgetSpec, Scope
from cluster.errors import LedgerUnavailable
from cluster.ledger.keys import Scope as KeyScope
from cluster.states import Move
from tests.cutting_engine import CuttingEngine
from tests.front_desk import CATALOG, FrontDesk, Working, front_desk
from tests.picture_engine import PictureEngine
from tests.script_engine import ScriptEngine
from tests.scripts import LOGLINE, script_of


@pytest.fixture(scope="module")
def working(fast_folder: Path) -> Iterator[Working]:
    home = fast_folder / "http-films"
    home.mkdir()
    beside = {"finish": CuttingEngine(CATALOG), "writer": ScriptEngine(CATALOG)}
    working = Working(home, PictureEngine(side_px=64), beside)
    yield working
    assert working.farm.ledger.flaws() == []
    working.close()


@pytest.fixture
def desk(sqlite_url: str, tmp_path: Path) -> Iterator[FrontDesk]:
    """Nobody works here: what is submitted waits."""
    with front_desk(sqlite_url, tmp_path) as desk:
        yield desk


def create(desk: FrontDesk, **fields: Any) -> Json:
    response = desk.ask("POST", "/v1/films", json=fields)
    assert response.status_code == 200, response.text
    film: Json = response.json()
    return film


def look(desk: FrontDesk, film: Json) -> Json:
    seen: Json = desk.ask("GET", f"/v1/films/{film['id']}").json()
    return seen


def until(working: Working, film: Json, **wanted: Any) -> Json:
    """The film, once it says this of itself."""
    seen: Json = {}

    def there() -> bool:
        seen.update(look(working.desk, film))
        return all(seen[name] == value for name, value in wanted.items())

    working.farm.wait_for(there)
    return seen


def takes(film: Json) -> dict[str, Json]:
    """By their keys, as in "sh010.t1"."""
    some = [take for scene in film["scenes"] for shot in scene["shots"] for take in shot["takes"]]
    return {take["id"].partition(".")[2]: take for take in some}


def verb(desk: FrontDesk, take: Json, what: str) -> Any:
    return desk.ask("POST", f"/v1/takes/{take['id']}/{what}")


def ran(working: Working, film: Json, number: int) -> list[str]:
    """Keys of the tasks of a revision that a worker ran, in their order."""
    job = film["revisions"][number - 1]["job"]
    keys = {task["id"]: task["key"] for task in working.farm.ledger.tasks(job)}
    return [keys[attempt["task_id"]] for attempt in working.farm.ledger.attempts(job)]


def test_a_sentence_becomes_a_film_that_is_downloaded(
    working: Working, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(CuttingEngine, "really", True)
    film = create(
        working.desk, logline=LOGLINE, shots=2, seed=5, metadata={"reel": "one"}, deadline="2199-01-01T00:00Z"
    )
    assert (film["title"], film["seed"]) == (None, 5)
    assert film["deadline"] == 7_226_582_400
    done = until(working, film, status="completed")
    assert (done["title"], done["progress"], done["error"]) == ("The Crossing", 100, None)
    assert (done["metadata"], done["cost"]["estimated"]) == ({"reel": "one"}, False)
    assert done["usage"]["frames"] > 48
    assert list(takes(done)) == ["sh010.t1", "sh020.t1"]
    assert all(take["circled"] and take["state"] == "succeeded" for take in takes(done).values())
    assert {key: working.desk.ask("GET", url).status_code for key, url in done["urls"].items()} == dict.fromkeys(
        ("film", "poster", "contact_sheet", "captions", "timeline", "script", "manifest"), 200
    )
    whole = working.desk.ask("GET", f"/v1/films/{film['id']}/content")
    (tmp_path / "film.mp4").write_bytes(whole.content)
    assert media.probe(tmp_path / "film.mp4").num_frames == done["usage"]["frames"]
    part = working.desk.ask("GET", f"/v1/films/{film['id']}/content", headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, whole.content[5:10])
    manifest = working.desk.ask("GET", done["urls"]["manifest"]).json()
    assert manifest["files"]["film.mp4"]["sha256"] == hashlib.sha256(whole.content).hexdigest()
    assert working.desk.ask("GET", f"/v1/films/{film['id']}/script").json() == manifest["script"]
    clip = takes(done)["sh010.t1"]
    thumbnail = working.desk.ask("GET", f"{clip['url']}?variant=thumbnail").content
    assert Image.open(io.BytesIO(thumbnail)).size == (64, 64)
    assert working.desk.ask("GET", clip["url"]).headers["content-type"] == "video/mp4"
    assert working.desk.ask("GET", f"/v1/takes/{clip['id']}").json() == clip


def test_one_changed_shot_is_one_rendering_and_the_same_script_is_none(working: Working):
    script = script_of(CATALOG, "boat", "star", "moon")
    film = until(working, create(working.desk, script=script), status="completed")
    assert (film["seed"], film["logline"], len(film["revisions"])) == (7, LOGLINE, 1)
    path = f"/v1/films/{film['id']}/script"
    assert working.desk.ask("PUT", path, json=script).json()["revisions"] == film["revisions"]
    first = working.desk.ask("GET", film["urls"]["film"]).content
    changed = working.desk.ask("PUT", path, json=script_of(CATALOG, "boat", "fish", "moon")).json()
    assert [one["reason"] for one in changed["revisions"]] == ["created", "script"]
    done = until(working, film, status="completed")
    assert ran(working, done, 2) == ["sh020.t1", "conform", "publish"]
    assert working.desk.ask("GET", done["urls"]["film"]).content != first
    assert done["created_at"] == film["created_at"]
    assert float(done["cost"]["amount"]) > float(film["cost"]["amount"])


def test_another_circled_take_is_another_cut_and_nothing_else(working: Working):
    script = script_of(CATALOG, "car", "bird")
    film = until(working, create(working.desk, script=script, takes=2), status="completed")
    assert {key: take["circled"] for key, take in takes(film).items()} == {
        "sh010.t1": True, "sh010.t2": False, "sh020.t1": True, "sh020.t2": False,
    }  # fmt: skip
    assert len({take["seed"] for take in takes(film).values()}) == 4
    second = takes(film)["sh020.t2"]
    for _ in range(2):  # it is chosen already
        assert verb(working.desk, second, "circle").json()["circled"]
    done = until(working, film, status="completed")
    assert [one["reason"] for one in done["revisions"]] == ["created", "circled sh020.t2"]
    assert ran(working, done, 2) == ["conform", "publish"]
    manifest = working.desk.ask("GET", done["urls"]["manifest"]).json()
    assert [(shot["take"], shot["num_takes"]) for shot in manifest["shots"]] == [(1, 2), (2, 2)]
    assert manifest["shots"][1]["seed"] == second["seed"]
    assert verb(working.desk, second, "approve").json()["error"]["code"] == "illegal_move"


def test_a_film_in_review_is_cut_once_each_shot_has_an_approved_take(working: Working):
    fields = {"script": script_of(CATALOG, "tree", "house"), "takes": 2, "review": True}
    film = until(working, create(working.desk, **fields), state="in_review")
    assert (film["status"], film["eta_seconds"]) == ("in_progress", None)
    some = takes(film)
    assert film["waits_for"] == [some[key]["id"] for key in ("sh010.t1", "sh020.t1", "sh010.t2", "sh020.t2")]
    assert not any(take["approved"] for take in some.values())
    assert working.desk.ask("GET", some["sh010.t1"]["url"]).status_code == 200  # it is there to be looked at
    early = working.desk.ask("GET", f"/v1/films/{film['id']}/content")
    assert (early.status_code, early.headers["x-should-retry"]) == (409, "false")
    assert verb(working.desk, some["sh010.t1"], "approve").json()["approved"] is True
    assert verb(working.desk, some["sh010.t1"], "approve").json()["state"] == "succeeded"
    seen = look(working.desk, film)
    assert seen["waits_for"] == [some["sh020.t1"]["id"], some["sh020.t2"]["id"]]
    assert takes(seen)["sh010.t2"]["approved"] is None
    approved = verb(working.desk, some["sh020.t2"], "approve").json()
    assert (approved["circled"], approved["approved"]) == (True, True)
    done = until(working, film, status="completed")
    assert ran(working, done, 2) == ["conform", "publish"]
    again = until(working, create(working.desk, **fields), status="completed")  # what was approved stays so
    assert ran(working, again, 1) == ["conform", "publish"]


def test_a_rejected_take_is_drawn_again_with_another_seed_and_a_third_time_kills_it(working: Working):
    film = until(
        working, create(working.desk, script=script_of(CATALOG, "heart"), review=True), state="in_review"
    )  # fmt: skip
    seeds, clips = [], set[bytes]()
    for n in range(3):
        take = takes(until(working, film, state="in_review"))["sh010.t1"]
        assert take["rejected"] == n
        seeds.append(take["seed"])
        clips.add(working.desk.ask("GET", take["url"]).content)
        assert verb(working.desk, take, "reject").status_code == 200
    assert len(set(seeds)) == len(clips) == 3
    failed = until(working, film, status="failed")
    assert failed["error"]["message"] == "sh010.t1: rejected by a person, 3 times"
    refused = verb(working.desk, take, "reject")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "illegal_move")
    path = f"/v1/films/{film['id']}/script"
    working.desk.ask("PUT", path, json=script_of(CATALOG, "rocket"))
    fresh = takes(until(working, film, state="in_review"))["sh010.t1"]
    assert fresh["rejected"] == 0
    verb(working.desk, fresh, "reject")
    kept = takes(until(working, film, state="in_review"))["sh010.t1"]
    other = script_of(CATALOG, "rocket") | {"title": "Another"}
    working.desk.ask("PUT", path, json=other)
    now = takes(until(working, film, state="in_review"))["sh010.t1"]
    assert (now["seed"], now["rejected"]) == (kept["seed"], 1)
    assert ran(working, look(working.desk, film), 3) == []
    verb(working.desk, now, "approve")
    until(working, film, status="completed", title="Another")


def test_who_is_approved_though_another_take_was_is_circled(working: Working):
    fields = {"script": script_of(CATALOG, "bird"), "takes": 2, "review": True}
    film = until(working, create(working.desk, **fields), state="in_review")
    first, second = takes(film).values()
    verb(working.desk, first, "approve")
    assert takes(until(working, film, status="completed"))["sh010.t2"]["approved"] is None
    assert verb(working.desk, second, "approve").json()["circled"]
    assert takes(until(working, film, status="completed"))["sh010.t2"]["approved"]


def test_what_runs_goes_on_for_the_revision_that_wants_it_too(working: Working):
    working.engine.at_half = threading.Event()
    try:
        film = create(working.desk, script=script_of(CATALOG, "cloud", "ball"), review=True)
        seen = until(working, film, state="running")
        working.farm.wait_for(lambda: takes(look(working.desk, film))["sh010.t1"]["progress"] == 44)
        changed = working.desk.ask(
            "PUT", f"/v1/films/{film['id']}/script", json=script_of(CATALOG, "cloud", "moon")
        ).json()
        old = changed["revisions"][0]["job"]
        assert {t["key"]: t["state"] for t in working.farm.ledger.tasks(old)} == {
            "sh010.t1": "running", "sh020.t1": "canceled", "conform": "canceled", "publish": "canceled",
        }  # fmt: skip
    finally:
        working.engine.at_half.set()
        working.engine.at_half = None
    seen = until(working, film, state="in_review")
    assert ran(working, seen, 2) == ["sh020.t1"]
    assert [one["state"] for one in seen["revisions"]] == ["canceled", "in_review"]
    assert working.desk.ask("POST", f"/v1/films/{film['id']}/cancel").json()["status"] == "cancelled"
    resumed = working.desk.ask("PUT", f"/v1/films/{film['id']}/script", json=script_of(CATALOG, "cloud", "moon"))
    assert len(resumed.json()["revisions"]) == 3
    assert until(working, film, state="in_review")["waits_for"] == seen["waits_for"]
    assert working.desk.ask("DELETE", f"/v1/films/{film['id']}").json()["deleted"] is True
    assert working.desk.ask("GET", f"/v1/films/{film['id']}").status_code == 404


def test_a_film_is_one_however_often_it_is_asked_for(desk: FrontDesk):
    def ask(**fields: Any) -> Any:
        return desk.ask("POST", "/v1/films", json={"logline": LOGLINE, **fields}, headers={"Idempotency-Key": "k1"})

    first = ask()
    assert ask().json() == first.json()
    clash = ask(shots=5)
    assert (clash.status_code, clash.json()["error"]["param"]) == (422, "idempotency_key")
    other = create(desk, logline=LOGLINE)
    listed = desk.ask("GET", "/v1/films?limit=1").json()
    assert ([film["id"] for film in listed["data"]], listed["has_more"]) == ([other["id"]], True)
    rest = desk.ask("GET", "/v1/films", params={"after": other["id"]}).json()
    assert [film["id"] for film in rest["data"]] == [first.json()["id"]]
    oldest = desk.ask("GET", "/v1/films?order=asc").json()
    assert oldest["first_id"] == first.json()["id"]
    assert desk.ask("GET", "/v1/films?after=film_x").status_code == 404
    assert len(desk.ledger.jobs()) == 2


def test_a_film_that_is_yet_to_be_written_counts_with_the_takes_to_come(desk: FrontDesk):
    small = desk.key(in_flight_s=60.0)
    body = {"logline": "A red boat sails the sea.", "shots": 8, "takes": 4}
    assert desk.ask("POST", "/v1/films", key=small, json=body).status_code == 200  # what is alone always fits
    refused = desk.ask("POST", "/v1/films", key=small, json=body | {"seed": 2, "shots": 1, "takes": 1})
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    assert len(desk.ledger.jobs()) == 1


def test_what_a_change_adds_has_to_fit_into_what_the_key_may_have_in_flight(desk: FrontDesk):
    small = desk.key(in_flight_s=20.0)

    def ask(method: str, path: str, body: Any) -> Any:
        return desk.ask(method, path, key=small, json=body)

    film = ask("POST", "/v1/films", {"script": script_of(CATALOG, "boat")}).json()
    path = f"/v1/films/{film['id']}/script"
    assert ask("PUT", path, script_of(CATALOG, "boat", "star")).status_code == 200  # 14 s instead of 8
    refused = ask("PUT", path, script_of(CATALOG, "boat", "star", "moon", "fish", "car"))
    assert refused.status_code == 429
    assert len(look(desk, film)["revisions"]) == 2


def test_a_change_is_held_against_the_budget_by_what_it_makes_anew(desk: FrontDesk):
    film = create(desk, script=script_of(CATALOG, "boat"))
    path = f"/v1/films/{film['id']}/script"
    many = script_of(CATALOG, "boat", "star", "moon", "fish", "car")
    one = desk.ledger.job(film["id"].replace("film_", "job_")).estimate
    assert one is not None
    cap = BudgetSpec(tenant="studio", scope=Scope.TENANT, cap_nano=round(2.5 * one["nano"]["p50"]))
    desk.ledger.set_budget(cap)
    refused = desk.ask("PUT", path, json=many)
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded")
    assert desk.ask("PUT", path, json=script_of(CATALOG, "star")).status_code == 200
    newest = look(desk, film)["revisions"]
    kept = [desk.ledger.job(revision["job"]).estimate for revision in newest]
    assert kept[-1] is not None


def test_who_was_quicker_is_not_overwritten(desk: FrontDesk, monkeypatch: pytest.MonkeyPatch):
    film = create(desk, script=script_of(CATALOG, "boat", "star"), takes=2)
    revise, seen = desk.ledger.revise_film, list[str]()

    def late(change: Any) -> None:
        seen.append(change.reason)
        if len(seen) == 1:  # another one comes in between
            verb(desk, takes(film)["sh020.t2"], "circle")
        revise(change)

    monkeypatch.setattr(desk.ledger, "revise_film", late)
    assert verb(desk, takes(film)["sh010.t2"], "circle").status_code == 200
    now = look(desk, film)
    assert [key for key, take in takes(now).items() if take["circled"]] == ["sh010.t2", "sh020.t2"]
    assert seen == ["circled sh010.t2", "circled sh020.t2", "circled sh010.t2"]


def test_a_cancelled_film_goes_on_by_its_script_and_by_no_verdict(desk: FrontDesk):
    script = script_of(CATALOG, "boat", "fish")
    film = create(desk, script=script, takes=2, review=True)
    desk.ask("POST", f"/v1/films/{film['id']}/cancel")
    for what in ("circle", "approve"):
        refused = verb(desk, takes(film)["sh010.t2"], what)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "illegal_move")
        assert "put its script again to go on" in refused.json()["error"]["message"]
    assert len(look(desk, film)["revisions"]) == 1
    assert len(desk.ask("PUT", f"/v1/films/{film['id']}/script", json=script).json()["revisions"]) == 2


def test_who_circles_a_take_needs_generate_only_if_something_is_drawn_for_it(desk: FrontDesk):
    operates = desk.key(KeyScope.OPERATE)
    film = create(desk, script=script_of(CATALOG, "boat"), takes=2)
    first, second = takes(film).values()

    def circle(take: Json, key: str) -> int:
        return int(desk.ask("POST", f"/v1/takes/{take['id']}/circle", key=key).status_code)

    assert circle(second, operates) == 200  # what waits in one revision waits in the next
    [lost] = [task for task in desk.ledger.tasks(look(desk, film)["revisions"][1]["job"]) if task["key"] == "sh010.t2"]
    desk.ledger.move_task(lost["id"], Move.CANCEL, reason="lost")
    assert circle(first, operates) == 403  # the lost one would be drawn again
    assert len(look(desk, film)["revisions"]) == 2
    assert circle(first, desk.secret) == 200


def goes_away_after(desk: FrontDesk, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = getattr(desk.ledger, method)

    def away(work: Any) -> Any:
        raise LedgerUnavailable("the ledger does not answer")

    def last(*args: Any) -> Any:
        done = commit(*args)
        monkeypatch.setattr(desk.ledger, "view", away)
        return done

    monkeypatch.setattr(desk.ledger, method, last)


def test_a_ledger_that_goes_away_after_the_commit_makes_no_error(desk: FrontDesk, monkeypatch: pytest.MonkeyPatch):
    goes_away_after(desk, "submit_film", monkeypatch)
    film = create(desk, logline=LOGLINE)
    assert (film["status"], film["revisions"]) == ("queued", [])
    monkeypatch.undo()
    assert look(desk, film)["logline"] == LOGLINE


def test_a_ledger_that_goes_away_after_a_new_script_is_committed_makes_no_error(
    desk: FrontDesk, monkeypatch: pytest.MonkeyPatch
):
    film = create(desk, script=script_of(CATALOG, "boat"))
    goes_away_after(desk, "revise_film", monkeypatch)
    changed = desk.ask("PUT", f"/v1/films/{film['id']}/script", json=script_of(CATALOG, "fish"))
    assert changed.status_code == 200, changed.text
    assert changed.json()["status"] == "queued"
    assert "fish" in changed.json()["scenes"][0]["shots"][0]["prompt"]
    monkeypatch.undo()
    assert len(look(desk, film)["revisions"]) == 2


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({}, "logline", "the logline is empty"),
        ({"logline": "a\x00b"}, "logline", "control character"),
        ({"logline": LOGLINE, "shots": 0}, "shots", "greater than or equal to 1"),
        ({"logline": LOGLINE, "shots": 41}, "shots", "less than or equal to 40"),
        ({"logline": LOGLINE, "takes": 9}, "takes", "less than or equal to 8"),
        ({"logline": LOGLINE, "takes": True}, "takes", "should be a number"),
        ({"logline": LOGLINE, "seconds": 9}, "seconds", "house-video draws no clip of 9 s"),
        ({"logline": LOGLINE, "model": "x"}, "model", "no render model 'x'"),
        ({"logline": LOGLINE, "writer": "house-video"}, "writer", "no writer model 'house-video'"),
        ({"logline": LOGLINE, "deadline": "2001-01-01T00:00:00Z"}, "deadline", "the deadline is over"),
        ({"logline": LOGLINE, "deadline": "2199-01-01"}, "deadline", "deadline"),
        ({"script": {}}, "script.title", "Field required"),
        ({"script": []}, "script", "should be a valid dictionary"),
        (
            {"script": lambda s: s["scenes"][0]["shots"][1].update(prompt="a boat")},
            "script.scenes.0.shots.1.prompt",
            "scenes.0.shots.1.prompt does not say what its fields say; write",
        ),
        (
            {"script": lambda s: s["scenes"][0]["shots"][0]["fields"].update(subject="spider")},
            "script.scenes.0.shots.0.fields.subject",
            "scenes.0.shots.0.fields",
        ),
        ({"script": lambda s: s.update(logline="")}, "script.logline", "the logline is empty"),
        ({"script": lambda s: s.update(model="wan")}, "script.model", "the script is for 'wan'"),
        ({"script": lambda s: s["scenes"][0].update(shots=[])}, "script.scenes.0.shots", "scenes.0.shots"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_field_is_named_and_nothing_is_taken_on(desk: FrontDesk, fields: Any, param: str, said: str):
    script = script_of(CATALOG, "boat", "star")
    if callable(fields.get("script")):
        fields["script"](script)
        fields = {"script": script}
    response = desk.ask("POST", "/v1/films", json=fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, param)
    assert said in error["message"]
    assert desk.ledger.jobs() == []


def test_a_wrong_script_for_a_film_changes_nothing(desk: FrontDesk):
    film = create(desk, script=script_of(CATALOG, "boat"))
    path = f"/v1/films/{film['id']}/script"
    wrong = script_of(CATALOG, "boat", "star")
    wrong["scenes"][0]["shots"][1]["id"] = "sh010"
    refused = desk.ask("PUT", path, json=wrong)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "scenes.0.shots.1.id")
    assert desk.ask("PUT", path, content=b"{").status_code == 400
    assert look(desk, film)["revisions"] == film["revisions"]


def test_what_is_not_written_or_not_drawn_yet_is_said(desk: FrontDesk):
    film = create(desk, logline=LOGLINE)
    missing = desk.ask("GET", f"/v1/films/{film['id']}/script")
    assert (missing.status_code, missing.json()["error"]["code"]) == (409, "not_ready")
    assert desk.ask("GET", f"/v1/takes/{film['id'].replace('film', 'take')}.sh010.t1").status_code == 404
    given = create(desk, script=script_of(CATALOG, "boat"), review=True)
    take = takes(given)["sh010.t1"]
    assert take["url"] is None
    for answer in (desk.ask("GET", f"/v1/takes/{take['id']}/content"), verb(desk, take, "approve")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_ready")
    assert verb(desk, take, "reject").json()["error"]["code"] == "illegal_move"
    rewritten = desk.ask("PUT", f"/v1/films/{film['id']}/script", json=script_of(CATALOG, "boat")).json()
    assert (rewritten["title"], len(rewritten["revisions"])) == ("The Crossing", 2)
