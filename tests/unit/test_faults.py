"""The points where a test may break the farm: their table, and what strikes there."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import faults
from cluster.errors import InvalidSettings, LedgerUnavailable, StoreUnavailable, Unavailable
from cluster.faults import Action, Chance, Fault

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.disarm()


def placed() -> dict[str, list[str]]:
    """Names by the word that places them, in the whole tree."""
    found: dict[str, list[str]] = {"point": [], "call": [], "at": []}
    for package in ("cluster", "actors", "pipelines", "serve"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                match node:
                    case ast.Call(
                        func=ast.Attribute(value=ast.Name(id="faults"), attr=("point" | "call" | "at") as word),
                        args=[ast.Constant(value=str(name)), *_],
                    ):
                        found[word].append(name)
    return found


def test_the_table_names_the_points_that_stand_in_the_code_and_no_others() -> None:
    found = placed()
    assert set(found["point"]) == set(faults.POINTS)
    assert set(found["call"] + found["at"]) == set(faults.CALLS)


def test_no_point_is_in_both_tables_and_each_has_a_sentence() -> None:
    assert not set(faults.POINTS) & set(faults.CALLS)
    assert all(len(sentence.split()) > 3 for sentence in (faults.POINTS | faults.CALLS).values())


def test_an_unarmed_point_does_nothing() -> None:
    with faults.point("ledger.settle"):
        pass
    assert faults.call("store.get", lambda: 7) == 7
    assert faults.passed() == {}


def test_before_leaves_the_work_undone_and_after_loses_the_answer(tmp_path: Path) -> None:
    done: list[str] = []
    plan = [Fault(point="store.get", action=Action.BEFORE), Fault(point="store.fetch", action=Action.AFTER)]
    faults.arm(plan, tmp_path)
    with pytest.raises(StoreUnavailable, match="before"):
        faults.call("store.get", lambda: done.append("get"))
    with pytest.raises(StoreUnavailable, match="lost"):
        faults.call("store.fetch", lambda: done.append("fetch"))
    faults.call("store.get", lambda: done.append("get"))
    assert done == ["fetch", "get"]
    assert faults.struck(tmp_path) == 2
    assert faults.passed() == {"store.get": 2, "store.fetch": 1}


@pytest.mark.parametrize(
    ("name", "error"),
    [("store.get", StoreUnavailable), ("ledger.lease", LedgerUnavailable), ("worker.beat", Unavailable)],
)
def test_a_fault_looks_like_the_service_that_is_away(tmp_path: Path, name: str, error: type[Unavailable]) -> None:
    faults.arm([Fault(point=name, action=Action.BEFORE)], tmp_path)
    with pytest.raises(Unavailable) as raised:
        faults.call(name, lambda: None)
    assert type(raised.value) is error


def test_twice_does_the_work_twice_and_once_only(tmp_path: Path) -> None:
    done: list[int] = []
    faults.arm([Fault(point="store.get", action=Action.TWICE, nth=2)], tmp_path)
    for n in range(3):
        faults.call("store.get", lambda n=n: done.append(n))  # type: ignore[misc]
    assert done == [0, 1, 1, 2]


def test_an_echo_repeats_the_work_later_and_nobody_hears_of_it(tmp_path: Path) -> None:
    threads: list[threading.Thread] = []
    echoed = threading.Event()

    def work() -> int:
        threads.append(threading.current_thread())
        if len(threads) == 2:
            echoed.set()
            raise Unavailable("nobody hears this")
        return 7

    faults.arm([Fault(point="worker.report", action=Action.ECHO)], tmp_path)
    assert faults.call("worker.report", work) == 7
    assert echoed.wait(10)
    assert threads[0] is threading.current_thread() is not threads[1]


def test_a_fault_that_follows_counts_from_the_one_before_it(tmp_path: Path) -> None:
    plan = [
        Fault(point="store.get", action=Action.BEFORE, nth=2),
        Fault(point="store.fetch", action=Action.BEFORE, follows=True),
    ]
    faults.arm(plan, tmp_path)
    faults.call("store.fetch", lambda: None)
    faults.call("store.get", lambda: None)
    faults.call("store.fetch", lambda: None)
    with pytest.raises(Unavailable):
        faults.call("store.get", lambda: None)
    with pytest.raises(Unavailable):
        faults.call("store.fetch", lambda: None)


def test_a_fault_strikes_in_one_process_of_the_farm_only(tmp_path: Path) -> None:
    plan = faults.dumps([Fault(point="store.get", action=Action.KILL)])
    script = (
        "import sys; from pathlib import Path; from cluster import faults\n"
        "faults.arm_by(sys.argv[1], Path(sys.argv[2]))\n"
        "faults.call('store.get', lambda: print('done'))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script, plan, str(tmp_path)], cwd=ROOT, capture_output=True, timeout=60)
        for _ in range(2)
    ]
    assert [(run.returncode, run.stdout) for run in runs] == [(-9, b""), (0, b"done\n")]


def test_a_chance_is_the_same_for_a_seed_and_differs_between_processes(tmp_path: Path) -> None:
    def struck(folder: Path, seed: int) -> list[bool]:
        faults.arm([Chance(point="store.get", action=Action.BEFORE, probability=0.3, seed=seed)], folder)
        return [_breaks() for _ in range(100)]

    first = struck(tmp_path / "a", 1)
    assert first == struck(tmp_path / "b", 1)
    assert first != struck(tmp_path / "b", 1)  # the second process of that farm
    assert first != struck(tmp_path / "c", 2)
    assert 15 <= Counter(first)[True] <= 45
    assert faults.struck_by_chance(tmp_path / "a") == {0: Counter(first)[True]}


def _breaks() -> bool:
    try:
        faults.call("store.get", lambda: None)
    except Unavailable:
        return True
    return False


def test_a_plan_survives_the_environment() -> None:
    plan = (
        Fault(point="store.get", action=Action.DELAY, nth=3, seconds=0.5, follows=True),
        Chance(point="store.get", action=Action.BEFORE, probability=0.1, seed=7),
    )
    assert faults.loads(faults.dumps(plan)) == plan


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '[{"point": "store.get"}]', '[{"point": "store.get", "action": "burn"}]', "7"],
    ids=["no json", "no entry", "no action", "unknown action", "no list"],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(InvalidSettings):
        faults.loads(text)


def test_a_point_that_is_nowhere_and_a_repetition_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"ledger\.leese"):
        faults.arm([Fault(point="ledger.leese", action=Action.KILL)], tmp_path)
    with pytest.raises(InvalidSettings, match="twice"):
        faults.arm([Fault(point="ledger.settle", action=Action.TWICE)], tmp_path)


def test_a_farm_without_a_plan_is_not_armed(tmp_path: Path) -> None:
    faults.arm_by("", tmp_path / "faults")
    assert os.listdir(tmp_path) == []
