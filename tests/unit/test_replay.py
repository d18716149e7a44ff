"""A film again from its manifest: on a farm that works, and what is said where it is not the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.contract import Json
from cluster.errors import InvalidInput, UnknownModel
from pipelines import replay
from serve.cli import replayed
from serve.distant import RemoteFarm
from serve.remote import Remote
from tests.cutting_engine import CuttingEngine
from tests.front_desk import CATALOG, Working
from tests.listening import served
from tests.picture_engine import PictureEngine
from tests.scripts import script_of
from tests.unit.test_http_films import create, until

EIGHT = ("moon", "fish", "bird", "tree", "house", "car", "boat", "star")


@pytest.fixture(scope="module")
def working(fast_folder: Path) -> Iterator[Working]:
    home = fast_folder / "replay"
    home.mkdir()
    working = Working(home, PictureEngine(side_px=64), {"finish": CuttingEngine(CATALOG)})
    yield working
    assert working.farm.ledger.flaws() == []
    working.close()


@pytest.fixture(scope="module")
def manifest(working: Working) -> Json:
    """Of a film whose second shot was drawn with a seed of its own."""
    asked = {"script": script_of(CATALOG, "boat", "star"), "seeds": {"sh020.t1": 99}}
    film = until(working, create(working.desk, **asked), status="completed")
    document: Json = working.desk.ask("GET", film["urls"]["manifest"]).json()
    assert [shot["seed"] for shot in document["shots"]][1] == 99
    return document


def again(working: Working, document: Json, folder: Path) -> replay.Verdict:
    path = folder / "manifest.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    work = replayed.work(path, out=folder / "again", gpus=None, as_json=True)
    work.check(CATALOG)
    with served(working.desk.app) as url, RemoteFarm(Remote(url, working.desk.secret)) as farm:
        verdict = work.run(farm, lambda update: None).verdict
    assert verdict is not None
    return verdict


def kinds_of_newest(working: Working, kind: str) -> list[str]:
    job = working.farm.ledger.jobs(limit=1)[0]
    return [str(e.data["key"]) for e in working.farm.ledger.events(job.id) if e.kind == kind]


def test_a_film_is_drawn_again_whole_and_is_bit_equal(working: Working, manifest: Json, tmp_path: Path) -> None:
    verdict = again(working, manifest, tmp_path)
    assert verdict.equal
    assert verdict.differences == ()
    assert replayed.lines(verdict) == ["bit-equal: the film and its 2 shots"]
    assert kinds_of_newest(working, "task.lease") == ["sh010.t1", "sh020.t1", "conform", "publish"]
    assert kinds_of_newest(working, "task.cached") == []


def test_a_film_that_is_not_the_same_says_which_shot_and_what_may_have_made_it_so(
    working: Working, manifest: Json, tmp_path: Path
) -> None:
    was = copy.deepcopy(manifest)
    was["shots"][1]["content_sha256"] = "0" * 64
    was["shots"][1]["revision"] = "an older one"
    was["files"]["film.mp4"]["content_sha256"] = "1" * 64
    for shot in was["shots"]:
        shot["made"] = {"threads": 4}
    was["versions"]["torch"] = "1.0"
    verdict = again(working, was, tmp_path)
    assert not verdict.equal
    assert [shot.equal for shot in verdict.shots] == [True, False]
    said = replayed.lines(verdict)
    now = manifest["versions"].get("torch")
    revision = manifest["shots"][1]["revision"]
    assert said == [
        "not bit-equal: the film differs, 1 shot of 2 differ: sh020",
        "all shots: threads: 4, now not told",
        f"sh020: revision: an older one, now {revision}",
        f"torch: 1.0, now {now}",
    ]
    assert verdict.to_json()["shots"]["sh020"] == {
        "was": "0" * 64, "now": manifest["shots"][1]["content_sha256"], "equal": False
    }  # fmt: skip


def broken(change: Callable[[Json], Any]) -> Callable[[Json], bytes]:
    def apply(document: Json) -> bytes:
        other = copy.deepcopy(document)
        change(other)
        return json.dumps(other).encode()

    return apply


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        pytest.param(lambda document: b'{"schema": "reel', "MANIFEST", id="cut-off"),
        pytest.param(lambda document: b"[" * 100_000, "MANIFEST", id="nested"),
        pytest.param(lambda document: b"\xff\x00", "MANIFEST", id="bytes"),
        pytest.param(broken(lambda d: d.update(schema="another/1")), "schema", id="schema"),
        pytest.param(broken(lambda d: d.pop("script")), "script", id="no-script"),
        pytest.param(broken(lambda d: d["script"].update(scenes=[])), "script", id="script"),
        pytest.param(broken(lambda d: d["shots"].pop()), "shots", id="a-shot-less"),
        pytest.param(broken(lambda d: d["shots"][1]["spec"].update(num_frames=0)), "shots.1", id="spec"),
        pytest.param(broken(lambda d: d["shots"][0].pop("content_sha256")), "shots.0", id="no-hash"),
        pytest.param(broken(lambda d: d["files"].clear()), "files.film.mp4.content_sha256", id="no-film"),
        pytest.param(broken(lambda d: d["brief"].update(quality="best")), "brief.quality", id="quality"),
        pytest.param(broken(lambda d: d["brief"].update(seconds="two")), "brief.seconds", id="seconds"),
    ],
)
def test_a_damaged_manifest_is_refused_by_what_is_wrong_with_it(
    manifest: Json, spoil: Callable[[Json], bytes], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        replay.read(spoil(manifest))
    assert (caught.value.field, caught.value.remedy) == (field, replay.REMEDY)


def test_a_model_that_is_not_here_is_named(manifest: Json, tmp_path: Path) -> None:
    other = copy.deepcopy(manifest)
    for shot in other["shots"]:
        shot["model"] = "gone"
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(UnknownModel, match="gone"):
        replayed.work(path, out=tmp_path, gpus=None, as_json=True).check(CATALOG)


def test_seeds_of_takes_that_the_film_has_not_are_refused(working: Working) -> None:
    asked = {"script": script_of(CATALOG, "boat"), "seeds": {"sh020.t1": 1}}
    refused = working.desk.ask("POST", "/v1/films", json=asked)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "seeds")
    refused = working.desk.ask("POST", "/v1/films", json={"logline": "A red boat", "seeds": {"sh020.t1": 1}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "seeds")


def test_one_edited_shot_of_eight_is_one_rendering_and_one_cut_and_the_bill_says_what_was_saved(
    working: Working,
) -> None:
    ledger = working.farm.ledger
    first = until(working, create(working.desk, script=script_of(CATALOG, *EIGHT)), status="completed")
    old = ledger.jobs(limit=1)[0].id
    edited = script_of(CATALOG, *EIGHT[:3], "rocket", *EIGHT[4:])
    second = until(working, create(working.desk, script=edited), status="completed")
    new = ledger.jobs(limit=1)[0].id
    assert kinds_of_newest(working, "task.lease") == ["sh040.t1", "conform", "publish"]
    saved = [e.data for e in ledger.events(new) if e.kind == "task.cached"]
    assert sorted(one["key"] for one in saved) == [f"sh{n:02}0.t1" for n in (1, 2, 3, 5, 6, 7, 8)]
    spent = {task["key"]: ledger.spent(task_id=task["id"]) for task in ledger.tasks(old)}
    assert {one["key"]: (one["saved_nano"], one["saved_s"]) for one in saved} == {
        key: (spent[key].nano, spent[key].held_s) for key in (one["key"] for one in saved)
    }
    shots = [{a["name"]: a["content_sha256"] for a in film["assets"]} for film in (first, second)]
    assert shots[0].keys() == shots[1].keys() >= {"film.mp4", "manifest.json"}
    assert shots[0]["film.mp4"] != shots[1]["film.mp4"]
