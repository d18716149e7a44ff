"""`farm cost export` and `GET /v1/costs/export`: one file, here and from elsewhere; for whom, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cluster.errors import StoreFull
from cluster.ledger.keys import Scope
from cluster.rates import load_rate_card
from serve import exports
from serve.cli.main import run
from tests.focus_ledger import small_farm
from tests.front_desk import FrontDesk, front_desk
from tests.unit.test_cli_remote import Elsewhere, elsewhere

NOVEMBER = ("--from", "2025-11-01", "--to", "2025-12-01")
QUERY = {"from": "2025-11-01", "to": "2025-12-01"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    files: Path
    there: Elsewhere
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *argv: str, key: str | None = None) -> tuple[int, str, str]:
        """With a `key` over HTTP, else on the ledger: (exit code, standard output, standard error)."""
        self.monkeypatch.setenv("FARM_HOME", str(self.there.home))
        self.monkeypatch.setenv("FARM_URL", self.there.url if key else "")
        self.monkeypatch.setenv("FARM_API_KEY", key or "none")
        return run(("cost", "export", *argv)), *self.capsys.readouterr()

    def left(self) -> list[str]:
        return sorted(path.name for path in self.files.iterdir())


@pytest.fixture(scope="module")
def home(fast_folder: Path, empty_ledger: Path) -> Path:
    home = fast_folder / uuid4().hex
    home.mkdir()
    shutil.copy(empty_ledger, home / "ledger.db")
    small_farm(f"sqlite:///{home}/ledger.db").close()
    return home


@pytest.fixture(scope="module")
def there(home: Path) -> Iterator[Elsewhere]:
    with elsewhere(home) as there:
        yield there


@pytest.fixture
def desk(
    there: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield Desk(files=tmp_path, there=there, monkeypatch=monkeypatch, capsys=capsys)
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_file_is_the_same_here_and_from_elsewhere(desk: Desk, kind: str) -> None:
    asked = (*NOVEMBER, "--mode", "invoice", "--format", kind, "--json", "--out")
    here, there = desk.files / "here", desk.files / "there"
    code, out, err = desk(*asked, str(here))
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["effective_cost_usd"] == told["billed_cost_usd"] != "0"
    operator = desk.there.key(Scope.OPERATE, Scope.READ)
    code, out, err = desk(*asked, str(there), "--everyone", key=operator)
    assert (code, json.loads(out)) == (0, told | {"file": str(there)})
    assert here.read_bytes() == there.read_bytes()
    assert (told["bytes"], told["rows"] > 10) == (here.stat().st_size, True)
    assert desk.left() == ["here", "there"]


def test_a_month_can_be_invoiced_while_no_farm_is_up(
    fast_folder: Path, tmp_path: Path, empty_ledger: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Its last look at the store was in the middle of January."""
    home = fast_folder / uuid4().hex
    home.mkdir()
    shutil.copy(empty_ledger, home / "ledger.db")
    farm = small_farm(f"sqlite:///{home}/ledger.db")
    farm.ledger.bill_meters(load_rate_card())
    farm.close()
    monkeypatch.setenv("FARM_HOME", str(home))
    monkeypatch.setenv("FARM_URL", "")
    month = ("--from", "2026-01-01", "--to", "2026-02-01", "--mode", "invoice", "--out", str(tmp_path / "january"))
    assert run(("cost", "export", *month)) == 0, capsys.readouterr().err
    assert "invoice" in capsys.readouterr().out


def test_a_person_is_told_what_the_file_holds(desk: Desk) -> None:
    code, out, _ = desk(*NOVEMBER, "--tenant", "rival", "--out", str(desk.files / "rival.csv"))
    assert (code, "charges" in out, "$0 billed" in out, "FOCUS 1.4, showback" in out) == (0, True, True, True)
    assert {line.split(",")[4] for line in (desk.files / "rival.csv").read_text().splitlines()[1:]} == {"rival"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([*NOVEMBER, "--mode", "free"], "--mode"),
        ([*NOVEMBER, "--focus", "1.3"], "--focus"),
        (["--from", "2025-11-02", "--to", "2025-12-01", "--mode", "invoice"], "invoices are of whole months; begin"),
        (["--from", "2025-12-02", "--to", "2025-12-01"], "is not before the end; give an earlier one"),
        (
            ["--from", "2025-11-01", "--to", "2199-01-01"],
            "the period is open: what was held and counted is booked up to",
        ),
        ([*NOVEMBER, "--mode", "invoice", "--provisional"], "an invoice is never provisional"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name_and_leaves_no_file(desk: Desk, argv: list[str], said: str) -> None:
    code, out, err = desk(*argv, "--out", str(desk.files / "x.csv"))
    assert (code, out, desk.left()) == (2, "", [])
    assert said in err
    assert err.count("\n") == 1
    if argv[-1] not in ("free", "1.3"):
        key = desk.there.key(Scope.READ)
        assert desk(*argv, "--out", str(desk.files / "x.csv"), key=key) == (2, "", err)
    assert desk.left() == []


def test_a_file_that_is_there_stays_as_it_is(desk: Desk) -> None:
    out = desk.files / "bill.csv"
    out.write_text("mine")
    code, _, err = desk(*NOVEMBER, "--out", str(out))
    assert (code, out.read_text(), desk.left()) == (2, "mine", ["bill.csv"])
    assert "is there already; name a new file" in err
    code, _, err = desk(*NOVEMBER, "--out", str(desk.files / "no" / "bill.csv"))
    assert (code, "there is no directory" in err) == (2, True)


def test_what_breaks_off_leaves_no_file(desk: Desk) -> None:
    def broken(*_: Any) -> Iterator[bytes]:
        yield b"ServiceProviderName\n"
        raise StoreFull("no space left")

    desk.monkeypatch.setattr(exports, "pieces", broken)
    for key in (None, desk.there.key(Scope.READ)):
        code, _, err = desk(*NOVEMBER, "--out", str(desk.files / "x.csv"), key=key)
        assert (code, desk.left(), err.count("\n")) == (1, [], 1)


@pytest.fixture(scope="module")
def front(home: Path) -> Iterator[FrontDesk]:
    with front_desk(f"sqlite:///{home}/ledger.db", home) as desk:
        yield desk


def accounts(response: Any) -> set[str]:
    assert response.status_code == 200, response.text
    return {",".join(line.split(",")[4:9:5]) + line.split(",")[9] for line in response.text.splitlines()[1:]}


def test_a_key_sees_its_tenant_its_show_or_with_operate_all(front: FrontDesk) -> None:
    rival = front.key(Scope.READ, tenant="rival")
    assert accounts(front.ask("GET", "/v1/costs/export", key=rival, params=QUERY)) == {"rivalrival/tide"}
    bound = front.key(Scope.READ, show="tide")
    assert accounts(front.ask("GET", "/v1/costs/export", key=bound, params=QUERY)) == set()
    everyone = QUERY | {"everyone": "true"}
    for key in (rival, front.key(Scope.OPERATE, show="comet")):
        assert front.ask("GET", "/v1/costs/export", key=key, params=everyone).status_code == 403
    found = accounts(front.ask("GET", "/v1/costs/export", key=front.key(Scope.OPERATE), params=everyone))
    assert found == {"rivalrival/tide", "studiostudio/comet", "farmfarm/farm"}


def test_the_answer_says_what_it_is(front: FrontDesk) -> None:
    answer = front.ask("GET", "/v1/costs/export", params=QUERY | {"format": "parquet", "focus": "1.2"})
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    name = "costs-20251101T00-20251201T00-focus-1.2-showback.parquet"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert answer.content[:4] == answer.content[-4:] == b"PAR1"


def test_no_more_are_written_at_once_than_the_ledger_can_bear(front: FrontDesk) -> None:
    places = front.app.state.service.exports
    places._value = 0
    refused = front.ask("GET", "/v1/costs/export", params=QUERY)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    places._value = 1
    for _ in range(3):
        assert front.ask("GET", "/v1/costs/export", params=QUERY).status_code == 200
    assert not places.locked()
