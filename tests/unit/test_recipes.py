"""Recipes are pure: a brief becomes a graph, or is refused with the field at fault."""

from __future__ import annotations

import math
from typing import Any

import pytest

from actors.catalog import Catalog
from actors.contract import Quality
from cluster.errors import InvalidInput, InvalidSpec, UnknownModel, UserMistake
from cluster.graph import TaskSpec, checked, new_seed
from pipelines.recipes import clip, film, image
from pipelines.script import Script
from pipelines.seeds import take_seed
from tests.scripts import LOGLINE, script_of


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load(None)


def takes(graph: list[TaskSpec]) -> dict[str, dict[str, Any]]:
    return {t.key: t.params for t in graph if t.step == "render"}


def test_a_film_begins_with_its_script_and_its_expansion(catalog: Catalog) -> None:
    graph = film.plan(film.Brief(logline=LOGLINE), catalog)
    assert [(t.key, t.role, t.needs) for t in graph] == [("script", "writer", ()), ("expand", "finish", ("script",))]
    assert graph[1].expands
    assert not graph[1].cacheable


def test_a_film_from_a_script_has_a_take_per_shot_then_conform_and_publish(catalog: Catalog) -> None:
    brief = film.Brief(logline="", script=script_of(catalog, "boat", "star"))
    graph = checked(film.plan(brief, catalog))
    assert [t.key for t in graph] == ["sh010.t1", "sh020.t1", "conform", "publish"]
    assert set(graph[2].needs) == {"sh010.t1", "sh020.t1"}


def test_editing_one_shot_changes_the_question_of_one_take(catalog: Catalog) -> None:
    before = takes(film.plan(film.Brief(logline="", script=script_of(catalog, "boat", "star", "moon")), catalog))
    after = takes(film.plan(film.Brief(logline="", script=script_of(catalog, "boat", "fish", "moon")), catalog))
    assert [key for key in before if before[key] != after[key]] == ["sh020.t1"]


def test_a_script_is_filmed_with_its_own_seed_unless_another_is_asked_for(catalog: Catalog) -> None:
    script = script_of(catalog, "boat", "star") | {"seed": 3}
    own = takes(film.plan(film.Brief(logline="", script=script), catalog))
    asked = takes(film.plan(film.Brief(logline="", script=script, seed=3), catalog))
    other = takes(film.plan(film.Brief(logline="", script=script, seed=4), catalog))
    assert own == asked != other


def test_the_takes_of_a_shot_have_seeds_of_their_own_and_the_circled_ones_are_joined(catalog: Catalog) -> None:
    script = script_of(catalog, "boat", "star")
    one = film.plan(film.Brief(logline="", script=script), catalog)
    three = film.plan(film.Brief(logline="", script=script, num_takes=3, circled={"sh020": 2}), catalog)
    assert [t.key for t in three if t.step == "render"][:2] == ["sh010.t1", "sh020.t2"]  # drawn first
    assert three[-2].needs == ("sh010.t1", "sh020.t2")
    assert three[-1].needs == ("sh010.t1", "sh020.t2", "conform")
    assert takes(three).items() >= takes(one).items()
    assert len({params["spec"]["seed"] for params in takes(three).values()}) == 6
    assert not any(t.gate for t in three)
    reviewed = film.plan(film.Brief(logline="", script=script, num_takes=2, review=True), catalog)
    assert {t.key: t.gate for t in reviewed} == {
        **{f"sh0{n}0.t{take}": f"sh0{n}0" for n in (1, 2) for take in (1, 2)}, "conform": None, "publish": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "field"),
    [({"num_takes": 0}, "takes"), ({"num_takes": 9}, "takes"), ({"circled": {"sh010": 2}}, "circled")],
)
def test_takes_that_cannot_be_are_refused(catalog: Catalog, more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        film.plan(film.Brief(logline="", script=script_of(catalog, "boat"), **more), catalog)
    assert refused.value.field == field


def test_a_changed_script_keeps_what_was_chosen_for_the_shots_that_stay(catalog: Catalog) -> None:
    before = script_of(catalog, "boat", "star", "moon")
    brief = film.Brief(logline="", script=before, num_takes=2, circled={"sh010": 2, "sh020": 2})
    now = {key: params["spec"] for key, params in takes(film.plan(brief, catalog)).items()}
    redrawn = {key: {**now[key], "seed": new_seed(now[key]["seed"])} for key in ("sh010.t2", "sh020.t1")}
    model = catalog.model("house-video")
    after = Script.model_validate(script_of(catalog, "boat", "fish", "moon"))
    new = film.revised(brief, now | redrawn, after, model, circle="sh030.t2")
    assert new.circled == {"sh010": 2, "sh030": 2}
    assert new.seeds == {"sh010.t2": redrawn["sh010.t2"]["seed"]}
    asked = takes(film.plan(new, catalog))
    assert {key for key in asked if asked[key]["spec"] != (now | redrawn)[key]} == {"sh020.t1", "sh020.t2"}
    assert film.redraws(7, "sh010.t2", new.seeds["sh010.t2"]) == 1
    other_seed = film.revised(brief, now, Script.model_validate({**before, "seed": 8}), model)
    assert other_seed.seeds == {}


def test_a_brief_survives_its_way_through_the_ledger(catalog: Catalog) -> None:
    briefs = (
        film.Brief(logline=LOGLINE, num_shots=3, seconds=2.0, seed=9, quality=Quality.DRAFT),
        clip.Brief(prompt="a boat", size=(512, 512)),
        image.Brief(prompt="a boat"),
    )
    for brief in briefs:
        assert type(brief).from_json(brief.to_json()) == brief


def test_seeds_of_takes_differ_by_shot_and_take_and_by_nothing_else() -> None:
    seeds = {take_seed(7, shot, take=take) for shot in ("sh010", "sh020") for take in (1, 2)}
    assert len(seeds) == 4
    assert take_seed(7, "sh010", take=1) == take_seed(7, "sh010", take=1)
    assert take_seed(8, "sh010", take=1) not in seeds


@pytest.mark.parametrize(
    ("change", "kind", "field"),
    [
        pytest.param({"logline": "  "}, InvalidInput, "logline", id="empty logline"),
        pytest.param({"logline": "boat " * 2000}, InvalidInput, "logline", id="10 kB logline"),
        pytest.param({"logline": "a boat\0"}, InvalidInput, "logline", id="NUL"),
        pytest.param({"num_shots": 0}, InvalidInput, "shots", id="no shots"),
        pytest.param({"num_shots": 41}, InvalidInput, "shots", id="too many shots"),
        pytest.param({"seconds": -1.0}, InvalidSpec, "seconds", id="negative seconds"),
        pytest.param({"seconds": math.nan}, InvalidSpec, "seconds", id="NaN seconds"),
        pytest.param({"seconds": 3600.0}, InvalidSpec, "seconds", id="an hour"),
        pytest.param({"model": "house-vide"}, UnknownModel, "model", id="unknown model"),
        pytest.param({"model": "house-writer"}, UnknownModel, "model", id="a writer that shall draw"),
        pytest.param({"writer": "house-video"}, UnknownModel, "writer", id="a drawer that shall write"),
        pytest.param({"script": {"title": "x"}}, InvalidInput, None, id="half a script"),
    ],
)
def test_a_bad_film_is_refused_before_anything_runs(
    catalog: Catalog, change: dict[str, Any], kind: type[UserMistake], field: str | None
) -> None:
    with pytest.raises(kind) as caught:
        film.plan(film.Brief(**{"logline": LOGLINE, **change}), catalog)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.line()
    if field is not None:
        assert caught.value.field == field


@pytest.mark.parametrize("logline", ["🚀🌙", "سفينة حمراء في البحر", "赤い船が夜の海を渡る"])
def test_emoji_and_any_script_are_loglines(catalog: Catalog, logline: str) -> None:
    assert film.plan(film.Brief(logline=logline), catalog)[0].params["logline"] == logline


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"prompt": ""}, "prompt", id="empty prompt"),
        pytest.param({"prompt": "quarterly results"}, "prompt", id="nothing to draw"),
        pytest.param({"size": (640, 480)}, "size", id="a size that it cannot draw"),
        pytest.param({"size": (0, 512)}, "size", id="no width"),
        pytest.param({"seed": -1}, "seed", id="negative seed"),
    ],
)
def test_a_bad_clip_is_refused_with_the_field_and_the_remedy(
    catalog: Catalog, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        clip.plan(clip.Brief(**{"prompt": "a red boat", **change}), catalog)
    assert caught.value.field == field


def test_an_image_is_a_take_of_one_frame(catalog: Catalog) -> None:
    (task,) = image.plan(image.Brief(prompt="a red boat"), catalog)
    assert task.params["spec"]["num_frames"] == 1
