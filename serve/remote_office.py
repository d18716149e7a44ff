"""The port of operators on a farm that is elsewhere: each call is one of its routes, each answer one of its rows."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from cluster import disk
from cluster.errors import FarmError
from cluster.states import JobState, State
from serve.office import Order
from serve.remote import Remote
from serve.rows import (
    AssetRow,
    BudgetAsked,
    BudgetCard,
    BudgetRow,
    Collected,
    Deed,
    EventPage,
    JobCard,
    JobRow,
    JobWhy,
    KeyAsked,
    KeyRow,
    Named,
    NewKey,
    Page,
    ReasonRow,
    Row,
    ShowRow,
    TaskRow,
    Verified,
    Workers,
)

if TYPE_CHECKING:
    from serve.costs import CostsAsked, CostTable

R = TypeVar("R", bound=Row)
JOBS, TASKS, EVENTS = 1000, 2000, 1000
"""Rows of a page, as many as the routes give."""


class RemoteOffice:
    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def named(self, text: str) -> Named:
        return read(Named, self._remote.get("/v1/names/jobs", part=text))

    def job_named(self, text: str) -> str:
        return read(Named, self._remote.get("/v1/names/jobs", part=text, tasks=False)).job

    def worker_named(self, text: str) -> str:
        return str(self._remote.get("/v1/names/workers", part=text)["worker"])

    def jobs(self, *, show: str | None, states: Collection[JobState], limit: int) -> list[JobRow]:
        found: list[JobRow] = []
        after, more = None, True
        while more and len(found) < limit:
            most = min(JOBS, limit - len(found))
            answer = self._remote.get("/v1/jobs", show=show, state=_words(states), limit=most, after=after)
            page = read(Page[JobRow], answer)
            found += page.data
            after, more = page.last_id, page.has_more
        return found

    def job(self, job_id: str) -> JobCard:
        return read(JobCard, self._remote.get(f"/v1/jobs/{job_id}"))

    def tasks(self, job_id: str, *, states: Collection[State]) -> list[TaskRow]:
        found: list[TaskRow] = []
        after, more = None, True
        while more:
            answer = self._remote.get(f"/v1/jobs/{job_id}/tasks", state=_words(states), limit=TASKS, after=after)
            page = read(Page[TaskRow], answer)
            found += page.data
            after, more = page.last_id, page.has_more
        return found

    def events(self, job_id: str, *, after: int) -> EventPage:
        return read(EventPage, self._remote.get(f"/v1/jobs/{job_id}/log", after=after, limit=EVENTS))

    def why_task(self, where: Named) -> ReasonRow:
        return read(ReasonRow, self._remote.get(f"/v1/tasks/{where.id}/why"))

    def why_job(self, job_id: str) -> JobWhy:
        return read(JobWhy, self._remote.get(f"/v1/jobs/{job_id}/why"))

    def workers(self, *, gone: bool, limit: int) -> Workers:
        return read(Workers, self._remote.get("/v1/workers", gone=gone, limit=min(limit, 10_000)))

    def shows(self) -> list[ShowRow]:
        return read(Page[ShowRow], self._remote.get("/v1/shows")).data

    def show(self, name: str) -> ShowRow:
        return read(ShowRow, self._remote.get(f"/v1/shows/{quote(name)}"))

    def set_share(self, name: str, share: float) -> ShowRow:
        return read(ShowRow, self._remote.put(f"/v1/shows/{quote(name)}", {"share": share}))

    def budgets(self) -> list[BudgetRow]:
        return read(Page[BudgetRow], self._remote.get("/v1/budgets")).data

    def budget(self, budget_id: str) -> BudgetCard:
        return read(BudgetCard, self._remote.get(f"/v1/budgets/{budget_id}"))

    def set_budget(self, asked: BudgetAsked) -> BudgetRow:
        return read(BudgetRow, self._remote.put("/v1/budgets", asked.plain()))

    def remove_budget(self, budget_id: str) -> BudgetRow:
        return read(BudgetRow, self._remote.delete(f"/v1/budgets/{budget_id}"))

    def perform(self, order: Order) -> Deed:
        where = order.where
        path = f"/v1/jobs/{where.job}" if where.task is None else f"/v1/tasks/{where.id}"
        body: dict[str, Any] = {"dry_run": order.dry_run}
        if order.states:
            body["states"] = _words(order.states)
        if order.with_tasks:
            body["with_tasks"] = True
        return read(Deed, self._remote.post(f"{path}/{order.verb}", body))

    def set_priority(self, job_id: str, *, priority: int | None, tier: str | None) -> Deed:
        asked = {"priority": priority, "tier": tier}
        return read(Deed, self._remote.post(f"/v1/jobs/{job_id}/priority", asked))

    def drain(self, worker_id: str, *, reason: str, dry_run: bool) -> Deed:
        asked = {"reason": reason, "dry_run": dry_run}
        return read(Deed, self._remote.post(f"/v1/workers/{quote(worker_id)}/drain", asked))

    def costs(self, asked: CostsAsked) -> CostTable:
        """All the pages of it."""
        from serve.costs import CostTable  # with SQL, which other commands do not wait for

        table = read(CostTable, self._remote.get("/v1/costs", **asked.query()))
        found, more = [*table.data], table
        while more.has_more and len(found) < asked.limit:
            more = read(CostTable, self._remote.get("/v1/costs", **asked.query(after=more.last_id)))
            found += more.data
        return table.model_copy(update={"data": found[: asked.limit], "has_more": more.has_more})


class RemoteKeyring:
    """The port of keys, likewise: those of the tenant of the key which asks."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def named(self, text: str) -> KeyRow:
        return read(KeyRow, self._remote.get("/v1/names/keys", part=text))

    def keys(self, tenant: str | None) -> list[KeyRow]:
        rows = read(Page[KeyRow], self._remote.get("/v1/keys")).data
        return [row for row in rows if tenant in (None, row.tenant)]

    def add(self, asked: KeyAsked) -> NewKey:
        return read(NewKey, self._remote.post("/v1/keys", asked.plain()))

    def rotate(self, key_id: str, *, keep_old_s: float) -> NewKey:
        return read(NewKey, self._remote.post(f"/v1/keys/{key_id}/rotate", {"keep_old_s": keep_old_s}))

    def revoke(self, key_id: str) -> KeyRow:
        return read(KeyRow, self._remote.post(f"/v1/keys/{key_id}/revoke"))


class RemoteShelf:
    """The port of assets: those of the tenant of the key which asks."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def named(self, text: str) -> AssetRow:
        return read(AssetRow, self._remote.get(f"/v1/assets/{quote(text, safe='')}"))

    def page(self, *, marked: bool, after: str | None, limit: int) -> Page[AssetRow]:
        return read(Page[AssetRow], self._remote.get("/v1/assets", marked=marked, after=after, limit=limit))

    def fetch(self, row: AssetRow, to: Path) -> None:
        from serve.distant import fetched

        file = {"size_bytes": row.size_bytes, "sha256": row.asset}
        with disk.errors(to.parent), disk.whole_file(to) as temporary:
            fetched(self._remote, f"/v1/assets/{row.asset}/content", temporary, file)

    def verify(self, row: AssetRow) -> Verified:
        return read(Verified, self._remote.post(f"/v1/assets/{row.asset}/verify"))

    def collect(self, *, older_days: float | None, grace_s: float | None, dry_run: bool) -> Collected:
        asked = {"older_days": older_days, "grace_s": grace_s, "dry_run": dry_run}
        return read(Collected, self._remote.post("/v1/assets/collect", asked))


def read(kind: type[R], answer: Any) -> R:
    """Raises FarmError for rows of another version."""
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise FarmError(
            f"the farm answers in a way that this version does not know ({where})", remedy="use the farm's own version"
        ) from error


def _words(states: Collection[JobState] | Collection[State]) -> list[str]:
    return sorted(state.value for state in states)
