"""The rules of section 4 of the design, explored to the last world they can reach, at a desk's size.

What holds in the model is then held against the real ledger. The large exploration is in tests/live.
"""

from __future__ import annotations

import pytest

from cluster.states import MOVES, State
from tests import model
from tests.exploration import EXPANDING, GATED, ONE_JOB, SMALL, TWO_JOBS, explored
from tests.model import Model, Shape, World


@pytest.mark.parametrize(
    ("shape", "epochs", "verbs", "crashes"),
    [
        pytest.param(TWO_JOBS, 2, 0, 0, id="two-jobs"),
        pytest.param(ONE_JOB, 3, 1, 1, id="one-job-and-a-person"),
        pytest.param(EXPANDING, 2, 1, 0, id="a-job-that-expands"),
        pytest.param(GATED, 1, 2, 0, id="a-gate-of-two-takes"),
    ],
)
def test_no_reachable_world_breaks_an_invariant(shape: Shape, epochs: int, verbs: int, crashes: int) -> None:
    worlds, _, found = explored(Model(shape, budget=SMALL), epochs=epochs, verbs=verbs, crashes=crashes)
    assert found == {}
    assert worlds > 2_000


def without_the_fence(m: Model, w: World, t: int, epoch: int) -> tuple[World, str]:
    """A commit that asks only whether the task runs, not whose it is."""
    if w.tasks[t].state != "running":
        return w, "superseded"
    w = model.with_attempt(w, t, epoch, committed=True, state="succeeded")
    return m.moved(w, t, "succeeded", answer=epoch), "accepted"


def test_the_exploration_finds_a_missing_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "commit", without_the_fence)
    _, _, found = explored(Model(ONE_JOB, budget=SMALL), epochs=2, verbs=0, crashes=0, forget=False)
    assert "one live lease per task" in found


def test_the_exploration_finds_an_attempt_that_is_adopted_with_old_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "fenced", lambda w, _t: w)
    _, _, found = explored(Model(ONE_JOB, budget=SMALL), epochs=3, verbs=1, crashes=0)
    assert "no answer is older than its inputs" in found


def test_the_table_of_moves_allows_what_the_model_allows() -> None:
    table = {(a.value, b.value) for (a, _), b in MOVES.items()}
    not_in_the_model = {State.NOT_COMPATIBLE}
    both = {(a, b) for a, b in table if not {a, b} & not_in_the_model}
    assert both == {(a, b) for a, after in model.ALLOWED.items() if a != "absent" for b in after}
