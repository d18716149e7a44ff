"""Webhooks: who wants to hear what becomes of jobs, and the outbox of what they have not heard yet.

A delivery is written by the transaction that changed the job: none is lost, and none tells of what did not commit. Any
number of deliverers take them up by short leases, so one may be sent twice, always under the same id. What wants to be
heard is a topic, a recipe and a state of its jobs; how the world calls it is not known here.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from cluster.errors import IllegalMove, InvalidInput, NotFound
from cluster.graph import flaw_of_text
from cluster.ledger.database import padded
from cluster.ledger.schema import tasks
from cluster.ledger.schema import webhook_deliveries as deliveries
from cluster.ledger.schema import webhook_endpoints as hooks
from cluster.states import JobState, State

SECRET_PREFIX = "whsec_"  # noqa: S105  # as Standard Webhooks writes one
MOST = 50
"""Endpoints of a tenant: every job that ends looks through them."""
TRIES_KEPT = 20
TOLD = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.IN_REVIEW})
"""States of a job that somebody may want to hear of."""
PUBLISHED = select(tasks.c.job_id).where(
    tasks.c.job_id.in_(bindparam("jobs", expanding=True)),
    tasks.c.step == "publish",
    tasks.c.state == State.SUCCEEDED.value,
)
BUDGET_REACHED = "budget reached"
"""The topic of budgets: one came to a threshold."""


class Progress(StrEnum):
    """Of a delivery."""

    DUE = "due"
    DELIVERED = "delivered"
    FAILED = "failed"  # given up, or the endpoint was disabled


@dataclass(frozen=True, kw_only=True, slots=True)
class HookSpec:
    """An endpoint as somebody wants it. `show` None: jobs of all shows of the tenant."""

    tenant: str
    name: str
    url: str
    topics: tuple[str, ...]
    show: str | None = None

    def __post_init__(self) -> None:
        _check(name=self.name, url=self.url)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hook:
    """An endpoint as people see it: its secret is not in it."""

    id: str
    tenant: str
    show: str | None
    name: str
    url: str
    topics: tuple[str, ...]
    hint: str  # the end of its secret
    created_us: int
    updated_us: int
    disabled_us: int | None
    disabled_reason: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """One try of a delivery. `status` None: nobody answered, `error` says why."""

    at_us: int
    ms: int
    status: int | None = None
    error: str | None = None

    @property
    def heard(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def gone(self) -> bool:
        """The endpoint says that it wants nothing more."""
        return self.status == 410

    def to_json(self) -> dict[str, Any]:
        return {"at_us": self.at_us, "ms": self.ms, "status": self.status, "error": self.error}


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What is to be sent, to whom, and by whose word: all that a deliverer needs. Its secrets are in no `repr`."""

    hook_id: str
    tenant: str
    id: str
    topic: str
    job_id: str
    url: str
    secrets: tuple[str, ...] = field(repr=False)  # the newest first; an older one that is still good
    created_us: int
    num_tries: int  # so far
    epoch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """A line of the log of an endpoint."""

    id: str
    hook_id: str
    topic: str
    job_id: str
    progress: Progress
    created_us: int
    next_us: int | None  # of a due one
    num_tries: int
    tries: tuple[Tried, ...]  # the newest last, `TRIES_KEPT` at most


@dataclass(frozen=True, kw_only=True, slots=True)
class HookSight:
    """Whose endpoints somebody may see."""

    tenant: str
    show: str | None = None

    def covers(self) -> ColumnElement[bool]:
        of_show = [] if self.show is None else [hooks.c.show == self.show]
        return and_(hooks.c.tenant == self.tenant, *of_show)


def topic(recipe: str, state: JobState) -> str:
    return f"{recipe} {state.value}"


def new_secret() -> str:
    """256 random bits. The ledger keeps it, for it has to sign by it."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def tell(connection: Connection, changed: Sequence[tuple[Row[Any], JobState]], *, now_us: int) -> None:
    """Writes down who has to hear that these jobs (as their rows are now) came into these states."""
    changed = [(job, state) for job, state in changed if state in TOLD and "superseded_by" not in job.request]
    if not changed:
        return
    listening = select(hooks.c.id, hooks.c.tenant, hooks.c.show, hooks.c.topics).where(
        hooks.c.tenant.in_(bindparam("tenants", expanding=True)), hooks.c.disabled_us.is_(None)
    )
    found = connection.execute(listening, {"tenants": padded(sorted({job.tenant for job, _ in changed}))}).all()
    if not found:
        return
    rows = [
        {
            "endpoint_id": hook.id,
            "id": _event_id(job.id, job.seq),
            "job_id": _told_as(job),
            **_due_now(topic(job.recipe, state), now_us),
        }
        for job, state in _as_seen(connection, changed)
        for hook in found
        if hook.tenant == job.tenant and hook.show in (None, job.show) and topic(job.recipe, state) in hook.topics
    ]
    if rows:
        connection.execute(insert(deliveries), rows)


def tell_of_budget(
    connection: Connection, tenant: str, show: str | None, budget_id: str, event_id: str, *, now_us: int
) -> None:
    """Writes down who has to hear that a budget, of a show if it is one's, has come to a threshold."""
    listening = select(hooks.c.id, hooks.c.show, hooks.c.topics).where(
        hooks.c.tenant == tenant, hooks.c.disabled_us.is_(None)
    )
    rows = [
        {"endpoint_id": hook.id, "id": event_id, "job_id": budget_id, **_due_now(BUDGET_REACHED, now_us)}
        for hook in connection.execute(listening)
        if hook.show in (None, show) and BUDGET_REACHED in hook.topics
    ]
    if rows:
        connection.execute(insert(deliveries), rows)


def _due_now(about: str, now_us: int) -> dict[str, Any]:
    new = {"progress": Progress.DUE.value, "next_us": now_us, "created_us": now_us}
    return {"topic": about, **new, "epoch": 0, "num_tries": 0, "tries": []}


def create(connection: Connection, hook_id: str, spec: HookSpec, secret: str, *, now_us: int) -> Hook:
    """The same `hook_id` again is this same call again. Raises InvalidInput for one too many."""
    if connection.execute(select(hooks.c.id).where(hooks.c.id == hook_id)).one_or_none() is None:
        count = select(func.count()).select_from(hooks).where(hooks.c.tenant == spec.tenant)
        if int(connection.execute(count).scalar_one()) >= MOST:
            raise InvalidInput(f"there are {MOST} endpoints already", field="url", remedy="delete one")
        connection.execute(
            insert(hooks).values(
                id=hook_id,
                tenant=spec.tenant,
                show=spec.show,
                name=spec.name,
                url=spec.url,
                topics=list(spec.topics),
                secret=secret,
                created_us=now_us,
                updated_us=now_us,
            )
        )
    return find(connection, HookSight(tenant=spec.tenant), hook_id)


def change(
    connection: Connection,
    sight: HookSight,
    hook_id: str,
    *,
    name: str | None = None,
    url: str | None = None,
    topics: Sequence[str] | None = None,
    enabled: bool | None = None,
    now_us: int,
) -> Hook:
    """What is None stays. A new url, or `enabled`, ends that it is disabled. Raises NotFound, InvalidInput."""
    row = _row(connection, sight, hook_id)
    _check(name=row.name if name is None else name, url=row.url if url is None else url)
    new: dict[str, Any] = {"name": name, "url": url, "topics": None if topics is None else list(topics)}
    columns: dict[str, Any] = {
        column: value for column, value in new.items() if value not in (None, row._mapping[column])
    }
    if enabled is False and row.disabled_us is None:
        columns |= {"disabled_us": now_us, "disabled_reason": "switched off"}
    elif row.disabled_us is not None and (enabled or (enabled is None and "url" in columns)):
        columns |= {"disabled_us": None, "disabled_reason": None}
    if columns:
        _set(connection, hook_id, **columns, updated_us=now_us)
    return find(connection, sight, hook_id)


def rotate(
    connection: Connection, sight: HookSight, hook_id: str, secret: str, *, keep_old_us: int, now_us: int
) -> Hook:
    """A new secret; what is sent is signed with the old one too for `keep_old_us` more. Raises NotFound.

    Of two that are good the older one is kept: nobody may have heard of the other, its answer lost.
    """
    row = _row(connection, sight, hook_id)
    if row.secret != secret:
        older, until_us = (_good(row, now_us)[-1], now_us + keep_old_us) if keep_old_us > 0 else (None, None)
        _set(connection, hook_id, old_secret=older, old_until_us=until_us, secret=secret, updated_us=now_us)
    return find(connection, sight, hook_id)


def remove(connection: Connection, sight: HookSight, hook_id: str) -> None:
    """With its secret, its log and what it has not heard. Raises NotFound."""
    _row(connection, sight, hook_id)
    connection.execute(delete(deliveries).where(deliveries.c.endpoint_id == hook_id))
    connection.execute(delete(hooks).where(hooks.c.id == hook_id))


def find(connection: Connection, sight: HookSight, hook_id: str) -> Hook:
    """Raises NotFound."""
    return _hook(_row(connection, sight, hook_id))


def page(connection: Connection, sight: HookSight, *, after: str | None, limit: int) -> tuple[list[Hook], bool]:
    """(endpoints, the newest first, that follow `after`; whether there are more). Raises NotFound for `after`."""
    query = select(hooks).where(sight.covers()).order_by(hooks.c.created_us.desc(), hooks.c.id.desc())
    if after is not None:
        mark = _row(connection, sight, after)
        query = query.where(_older(hooks.c.created_us, hooks.c.id, mark.created_us, mark.id))
    rows = connection.execute(query.limit(limit + 1)).all()
    return [_hook(row) for row in rows[:limit]], len(rows) > limit


def log(
    connection: Connection, sight: HookSight, hook_id: str, *, after: str | None, limit: int
) -> tuple[list[Delivery], bool]:
    """(deliveries, the newest first, that follow `after`; whether there are more). Raises NotFound."""
    _row(connection, sight, hook_id)
    query = select(deliveries).where(deliveries.c.endpoint_id == hook_id)
    if after is not None:
        mark = _delivery_row(connection, hook_id, after)
        query = query.where(_older(deliveries.c.created_us, deliveries.c.id, mark.created_us, mark.id))
    order = (deliveries.c.created_us.desc(), deliveries.c.id.desc())
    rows = connection.execute(query.order_by(*order).limit(limit + 1)).all()
    return [_delivery(row) for row in rows[:limit]], len(rows) > limit


def redeliver(connection: Connection, sight: HookSight, hook_id: str, delivery_id: str, *, now_us: int) -> Delivery:
    """Sends it again, from now on by the whole schedule, under its id. Raises NotFound, IllegalMove while disabled."""
    hook, row = _row(connection, sight, hook_id), _delivery_row(connection, hook_id, delivery_id)
    if hook.disabled_us is not None:
        raise IllegalMove("the endpoint is disabled", field="enabled", remedy="enable it first")
    again = {"progress": Progress.DUE.value, "next_us": now_us, "num_tries": 0, "epoch": row.epoch + 1}
    connection.execute(update(deliveries).where(*_of(hook_id, delivery_id)).values(**again))
    return _delivery(_delivery_row(connection, hook_id, delivery_id))


def claim(
    connection: Connection,
    *,
    limit: int,
    each: int,
    of_tenant: int,
    beside: Collection[Message],
    lease_us: int,
    now_us: int,
) -> list[Message]:
    """At most `limit` that are due, the longest due first; together with those `beside`, which are being sent, no more
    than `each` of one endpoint and `of_tenant` of one tenant.

    Nobody else is given them for `lease_us`; then they are due again, unless they have been settled.
    """
    bounds = {"now": now_us, "most": limit, "each": each, "of_tenant": of_tenant}
    rows = connection.execute(_due(beside), bounds).all()
    taken = [
        {"old_hook": r.endpoint_id, "old_id": r.id, "new_epoch": r.epoch + 1, "until_us": now_us + lease_us}
        for r in rows
    ]
    if taken:
        guard = (deliveries.c.endpoint_id == bindparam("old_hook"), deliveries.c.id == bindparam("old_id"))
        later = update(deliveries).where(*guard).values(epoch=bindparam("new_epoch"), next_us=bindparam("until_us"))
        connection.execute(later, taken)
    return [
        Message(
            hook_id=row.endpoint_id,
            tenant=row.tenant,
            id=row.id,
            topic=row.topic,
            job_id=row.job_id,
            url=row.url,
            secrets=_good(row, now_us),
            created_us=row.created_us,
            num_tries=row.num_tries,
            epoch=row.epoch + 1,
        )
        for row in rows
    ]


def settle(connection: Connection, message: Message, tried: Tried, *, next_us: int | None, now_us: int) -> bool:
    """Writes down a try of what was claimed; `next_us` None: there is no other one. False if it came too late.

    Too late is a failure of what somebody else has claimed since, or of what was given up; what was heard was heard.
    """
    row = connection.execute(select(deliveries).where(*_of(message.hook_id, message.id))).one_or_none()
    if row is None or row.progress == Progress.DELIVERED.value:
        return False
    if not tried.heard and (row.progress, row.epoch) != (Progress.DUE.value, message.epoch):
        return False
    url_now = select(hooks.c.url).where(hooks.c.id == message.hook_id)
    gone = tried.gone and connection.execute(url_now).scalar_one_or_none() == message.url
    progress = Progress.DELIVERED if tried.heard else Progress.FAILED if next_us is None or gone else Progress.DUE
    connection.execute(
        update(deliveries)
        .where(*_of(message.hook_id, message.id))
        .values(
            progress=progress.value,
            next_us=next_us if progress is Progress.DUE else now_us,
            num_tries=row.num_tries + 1,
            tries=[*row.tries, tried.to_json()][-TRIES_KEPT:],
            epoch=row.epoch + 1,
        )
    )
    if gone:
        _set(connection, message.hook_id, disabled_us=now_us, disabled_reason="it answered 410 Gone")
        waiting = (deliveries.c.endpoint_id == message.hook_id, deliveries.c.progress == Progress.DUE.value)
        connection.execute(update(deliveries).where(*waiting).values(progress=Progress.FAILED.value))
    return True


def signing(connection: Connection, sight: HookSight, hook_id: str, *, now_us: int) -> tuple[Hook, tuple[str, ...]]:
    """(the endpoint, the secrets that sign now). Raises NotFound."""
    row = _row(connection, sight, hook_id)
    return _hook(row), _good(row, now_us)


def forget(connection: Connection, *, before_us: int) -> int:
    """Takes what was delivered, or given up, and is older out of the log."""
    over = (deliveries.c.progress != Progress.DUE.value, deliveries.c.created_us < before_us)
    return int(connection.execute(delete(deliveries).where(*over)).rowcount)


def _due(beside: Collection[Message]) -> Select[Any]:
    of_hook = _place(deliveries.c.endpoint_id, deliveries.c.next_us, [message.hook_id for message in beside])
    due = (
        select(deliveries, hooks.c.tenant, hooks.c.url, hooks.c.secret, hooks.c.old_secret, hooks.c.old_until_us)
        .add_columns(of_hook.label("of_hook"))
        .join(hooks, hooks.c.id == deliveries.c.endpoint_id)
        .where(
            deliveries.c.progress == literal(Progress.DUE.value),
            deliveries.c.next_us <= bindparam("now"),
            hooks.c.disabled_us.is_(None),
        )
        .subquery()
    )
    of_tenant = _place(due.c.tenant, due.c.next_us, [message.tenant for message in beside])
    fitting = select(due, of_tenant.label("of_tenant")).where(due.c.of_hook <= bindparam("each")).subquery()
    return (
        select(fitting)
        .where(fitting.c.of_tenant <= bindparam("of_tenant"))
        .order_by(fitting.c.next_us, fitting.c.id)
        .limit(bindparam("most", type_=Integer))
    )


def _place(of: ColumnElement[str], next_us: ColumnElement[int], sending: Sequence[str]) -> ColumnElement[int]:
    """Of a delivery among the due ones of an endpoint or a tenant, after those that are being sent."""
    taken = case({"": 0, **Counter(sending)}, value=of, else_=0)
    return func.row_number().over(partition_by=of, order_by=next_us) + taken


def _older(at: ColumnElement[int], by_id: ColumnElement[str], than_us: int, than_id: str) -> ColumnElement[bool]:
    return or_(at < than_us, and_(at == than_us, by_id < than_id))


def _as_seen(connection: Connection, changed: Sequence[tuple[Row[Any], JobState]]) -> list[tuple[Row[Any], JobState]]:
    """A film that is published is completed for whoever asks for it: a take that was lost then is not in it."""
    lost = [job.id for job, state in changed if state in (JobState.FAILED, JobState.CANCELED)]
    made = set(connection.scalars(PUBLISHED, {"jobs": padded(lost)})) if lost else set()
    return [(job, JobState.SUCCEEDED if job.id in made else state) for job, state in changed]


def _told_as(job: Row[Any]) -> str:
    """A film is known by its first job, whatever revision this one is."""
    film: str | None = job.request.get("film")
    return job.id if film is None else film.replace("film_", "job_")


def _event_id(job_id: str, seq: int) -> str:
    """The same for every endpoint, and for every run of the transaction that writes it."""
    return f"evt_{hashlib.sha256(f'{job_id} {seq}'.encode()).hexdigest()[:26]}"


def _of(hook_id: str, delivery_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return deliveries.c.endpoint_id == hook_id, deliveries.c.id == delivery_id


def _row(connection: Connection, sight: HookSight, hook_id: str) -> Row[Any]:
    row = connection.execute(select(hooks).where(hooks.c.id == hook_id, sight.covers())).one_or_none()
    if row is None:
        raise NotFound("no such webhook endpoint")
    return row


def _delivery_row(connection: Connection, hook_id: str, delivery_id: str) -> Row[Any]:
    row = connection.execute(select(deliveries).where(*_of(hook_id, delivery_id))).one_or_none()
    if row is None:
        raise NotFound("no such delivery")
    return row


def _set(connection: Connection, hook_id: str, **columns: Any) -> None:
    connection.execute(update(hooks).where(hooks.c.id == hook_id).values(**columns))


def _good(row: Row[Any], now_us: int) -> tuple[str, ...]:
    older = row.old_secret is not None and now_us < (row.old_until_us or 0)
    return (row.secret, row.old_secret) if older else (row.secret,)


def _hook(row: Row[Any]) -> Hook:
    names = set(Hook.__dataclass_fields__) - {"topics", "hint"}
    columns = {name: value for name, value in row._mapping.items() if name in names}
    return Hook(**columns, topics=tuple(row.topics), hint=f"{SECRET_PREFIX}...{row.secret[-4:]}")


def _delivery(row: Row[Any]) -> Delivery:
    progress = Progress(row.progress)
    return Delivery(
        id=row.id,
        hook_id=row.endpoint_id,
        topic=row.topic,
        job_id=row.job_id,
        progress=progress,
        created_us=row.created_us,
        next_us=row.next_us if progress is Progress.DUE else None,
        num_tries=row.num_tries,
        tries=tuple(Tried(**one) for one in row.tries),
    )


def _check(*, name: str, url: str) -> None:
    for field_name, value, longest in (("name", name, 128), ("url", url, 2000)):
        flaw = flaw_of_text(value, longest) if value else "is empty"
        if flaw:
            raise InvalidInput(f"{field_name} {flaw}", field=field_name)
