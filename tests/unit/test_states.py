from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import IllegalMove
from cluster.states import DONE, ENDED, MOVES, OF_PEOPLE, OPEN, OVER, JobState, Move, State, job_state, moved

S, M, J = State, Move, JobState


@pytest.mark.parametrize(("before", "how"), [(s, m) for s in State for m in Move], ids=lambda x: x.value)
def test_every_pair_is_a_move_of_the_table_or_is_refused_with_what_is_possible(before: State, how: Move) -> None:
    if (before, how) in MOVES:
        assert moved(before, how) is MOVES[before, how]
    else:
        with pytest.raises(IllegalMove, match=f"a task that is {before} cannot {how}") as refused:
            moved(before, how)
        assert str(refused.value.remedy).startswith("possible now: ")


def test_every_state_is_open_or_ended_and_every_move_is_used() -> None:
    assert set(State) == OPEN | ENDED
    assert not OPEN & ENDED
    assert DONE < ENDED
    assert {m for _, m in MOVES} == set(Move)
    assert set(MOVES.values()) == set(State)


def test_nothing_that_ended_moves_unless_a_person_asks_or_an_input_changes_or_a_receipt_is_found() -> None:
    asked = OF_PEOPLE | {M.REOPEN_PENDING}
    by_itself = {(s, m) for s, m in MOVES if s in ENDED and m not in asked}
    assert by_itself == {
        *((S.SUCCEEDED, M.INPUTS_CHANGED), (S.EATEN, M.INPUTS_CHANGED)),
        *((S.DEAD, M.COMMIT), (S.DEAD, M.GATE)),
    }


def test_a_canceled_task_only_opens_again() -> None:
    assert {m for s, m in MOVES if s is S.CANCELED} == {M.REOPEN, M.REOPEN_PENDING}


@pytest.mark.parametrize(
    ("counts", "is_called"),
    [
        ({S.READY: 1, S.PENDING: 3}, J.QUEUED),
        ({S.READY: 1, S.SUCCEEDED: 1}, J.RUNNING),
        ({S.RUNNING: 1, S.PENDING: 1}, J.RUNNING),
        ({S.BACKOFF: 1}, J.QUEUED),
        ({S.RUNNING: 1, S.DEAD: 1}, J.FAILING),
        ({S.PENDING: 1, S.DEAD: 1}, J.FAILED),
        ({S.PENDING: 1, S.CANCELED: 1}, J.CANCELED),
        ({S.PENDING: 1, S.STALE: 1, S.SUCCEEDED: 4}, J.FAILED),
        ({S.PENDING: 1, S.NOT_COMPATIBLE: 1}, J.FAILED),
        ({S.SUSPENDED: 1, S.PENDING: 2}, J.SUSPENDED),
        ({S.SUSPENDED: 1, S.READY: 1}, J.QUEUED),
        ({S.IN_REVIEW: 1, S.PENDING: 1}, J.IN_REVIEW),
        ({S.IN_REVIEW: 1, S.READY: 1, S.SUCCEEDED: 1}, J.RUNNING),
        ({S.SUCCEEDED: 2, S.EATEN: 1}, J.SUCCEEDED),
        ({S.SUCCEEDED: 2, S.DEAD: 1, S.CANCELED: 1}, J.FAILED),
        ({S.SUCCEEDED: 2, S.CANCELED: 1}, J.CANCELED),
        ({S.SUCCEEDED: 2, S.STALE: 1}, J.FAILED),
    ],
    ids=lambda x: x.value if isinstance(x, JobState) else "-".join(s.value for s in x),
)
def test_a_job_is_called_by_what_its_tasks_are(counts: dict[State, int], is_called: JobState) -> None:
    assert job_state(counts) is is_called


@given(st.dictionaries(st.sampled_from(State), st.integers(0, 3), min_size=1))
def test_a_job_is_over_exactly_when_nothing_of_it_moves_by_itself(counts: dict[State, int]) -> None:
    moving = {S.READY, S.RUNNING, S.BACKOFF, S.SUSPENDED, S.IN_REVIEW}
    assert (job_state(counts) in OVER) == (not any(counts.get(s) for s in moving))
