"""The upkeep of the farm: when each chore was last tried, when it last succeeded, and what it said."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from cluster.ledger.schema import chores


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """Of one chore. `done_us` None: it has never succeeded. `error` of the last try, None if that succeeded."""

    name: str
    tried_us: int
    done_us: int | None
    error: str | None


def read(connection: Connection) -> list[Told]:
    """By name."""
    return [Told(**row._mapping) for row in connection.execute(select(chores).order_by(chores.c.name))]


def tell(connection: Connection, name: str, *, error: str | None, now_us: int) -> None:
    """A chore was tried: it succeeded, or ended with `error`."""
    values = {"tried_us": now_us, "error": error, **({} if error else {"done_us": now_us})}
    if not connection.execute(update(chores).where(chores.c.name == name).values(**values)).rowcount:
        connection.execute(insert(chores).values(name=name, **values))
