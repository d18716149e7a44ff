from __future__ import annotations

import copy
import inspect
import pickle

import cloudpickle
import pytest

from cluster import errors
from cluster.errors import FailureClass, FarmError, UserMistake

TREE = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, FarmError)]


@pytest.mark.parametrize("kind", TREE, ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    "through",
    [
        lambda e: pickle.loads(pickle.dumps(e)),  # noqa: S301
        lambda e: pickle.loads(cloudpickle.dumps(e)),  # noqa: S301
        lambda e: pickle.loads(pickle.dumps(e, protocol=2)),  # noqa: S301
        copy.deepcopy,
    ],
    ids=["pickle", "cloudpickle", "old-pickle", "deepcopy"],
)
def test_every_error_survives_a_process(kind: type[FarmError], through: object) -> None:
    assert callable(through)
    for error in (kind("it broke", field="shots", remedy="use 1"), kind("it broke"), kind()):
        back = through(error)
        assert type(back) is kind
        assert (str(back), back.field, back.remedy) == (str(error), error.field, error.remedy)
        assert (back.code, back.failure, back.exit_code) == (kind.code, kind.failure, kind.exit_code)


def test_an_error_and_its_cause_survive_the_way_that_ray_takes() -> None:
    from ray.exceptions import RayTaskError

    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise errors.StoreFull("no room", remedy="make room") from error
    except FarmError as error:
        sent = RayTaskError("render", "trace", error)
    back = RayTaskError.from_bytes(sent.to_bytes()).as_instanceof_cause()
    assert isinstance(back, errors.StoreFull)
    assert back.remedy == "make room"


def test_codes_are_unique_but_for_what_a_subclass_does_not_change() -> None:
    named = [c for c in TREE if "code" in vars(c)]
    assert len({c.code for c in named}) == len(named)
    assert {c for c in TREE if c not in named} == set()


def test_only_mistakes_of_users_exit_with_2_and_are_not_retried() -> None:
    for kind in TREE:
        assert (kind.exit_code == 2) == issubclass(kind, UserMistake)
        if issubclass(kind, UserMistake):
            assert kind.failure is FailureClass.INPUT


def test_the_tree_of_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn = [line for line in str(errors.__doc__).splitlines() if "FarmError" in line or "- " in line]
    names = [next(word for word in line.split() if word[0].isupper()) for line in drawn]
    assert sorted(names) == sorted(c.__name__ for c in TREE)


def test_a_line_for_a_person_is_one_line_with_the_field_and_the_remedy() -> None:
    error = errors.InvalidInput("must be\n 1  or more", field="shots", remedy="use 4")
    assert error.line() == "shots: must be 1 or more; use 4"
    assert errors.InvalidInput("shots must be 1", field="shots").line() == "shots must be 1"
    assert errors.OutOfMemory().line() == "out_of_memory"
