"""Shows and what each is owed of the farm: a weight beside the other shows that have work."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import Connection, exists, insert, select, update

from cluster.assets import check_tenant
from cluster.errors import InvalidInput
from cluster.graph import flaw_of_text
from cluster.ledger.schema import budgets, shows

LARGEST = 1e6


def ensure(connection: Connection, tenant: str, show: str, *, now_us: int) -> bool:
    """The show is there: with a share of 1, if it is new. Whether the tenant has budgets, by the same statement."""
    known = exists().where(shows.c.tenant == tenant, shows.c.name == show)
    is_there, has_budgets = connection.execute(select(known, exists().where(budgets.c.tenant == tenant))).one()
    if not is_there:
        connection.execute(insert(shows).values(tenant=tenant, name=show, share=1.0, created_us=now_us))
    return bool(has_budgets)


def set_share(connection: Connection, tenant: str, show: str, share: float, *, now_us: int) -> None:
    """Of a show that is there, or will be. A share of 0 would starve it, and is refused. Raises InvalidInput."""
    check_tenant(tenant)
    flaw = flaw_of_text(show, 64) if show else "is empty"
    if flaw:
        raise InvalidInput(f"show {flaw}", field="show")
    if not math.isfinite(share) or not 0 < share <= LARGEST:
        raise InvalidInput(
            f"share must be above 0 and at most {LARGEST:g}, got {share}",
            field="share",
            remedy="to stop a show, hold its jobs",
        )
    ensure(connection, tenant, show, now_us=now_us)
    connection.execute(update(shows).where(shows.c.tenant == tenant, shows.c.name == show).values(share=share))


def shares(connection: Connection) -> dict[str, float]:
    """By show, as "tenant/name"."""
    rows: Any = connection.execute(select(shows.c.tenant, shows.c.name, shows.c.share))
    return {f"{row.tenant}/{row.name}": float(row.share) for row in rows}
