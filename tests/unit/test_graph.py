from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidGraph, InvalidInput
from cluster.graph import MAX_TASKS, TaskSpec, answer_hashes, checked, content_key, with_new_seed
from tests.ledger_desk import task


@st.composite
def graphs(draw: st.DrawFn) -> list[TaskSpec]:
    """Graphs without cycles, in any order."""
    num = draw(st.integers(1, 12))
    needs = [draw(st.lists(st.integers(0, n - 1), max_size=3)) if n else [] for n in range(num)]
    return draw(st.permutations([task(f"t{n}", *(f"t{i}" for i in needs[n])) for n in range(num)]))


@given(graphs())
def test_every_task_follows_what_it_needs(graph: list[TaskSpec]) -> None:
    ordered = checked(graph)
    place = {t.key: n for n, t in enumerate(ordered)}
    assert sorted(place) == sorted(t.key for t in graph)
    assert all(place[need] < place[t.key] for t in graph for need in t.needs)


def test_tasks_of_one_level_keep_the_order_they_came_in() -> None:
    graph = [task("c"), task("z", "a"), task("a"), task("b")]
    assert [t.key for t in checked(graph)] == ["c", "a", "b", "z"]


@given(graphs(), st.data())
def test_a_cycle_is_refused_by_its_name(graph: list[TaskSpec], data: st.DataObject) -> None:
    first, last = checked(graph)[0], data.draw(st.sampled_from(checked(graph)))
    ring = [task(t.key, *t.needs, *([last.key] if t is first else [])) for t in graph]
    ring = [task(t.key, *t.needs, *([first.key] if t.key == last.key else [])) for t in ring]
    with pytest.raises(InvalidGraph, match="cycle through t"):
        checked(ring)


def test_20_000_tasks_are_a_job_and_one_more_is_refused() -> None:
    graph = [task(f"t{n}", params={}) for n in range(MAX_TASKS)]
    assert len(checked(graph)) == 20_000
    with pytest.raises(InvalidGraph, match="at most 20000 tasks, this one would have 20001") as refused:
        checked([task("x")], existing=frozenset(t.key for t in graph))
    assert refused.value.remedy == "split it into several jobs"


def test_a_chain_of_20_000_needs_no_stack() -> None:
    graph = [task(f"t{n}", *([f"t{n - 1}"] if n else []), params={}) for n in range(MAX_TASKS)]
    assert [t.key for t in checked(graph[::-1])][-1] == "t19999"


def test_a_need_that_is_named_twice_counts_once() -> None:
    assert task("b", "a", "c", "a").needs == ("a", "c")


@pytest.mark.parametrize(
    "bad",
    [
        {"key": ""},
        {"key": "k" * 129},
        {"key": "a\x00b"},
        {"key": "a\nb"},
        {"key": "\ud800"},
        {"key": 7},
        {"step": "s" * 65},
        {"role": ""},
        {"entry": "e" * 256},
        {"entry": "render"},
        {"entry": "os:system; true"},
        {"model": ""},
        {"weight": float("nan")},
        {"weight": -1.0},
    ],
    ids=repr,
)
def test_names_and_weights_that_no_ledger_holds_are_refused_by_field(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidGraph) as refused:
        task("a", **bad) if "key" not in bad else TaskSpec(step="s", role="r", entry="a:b", **bad)
    assert refused.value.field == f"tasks.{next(iter(bad))}"


def test_a_task_crosses_processes_as_json() -> None:
    one = task("a", "b", model="m", weight=2.5, expands=True, cacheable=False)
    assert TaskSpec.from_json(one.to_json()) == one


@pytest.mark.parametrize("data", [{}, {"key": "a"}, {**task("a").to_json(), "colour": "red"}], ids=str)
def test_a_document_that_is_no_task_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidGraph, match="not a task"):
        TaskSpec.from_json(data)


def test_params_nested_without_end_are_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"x": deep}
    with pytest.raises(InvalidInput, match="params of the task 'a'"):
        checked([task("a", params=deep)])


ASKED: dict[str, Any] = {"entry": "a:b", "params": {"p": 1, "q": 2}, "inputs": {"x": ["h"]}, "engine": "1"}


def test_the_order_of_params_changes_no_content_key() -> None:
    assert content_key(**ASKED) == content_key(**{**ASKED, "params": {"q": 2, "p": 1}})


@pytest.mark.parametrize(
    "other",
    [
        {"entry": "a:c"},
        {"params": {"p": 1, "q": 3}},
        {"inputs": {"y": ["h"]}},
        {"inputs": {"x": ["i"]}},
        {"engine": "2"},
        {"model": "m"},
    ],
    ids=str,
)
def test_anything_else_that_is_asked_changes_it(other: dict[str, Any]) -> None:
    assert content_key(**ASKED) != content_key(**{**ASKED, **other})


def test_what_a_dependant_reads_is_content_and_result_and_not_how_the_file_is_signed() -> None:
    one, other = {"content_sha256": "c", "sha256": "s"}, {"content_sha256": "c", "sha256": "t"}
    assert answer_hashes([one], {}) == answer_hashes([other], None) == ["c"]
    assert answer_hashes([one], {"n": 1}) != answer_hashes([one], {"n": 2})


def test_a_new_seed_is_derived_and_leaves_the_rest_alone() -> None:
    params = {"spec": {"seed": 7, "prompt": "a boat"}, "model": "m"}
    new = with_new_seed(params)
    assert new == with_new_seed(params)
    assert new is not None
    assert new["spec"]["prompt"] == "a boat"
    assert 0 <= new["spec"]["seed"] < 2**31
    again = with_new_seed(new)
    assert again is not None
    assert len({7, new["spec"]["seed"], again["spec"]["seed"]}) == 3
    assert params["spec"] == {"seed": 7, "prompt": "a boat"}
    assert with_new_seed({"x": 1}) is None
    assert with_new_seed({"spec": {"seed": True}}) is None
