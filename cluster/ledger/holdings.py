"""Workers as the ledger knows them: who is held since when, and at what price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from cluster.errors import NotFound
from cluster.forecast import Crew
from cluster.ledger import events, meters, money
from cluster.ledger.schema import dispatcher, tasks, workers
from cluster.states import State

CREW = ("role", "model", "accelerator", "num_accelerators", "price_class", "rate_card", "nano_per_hour")

SILENT_US = 20_000_000
"""A dispatcher that lives says so every five seconds."""


def join(connection: Connection, row: dict[str, Any], *, now_us: int) -> None:
    """A worker is here: its holding began when it was spawned, and until now it was loading. Idempotent.

    One that was given up and comes back under the same name was held all the while: its chain of intervals goes on.
    """
    known = connection.execute(select(workers.c.ended_us).where(workers.c.id == row["id"])).one_or_none()
    if known is None:
        connection.execute(insert(workers).values(**row, since_us=row["spawned_us"], ended_us=None))
        money.close_interval(connection, row["id"], now_us=now_us, idle_kind="load", note="joined")
        data = {name: row[name] for name in ("fleet", "node", "spawned_us", "nano_per_hour", "num_accelerators")}
        events.append_of_worker(connection, row["id"], at_us=now_us, kind="worker.join", data=data)
    elif known.ended_us is not None:
        connection.execute(update(workers).where(workers.c.id == row["id"]).values(ended_us=None))
        money.close_interval(connection, row["id"], now_us=now_us, note="came back")
        events.append_of_worker(connection, row["id"], at_us=now_us, kind="worker.join")


def leave(connection: Connection, worker_id: str, *, now_us: int) -> None:
    """Its holding ends at this instant, or where its time was last accounted for if that is later. Idempotent. What it
    still runs is lost by `lose`, in calls of their own."""
    worker = connection.execute(select(workers).where(workers.c.id == worker_id, workers.c.ended_us.is_(None))).first()
    if worker is None:
        return
    ends_us = max(now_us, worker.since_us)
    money.close_interval(connection, worker_id, now_us=ends_us)
    connection.execute(update(workers).where(workers.c.id == worker_id).values(ended_us=ends_us))
    events.append_of_worker(connection, worker_id, at_us=ends_us, kind="worker.leave")


def say_alive(connection: Connection, *, now_us: int) -> None:
    connection.execute(update(dispatcher).values(alive_us=now_us))


def last_alive(connection: Connection) -> int | None:
    """When a dispatcher last said so. Whoever was here then and is not heard of again may have died right after."""
    alive_us: int | None = connection.execute(select(dispatcher.c.alive_us)).scalar_one_or_none()
    return alive_us


def heard_us(connection: Connection, *, now_us: int) -> int:
    """Until when a person's word bills what runs: the machine may have slept, and no dispatcher has seen it yet."""
    alive_us = last_alive(connection)
    return now_us if alive_us is None else min(now_us, alive_us + SILENT_US)


def drain(connection: Connection, worker_id: str, *, reason: str, now_us: int) -> bool:
    """From now on it gets no more work. False if it was asked before, or has left. Raises NotFound."""
    if connection.execute(select(workers.c.id).where(workers.c.id == worker_id)).one_or_none() is None:
        raise NotFound(f"no worker {worker_id}", remedy="`farm workers` lists them")
    asked = connection.execute(
        update(workers)
        .where(workers.c.id == worker_id, workers.c.ended_us.is_(None), workers.c.drain_us.is_(None))
        .values(drain_us=now_us, drain_reason=reason)
    )
    if asked.rowcount:
        events.append_of_worker(connection, worker_id, at_us=now_us, kind="worker.drain", data={"reason": reason})
    return asked.rowcount == 1


def crews(connection: Connection) -> list[Crew]:
    """Who takes work now, by kind and price; of a kind of work that nobody takes now, who did last, as none of them."""
    kind = [workers.c[name] for name in CREW]
    here = select(*kind, func.count()).where(workers.c.ended_us.is_(None), workers.c.drain_us.is_(None))
    found = [_crew(row[:-1], row[-1]) for row in connection.execute(here.group_by(*kind))]
    newest = func.row_number().over(
        partition_by=(workers.c.role, workers.c.model), order_by=workers.c.spawned_us.desc()
    )
    numbered = select(*kind, newest.label("place")).subquery()
    taken = {(one.role, one.model) for one in found}
    last = connection.execute(select(*(numbered.c[name] for name in CREW)).where(numbered.c.place == 1))
    return found + [_crew(row, 0) for row in last if (row.role, row.model) not in taken]


def _crew(values: Sequence[Any], num_workers: int) -> Crew:
    return Crew(**dict(zip(CREW, values, strict=True)), num_workers=num_workers)


def rebase(connection: Connection, jumped_us: int, *, now_us: int) -> None:
    """The wall clock was set by so much: back-offs end when they would have ended, and no bill grows by it."""
    money.rebase(connection, jumped_us, now_us=now_us)
    meters.rebase(connection, jumped_us, now_us=now_us)
    connection.execute(update(dispatcher).values(alive_us=dispatcher.c.alive_us + jumped_us))
    for worker_id in connection.execute(select(workers.c.id).where(workers.c.ended_us.is_(None))).scalars().all():
        data = {"jumped_us": jumped_us}
        events.append_of_worker(connection, worker_id, at_us=now_us, kind="worker.clock", data=data)
    connection.execute(
        update(tasks)
        .where(tasks.c.state == State.BACKOFF.value)
        .values(not_before_us=tasks.c.not_before_us + jumped_us)
    )
