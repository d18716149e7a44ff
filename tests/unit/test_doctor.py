"""`farm doctor`: what it finds of a farm that is well, and of one that cannot work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.budgets import BudgetSpec, Scope
from cluster.errors import StoreRefused, StoreUnavailable
from cluster.ledger.ledger import Ledger
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from cluster.store.port import Capabilities
from serve.cli.main import run
from serve.doctor import Finding, Verdict, examine
from tests.ledger_desk import brief, task


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def found(capsys: pytest.CaptureFixture[str], *, code: int = 0) -> dict[str, dict[str, Any]]:
    assert run(["doctor", "--json"]) == code
    return {row["check"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}


def test_a_home_without_a_farm_is_well_and_stays_untouched(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {row["verdict"] for row in found(capsys).values()} == {"ok"}
    assert not home.exists()


def test_a_farm_that_has_worked_shows_what_its_store_can_and_leaves_nothing_in_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    store = DirectoryStore(home / "store")
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}")
    ledger.tell_chore("sweep-store", error=None)
    ledger.close()
    rows = found(capsys)
    assert rows["store"]["facts"]["conditional_write"] is True
    assert rows["store round trip"]["verdict"] == rows["ledger"]["verdict"] == "ok"
    assert rows["chore sweep-store"]["facts"]["age_s"] < 3600
    assert list(store.list("studio/")) == []
    assert run(["doctor"]) == 0
    assert "chore sweep-store: last done at" in capsys.readouterr().out


def test_a_budget_of_a_show_or_film_that_is_not_there_is_named_with_its_remedy(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}")
    film, _ = ledger.submit_film(brief(show="trailer"), [task("a")])
    kept, _ = ledger.submit_film(brief(show="trailer"), [task("b")])
    for scope, subject in [("tenant", ""), ("show", "trailer"), ("show", "trialer"), ("film", film), ("film", kept)]:
        ledger.set_budget(BudgetSpec(tenant="studio", scope=Scope(scope), subject=subject, cap_nano=10**9))
    assert found(capsys)["budgets"]["said"] == "5, in USD as the rate card is"
    ledger.delete_film(film)
    ledger.close()
    rows = found(capsys)
    show, lost = rows["budget of show trialer"], rows[f"budget of film {film}"]
    assert (show["verdict"], lost["verdict"]) == ("warning", "warning")
    assert show["said"] == "the show trialer has no work yet, or none of its name"
    assert show["remedy"] == "`farm shows` names those that are there; farm budget rm show trialer --yes"
    assert lost["said"] == f"the film {film} was deleted"
    assert lost["remedy"] == f"farm budget rm film {film} --yes"
    assert sum(name.startswith("budget of") for name in rows) == 2


def test_a_budget_that_is_named_is_that_of_this_tenant(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}")
    for tenant, dollars in (("acme", 5), ("studio", 7)):
        spec = BudgetSpec(tenant=tenant, scope=Scope.SHOW, subject="pilot", cap_nano=dollars * 10**9)
        ledger.set_budget(spec)
    ledger.close()
    remedy = found(capsys)["budget of show pilot"]["remedy"]
    assert run(["budget", "rm", "show", "pilot", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tenant"] == "studio"
    assert run(["budget", "rm", "show", "pilot", "--yes"]) == 2
    assert "FARM_TENANT says whose is meant" in capsys.readouterr().err
    assert found(capsys)["budget of show pilot"]["remedy"] != remedy
    assert "; FARM_TENANT=acme farm budget rm show pilot --yes" in found(capsys)["budget of show pilot"]["remedy"]
    monkeypatch.setenv("FARM_TENANT", "acme")
    assert run(["budget", "rm", "show", "pilot", "--yes"]) == 0


def test_a_rate_card_in_another_currency_than_budgets_is_named_with_its_remedy(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (home / "rates.yaml").write_text("version: v\ncurrency: EUR\nrates: []\n")
    monkeypatch.setenv("FARM_RATE_CARD", str(home / "rates.yaml"))
    row = found(capsys, code=1)["rate card"]
    assert row["said"] == "the rate card is in EUR; only USD is accounted"
    assert row["remedy"] == "give its prices in USD, as budgets are (FARM_RATE_CARD)"


def test_a_store_that_cannot_be_used_is_named_with_the_remedy_and_the_others_are_looked_at(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").parent.mkdir()
    (home / "file").write_text("in the way")
    monkeypatch.setenv("FARM_STORE", str(home / "file" / "store"))
    rows = found(capsys, code=1)
    assert rows["store"]["verdict"] == "failed"
    assert rows["store"]["facts"]["code"] == StoreUnavailable.code
    assert rows["store"]["remedy"]
    assert rows["home"]["verdict"] == "ok"


def test_what_a_store_lacks_is_said_with_what_follows_and_what_its_keys_may_not_do_fails(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands for a server that can do less, and for keys that may not look for uploads."""

    def refuses(*, older_than_s: float) -> int:
        raise StoreRefused("the keys may not do this: looking for what was never finished", remedy="give the right")

    store = DirectoryStore(home / "store")
    less = Capabilities(conditional_write=False, server_checksum=True, lifecycle=False, presigned_urls=True)
    monkeypatch.setattr(store, "capabilities", lambda: less)
    monkeypatch.setattr(store, "sweep", refuses)
    monkeypatch.setattr("serve.doctor.open_store", lambda settings: store)
    assert run(["doctor", "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    can, trip, swept = (row for row in rows if row["check"].startswith("store"))
    assert (can["verdict"], trip["verdict"], swept["verdict"]) == ("warning", "ok", "failed")
    assert "server checksum, presigned urls; no conditional write: of two writers" in can["said"]
    assert "no lifecycle: the farm itself sweeps" in can["said"]
    assert can["remedy"]
    assert "never finished" in swept["said"]


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (None, "cannot read the rate card"),
        ("version: x\nrates: [{accelerator: cpu, price_class: on-demand, usd_per_hour: -1, since: 2026-01-01}]", "-1"),
        ("version: x\nrates: []", "has no price for cpu"),
        ("version: x\ncurrency: EUR\nrates: []", "is in EUR"),
    ],
    ids=["not there", "a negative price", "a gap", "another currency"],
)
def test_a_bad_rate_card_is_named_with_its_remedy(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    card: str | None, said: str,
) -> None:  # fmt: skip
    path = tmp_path / "card.yaml"
    if card is not None:
        path.write_text(card)
    monkeypatch.setenv("FARM_RATE_CARD", str(path))
    assert run(["doctor", "--json"]) == 1
    row = next(one for one in map(json.loads, capsys.readouterr().out.splitlines()) if one["check"] == "rate card")
    assert row["verdict"] == "failed"
    assert said in row["said"]
    assert "FARM_RATE_CARD" in row["remedy"]


def test_checks_stand_on_their_own(tmp_path: Path) -> None:
    def breaks(_: Settings) -> Iterator[Finding]:
        yield Finding(check="first", verdict=Verdict.OK, said="well")
        raise StoreUnavailable("away", remedy="wait")

    def works(_: Settings) -> Iterator[Finding]:
        yield Finding(check="second", verdict=Verdict.OK, said="well")

    rows = list(examine(Settings(home=tmp_path), {"breaks": breaks, "works": works}))
    assert [(row.check, row.verdict) for row in rows] == [("first", "ok"), ("breaks", "failed"), ("second", "ok")]
    assert (rows[1].said, rows[1].remedy) == ("away", "wait")
