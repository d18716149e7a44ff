"""What operators ask of a farm and tell it to do: a port.

Who sits before the ledger has `serve.books` (the command line, and the routes with what a key may see); who is
elsewhere has `serve.remote_office`, which asks those routes. Both answer with the same rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from cluster.states import JobState, State
from serve.rows import (
    BudgetAsked,
    BudgetCard,
    BudgetRow,
    Deed,
    EventPage,
    JobCard,
    JobRow,
    JobWhy,
    Named,
    ReasonRow,
    ShowRow,
    TaskRow,
    Workers,
)

if TYPE_CHECKING:
    from serve.costs import CostsAsked, CostTable


class Verb(StrEnum):
    CANCEL = "cancel"
    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    REQUEUE = "requeue"
    EAT = "eat"


DONE = {
    Verb.CANCEL: "canceled",
    Verb.HOLD: "put on hold",
    Verb.RELEASE: "released",
    Verb.RETRY: "opened again",
    Verb.REQUEUE: "opened again",
    Verb.EAT: "accepted without output",
}
"""The verbs in the past."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """`states` are those that are requeued, all that have ended if there are none. `with_tasks`: a release of a job is
    also one of its tasks that are on hold on their own. `dry_run`: only what it would touch is said."""

    verb: Verb
    where: Named
    dry_run: bool = False
    states: frozenset[State] = frozenset()
    with_tasks: bool = False


class Office(Protocol):
    """Names are parts of ids; ids are whole. Any call raises NotFound, InvalidInput, and Unavailable."""

    def named(self, text: str) -> Named: ...

    def job_named(self, text: str) -> str: ...

    def worker_named(self, text: str) -> str: ...

    def jobs(self, *, show: str | None, states: Collection[JobState], limit: int) -> list[JobRow]: ...

    def job(self, job_id: str) -> JobCard: ...

    def tasks(self, job_id: str, *, states: Collection[State]) -> list[TaskRow]: ...

    def events(self, job_id: str, *, after: int) -> EventPage: ...

    def why_task(self, where: Named) -> ReasonRow: ...

    def why_job(self, job_id: str) -> JobWhy: ...

    def workers(self, *, gone: bool, limit: int) -> Workers: ...

    def shows(self) -> list[ShowRow]: ...

    def show(self, name: str) -> ShowRow: ...

    def perform(self, order: Order) -> Deed: ...

    def set_priority(self, job_id: str, *, priority: int | None, tier: str | None) -> Deed: ...

    def drain(self, worker_id: str, *, reason: str, dry_run: bool) -> Deed: ...

    def set_share(self, name: str, share: float) -> ShowRow: ...

    def costs(self, asked: CostsAsked) -> CostTable: ...

    def budgets(self) -> list[BudgetRow]: ...

    def budget(self, budget_id: str) -> BudgetCard: ...

    def set_budget(self, asked: BudgetAsked) -> BudgetRow: ...

    def remove_budget(self, budget_id: str) -> BudgetRow: ...
