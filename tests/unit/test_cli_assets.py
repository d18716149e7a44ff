"""`farm assets` and `farm tenants`, on the ledger and against a farm that is elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.assets import ReceiptFile
from cluster.ledger import inventory
from cluster.ledger.keys import KeySpec, Scope
from cluster.ledger.outcomes import Sight
from cluster.states import State
from cluster.store.directory import DirectoryStore
from serve.cli.main import run
from tests.ledger_desk import LedgerDesk, task
from tests.unit.test_cli_remote import elsewhere


class Home:
    """Two jobs of one file each in a FARM_HOME, asked here or over HTTP."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = home
        self.desk = LedgerDesk(f"sqlite:///{home}/ledger.db")
        self.store = DirectoryStore(home / "store")
        self._capsys = capsys
        self.jobs = {word: self._made(word) for word in ("stays", "goes")}
        monkeypatch.setenv("FARM_HOME", str(home))
        monkeypatch.chdir(home)

    def _made(self, word: str) -> str:
        job = self.desk.submit(task(word))
        blob = self.store.put_blob("studio", word.encode(), media_type="image/png")
        of = ReceiptFile.of("poster.png", blob)
        self.desk.run(job, word, files=[{name: getattr(of, name) for name in of.__slots__}])
        return job

    def __call__(self, *argv: str, code: int = 0) -> str:
        assert run(list(argv)) == code
        said = self._capsys.readouterr()
        return said.err if code == 2 else said.out

    def rows(self, *argv: str, code: int = 0) -> list[dict[str, Any]]:
        assert run([*argv, "--json"]) == code
        return [json.loads(line) for line in self._capsys.readouterr().out.splitlines()]


def sha(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


@pytest.fixture(params=["here", "elsewhere"])
def home(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Home]:
    home = Home(tmp_path, monkeypatch, capsys)
    if request.param == "here":
        yield home
    else:
        with elsewhere(tmp_path) as there:
            monkeypatch.setenv("FARM_URL", there.url)
            monkeypatch.setenv("FARM_API_KEY", there.key())
            yield home
    home.desk.close()


def test_files_are_listed_fetched_and_verified(home: Home, tmp_path: Path) -> None:
    rows = home.rows("assets", "ls")
    assert [row["asset"] for row in rows] == sorted(map(sha, home.jobs))
    assert {(row["size_bytes"], row["media_type"], row["tenant"], row["marked"]) for row in rows} == {
        (4, "image/png", "studio", None), (5, "image/png", "studio", None)
    }  # fmt: skip
    table = home("assets", "ls").splitlines()
    assert [line.split()[0] for line in table] == ["ASSET", *(row["asset"][:16] for row in rows)]
    assert home("assets", "ls", "--limit", "1").splitlines()[-1] == "there are more than 1: --limit N shows them"
    home("assets", "get", sha("goes")[:8], "--out", str(tmp_path / "poster.png"))
    assert (tmp_path / "poster.png").read_bytes() == b"goes"
    assert home("assets", "verify") == "2 files, 9 bytes: all whole\n"
    path = tmp_path / "store" / rows[0]["key"]
    path.chmod(0o644)
    path.write_bytes(b"spoilt")
    spoilt = next(word for word in home.jobs if sha(word) == rows[0]["asset"])
    assert home.desk.state(home.desk.submit(task(spoilt)), spoilt) == "succeeded"
    assert [row["whole"] for row in home.rows("assets", "verify", code=1)] == [False, True]
    assert home.desk.state(home.desk.submit(task(spoilt)), spoilt) == "ready"
    assert home("assets", "verify", rows[1]["asset"]) == f"1 file, {rows[1]['size_bytes']} bytes: all whole\n"
    path.unlink()
    assert home("assets", "verify", code=1).splitlines()[-1].endswith("1 damaged or gone")
    assert "no such asset" in home("assets", "get", "feedfeed", code=2)


def test_a_collection_says_first_what_it_would_do(home: Home) -> None:
    assert home("assets", "gc") == "every file is needed\n"
    home.desk.ledger.delete_job(home.jobs["goes"])
    asked = ("assets", "gc", "--older", "0", "--grace", "0")
    [would] = home.rows(*asked, code=2)
    assert would == {"jobs": 1, "marked": 1, "marked_bytes": 4, "strays": 0, "removed": 0, "removed_bytes": 0,
                     "done": False}  # fmt: skip
    assert home.rows(*asked, code=2) == [would]
    assert home.rows(*asked, "--yes") == [{**would, "done": True}]
    assert [row["asset"] for row in home.rows("assets", "ls", "--marked")] == [sha("goes")]
    assert home(*asked, "--yes") == "1 file, 4 bytes removed\n"
    assert [row["asset"] for row in home.rows("assets", "ls")] == [sha("stays")]
    assert home("assets", "gc") == "every file is needed\n"


def test_a_file_that_two_tenants_have_is_named_by_its_hash_and_no_page_leaves_one_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path, monkeypatch, capsys)
    blob = home.store.put_blob("rival", b"stays", media_type="image/png")
    of = ReceiptFile.of("poster.png", blob)
    job = home.desk.submit(task("stays"), tenant="rival")
    home.desk.run(job, "stays", files=[{name: getattr(of, name) for name in of.__slots__}])
    assert home("assets", "verify", sha("stays")) == "1 file, 5 bytes: all whole\n"
    seen: list[tuple[str, str]] = []
    after, more = None, True
    while more:
        page, more = home.desk.ledger.view(lambda c, after=after: inventory.page(c, Sight(), after=after, limit=1))
        seen += [(asset.tenant, asset.sha256) for asset in page]
        after = page[-1].sha256 if page else after
    assert sorted(seen) == sorted([("studio", sha("stays")), ("rival", sha("stays")), ("studio", sha("goes"))])
    home.desk.close()


def test_a_tenant_is_erased_where_the_ledger_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path, monkeypatch, capsys)
    home.desk.ledger.create_key(KeySpec(tenant="studio", name="x", scopes=(Scope.READ,)))
    job = home.desk.submit(task("erased"), title="erased")
    assert "nothing was done" in home("tenants", "erase", "studio", code=2)
    assert len(list(home.store.list("studio/"))) == 2
    said = home("tenants", "erase", "studio", "--yes")
    assert said.startswith("of studio 3 jobs, 0 films, 1 key, 0 webhooks, 2 files of the store (2 assets, 9 bytes)")
    assert said.endswith("are gone; the bill of $0.0020 stays\n")
    assert list(home.store.list("studio/")) == []
    assert home.rows("ls") == home.rows("assets", "ls") == []
    assert home.desk.task(job, "erased")["state"] == State.CANCELED
    [row] = home.rows("tenants", "erase", "studio", "--yes")
    assert (row["jobs"], row["keys_of_store"], row["bill_usd"]) == (0, 0, "0.002000000")
    assert "there is no tenant rival" in home("tenants", "erase", "rival", code=2)
    home.desk.check()
    home.desk.close()
