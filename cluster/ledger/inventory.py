"""What the store holds, by the rows of `assets`: named by commits, marked when nobody needs them, claimed and removed.

A collection marks the rows that no task and no take needs. After a grace, if it still finds nobody, it claims them and
removes the blobs while the claim lasts. A commit that names a marked or claimed row is refused, and the row is as new
again, but for one whose claim lasts. So whoever commits at last has put the blob after the row was new: no claim can
reach it any more. A row whose claim is long over is dropped; until then it stands there to refuse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, delete, func, insert, or_, select, update

from cluster.errors import NotFound, Unavailable
from cluster.ledger.database import padded
from cluster.ledger.outcomes import Sight
from cluster.ledger.schema import assets, jobs, takes, tasks

CLAIM_US = 120_000_000
"""So long a claim lasts: whoever made it removes what it claimed in half of that, and leaves the rest."""
DROP_US = 3_600_000_000
"""A claimed row is dropped after this, when nobody can still commit what he verified before the claim."""
PAGE = 2_000
STRAY_TYPE = "application/octet-stream"
"""Of a blob that no commit has named yet: what it is, and who pays for it, is not known."""

Name = tuple[str, str]
"""Tenant and sha256."""

KNOWN = select(assets).where(
    assets.c.tenant.in_(bindparam("tenants", expanding=True)), assets.c.sha256.in_(bindparam("names", expanding=True))
)
ONE = and_(assets.c.tenant == bindparam("of"), assets.c.sha256 == bindparam("named"))
USED = update(assets).where(ONE).values(used_us=bindparam("now"))
OWNED = (
    update(assets)
    .where(ONE, assets.c.media_type == STRAY_TYPE)
    .values(show=bindparam("payer"), media_type=bindparam("type"))
)
REVIVE = (
    update(assets)
    .where(ONE, or_(assets.c.swept_us.is_(None), assets.c.swept_us < bindparam("over")))
    .values(marked_us=None, swept_us=None, used_us=bindparam("now"))
)
MARK = (
    update(assets)
    .where(ONE, assets.c.marked_us.is_(None), assets.c.used_us < bindparam("before"))
    .values(marked_us=bindparam("now"))
)
UNMARK = update(assets).where(ONE, assets.c.swept_us.is_(None)).values(marked_us=None)
CLAIM = (
    update(assets)
    .where(ONE, assets.c.marked_us == bindparam("since"), assets.c.swept_us.is_(None))
    .values(swept_us=bindparam("now"))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """A blob that is there. `marked_us`: since then nobody needs it."""

    tenant: str
    show: str
    sha256: str
    key: str
    size_bytes: int
    media_type: str
    created_us: int
    marked_us: int | None = None


def known(connection: Connection, names: Collection[Name]) -> dict[Name, Row[Any]]:
    """The rows of those of them that have one."""
    found: dict[Name, Row[Any]] = {}
    asked = sorted(names)
    for first in range(0, len(asked), 5_000):  # databases bound the parameters of a statement
        part = asked[first : first + 5_000]
        rows = connection.execute(KNOWN, {"tenants": padded({t for t, _ in part}), "names": padded(n for _, n in part)})
        found |= {(row.tenant, row.sha256): row for row in rows}
    return {name: found[name] for name in asked if name in found}


def refused(connection: Connection, rows: Mapping[Name, Row[Any]], *, now_us: int) -> set[Name]:
    """Those of them that a collection has marked: as new again by now, but for what is being removed."""
    marked = [name for name, row in rows.items() if row.marked_us is not None]
    if marked:
        over = now_us - CLAIM_US
        connection.execute(REVIVE, [{"of": t, "named": n, "over": over, "now": now_us} for t, n in marked])
    return set(marked)


def keep(
    connection: Connection, files: Mapping[Name, Mapping[str, Any]], rows: Mapping[Name, Row[Any]], *, now_us: int
) -> None:
    """Files of receipts get their rows, with the `show` that pays their room; those that have one are in use now.
    Who names a stray first pays for it."""
    new = [
        {
            "tenant": tenant,
            "sha256": sha256,
            "key": file["key"],
            "size": file["size_bytes"],
            "media_type": file["media_type"],
            "created_us": now_us,
            "used_us": now_us,
            "show": file["show"],
        }
        for (tenant, sha256), file in files.items()
        if (tenant, sha256) not in rows
    ]
    if new:
        connection.execute(insert(assets), new)
    old = [{"of": t, "named": n, "now": now_us} for t, n in files if (t, n) in rows]
    if old:
        connection.execute(USED, old)
    strays = [
        {"of": t, "named": n, "payer": file["show"], "type": file["media_type"]}
        for (t, n), file in files.items()
        if (t, n) in rows and rows[t, n].media_type == STRAY_TYPE != file["media_type"]
    ]
    if strays:
        connection.execute(OWNED, strays)


def name(connection: Connection, tenant: str, file: Mapping[str, Any], *, now_us: int) -> None:
    """A blob that no task makes (a picture that somebody sent) is named before it is put. Raises Unavailable."""
    key = (tenant, str(file["sha256"]))
    rows = known(connection, [key])
    row = rows.get(key)
    if row is not None and row.swept_us is not None and row.swept_us >= now_us - CLAIM_US:
        raise Unavailable("the asset is just being removed", retry_after_s=CLAIM_US / 1e6)
    refused(connection, rows, now_us=now_us)
    keep(connection, {key: file}, rows, now_us=now_us)


def needed(
    connection: Connection, tenant: str, after: str, without: Collection[str] = ()
) -> tuple[set[str], str | None]:
    """(what the next tasks of a tenant name, where to go on, None at the end). A job that was released needs nothing,
    nor do those `without`."""
    columns = {
        "delivered": tasks.c.result["files"],
        "first_frame": tasks.c.params["spec"]["first_frame"],
    }
    query = (
        select(tasks.c.id, tasks.c.job_id, tasks.c.files, *(c.label(name) for name, c in columns.items()))
        .join(jobs, jobs.c.id == tasks.c.job_id)
        .where(jobs.c.tenant == tenant, jobs.c.released_us.is_(None), tasks.c.id > after)
        .order_by(tasks.c.id)
        .limit(PAGE)
    )
    rows = connection.execute(query).all()
    theirs = [row for row in rows if row.job_id not in without]
    found = {file["sha256"] for row in theirs for file in [*(row.files or ()), *(row.delivered or ())]}
    found |= {row.first_frame for row in theirs if row.first_frame}
    return found, rows[-1].id if len(rows) == PAGE else None


def needed_by_takes(
    connection: Connection, tenant: str, after: str, without: Collection[str] = ()
) -> tuple[set[str], str | None]:
    """The same of what may be taken as an answer, but for the content keys `without`."""
    query = select(takes.c.content_key, takes.c.files, takes.c.result["files"].label("delivered"))
    query = query.where(takes.c.tenant == tenant, takes.c.content_key > after)
    rows = connection.execute(query.order_by(takes.c.content_key).limit(PAGE)).all()
    theirs = [row for row in rows if row.content_key not in without]
    found = {file["sha256"] for row in theirs for file in [*(row.files or ()), *(row.delivered or ())]}
    return found, rows[-1].content_key if len(rows) == PAGE else None


def rows_of(connection: Connection, tenant: str, after: str) -> tuple[list[Row[Any]], str | None]:
    """The next rows of a tenant, whatever state they are in."""
    query = select(assets).where(assets.c.tenant == tenant, assets.c.sha256 > after)
    rows = connection.execute(query.order_by(assets.c.sha256).limit(PAGE)).all()
    return list(rows), rows[-1].sha256 if len(rows) == PAGE else None


def mark(connection: Connection, tenant: str, shas: Iterable[str], *, before_us: int, now_us: int) -> int:
    """Marks those that nobody has committed since `before_us`. Returns how many."""
    return sum(
        connection.execute(MARK, {"of": tenant, "named": sha, "before": before_us, "now": now_us}).rowcount
        for sha in shas
    )


def mark_strays(connection: Connection, tenant: str, files: Sequence[Mapping[str, Any]], *, now_us: int) -> int:
    """Blobs of the store that have no row get one that is marked. Returns how many."""
    rows = known(connection, [(tenant, file["sha256"]) for file in files])
    new = [
        {**file, "tenant": tenant, "created_us": now_us, "used_us": now_us, "marked_us": now_us}
        for file in files
        if (tenant, file["sha256"]) not in rows
    ]
    if new:
        connection.execute(insert(assets), new)
    return len(new)


def unmark(connection: Connection, tenant: str, shas: Iterable[str]) -> None:
    for sha in shas:
        connection.execute(UNMARK, {"of": tenant, "named": sha})


def claim(connection: Connection, tenant: str, marks: Mapping[str, int], *, now_us: int) -> list[str]:
    """Claims those of them that are marked as they were seen; what is claimed may be removed while the claim lasts."""
    return [
        sha
        for sha, since in marks.items()
        if connection.execute(CLAIM, {"of": tenant, "named": sha, "since": since, "now": now_us}).rowcount
    ]


def drop(connection: Connection, tenant: str, *, now_us: int) -> int:
    """Rows of what was removed long ago. Returns how many."""
    gone = and_(assets.c.tenant == tenant, assets.c.swept_us < now_us - DROP_US)
    return int(connection.execute(delete(assets).where(gone)).rowcount)


def tenants(connection: Connection) -> list[str]:
    """All that have jobs or assets."""
    found = {*connection.execute(select(jobs.c.tenant).distinct()).scalars()}
    return sorted(found | {*connection.execute(select(assets.c.tenant).distinct()).scalars()})


def page(
    connection: Connection, sight: Sight, *, after: str | None, limit: int, marked: bool = False
) -> tuple[list[Asset], bool]:
    """(assets that are there, by their sha256, whether there are more); of a show those that it pays for.

    What tenants have alike stays on one page, which may be a little longer for it. Raises NotFound for an unknown
    `after`.
    """
    query = select(assets).where(_covered(sight))
    if marked:
        query = query.where(assets.c.marked_us.is_not(None))
    if after is not None:
        if connection.execute(select(assets.c.sha256).where(_covered(sight), assets.c.sha256 == after)).first() is None:
            raise NotFound("no such asset", field="after", remedy="use the sha256 of one")
        query = query.where(assets.c.sha256 > after)
    query = query.order_by(assets.c.sha256, assets.c.tenant)
    rows = connection.execute(query.limit(limit + 1)).all()
    shown, more = list(rows[:limit]), len(rows) > limit
    if more:
        last = shown[-1]
        shown += connection.execute(query.where(assets.c.sha256 == last.sha256, assets.c.tenant > last.tenant)).all()
    return [_asset(row) for row in shown], more


def find(connection: Connection, sight: Sight, sha256: str) -> Asset:
    """By its sha256, or a beginning of it that no other has; whose, does not matter: the bytes are the same.

    Raises NotFound.
    """
    begins = assets.c.sha256.startswith(sha256, autoescape=True)
    so = select(assets.c.sha256).where(_covered(sight), begins).distinct().limit(2)
    found = connection.execute(so).scalars().all()
    if len(found) != 1:
        what = "more than one asset begins so" if found else "no such asset"
        raise NotFound(what, field="asset", remedy="`farm assets ls` lists them")
    whole = select(assets).where(_covered(sight), assets.c.sha256 == found[0]).order_by(assets.c.tenant).limit(1)
    return _asset(connection.execute(whole).one())


def totals(connection: Connection, sight: Sight) -> tuple[int, int]:
    """(number, bytes) of what is there."""
    query = select(func.count(), func.coalesce(func.sum(assets.c.size), 0)).where(_covered(sight))
    num, num_bytes = connection.execute(query).one()
    return int(num), int(num_bytes)


def _covered(sight: Sight) -> ColumnElement[bool]:
    bounds = ((assets.c.tenant, sight.tenant), (assets.c.show, sight.show))
    return and_(assets.c.swept_us.is_(None), *(column == value for column, value in bounds if value is not None))


def _asset(row: Row[Any]) -> Asset:
    return Asset(
        tenant=row.tenant,
        show=row.show,
        sha256=row.sha256,
        key=row.key,
        size_bytes=row.size,
        media_type=row.media_type,
        created_us=row.created_us,
        marked_us=row.marked_us,
    )
