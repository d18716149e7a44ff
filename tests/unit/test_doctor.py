"""`farm doctor`: what it finds of a farm that is well, and of one that cannot work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StoreUnavailable
from cluster.ledger.ledger import Ledger
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from serve.cli.main import run
from serve.doctor import Finding, Verdict, examine


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


def test_checks_stand_on_their_own(tmp_path: Path) -> None:
    def breaks(_: Settings) -> Iterator[Finding]:
        yield Finding(check="first", verdict=Verdict.OK, said="well")
        raise StoreUnavailable("away", remedy="wait")

    def works(_: Settings) -> Iterator[Finding]:
        yield Finding(check="second", verdict=Verdict.OK, said="well")

    rows = list(examine(Settings(home=tmp_path), {"breaks": breaks, "works": works}))
    assert [(row.check, row.verdict) for row in rows] == [("first", "ok"), ("breaks", "failed"), ("second", "ok")]
    assert (rows[1].said, rows[1].remedy) == ("away", "wait")
