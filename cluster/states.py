"""The life of a task and of an attempt: one pure table of moves (section 4 of the design).

Nothing here saves, logs or counts a move; that is the caller's work.
"""

from __future__ import annotations

from enum import StrEnum

from cluster.errors import IllegalMove


class State(StrEnum):
    PENDING = "pending"
    READY = "ready"
    RUNNING = "running"
    BACKOFF = "backoff"
    SUSPENDED = "suspended"
    IN_REVIEW = "in_review"
    SUCCEEDED = "succeeded"
    STALE = "stale"
    CANCELED = "canceled"
    DEAD = "dead"
    EATEN = "eaten"
    NOT_COMPATIBLE = "not_compatible"


class Move(StrEnum):
    """Why a task changes its state."""

    DEPS_MET = "deps_met"
    DEPS_REOPENED = "deps_reopened"
    LEASE = "lease"
    COMMIT = "commit"
    CACHE_HIT = "cache_hit"
    GATE = "gate"
    CACHE_GATE = "cache_gate"
    APPROVE = "approve"
    WAIVE = "waive"
    REJECT = "reject"
    RETRY_LATER = "retry_later"
    BACKOFF_OVER = "backoff_over"
    EXPIRE = "expire"
    INTERRUPT = "interrupt"
    DIE = "die"
    HOLD = "hold"
    RELEASE = "release"
    RELEASE_PENDING = "release_pending"
    CANCEL = "cancel"
    EAT = "eat"
    INPUTS_CHANGED = "inputs_changed"
    REOPEN = "reopen"
    REOPEN_PENDING = "reopen_pending"
    NO_FLEET = "no_fleet"


class AttemptState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STUCK = "stuck"
    INTERRUPTED = "interrupted"
    CANCELED = "canceled"
    LOST = "lost"
    SUPERSEDED = "superseded"


S, M = State, Move

OPEN = frozenset({S.PENDING, S.READY, S.BACKOFF, S.RUNNING, S.SUSPENDED, S.IN_REVIEW})
DONE = frozenset({S.SUCCEEDED, S.EATEN})
"""States that satisfy a dependant. STALE does not: its output is older than its inputs."""
ENDED = frozenset({S.SUCCEEDED, S.EATEN, S.STALE, S.CANCELED, S.DEAD, S.NOT_COMPATIBLE})
REOPENABLE = frozenset({S.DEAD, S.CANCELED, S.SUCCEEDED, S.STALE, S.EATEN, S.NOT_COMPATIBLE})

MOVES: dict[tuple[State, Move], State] = {
    (S.PENDING, M.DEPS_MET): S.READY,
    (S.READY, M.DEPS_REOPENED): S.PENDING,
    (S.BACKOFF, M.DEPS_REOPENED): S.PENDING,
    # What runs on inputs that are being made again would commit an answer older than its question: it is fenced.
    (S.RUNNING, M.DEPS_REOPENED): S.PENDING,
    (S.READY, M.LEASE): S.RUNNING,
    (S.READY, M.CACHE_HIT): S.SUCCEEDED,
    (S.BACKOFF, M.CACHE_HIT): S.SUCCEEDED,
    (S.READY, M.NO_FLEET): S.NOT_COMPATIBLE,
    (S.RUNNING, M.COMMIT): S.SUCCEEDED,
    (S.RUNNING, M.GATE): S.IN_REVIEW,
    (S.RUNNING, M.RETRY_LATER): S.BACKOFF,
    (S.RUNNING, M.EXPIRE): S.READY,
    (S.RUNNING, M.INTERRUPT): S.READY,
    (S.RUNNING, M.DIE): S.DEAD,
    (S.BACKOFF, M.BACKOFF_OVER): S.READY,
    # A lost attempt that had already uploaded: its receipt is found and committed while no newer lease exists.
    (S.READY, M.COMMIT): S.SUCCEEDED,
    (S.DEAD, M.COMMIT): S.SUCCEEDED,
    (S.READY, M.GATE): S.IN_REVIEW,
    (S.DEAD, M.GATE): S.IN_REVIEW,
    # An answer that was there already, and that nobody has approved yet.
    (S.READY, M.CACHE_GATE): S.IN_REVIEW,
    (S.BACKOFF, M.CACHE_GATE): S.IN_REVIEW,
    (S.IN_REVIEW, M.APPROVE): S.SUCCEEDED,
    (S.IN_REVIEW, M.WAIVE): S.SUCCEEDED,
    (S.IN_REVIEW, M.REJECT): S.READY,
    (S.IN_REVIEW, M.DIE): S.DEAD,
    (S.SUSPENDED, M.RELEASE): S.READY,
    (S.SUSPENDED, M.RELEASE_PENDING): S.PENDING,
    (S.SUCCEEDED, M.INPUTS_CHANGED): S.STALE,
    (S.EATEN, M.INPUTS_CHANGED): S.STALE,
    (S.IN_REVIEW, M.INPUTS_CHANGED): S.STALE,
    (S.DEAD, M.EAT): S.EATEN,
    (S.READY, M.EAT): S.EATEN,
    (S.PENDING, M.EAT): S.EATEN,
    (S.BACKOFF, M.EAT): S.EATEN,
    (S.SUSPENDED, M.EAT): S.EATEN,
    **{(s, M.HOLD): S.SUSPENDED for s in (S.PENDING, S.READY, S.BACKOFF, S.RUNNING)},
    **{(s, M.CANCEL): S.CANCELED for s in OPEN | {S.DEAD, S.STALE, S.NOT_COMPATIBLE}},
    **{(s, M.REOPEN): S.READY for s in REOPENABLE},
    **{(s, M.REOPEN_PENDING): S.PENDING for s in REOPENABLE},
}

REOPENING = frozenset({M.REOPEN, M.REOPEN_PENDING})
"""Moves that start a new generation of a task, with fresh budgets. REJECT starts one too, and spends QUALITY's."""
OF_PEOPLE = frozenset({M.HOLD, M.RELEASE, M.CANCEL, M.EAT, M.REOPEN, M.APPROVE, M.REJECT})
"""Moves that a person may ask for; all others follow from them, or from what a worker or a dispatcher saw."""


def moved(state: State, move: Move) -> State:
    """The state after `move`. Raises IllegalMove if the table has no such move."""
    try:
        return MOVES[state, move]
    except KeyError:
        legal = ", ".join(sorted(m.value for s, m in MOVES if s == state)) or "none"
        raise IllegalMove(f"a task that is {state} cannot {move}", remedy=f"possible now: {legal}") from None


class JobState(StrEnum):
    """Derived from the states of a job's tasks, never stored."""

    QUEUED = "queued"
    RUNNING = "running"
    IN_REVIEW = "in_review"
    SUSPENDED = "suspended"
    FAILING = "failing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


def job_state(counts: dict[State, int]) -> JobState:
    """What a person calls the state of a job, from how many of its tasks are in which state.

    A graph has no cycles, so a job whose only open tasks are PENDING waits for one that ended without success: it is
    over, since nothing of it will ever move by itself.
    """
    has = {s for s, n in counts.items() if n}
    waiting = (has & OPEN) - {S.PENDING}
    broken = has & {S.DEAD, S.NOT_COMPATIBLE}
    if not waiting:
        if broken:
            return JobState.FAILED
        if S.CANCELED in has:
            return JobState.CANCELED
        return JobState.SUCCEEDED if has <= DONE else JobState.FAILED
    if waiting == {S.SUSPENDED}:
        return JobState.SUSPENDED
    if broken:
        return JobState.FAILING
    if S.RUNNING in waiting:
        return JobState.RUNNING
    if S.IN_REVIEW in waiting and not waiting & {S.READY, S.BACKOFF}:
        return JobState.IN_REVIEW
    return JobState.RUNNING if has & DONE else JobState.QUEUED


OVER = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED})
"""States of a job in which nothing moves until a person asks."""
