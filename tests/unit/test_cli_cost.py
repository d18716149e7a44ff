"""`farm cost`: what it prints, draws and refuses; `farm cost check`, which finds a wrong line and says whose it is."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image

from cluster.errors import InvalidSettings
from cluster.ledger.costs import By
from cluster.ledger.ledger import Ledger
from cluster.ledger.meters import Leaving
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from serve.cli import cost_pictures
from serve.cli.main import run
from serve.costs import CostRow, CostTable
from serve.doctor import examine
from serve.upkeep import chores_of
from tests.left_farm import left_farm


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """A home with the ledger of a farm that has left; what a command printed, and how it ended."""

    home: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *argv: str, code: int = 0) -> str:
        ended = run(["cost", *argv])
        out, err = self.capsys.readouterr()
        assert ended == code, out + err
        return out + err

    def rows(self, *argv: str, code: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self(*argv, "--json", code=code).splitlines()]

    def spoil(self, statement: str) -> None:
        with closing(sqlite3.connect(self.home / "ledger.db")) as connection, connection:
            connection.execute(statement)


@pytest.fixture(scope="module")
def left(fast_folder: Path, empty_ledger: Path) -> Path:
    left_farm(fast_folder / "spent.db", empty_ledger)
    return fast_folder / "spent.db"


@pytest.fixture
def cost(
    left: Path, fast_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Said]:
    home = fast_folder / uuid4().hex
    home.mkdir()
    shutil.copyfile(left, home / "ledger.db")
    monkeypatch.setenv("FARM_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "80")
    yield Said(home=home, capsys=capsys)
    shutil.rmtree(home)


def test_cost_shows_each_show_and_what_all_came_to(cost: Said) -> None:
    lines = cost().splitlines()
    assert lines[0].split() == ["COST", "WASTED", "HELD", "SHOW"]
    assert ["$0.0800", "$0.0300", "80", "s", "studio/lanterns"] in [line.split() for line in lines]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("wasted  bug $0.0300") for line in lines)


def test_cost_in_json_is_exact_and_ends_with_the_total(cost: Said) -> None:
    *groups, last = cost.rows("--by", "film")
    spent = {group["title"] or group["name"]: group["cost_usd"] for group in groups}
    assert spent["a white house"] == "0.040000000"
    assert sum(map(Decimal, spent.values())) == Decimal(last["total"]["cost_usd"])
    assert last["wasted_by_reason_usd"] == {"bug": "0.030000000"}


@pytest.mark.parametrize(
    ("options", "spent"),
    [
        (["--since", "1h"], True),
        (["--until", "1h"], False),
        (["--since", "2020-01-01", "--until", "2020-01-02T12:00"], False),
        (["--show", "nobody"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_cost_is_of_a_time_or_a_show(cost: Said, options: list[str], spent: bool) -> None:
    assert cost(*options).startswith("nothing was spent") is not spent


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--since", "yesterday"], "--since 'yesterday' is no time; write it as in"),
        (["--since", "1h", "--until", "2h"], "since is not before until"),
        (["--plot", "cost.txt"], "is no picture; name a file in .png"),
        (["--plot", "no/such/cost.png"], "there is no directory"),
        (["--by", "moon"], "--by"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused(cost: Said, options: list[str], said: str) -> None:
    assert said in cost(*options, code=2)


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def test_a_plot_is_a_picture_that_is_as_tall_as_it_has_bars(cost: Said, tmp_path: Path) -> None:
    cost("--by", "shot", "--plot", str(tmp_path / "cost.png"))
    few = picture(tmp_path / "cost.png")
    row = CostRow(
        name="film_x", title="$1 and $2 in the_name", cost_usd="1", cost_by_kind_usd={"busy": "1"}, held_s=1,
        finished_s=0, accepted_s=0, usd_per_finished_minute=None, usd_per_accepted_minute=None, cache_hits=0,
        saved_usd="0", saved_s=0,
    )  # fmt: skip
    table = CostTable(
        by=By.FILM, since=None, until=None, data=[row] * 75, total=row, wasted_by_reason_usd={}, last_id=None,
        has_more=False,
    )  # fmt: skip
    cost_pictures.draw(table, tmp_path / "many.png")
    many = picture(tmp_path / "many.png")
    assert few.width == many.width
    assert 3 * few.height < many.height < 4000
    assert len(few.getcolors(1 << 24) or ()) > 8
    cost_pictures.draw(table.model_copy(update={"by": By.DAY}), tmp_path / "days.svg")
    assert "<svg" in (tmp_path / "days.svg").read_text()


def test_check_says_that_all_balances(cost: Said) -> None:
    assert "cost lines balance: " in cost("check")
    [row] = cost.rows("check")
    assert (row["balanced"], row["wasted"]) == (True, "0.030000000")


def test_check_names_the_worker_or_show_at_fault(cost: Said) -> None:
    cost.spoil("UPDATE cost_lines SET nano = nano + 1 WHERE kind = 'idle' AND worker_id = 'w1'")
    assert "ledger balanced: w1 " in cost("check", code=1)
    *flaws, last = cost.rows("check", code=1)
    assert {row["invariant"] for row in flaws} == {"ledger balanced"}
    assert last["balanced"] is False


def test_check_wants_the_ledger_itself(cost: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_URL", "https://farm.invalid")
    assert "farm cost check works where the ledger is" in cost("check", code=2)


def test_the_upkeep_bills_what_was_counted_and_says_what_has_no_price(tmp_path: Path) -> None:
    card = tmp_path / "card.yaml"
    card.write_text("version: x\nrates: []\n")
    store = DirectoryStore(tmp_path / "store")
    with closing(Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")) as ledger:
        leaving = Leaving(tenant="studio", show="default", minute_us=ledger.clock.now_us() - 7200 * 1_000_000)
        ledger.book_egress("a", [(leaving, 1 << 30)])

        def bill(**more: Any) -> dict[str, Any]:
            settings = Settings(home=tmp_path, **more)
            [chore] = [one for one in chores_of(settings, ledger, store) if one.name == "bill-meters"]
            return chore.do()

        with pytest.raises(InvalidSettings, match="no price for egress"):
            bill(rate_card=card)
        assert [bill(), bill()] == [{"lines": 1}, {"lines": 0}]
        assert ledger.spent(kind="egress").nano == 90_000_000


def test_the_doctor_names_every_gap_of_the_rate_card(tmp_path: Path) -> None:
    card = tmp_path / "card.yaml"
    card.write_text("version: x\nrates: []\n")
    told = [one for one in examine(Settings(home=tmp_path, rate_card=card)) if one.check == "rate card"]
    assert {one.facts["field"] for one in told} == {"rates", "storage", "egress", "tokens"}
    assert all(one.verdict.value == "failed" and "FARM_RATE_CARD" in (one.remedy or "") for one in told)
