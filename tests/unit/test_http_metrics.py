"""`/metrics`: what Prometheus reads is what the ledger says, whoever answers and whatever the number of jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parsed
from sqlalchemy import insert, select

from cluster.budgets import BudgetSpec
from cluster.budgets import Scope as BudgetScope
from cluster.errors import FailureClass
from cluster.ledger.keys import Scope
from cluster.ledger.schema import jobs, shows
from cluster.metrics import MOST_SHOWS, TABLE, Source
from cluster.settings import Settings
from cluster.states import Move
from cluster.store.directory import DirectoryStore
from serve.scrape import Scrape, wasted_by
from serve.service import Queue
from tests.front_desk import FrontDesk
from tests.ledger_desk import LedgerDesk, brief, task

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
NANO = 1e9


class Scraped:
    """A ledger with workers in the hand, and what is told of it."""

    def __init__(self, url: str) -> None:
        self.books = LedgerDesk(url)

    def series(self) -> Series:
        """Looked at anew, by a process that has seen nothing before."""
        return series_of(self.anew().collect())

    def anew(self) -> Scrape:
        return Scrape(self.books.ledger, Queue(self.books.ledger).look)

    def value(self, name: str, **labels: str) -> float:
        return self.series()[name, frozenset(labels.items())]

    def net(self, name: str, kind: str) -> float:
        """What was booked less what was taken back."""
        series = self.series()
        where = frozenset({"kind": kind, "accelerator": "cpu", "price_class": "on-demand"}.items())
        return series[f"{name}_total", where] - series[name.replace("_usd", "_reversed_usd") + "_total", where]


def series_of(families: Iterable[Metric]) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def farm(sqlite_url: str) -> Iterator[Scraped]:
    farm = Scraped(sqlite_url)
    yield farm
    farm.books.close()


def test_cost_is_the_bill_to_the_nano_dollar_and_no_counter_falls_when_lines_are_taken_back(farm: Scraped):
    books = farm.books
    job = books.submit(task("a"), task("b"), show="feature")
    first = books.lease(job, "a")
    books.clock.advance(4)
    before = farm.series()
    books.fail(first, FailureClass.INFRA)
    books.run(job, "b", seconds=3)
    after = farm.series()
    fallen = [
        name for (name, labels), value in before.items() if name.endswith("_total") and after[name, labels] < value
    ]
    assert fallen == []
    for kind in ("busy", "wasted", "load", "idle"):
        assert farm.net("farm_cost_usd", kind) == books.ledger.spent(kind=kind).nano / NANO
    assert farm.value("farm_wasted_usd_total", reason="infra") == books.spent("wasted") / NANO > 0
    assert farm.value("farm_wasted_seconds_total", reason="infra") == 4.0
    per_show = {"tenant": "studio", "show": "feature"}
    assert farm.value("farm_show_cost_usd", kind="busy", **per_show) == books.spent("busy", show="feature") / NANO


def test_what_a_later_attempt_made_use_of_is_told_beside_the_waste_not_taken_from_it(farm: Scraped):
    books = farm.books
    job = books.submit(task("a"))
    lost = books.lease(job, "a")
    books.clock.advance(5)
    books.lose(lost)
    assert farm.value("farm_wasted_seconds_total", reason="lost") == 5.0
    books.commit(lost)  # its receipt is found
    assert farm.value("farm_wasted_seconds_total", reason="lost") == 5.0
    assert farm.value("farm_redeemed_seconds_total", reason="adopted") == 5.0


@pytest.mark.parametrize(
    ("note", "reason"),
    [("bug", "bug"), ("stuck", "stuck"), ("canceled by hold", "canceled"), ("inputs reopened", "superseded"),
     (None, "other"), ("a new idea", "other")],
)  # fmt: skip
def test_waste_has_a_closed_set_of_reasons(note: str | None, reason: str):
    assert wasted_by(note) == reason


def test_jobs_and_tasks_are_counted_by_the_state_that_their_rows_say(farm: Scraped):
    books = farm.books
    done = books.submit(task("a"))
    books.run(done, "a")
    books.submit(task("b"), task("c", "b"))
    canceled = books.submit(task("d"))
    books.move(canceled, "d", Move.CANCEL)
    failed = books.submit(task("e"), recipe="tests")
    books.fail(books.lease(failed, "e"), FailureClass.INPUT)
    film = {"recipe": "film"}
    assert farm.value("farm_jobs", state="succeeded", **film) == 1
    assert farm.value("farm_jobs", state="queued", **film) == 1
    assert farm.value("farm_jobs", state="canceled", **film) == 1
    assert farm.value("farm_jobs", state="failed", recipe="other") == 1
    assert farm.value("farm_jobs_submitted_total", **film) == 3
    assert (farm.value("farm_tasks", state="ready"), farm.value("farm_tasks", state="pending")) == (1, 1)
    books.move(done, "a", Move.REOPEN)
    assert (farm.value("farm_jobs", state="succeeded", **film), farm.value("farm_jobs", state="queued", **film)) == (
        0,
        2,
    )


def test_the_queue_the_workers_and_the_dispatcher_are_told_as_they_are(farm: Scraped):
    books = farm.books
    books.submit(task("a", weight=7.0), tier="batch")
    books.clock.advance(90)
    books.ledger.say_alive(books.term)
    books.ledger.tell_chore("sweep-store", error=None)
    books.ledger.tell_chore("meter", error="the store is away")
    books.clock.advance(2)
    books.ledger.drain("w2", reason="it is old")
    assert farm.value("farm_queue_oldest_seconds", role="render") == 92.0
    assert farm.value("farm_backlog_seconds", role="render", tier="batch") == 7.0
    assert farm.value("farm_dispatcher_silence_seconds") == 2.0
    assert farm.value("farm_dispatcher_terms_total") == 1
    assert farm.value("farm_reaper_age_seconds", reaper="sweep-store") == 2.0
    assert farm.value("farm_reaper_age_seconds", reaper="meter") == float("inf")  # it has never succeeded
    worker = {"role": "render", "model": "none", "accelerator": "cpu", "price_class": "on-demand"}
    assert farm.value("farm_workers", state="working", **worker) == 1
    assert farm.value("farm_workers", state="draining", **worker) == 1


def test_shows_beyond_the_fifty_that_cost_most_are_one_series_and_nothing_is_lost(farm: Scraped):
    books = farm.books
    for n in range(MOST_SHOWS + 5):
        job = books.submit(task(f"t{n}"), show=f"show{n:02}")
        books.run(job, f"t{n}", seconds=float(n + 1))
    found = {
        dict(labels)["show"]: value
        for (name, labels), value in farm.series().items()
        if name == "farm_show_cost_usd" and dict(labels)["kind"] == "busy"
    }
    assert set(found) == {f"show{n:02}" for n in range(5, MOST_SHOWS + 5)} | {"other"}
    assert found["other"] == pytest.approx(sum(range(1, 6)) * 0.001)
    assert sum(found.values()) == pytest.approx(books.spent("busy") / NANO)


def test_of_budgets_their_cap_is_told_and_what_they_have_left(farm: Scraped):
    """Less what runs has reserved; under one name the budget that has the smallest part left, films by their show."""
    books, ledger = farm.books, farm.books.ledger

    def cap(usd: float, scope: BudgetScope, subject: str = "", tenant: str = "studio") -> None:
        spec = BudgetSpec(tenant=tenant, scope=scope, subject=subject, cap_nano=round(usd * NANO))
        ledger.set_budget(spec)

    film, _ = ledger.submit_film(brief(show="trailer"), [task("a"), task("b")])
    other, _ = ledger.submit_film(brief(show="trailer"), [task("c")])
    cap(4.0, BudgetScope.TENANT)
    cap(2.0, BudgetScope.SHOW, "trailer")
    cap(1.0, BudgetScope.FILM, film)
    cap(0.5, BudgetScope.FILM, other)
    cap(8.0, BudgetScope.SHOW, "unborn")
    cap(9.0, BudgetScope.TENANT, tenant="rich")
    books.run(film.replace("film_", "job_"), "a", seconds=300.0)
    cap_of = {key[1]: value for key, value in farm.series().items() if key[0] == "farm_budget_cap_usd"}
    left_of = {key[1]: value for key, value in farm.series().items() if key[0] == "farm_budget_left_usd"}
    names = [
        {"scope": "tenant", "tenant": "studio", "show": "none"},
        {"scope": "show", "tenant": "studio", "show": "trailer"},
        {"scope": "film", "tenant": "studio", "show": "trailer"},
        {"scope": "show", "tenant": "other", "show": "other"},
        {"scope": "tenant", "tenant": "other", "show": "none"},
    ]
    keys = [frozenset(name.items()) for name in names]
    assert cap_of == dict(zip(keys, [4.0, 2.0, 1.0, 8.0, 9.0], strict=True))
    assert left_of == pytest.approx(dict(zip(keys, [3.7, 1.7, 0.7, 8.0, 9.0], strict=True)))
    books.lease(film.replace("film_", "job_"), "b")
    reserved = next(budget.reserved_nano for budget in ledger.budgets() if budget.spec.subject == film)
    assert farm.value("farm_budget_left_usd", **names[2]) == pytest.approx(0.7 - reserved / NANO)


def test_a_show_that_was_erased_is_named_no_more(farm: Scraped):
    books = farm.books
    books.run(books.submit(task("a"), show="secret"), "a")
    assert farm.value("farm_show_cost_usd", tenant="studio", show="secret", kind="busy") > 0
    books.ledger.database.transaction(lambda c: c.execute(shows.delete().where(shows.c.name == "secret")))
    assert not any("secret" in dict(labels).values() for _, labels in farm.series())


def test_ten_thousand_jobs_add_no_series(farm: Scraped):
    books = farm.books
    job = books.submit(task("a"))
    books.run(job, "a")
    before = farm.series()

    def many(connection: Any) -> None:
        row = dict(connection.execute(select(jobs)).one()._mapping)
        more = [row | {"id": f"job_{n}", "idempotency_key": f"key-{n}", "title": f"job {n}"} for n in range(10_000)]
        connection.execute(insert(jobs), more)

    books.ledger.database.transaction(many)
    after = farm.series()
    assert after.keys() == before.keys()
    assert farm.value("farm_jobs", recipe="film", state="succeeded") == 10_001


def test_prometheus_gets_the_format_it_asks_for_and_every_name_is_of_the_table(
    farm: Scraped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve.scrape.FRESH_S", 3600.0)  # both formats tell one look
    farm.books.run(farm.books.submit(task("a")), "a")
    front = FrontDesk(farm.books.ledger, DirectoryStore(tmp_path), Settings(home=tmp_path))
    operator = front.key(Scope.OPERATE)
    plain = front.ask("GET", "/metrics", key=operator)
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    modern = front.ask("GET", "/metrics", key=operator, headers=accept)
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert series_of(openmetrics(modern.text)) == series_of(parsed(plain.text))
    named = {name for name, _ in series_of(parsed(plain.text))}
    assert named <= {name for name, metric in TABLE.items() if metric.source is Source.LEDGER}
    for one in named:
        assert f"# HELP {one} " in plain.text
    assert "job_" not in plain.text.replace("farm_job", "")
    assert "task_" not in plain.text
    for refused in (
        front.key(Scope.READ, Scope.GENERATE),
        front.key(Scope.OPERATE, tenant="another"),
        front.key(Scope.OPERATE, show="feature"),
    ):
        assert front.ask("GET", "/metrics", key=refused).status_code == 403
    assert front.ask("GET", "/metrics", key="").status_code == 401
    assert front.ask("GET", "/metrics", key=front.key(Scope.ADMIN)).status_code == 200


def test_a_process_that_has_looked_before_says_the_same_as_one_that_begins_anew(farm: Scraped):
    books = farm.books
    books.run(books.submit(task("a")), "a", seconds=2)
    follows = farm.anew()
    list(follows.collect())
    books.run(books.submit(task("b")), "b", seconds=3)
    follows._until_s = float("-inf")
    going_on, anew = series_of(follows.collect()), farm.series()
    took = ("farm_collect_seconds", frozenset[tuple[str, str]]())
    assert going_on | {took: anew[took]} == anew


def test_promtool_finds_nothing_to_say_about_the_metrics(farm: Scraped):
    if "CI" not in os.environ and shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt install prometheus")
    books = farm.books
    books.fail(books.lease(books.submit(task("a")), "a"), FailureClass.INFRA)
    text = generate_latest(farm.anew().registry)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
