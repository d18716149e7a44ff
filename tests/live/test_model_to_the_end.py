"""Two jobs, three tasks, two workers, three epochs, a crash anywhere: every world that the rules can reach."""

from __future__ import annotations

import pytest

from tests.exploration import EXPANDING, ONE_JOB, SMALL, TWO_JOBS, explored
from tests.model import Model, Shape


@pytest.mark.parametrize(
    ("shape", "epochs", "verbs", "crashes"),
    [
        pytest.param(TWO_JOBS, 3, 0, 1, id="two-jobs-and-no-person"),
        pytest.param(TWO_JOBS, 2, 1, 0, id="two-jobs-and-a-person"),
        pytest.param(ONE_JOB, 3, 2, 1, id="one-job-and-what-people-do"),
        pytest.param(EXPANDING, 2, 1, 1, id="a-job-that-expands"),
    ],
)
def test_no_reachable_world_breaks_an_invariant(
    shape: Shape, epochs: int, verbs: int, crashes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    worlds, steps, found = explored(Model(shape, budget=SMALL), epochs=epochs, verbs=verbs, crashes=crashes)
    with capsys.disabled():
        print(f"\nmodel: {worlds} worlds, {steps} steps, {len(found)} violations")
    assert found == {}
    assert worlds > 5_000
