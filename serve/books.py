"""The books of a farm, as somebody may see them: its ledger behind the port of operators."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from cluster import farm_lock
from cluster.budgets import DEFAULT, Budget, BudgetSpec, Scope, Threshold
from cluster.errors import InvalidInput, NotFound
from cluster.ledger import budgets as budget_rows
from cluster.ledger import names, outcomes, rosters, views
from cluster.ledger.jobs import Job
from cluster.ledger.ledger import Ledger
from cluster.ledger.outcomes import Sight
from cluster.ledger.upkeep import file_of
from cluster.rates import NANO
from cluster.settings import Settings
from cluster.states import JobState, State
from serve import clerk, deeds, inquiry, naming
from serve.costs import CostsAsked, CostTable, cost_table
from serve.foresight import Foresight, estimated
from serve.office import Order
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
    Page,
    ReasonRow,
    ShowRow,
    TaskRow,
    Workers,
)

EVENTS = 1_000
"""At most so many in one page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Books:
    """A ledger, as `sight` may see it. `tenant` is whose shows are meant by a name alone.

    `farm_runs` None: another machine may have a farm on it, which is not to be seen from here.
    """

    ledger: Ledger
    farm_runs: bool | None
    tenant: str
    sight: Sight = field(default_factory=Sight)
    foresight: Callable[[], Foresight] | None = None

    @property
    def live_us(self) -> int | None:
        """The instant up to which running attempts cost something."""
        return None if self.farm_runs is False else self.ledger.clock.now_us()

    def named(self, text: str) -> Named:
        return naming.job_or_task(self.ledger, self.sight, text)

    def job_named(self, text: str) -> str:
        return naming.job(self.ledger, self.sight, text)

    def task_named(self, task_id: str) -> Named:
        """By its whole id."""
        return naming.task(self.ledger, self.sight, task_id)

    def worker_named(self, text: str) -> str:
        return naming.worker(self.ledger, text)

    def jobs(self, *, show: str | None, states: Collection[JobState], limit: int) -> list[JobRow]:
        return self.job_page(show=show, states=states, limit=limit, after=None).data

    def job_page(
        self, *, show: str | None, states: Collection[JobState], limit: int, after: str | None
    ) -> Page[JobRow]:
        """Newest first."""
        live_us = self.live_us
        lines = self.ledger.view(
            lambda c: views.job_list(
                c, sight=self.sight, show=show, states=states, limit=limit + 1, live_us=live_us, after=after
            )
        )
        rows = [clerk.job_row(line.job, line.nano) for line in lines[:limit]]
        return Page(data=rows, last_id=rows[-1].job if rows else None, has_more=len(lines) > limit)

    def job(self, job_id: str) -> JobCard:
        live_us, now_us = self.live_us, self.ledger.clock.now_us()
        found = self._job(job_id)
        outcome = self.ledger.view(lambda c: outcomes.of_jobs(c, [found]))[0]
        seen = None if found.over or self.foresight is None else self.foresight()
        estimate = estimated(seen, outcome)
        nano = self.ledger.view(lambda c: views.nano_by_kind(c, job_id, live_us))
        files = self.ledger.view(lambda c: views.job_files(c, job_id))
        running = self.ledger.view(
            lambda c: views.task_list(c, job_id, states=[State.RUNNING], now_us=now_us, live_us=live_us)
        )
        return clerk.job_card(found, estimate=estimate, nano=nano, running=running, files=files)

    def tasks(self, job_id: str, *, states: Collection[State]) -> list[TaskRow]:
        return self.task_page(job_id, states=states, limit=None, after=None).data

    def task_page(
        self, job_id: str, *, states: Collection[State], limit: int | None, after: str | None
    ) -> Page[TaskRow]:
        """In the order of the graph; `after` is the id of a task."""
        self._job(job_id)
        now_us, live_us = self.ledger.clock.now_us(), self.live_us
        lines = self.ledger.view(
            lambda c: views.task_list(
                c,
                job_id,
                states=states,
                now_us=now_us,
                live_us=live_us,
                after=after,
                limit=None if limit is None else limit + 1,
            )
        )
        rows = [clerk.task_row(job_id, line) for line in lines[:limit]]
        return Page(data=rows, last_id=rows[-1].id if rows else None, has_more=len(lines) > len(rows))

    def events(self, job_id: str, *, after: int, limit: int = EVENTS) -> EventPage:
        over = self._job(job_id).over  # asked before the events are read, so that none of them is missed
        page = self.ledger.events(job_id, after=after, limit=limit + 1)
        keys = self.ledger.view(lambda c: names.keys_by_id(c, {e.task_id for e in page if e.task_id is not None}))
        rows = [clerk.event_row(event, keys) for event in page[:limit]]
        return EventPage(
            data=rows, last_id=str(rows[-1].seq) if rows else None, has_more=len(page) > limit, over=over
        )  # fmt: skip

    def why_task(self, where: Named) -> ReasonRow:
        return inquiry.of_task(self.ledger, where, sight=self.sight, farm_runs=self.farm_runs)

    def why_job(self, job_id: str) -> JobWhy:
        return inquiry.of_job(self.ledger, self._job(job_id), sight=self.sight, farm_runs=self.farm_runs)

    def workers(self, *, gone: bool, limit: int) -> Workers:
        live_us = self.live_us
        lines = self.ledger.view(
            lambda c: rosters.worker_list(c, sight=self.sight, gone=gone, limit=limit, live_us=live_us)
        )
        return Workers(data=[clerk.worker_row(line) for line in lines], farm_runs=self.farm_runs)

    def shows(self) -> list[ShowRow]:
        lines = self.ledger.view(
            lambda c: rosters.show_list(c, tenant=self.sight.tenant, show=self.sight.show)
        )  # fmt: skip
        left = self._left(self.sight.tenant)
        return [clerk.show_row(line, left(line.tenant, line.name)) for line in lines]

    def show(self, name: str) -> ShowRow:
        seen = self.sight.show in (None, name)
        lines = self.ledger.view(lambda c: rosters.show_list(c, tenant=self.tenant, show=name))
        if not lines or not seen:
            raise NotFound("no such show", field="show", remedy="`farm shows` lists them")
        return clerk.show_row(lines[0], self._left(self.tenant)(self.tenant, name))

    def budgets(self) -> list[BudgetRow]:
        found = self.ledger.budgets(self.sight.tenant, self.sight.show)
        return [clerk.budget_row(budget) for budget in found]

    def budget(self, budget_id: str) -> BudgetCard:
        found = self._budget(budget_id)
        return clerk.budget_card(found, self.ledger.view(lambda c: budget_rows.history(c, found.id)))

    def set_budget(self, asked: BudgetAsked) -> BudgetRow:
        given = None if asked.thresholds is None else [Threshold(at=x.at, action=x.action) for x in asked.thresholds]
        try:
            cap_nano = int(Decimal(asked.cap_usd) * NANO)
        except (ArithmeticError, ValueError) as error:
            raise InvalidInput(f"{asked.cap_usd!r} is no amount of dollars", field="cap_usd") from error
        spec = BudgetSpec(
            tenant=self.tenant, scope=asked.scope, subject=asked.subject, cap_nano=cap_nano, period=asked.period,
            thresholds=DEFAULT if given is None else tuple(given), currency=asked.currency,
        )  # fmt: skip
        return clerk.budget_row(self.ledger.set_budget(spec))

    def remove_budget(self, budget_id: str) -> BudgetRow:
        found = self._budget(budget_id)
        self.ledger.remove_budget(found.spec.tenant, found.id)
        return clerk.budget_row(found)

    def _budget(self, budget_id: str) -> Budget:
        for one in self.ledger.budgets(self.sight.tenant, self.sight.show):
            if one.id == budget_id:
                return one
        raise NotFound("no such budget", field="budget", remedy="`farm budget ls` lists them")

    def _left(self, tenant: str | None) -> Callable[[str, str], int | None]:
        """By tenant and show, the least that the budgets above it have left."""
        found = self.ledger.budgets(tenant)

        def left(of: str, show: str) -> int | None:
            above = ((Scope.TENANT, ""), (Scope.SHOW, show))
            mine = [b.left_nano for b in found if b.spec.tenant == of and (b.spec.scope, b.spec.subject) in above]
            return min(mine, default=None)

        return left

    def perform(self, order: Order) -> Deed:
        self._job(order.where.job)
        return deeds.perform(self.ledger, order, live_us=self.live_us, farm_runs=self.farm_runs)

    def set_priority(self, job_id: str, *, priority: int | None, tier: str | None) -> Deed:
        self._job(job_id)
        return deeds.set_priority(self.ledger, job_id, priority=priority, tier=tier)

    def drain(self, worker_id: str, *, reason: str, dry_run: bool) -> Deed:
        return deeds.drain(self.ledger, worker_id, reason=reason, dry_run=dry_run, sight=self.sight)

    def set_share(self, name: str, share: float) -> ShowRow:
        self.ledger.set_share(self.tenant, name, share)
        return self.show(name)

    def costs(self, asked: CostsAsked) -> CostTable:
        """Of a key that is bound to a show that show alone. Raises InvalidInput."""
        return cost_table(self.ledger, asked, self.sight)

    def _job(self, job_id: str) -> Job:
        try:
            return self.ledger.view(lambda c: outcomes.seen(c, self.sight, job_id))
        except NotFound as error:
            raise NotFound("no such job", field="job", remedy="`farm ls` lists them") from error


def farm_runs(settings: Settings) -> bool | None:
    """A farm of this FARM_HOME is seen by its lock. One of another home is not, if the ledger is somewhere else."""
    inside = file_of(settings.ledger) == Path(settings.home) / "ledger.db"
    return True if farm_lock.is_held(settings.home) else False if inside else None
