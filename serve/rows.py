"""Jobs, tasks, workers, shows and keys as data: what `--json` prints, what tables are drawn from, what HTTP answers.

`serve.clerk` makes them from the ledger. Money is text, exact; instants are ISO 8601 in UTC; null is: not known.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from cluster.budgets import Action, Period, Scope
from cluster.states import JobState, State

R = TypeVar("R")


class Row(BaseModel):
    model_config = ConfigDict(frozen=True)

    def plain(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


class Page(Row, Generic[R]):
    """Some of a list. What follows: the same question with `after` set to `last_id`."""

    object: str = "list"
    data: list[R]
    last_id: str | None
    has_more: bool


class Named(Row):
    """A job or, if `task` is its key and `id` its id, one task of it."""

    job: str
    task: str | None = None
    id: str | None = None

    @property
    def name(self) -> str:
        return self.job if self.task is None else f"{self.job}/{self.task}"


class JobRow(Row):
    job: str
    title: str
    state: JobState
    held: bool = Field(description="It gets no new work; what runs goes on")
    tenant: str
    show: str
    recipe: str
    version: int
    tier: str
    priority: int
    deadline: str | None
    tasks: int
    counts: dict[str, int] = Field(description="Its tasks by state")
    events: int = Field(description="The number of its newest event")
    created: str
    ended: str | None
    cost_usd: str


class TaskRow(Row):
    job: str
    task: str = Field(description="Its key, unique within its job")
    id: str
    step: str
    role: str
    model: str | None
    state: State
    reason: str | None
    generation: int
    attempts: int = Field(description="In this generation")
    failures: dict[str, int]
    worker: str | None
    seconds: float | None = Field(description="Of its newest attempt")
    cost_usd: str


class Seconds(Row):
    p50: float = Field(description="The median")
    p95: float = Field(description="What 19 of 20 stay below")


class Dollars(Row):
    p50: str
    p95: str
    currency: Literal["USD"] = "USD"


class EstimatedStep(Row):
    """Tasks of one kind. Dollars are tasks x predicted seconds x ratio x price of the worker."""

    step: str
    role: str
    model: str | None
    tasks: int
    predicted_seconds: float = Field(description="Of each task, as its recipe says")
    ratio: Seconds = Field(description="Actual over predicted seconds, learned from earlier attempts")
    samples: int = Field(description="How many attempts that was learned from; 0: nothing is known, and p95 is a guess")
    workers: int = Field(description="Who takes such tasks now; 0: nobody, the price is that of the last who did")
    accelerator: str
    accelerators: int = Field(description="Of each worker; 0: it is a cpu")
    price_class: str
    usd_per_hour: str = Field(description="Of a whole worker")
    rate_card: str
    accelerator_seconds: Seconds
    cost: Dollars


class Estimate(Row):
    object: Literal["estimate"] = "estimate"
    kind: str
    wait_seconds: Seconds | None = Field(description="In the queue as it is now; null: nobody is here who could begin")
    seconds: Seconds = Field(description="From its beginning to its end")
    accelerator_seconds: Seconds
    cost: Dollars
    steps: list[EstimatedStep]


class Estimated(Row):
    """What a job is likely to cost in all, and to take: of one that runs, from now to its end."""

    cost: Dollars
    seconds: Seconds
    made: Literal["at submit", "while it runs"]


class JobCard(JobRow):
    """All about one job."""

    estimate: Estimated | None = Field(description="null: nothing was said at its submit")
    cost_by_kind_usd: dict[str, str] = Field(description="`running` is what is not booked yet")
    running: list[TaskRow]
    files: list[dict[str, Any]]


class EventRow(Row):
    """What happened, as one event of a job; which more members there are depends on `event`."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    seq: int
    at: str
    job: str
    event: str
    task: str | None = None
    attempt: str | None = None
    epoch: int | None = None
    came_from: str | None = Field(default=None, alias="from")
    state: str | None = None

    def plain(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class EventPage(Row):
    object: str = "list"
    data: list[EventRow]
    last_id: str | None = Field(None, description="The number of the last event: `after` for what follows")
    has_more: bool
    over: bool = Field(description="The job was over before these events were read: no more come unless it is reopened")


class Running(Row):
    job: str
    task: str


class WorkerRow(Row):
    worker: str
    fleet: str
    role: str
    model: str | None
    node: str
    accelerator: str
    accelerators: int
    price_class: str
    state: str = Field(description="busy, idle, draining or gone")
    drain_reason: str | None
    running: list[Running]
    others: int = Field(description="How many more tasks it runs, which are not for this key to see")
    held_since: str
    left: str | None
    cost_usd: str
    cost_by_kind_usd: dict[str, str]


class Workers(Row):
    object: str = "list"
    data: list[WorkerRow]
    farm_runs: bool | None = Field(description="null: not to be seen from where this was answered")


class HoldRow(Row):
    what: str
    text: str
    eta_s: float | None
    remedy: str | None


class ReasonRow(Row):
    """Why a task does not run: all that holds it back."""

    job: str
    task: str
    state: State
    said: str
    holds: list[HoldRow]
    eta_s: float | None = Field(description="Until it starts or, if it runs, ends; null: see `holds`")
    waits_for_somebody: bool
    remedy: str | None


class JobWhy(Row):
    """The tasks of a job that something holds up, one by one, and how many others are in which state."""

    job: str
    state: JobState
    held: bool
    over: bool
    tasks: list[ReasonRow]
    others: dict[str, int]


class Deed(Row):
    """What an order touches, or has done. Members that say nothing of it are left out."""

    verb: str
    job: str | None = None
    task: str | None = None
    worker: str | None = None
    workers: int | None = Field(default=None, description="How many it drains; 0: it was drained before")
    tasks: int | None = Field(default=None, description="How many it touches or, once done, has moved")
    states: dict[str, int] | None = Field(default=None, description="Those tasks by the state they were in")
    spent_usd: str | None = Field(default=None, description="What was spent on them by then")
    stale: int | None = Field(default=None, description="Tasks built on them that would be older than their inputs")
    left_out: list[str] | None = Field(default=None, description="Cannot run again: tasks were made from them, once")
    running: list[str] | None = None
    others: int | None = Field(default=None, description="Tasks that it runs, not for this key to see")
    reason: str | None = None
    tier: str | None = None
    priority: int | None = None
    farm_runs: bool | None = None
    done: bool = Field(description="False: nothing was changed")

    def plain(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


class ShowRow(Row):
    show: str
    tenant: str
    share: float = Field(description="Its weight beside the other shows that have work")
    running: int = Field(description="Tasks")
    waiting: int = Field(description="Tasks that are ready, or wait for others or to be tried again")
    jobs: int = Field(description="That are not over")
    spent_usd: str = Field(description="Of all its jobs, as far as it is booked")
    budget_left_usd: str | None = Field(
        default=None, description="The least that its own budget and its tenant's have left; null: it has none"
    )


class ThresholdRow(Row):
    at: float = Field(description="Of the cap")
    action: Action


class BudgetAsked(Row):
    """A budget as somebody wants it; `thresholds` None: the usual ones."""

    scope: Scope
    subject: str = ""
    cap_usd: str
    currency: str = "USD"
    period: Period = Period.TOTAL
    thresholds: list[ThresholdRow] | None = None


class BudgetRow(Row):
    budget: str
    tenant: str
    scope: Scope
    subject: str = Field(description="A show's name, or a film's id; empty: the tenant")
    currency: str = "USD"
    cap_usd: str
    spent_usd: str = Field(description="Booked, in this period")
    reserved_usd: str = Field(description="By what runs, beyond what is booked of it")
    left_usd: str = Field(description="Below zero: so far past its cap it is, or was when the cap was set")
    used: float | None = Field(description="Spent, of the cap; null: the cap is zero")
    period: Period
    period_began: str | None
    period_ends: str | None
    thresholds: list[ThresholdRow]
    acting: Action | None = Field(description="The gravest of the thresholds that were reached")
    created: str
    changed: str


class BudgetEvent(Row):
    at: str
    event: str
    text: str
    data: dict[str, Any]


class BudgetCard(BudgetRow):
    """One budget, and what happened to it, the newest first."""

    log: list[BudgetEvent]


class KeyRow(Row):
    """A key; of its secret no more than the beginning."""

    key: str
    name: str
    tenant: str
    show: str | None
    scopes: list[str]
    prefix: str
    requests_per_minute: int | None
    in_flight_s: float | None
    tokens_per_minute: int | None
    created: str
    used: str | None
    rotated: str | None
    old_until: str | None
    revoked: str | None


class KeyAsked(Row):
    """What a new key is to be; `tenant` None: that of who asks."""

    name: str
    tenant: str | None = None
    show: str | None = None
    scopes: list[str]
    requests_per_minute: int | None = None
    in_flight_s: float | None = None
    tokens_per_minute: int | None = None


class NewKey(KeyRow):
    secret: str = Field(repr=False, description="Shown this once")


class AssetRow(Row):
    """A file that the farm keeps, by its content."""

    asset: str = Field(description="Its SHA-256")
    tenant: str
    show: str = Field(description="Which pays for its room")
    key: str = Field(description="Where it lies in the store")
    size_bytes: int
    media_type: str
    created: str
    marked: str | None = Field(description="Since then nobody needs it")


class Verified(Row):
    asset: str
    size_bytes: int
    whole: bool
    said: str | None = Field(description="What is wrong with it")


class Collected(Row):
    """What a collection would do, or has done."""

    jobs: int = Field(description="That give up the files of theirs")
    marked: int = Field(description="Files that nobody needs, and that go when their mark is old enough")
    marked_bytes: int
    strays: int = Field(description="Of those, how many no job ever named")
    removed: int
    removed_bytes: int
    done: bool = Field(description="False: nothing was changed")
