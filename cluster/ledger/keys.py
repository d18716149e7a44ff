"""API keys: who may ask the farm what, and how much. A secret is shown once; what is kept of it is its hash."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Collection, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, exists, func, insert, or_, select, update

from cluster.assets import check_tenant
from cluster.errors import IllegalMove, InvalidInput, NotFound, RateLimited, Unauthenticated
from cluster.graph import flaw_of_text
from cluster.ledger.database import padded
from cluster.ledger.schema import api_keys, jobs, tasks, workers
from cluster.states import OPEN

SECRET_PREFIX = "farm_"  # noqa: S105  # the beginning of every key, so that scanners of source code know one
SHOWN = 12
"""Characters of a secret that people see again: 7 of its 43 random ones."""
MINUTE_US = 60_000_000
SEEN_EVERY_US = MINUTE_US
"""The last use of a key is written down about so often."""
MOST_OWED_US = 10 * MINUTE_US
"""One answer may be longer than a minute's tokens; more than this nobody is made to wait for, nor for a wall clock
that was set back."""


class Scope(StrEnum):
    """What a key may do. `admin` includes the others."""

    GENERATE = "generate"  # submit work, and cancel or delete it
    READ = "read"
    OPERATE = "operate"  # what an operator does to any work of the tenant
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySpec:
    """What a new key is for. `in_flight_s`: predicted accelerator-seconds of open work at once; None: no limit."""

    tenant: str
    name: str
    scopes: tuple[Scope, ...] = (Scope.GENERATE, Scope.READ)
    show: str | None = None
    requests_per_minute: int | None = None
    in_flight_s: float | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        check_tenant(self.tenant)
        for field_name, value, longest in (("name", self.name, 128), ("show", self.show, 64)):
            flaw = None if value is None else flaw_of_text(value, longest) if value else "is empty"
            if flaw:
                raise InvalidInput(f"{field_name} {flaw}", field=field_name)
        if not self.scopes:
            raise InvalidInput("a key needs a scope", field="scopes", remedy=f"use {', '.join(Scope)}")
        if self.requests_per_minute is not None and not 1 <= self.requests_per_minute <= 1_000_000:
            raise InvalidInput("requests_per_minute must be from 1 to 1,000,000", field="requests_per_minute")
        if self.in_flight_s is not None and not (math.isfinite(self.in_flight_s) and self.in_flight_s > 0):
            raise InvalidInput("in_flight_s must be above 0", field="in_flight_s")
        if self.tokens_per_minute is not None and not 1 <= self.tokens_per_minute <= 1_000_000_000:
            raise InvalidInput("tokens_per_minute must be from 1 to 1,000,000,000", field="tokens_per_minute")


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key as people see it: nothing in it opens a door."""

    id: str
    tenant: str
    show: str | None
    name: str
    scopes: tuple[Scope, ...]
    prefix: str
    requests_per_minute: int | None
    in_flight_s: float | None
    tokens_per_minute: int | None
    created_us: int
    used_us: int | None
    rotated_us: int | None
    revoked_us: int | None
    old_until_us: int | None

    def may(self, scopes: Collection[Scope]) -> bool:
        """Whether it has one of `scopes`."""
        return Scope.ADMIN in self.scopes or any(scope in self.scopes for scope in scopes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """Of tokens, as of now. One that is spent fills again, one token after the other."""

    limit: int  # a minute
    left: int
    wait_s: float  # until there is one; 0 if there is
    full_s: float  # until all of the limit is there


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """A key that was known, and what is left of its minute; `wait_s` above 0: it has to wait so long."""

    key: Key
    wait_s: float = 0.0
    left: int | None = None  # requests; None: it has no limit
    full_s: float = 0.0  # until all of them are there
    tokens: Allowance | None = None  # the same


@dataclass(frozen=True, kw_only=True, slots=True)
class NewSecret:
    """256 random bits. Whoever holds one can ask; the ledger never sees it again."""

    secret: str = field(default_factory=lambda: SECRET_PREFIX + secrets.token_urlsafe(32), repr=False)

    @property
    def columns(self) -> dict[str, str]:
        return {"hash": hash_of(self.secret), "prefix": self.secret[:SHOWN]}


def hash_of(secret: str) -> str:
    """One SHA-256: a secret of 256 random bits needs no slow hash, which passwords do."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def create(connection: Connection, key_id: str, spec: KeySpec, secret: NewSecret, *, now_us: int) -> Key:
    """The same `key_id` again is this same call again, after a commit whose outcome nobody heard."""
    if connection.execute(select(api_keys.c.id).where(api_keys.c.id == key_id)).one_or_none() is None:
        connection.execute(
            insert(api_keys).values(
                id=key_id,
                tenant=spec.tenant,
                show=spec.show,
                name=spec.name,
                scopes=[scope.value for scope in spec.scopes],
                requests_per_minute=spec.requests_per_minute,
                in_flight_s=spec.in_flight_s,
                tokens_per_minute=spec.tokens_per_minute,
                created_us=now_us,
                **secret.columns,
            )
        )
    return read(connection, key_id)


def rotate(connection: Connection, key_id: str, secret: NewSecret, *, keep_old_us: int, now_us: int) -> Key:
    """A new secret; the old one opens for `keep_old_us` more. Raises NotFound, IllegalMove for a revoked key.

    Of two that open the older one is kept: nobody may have heard of the other, its answer lost.
    """
    row = _row(connection, key_id)
    if row.revoked_us is not None:
        raise IllegalMove(f"key {key_id} is revoked", field="key", remedy="make a new one")
    if row.hash != secret.columns["hash"]:
        older = row.old_hash if now_us < (row.old_until_us or 0) else row.hash
        keeps = {"old_hash": older, "old_until_us": now_us + keep_old_us} if keep_old_us > 0 else {}
        none = {"old_hash": None, "old_until_us": None}
        columns = {**none, **keeps, **secret.columns, "rotated_us": now_us}
        connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(**columns))
    return read(connection, key_id)


def revoke(connection: Connection, key_id: str, *, now_us: int) -> Key:
    """For ever, at once, its older secret too. Again is fine. Raises NotFound."""
    if _row(connection, key_id).revoked_us is None:
        connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(revoked_us=now_us))
    return read(connection, key_id)


def read(connection: Connection, key_id: str) -> Key:
    """Raises NotFound."""
    return _key(_row(connection, key_id))


def find(connection: Connection, key_id: str) -> Key | None:
    row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
    return None if row is None else _key(row)


def check_known(connection: Connection, key_id: str) -> None:
    """Raises Unauthenticated for a key that was revoked, or is gone with its tenant, since it was admitted."""
    key = find(connection, key_id)
    if key is None or key.revoked_us is not None:
        raise Unauthenticated("no such API key any more", remedy="send one that was not revoked")


def listed(connection: Connection, *, tenant: str | None = None, show: str | None = None) -> list[Key]:
    """Oldest first, the revoked ones too; of one tenant and bound to one show, if they are named."""
    query = select(api_keys).order_by(api_keys.c.created_us, api_keys.c.id)
    if tenant is not None:
        query = query.where(api_keys.c.tenant == tenant)
    if show is not None:
        query = query.where(api_keys.c.show == show)
    return [_key(row) for row in connection.execute(query)]


def closed(connection: Connection, key_ids: Set[str]) -> Set[str]:
    """Those of these keys that are revoked or gone."""
    still = select(api_keys.c.id).where(api_keys.c.id.in_(padded(key_ids)), api_keys.c.revoked_us.is_(None))
    return key_ids - set(connection.execute(still).scalars())


def admit(connection: Connection, secret: str, *, now_us: int) -> tuple[Admitted | None, dict[str, int]]:
    """Who this is, and whether it may ask now, None for a secret that is unknown, outdated or revoked; and the columns
    that this request changes.

    One statement finds it, whatever comes of it. A key with a limit has a bucket of that many requests, which fills
    again over a minute: exact over all replicas, for the ledger keeps it.
    """
    asked = hash_of(secret)
    query = select(api_keys).where(or_(api_keys.c.hash == asked, api_keys.c.old_hash == asked))
    row = connection.execute(query).one_or_none()
    known = row is not None and hmac.compare_digest(row.hash, asked)
    older = row is not None and hmac.compare_digest(row.old_hash or "", asked) and now_us < (row.old_until_us or 0)
    if row is None or row.revoked_us is not None or not (known or older):
        return None, {}
    changes: dict[str, int] = {}
    wait_us, full_us, left = 0, 0, None
    if row.requests_per_minute is not None:
        each_us = MINUTE_US // row.requests_per_minute
        paid_us = min(max(row.paced_us, now_us), now_us + MINUTE_US) + each_us  # the wall clock may be set back
        wait_us = max(0, paid_us - now_us - each_us * row.requests_per_minute)
        left = 0 if wait_us else row.requests_per_minute - -(-(paid_us - now_us) // each_us)
        full_us = paid_us - now_us - (each_us if wait_us else 0)
        changes = {} if wait_us else {"paced_us": paid_us}
    if row.used_us is None or now_us - row.used_us >= SEEN_EVERY_US:
        changes["used_us"] = now_us
    tokens = _allowance(row, now_us)
    admitted = Admitted(key=_key(row), wait_s=wait_us / 1e6, left=left, full_s=full_us / 1e6, tokens=tokens)
    return admitted, changes


def pay(connection: Connection, secret: str, *, now_us: int) -> Admitted | None:
    """`admit`, as of this transaction, and its changes are made."""
    admitted, changes = admit(connection, secret, now_us=now_us)
    if admitted is not None and changes:
        connection.execute(update(api_keys).where(api_keys.c.id == admitted.key.id).values(**changes))
    return admitted


def charge_tokens(connection: Connection, key_id: str, tokens: int, *, now_us: int) -> None:
    """What was read and made, from the allowance of a key that has one."""
    if tokens <= 0:
        return
    query = select(api_keys.c.tokens_per_minute, api_keys.c.tokens_paced_us).where(api_keys.c.id == key_id)
    row = connection.execute(query).one_or_none()
    if row is not None and row.tokens_per_minute is not None:
        paid_us = now_us + _owed_us(row.tokens_paced_us, now_us) - (-tokens * MINUTE_US // row.tokens_per_minute)
        connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(tokens_paced_us=paid_us))


def _allowance(row: Row[Any], now_us: int) -> Allowance | None:
    limit, owed_us = row.tokens_per_minute, _owed_us(row.tokens_paced_us, now_us)
    if limit is None:
        return None
    left = limit - -(-owed_us * limit // MINUTE_US)
    each_us = -(-MINUTE_US // limit)
    wait_s = 0.0 if left > 0 else (owed_us - MINUTE_US + each_us) / 1e6
    return Allowance(limit=limit, left=max(0, left), wait_s=wait_s, full_s=owed_us / 1e6)


def _owed_us(paced_us: int, now_us: int) -> int:
    return min(max(0, paced_us - now_us), MOST_OWED_US)


TO_COME_S = "to_come_s"
"""Of the estimate of a job, beside its spans: predicted seconds of what its expansion will bring."""


def in_flight_s(connection: Connection, tenant: str, show: str | None = None) -> float:
    """Predicted seconds of a tenant's tasks that have not ended, and of those that are yet to come."""
    return open_s(connection, jobs.c.tenant == tenant, *([] if show is None else [jobs.c.show == show]))


def open_s(connection: Connection, *of_jobs: ColumnElement[bool]) -> float:
    """Of these jobs."""
    still = tasks.c.state.in_([state.value for state in OPEN])
    here = (*of_jobs, jobs.c.ended_us.is_(None))
    query = select(func.coalesce(func.sum(tasks.c.weight), 0.0)).join(jobs, jobs.c.id == tasks.c.job_id)
    found = float(connection.execute(query.where(*here, still)).scalar_one())
    to_expand = exists().where(tasks.c.job_id == jobs.c.id, tasks.c.expands.is_(True), still)
    estimates = connection.execute(select(jobs.c.estimate).where(*here, to_expand)).scalars()
    return found + sum(float((estimate or {}).get(TO_COME_S, 0.0)) for estimate in estimates)


def check_room(
    connection: Connection, tenant: str, show: str | None, *, more_s: float, most_s: float, roles: Collection[str]
) -> None:
    """Raises RateLimited if `more_s` does not fit beside what is open; it says when the queue will have room.

    What is alone always fits, or a shot that is predicted to take longer than the limit could never be asked for.
    """
    open_s = in_flight_s(connection, tenant, show)
    if open_s <= 0 or open_s + more_s <= most_s:
        return
    here = select(func.count()).select_from(workers).where(workers.c.ended_us.is_(None), workers.c.role.in_(roles))
    num_workers = int(connection.execute(here).scalar_one())
    raise RateLimited(
        f"{open_s:.0f} accelerator-seconds are in flight, {more_s:.0f} more do not fit into {most_s:.0f}",
        remedy="wait until some of it is done, or cancel some",
        retry_after_s=max(1.0, (open_s + more_s - most_s) / max(1, num_workers)),
    )


def _row(connection: Connection, key_id: str) -> Row[Any]:
    row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
    if row is None:
        raise NotFound(f"no key {key_id}", field="key", remedy="`farm keys ls` lists them")
    return row


def _key(row: Row[Any]) -> Key:
    names = set(Key.__dataclass_fields__)
    columns = {name: value for name, value in row._mapping.items() if name in names}
    return Key(**{**columns, "scopes": tuple(Scope(scope) for scope in row.scopes)})
