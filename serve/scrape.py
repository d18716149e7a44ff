"""What `/metrics` says: the farm-wide totals of the ledger as families of Prometheus, as they were a moment ago."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pkgutil import iter_modules

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cluster.ledger import totals
from cluster.ledger.ledger import Ledger
from cluster.ledger.money import FARM_SHOW, FARM_TENANT
from cluster.ledger.outcomes import Backlog
from cluster.ledger.totals import Bill, Capped, Standing, Sums, What
from cluster.metrics import (
    HELD,
    LEDGER,
    MOST_SHOWS,
    OTHER,
    REDEEMED,
    ROLES,
    TABLE,
    TIERS,
    WASTES,
    Kind,
    Labels,
    labelled,
)
from cluster.states import OPEN, JobState
from pipelines import recipes

FRESH_S = 1.0
"""Never so long as between two scrapes: another replica may answer the next one, and its counters must not be older."""
RECIPES = tuple(sorted(module.name for module in iter_modules(recipes.__path__)))
NANO = 1e9
MIB = 1 << 20


class Values:
    """The samples of one scrape."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = defaultdict(dict)

    def add(self, name: str, value: float, **labels: str | None) -> None:
        """What comes twice is summed; 0 says only that the series is there."""
        key = labelled(TABLE[name], labels)
        self._values[name][key] = self._values[name].get(key, 0.0) + value

    def families(self) -> Iterator[Metric]:
        for metric in LEDGER:
            kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.label_names)
            for labels, value in sorted(self._values[metric.name].items()):
                family.add_metric(labels, value)
            yield family


class Scrape:
    """Any thread may ask `registry` for what it collects; those that ask at once wait for one look. It raises
    LedgerUnavailable."""

    def __init__(self, ledger: Ledger, backlog: Callable[[], Backlog]) -> None:
        """`backlog` is the queue as it was a moment ago."""
        self._ledger, self._backlog = ledger, backlog
        self._bill = Bill(lines_come_in_order=ledger.database.is_sqlite)
        self._lock = threading.Lock()
        self._until_s = float("-inf")
        self._seen: list[Metric] = []
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            began_s = time.monotonic()
            if began_s >= self._until_s:
                self._seen = list(self._look(began_s).families())
                self._until_s = began_s + FRESH_S
            return self._seen

    def _look(self, began_s: float) -> Values:
        values = Values()
        bill, now = self._bill.read(self._ledger), self._ledger.view(totals.standing)
        _tell_bill(values, bill)
        _tell_shows(values, bill, now)
        _tell_standing(values, now, self._ledger.clock.now_us())
        _tell_backlog(values, self._backlog(), self._ledger.clock.now_us())
        values.add("farm_collect_seconds", time.monotonic() - began_s)
        return values


def _tell_bill(values: Values, bill: Mapping[What, Sums]) -> None:
    for reason in WASTES:
        values.add("farm_wasted_seconds_total", 0, reason=reason)
        values.add("farm_wasted_usd_total", 0, reason=reason)
    for reason in REDEEMED.values:
        values.add("farm_redeemed_seconds_total", 0, reason=reason)
        values.add("farm_redeemed_usd_total", 0, reason=reason)
    values.add("farm_storage_byte_seconds_total", 0)
    values.add("farm_egress_bytes_total", 0)
    for what, sums in bill.items():
        where = {"accelerator": what.accelerator, "price_class": what.price_class}
        if what.kind in HELD:
            for kind in HELD:  # from 0 on, or the first line of a kind would be no increase
                for name in ("farm_accelerator_seconds", "farm_accelerator_seconds_reversed", "farm_cost_usd"):
                    values.add(f"{name}_total", 0, kind=kind, **where)
                values.add("farm_cost_reversed_usd_total", 0, kind=kind, **where)
            values.add("farm_accelerator_seconds_total", sums.held_us / 1e6, kind=what.kind, **where)
            values.add("farm_accelerator_seconds_reversed_total", sums.reversed_held_us / 1e6, kind=what.kind, **where)
        values.add("farm_cost_usd_total", sums.nano / NANO, kind=what.kind, **where)
        values.add("farm_cost_reversed_usd_total", sums.reversed_nano / NANO, kind=what.kind, **where)
        if what.kind == "wasted":
            why, back = wasted_by(what.note), what.note
            values.add("farm_wasted_seconds_total", sums.held_us / 1e6, reason=why)
            values.add("farm_wasted_usd_total", sums.nano / NANO, reason=why)
            values.add("farm_redeemed_seconds_total", sums.reversed_held_us / 1e6, reason=back)
            values.add("farm_redeemed_usd_total", sums.reversed_nano / NANO, reason=back)
        elif what.kind == "storage":
            values.add("farm_storage_byte_seconds_total", sums.quantity * MIB)
        elif what.kind == "egress":
            values.add("farm_egress_bytes_total", sums.quantity)


def wasted_by(note: str | None) -> str:
    """The reason that a line of waste is noted with, as one of `WASTES`."""
    if note is None or note in WASTES:
        return note or OTHER
    return "canceled" if note.startswith("canceled") else "superseded" if note == "inputs reopened" else OTHER


def _tell_shows(values: Values, bill: Mapping[What, Sums], now: Standing) -> None:
    named = totals.dearest(bill, MOST_SHOWS, now.shows) | {(FARM_TENANT, FARM_SHOW)}
    for what, sums in bill.items():
        tenant, show = (what.tenant, what.show) if (what.tenant, what.show) in named else (OTHER, OTHER)
        net = (sums.nano - sums.reversed_nano) / NANO
        values.add("farm_show_cost_usd", net, tenant=tenant, show=show, kind=what.kind)
    _tell_budgets(values, now.budgets, named)


def _tell_budgets(values: Values, budgets: Sequence[Capped], named: Collection[tuple[str, str]]) -> None:
    """Ids of films are no labels: of the budgets under one name that is told which has the smallest part left."""
    tenants = {tenant for tenant, _ in named}
    least = dict[tuple[str, str, str | None], Capped]()
    for one in sorted(budgets, key=lambda one: one.left_nano / max(1, one.cap_nano)):
        known = one.tenant in tenants if one.show is None else (one.tenant, one.show) in named
        show = one.show if known or one.show is None else OTHER
        least.setdefault((one.scope, one.tenant if known else OTHER, show), one)
    for (scope, tenant, name), one in least.items():
        values.add("farm_budget_cap_usd", one.cap_nano / NANO, scope=scope, tenant=tenant, show=name)
        values.add("farm_budget_left_usd", one.left_nano / NANO, scope=scope, tenant=tenant, show=name)


def _tell_standing(values: Values, now: Standing, now_us: int) -> None:
    for recipe in (*RECIPES, OTHER):
        values.add("farm_jobs_submitted_total", 0, recipe=recipe)
        for state in JobState:
            values.add("farm_jobs", 0, recipe=recipe, state=state)
    for (path, state), num in now.jobs.items():
        recipe = path.removeprefix(f"{recipes.__name__}.")
        recipe = recipe if recipe in RECIPES else OTHER
        values.add("farm_jobs_submitted_total", num, recipe=recipe)
        values.add("farm_jobs", num, recipe=recipe, state=state)
    for open_state in OPEN:
        values.add("farm_tasks", now.tasks.get(open_state, 0), state=open_state)
    for (role, model, accelerator, price_class, drains), num in now.workers.items():
        serving = "draining" if drains else "working"
        where = {"accelerator": accelerator, "price_class": price_class}
        values.add("farm_workers", num, role=role, model=model, state=serving, **where)
    for model, counts in now.tokens.items():
        values.add("farm_chats_total", counts["requests"], model=model)
        for token in ("prompt", "completion", "cached"):
            values.add("farm_tokens_total", counts[f"{token}_tokens"], model=model, token=token)
    values.add("farm_webhooks_waiting", now.num_webhooks)
    values.add("farm_webhooks_oldest_seconds", totals.age_s(now.oldest_webhook_us, now_us))
    values.add("farm_dispatcher_terms_total", now.terms)
    for chore, done_us in now.chores.items():
        age_s = math.inf if done_us is None else totals.age_s(done_us, now_us)
        values.add("farm_reaper_age_seconds", age_s, reaper=chore)
    if now.alive_us is not None:
        values.add("farm_dispatcher_silence_seconds", totals.age_s(now.alive_us, now_us))


def _tell_backlog(values: Values, backlog: Backlog, now_us: int) -> None:
    for role in ROLES:
        values.add("farm_queue_oldest_seconds", totals.age_s(backlog.oldest_ready_us.get(role), now_us), role=role)
        for tier in TIERS:
            values.add("farm_backlog_seconds", backlog.ready_by_tier_s.get((role, tier), 0.0), role=role, tier=tier)
