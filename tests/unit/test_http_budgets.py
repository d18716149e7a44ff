"""`/v1/budgets`, and what a budget makes of requests for work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.budgets import Action, BudgetSpec, Scope, Threshold
from cluster.ledger.hooks import BUDGET_REACHED, HookSpec
from cluster.ledger.keys import Scope as Right
from cluster.ledger.outcomes import Sight
from serve.books import Books
from serve.webhooks import TYPES, about_of
from tests.front_desk import BOAT, FrontDesk, front_desk


@pytest.fixture
def desk(sqlite_url: str, tmp_path: Path) -> Iterator[FrontDesk]:
    with front_desk(sqlite_url, tmp_path) as desk:
        yield desk


def put(desk: FrontDesk, key: str, **body: Any) -> Any:
    return desk.ask("PUT", "/v1/budgets", key=key, json={"scope": "tenant", "cap_usd": "1", **body})


def test_a_budget_is_set_seen_changed_and_taken_away(desk: FrontDesk):
    key = desk.key(Right.ADMIN)
    made = put(desk, key, cap_usd="12.50", period="month").json()
    assert made["budget"].startswith("budget_")
    assert (made["cap_usd"], made["left_usd"], made["currency"]) == ("12.500000000", "12.500000000", "USD")
    assert [(t["at"], t["action"]) for t in made["thresholds"]] == [(0.8, "notify"), (1.0, "hold")]
    again = put(desk, key, cap_usd="3", thresholds=[{"at": 0.5, "action": "cancel"}]).json()
    assert (again["budget"], again["cap_usd"], again["period"]) == (made["budget"], "3.000000000", "total")
    card = desk.ask("GET", f"/v1/budgets/{made['budget']}", key=key).json()
    assert [event["event"] for event in card["log"]] == ["set", "set"]
    assert desk.ask("DELETE", f"/v1/budgets/{made['budget']}", key=key).json() == again
    assert desk.ask("GET", "/v1/budgets", key=key).json()["data"] == []
    assert desk.ask("DELETE", f"/v1/budgets/{made['budget']}", key=key).status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"currency": "EUR"}, "currency"),
        ({"cap_usd": "-1"}, "cap_usd"),
        ({"cap_usd": 1}, "cap_usd"),
        ({"cap_usd": "1e3"}, "cap_usd"),
        ({"scope": "show"}, "subject"),
        ({"scope": "galaxy"}, "scope"),
        ({"thresholds": [{"at": 0, "action": "hold"}]}, "thresholds.0.at"),
        ({"thresholds": [{"at": 1, "action": "explode"}]}, "thresholds.0.action"),
        ({"cap": "1"}, "cap"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_budget_that_is_none_is_refused_with_the_path_of_its_field(desk: FrontDesk, body: dict[str, Any], param: str):
    answer = put(desk, desk.key(Right.ADMIN), **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


def test_another_currency_says_what_to_do(desk: FrontDesk):
    error = put(desk, desk.key(Right.ADMIN), currency="EUR").json()["error"]
    assert error["message"] == "a budget in 'EUR': only USD is accounted; give the cap in USD, as the rate card is"


def test_a_budget_of_a_film_is_of_one_that_is_there(desk: FrontDesk):
    key = desk.key(Right.ADMIN)
    assert put(desk, key, scope="film", subject="film_none").status_code == 404
    film = desk.ask("POST", "/v1/films", key=key, json={"logline": "A red boat crosses the sea"}).json()["id"]
    assert put(desk, key, scope="film", subject=film).json()["subject"] == film
    assert put(desk, desk.key(Right.ADMIN, tenant="other"), scope="film", subject=film).status_code == 404


def test_a_key_of_one_show_sees_its_budgets_and_sets_none(desk: FrontDesk):
    whole, bound = desk.key(Right.ADMIN), desk.key(Right.ADMIN, show="feature")
    for scope in ({"scope": "tenant"}, {"scope": "show", "subject": "feature"}, {"scope": "show", "subject": "other"}):
        assert put(desk, whole, **scope).status_code == 200
    [own] = desk.ask("GET", "/v1/budgets", key=bound).json()["data"]
    assert own["subject"] == "feature"
    assert put(desk, bound, scope="show", subject="feature").status_code == 403
    assert desk.ask("DELETE", f"/v1/budgets/{own['budget']}", key=bound).status_code == 403


def test_work_that_costs_more_than_is_left_is_refused_as_402_and_leaves_nothing(desk: FrontDesk):
    admin, key = desk.key(Right.ADMIN), desk.key(Right.GENERATE, Right.READ)
    put(desk, admin, cap_usd="0.000001")
    answer = desk.ask("POST", "/v1/videos", key=key, json={"prompt": BOAT})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"], error["param"]) == (
        402, "budget_error", "budget_exceeded", "tenant",
    )  # fmt: skip
    assert "$0.0000 left; this is estimated at $" in error["message"]
    assert error["remedy"].startswith("ask for less, raise the cap (farm budget set tenant --cap USD)")
    film = desk.ask("POST", "/v1/films", key=key, json={"logline": "A red boat crosses the sea"})
    assert (film.status_code, desk.ledger.jobs()) == (402, [])
    put(desk, admin, cap_usd="5")
    assert desk.ask("POST", "/v1/videos", key=key, json={"prompt": BOAT}).status_code == 200


def test_a_show_says_what_its_budgets_have_left(desk: FrontDesk):
    key = desk.key(*Right)
    desk.ask("POST", "/v1/videos", key=key, json={"prompt": BOAT})
    [row] = desk.ask("GET", "/v1/shows", key=key).json()["data"]
    assert row["budget_left_usd"] is None
    put(desk, key, cap_usd="5")
    put(desk, key, cap_usd="3", scope="show", subject=row["show"])
    put(desk, key, cap_usd="1", scope="show", subject="another")
    assert desk.ask("GET", f"/v1/shows/{row['show']}", key=key).json()["budget_left_usd"] == "3.000000000"


def test_a_threshold_is_told_under_the_name_of_the_budget(desk: FrontDesk):
    spec = HookSpec(tenant="studio", name="x", url="https://example.com/", topics=(BUDGET_REACHED,))
    desk.ledger.create_hook(spec)
    full = (Threshold(at=1.0, action=Action.HOLD),)
    made = desk.ledger.set_budget(BudgetSpec(tenant="studio", scope=Scope.TENANT, cap_nano=0, thresholds=full))
    [message] = desk.ledger.claim_deliveries(limit=9, each=9, of_tenant=9, beside=(), lease_s=60.0)
    kind = TYPES[message.topic]
    assert (kind, about_of(kind, message.job_id)) == ("budget.threshold_reached", made.id)
    rows = Books(ledger=desk.ledger, farm_runs=None, tenant="studio", sight=Sight(tenant="studio")).budgets()
    assert [(row.acting, row.used) for row in rows] == [(Action.HOLD, None)]
