"""How an attempt ends. It runs exactly while its task is RUNNING under its epoch; its end is written once, for ever."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, Update, bindparam, select, update

from cluster.assets import attempt_of
from cluster.ledger import budgets, holdings, money
from cluster.ledger.schema import attempts
from cluster.states import AttemptState


def end(connection: Connection, attempt: Row[Any], state: AttemptState, *, now_us: int, **columns: Any) -> None:
    """Closes the interval of its worker and ends the attempt, if it still runs."""
    end_all(connection, [(attempt, columns)], state, now_us=now_us)


def end_all(
    connection: Connection,
    ending: Sequence[tuple[Row[Any], dict[str, Any]]],
    state: AttemptState,
    *,
    now_us: int,
    heard_us: int | None = None,
) -> None:
    """The same of many attempts, which set the same columns."""
    if not ending:
        return
    money.close_intervals(
        connection, sorted({attempt.worker_id for attempt, _ in ending}), now_us=now_us, heard_us=heard_us
    )
    rows = [{"attempt": a.id, "state": state.value, "ended_us": now_us, **columns} for a, columns in ending]
    connection.execute(_end(tuple(name for name in rows[0] if name != "attempt")), rows)
    capped = [attempt.id for attempt, _ in ending if attempt.reserved_nano is not None]
    if capped:
        budgets.settle(connection, capped, now_us=now_us)


@cache
def _end(names: tuple[str, ...]) -> Update:
    return (
        update(attempts)
        .where(attempts.c.id == bindparam("attempt"), attempts.c.state == AttemptState.RUNNING.value)
        .values({name: bindparam(name, type_=attempts.c[name].type) for name in names})
    )


def stop(connection: Connection, task: Row[Any], state: AttemptState, *, now_us: int, note: str) -> None:
    """Ends the attempt that runs `task`, because the task is taken from it; its worker learns by its heartbeat."""
    attempt = connection.execute(
        select(attempts).where(attempts.c.id == task.attempt_id, attempts.c.state == AttemptState.RUNNING.value)
    ).one_or_none()
    if attempt is not None:
        heard_us = holdings.heard_us(connection, now_us=now_us)
        end_all(connection, [(attempt, {"message": note})], state, now_us=now_us, heard_us=heard_us)
        money.waste(connection, attempt.id, now_us=now_us, note=note)


def settle_resumed(connection: Connection, attempt: Row[Any], resumed_from: str | None, *, now_us: int) -> list[str]:
    """A commit shows which checkpoints counted. What the attempts of that chain had kept was not wasted after all: of
    an interrupted one that is all it did, or nothing. Returns the chain, the newest first."""
    rows = connection.execute(
        select(attempts).where(
            attempts.c.task_id == attempt.task_id,
            attempts.c.generation == attempt.generation,
            attempts.c.epoch < attempt.epoch,
        )
    )
    earlier = {row.id: row for row in rows}
    chain = list[str]()
    while resumed_from is not None and (used := earlier.pop(attempt_of(resumed_from), None)) is not None:
        facts = used.facts or {}
        chain.append(used.id)
        if used.state == AttemptState.INTERRUPTED.value:
            part = 1.0 if facts.get("checkpoint") else 0.0
            money.redeem(connection, used.id, now_us=now_us, note="resumed", part=part)
        elif used.ended_us > used.started_us:
            part = min(1.0, facts.get("kept_s", 0.0) * 1e6 / (used.ended_us - used.started_us))
            money.redeem(connection, used.id, now_us=now_us, note="resumed", part=part)
        resumed_from = facts.get("resumed_from")
    return chain
