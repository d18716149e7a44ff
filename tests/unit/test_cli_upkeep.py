"""`farm ledger backup|restore|check`, and ledgers that a farm must refuse: damaged, newer, something else."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from cluster import farm_lock
from cluster.budgets import BudgetSpec, Scope
from cluster.errors import InvalidInput
from cluster.ledger import upkeep
from cluster.rates import NANO
from cluster.states import State
from serve.cli.main import run
from tests.ledger_desk import LedgerDesk, brief, task


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """A home with a ledger that holds one job, and a place for files."""

    home: Path
    files: Path
    job: str
    capsys: pytest.CaptureFixture[str]

    @property
    def ledger(self) -> Path:
        return self.home / "ledger.db"

    def open(self) -> LedgerDesk:
        return LedgerDesk(f"sqlite:///{self.ledger}")

    def __call__(self, *argv: str, code: int = 0) -> str:
        """What a command prints, or its one line on standard error if it is to end with another code than 0."""
        ended = run(argv)
        out, err = self.capsys.readouterr()
        assert (ended, err.count("\n")) == (code, 0 if code == 0 or out else 1)
        return err.removeprefix("farm: ").rstrip() if err else out

    def jobs(self) -> list[str]:
        return [json.loads(line)["job"] for line in self("ls", "--json").splitlines()]


@pytest.fixture
def desk(
    fast_folder: Path, empty_ledger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    home, files = fast_folder / uuid4().hex, fast_folder / uuid4().hex
    home.mkdir()
    files.mkdir()
    shutil.copyfile(empty_ledger, home / "ledger.db")
    monkeypatch.setenv("FARM_HOME", str(home))
    with closing(LedgerDesk(f"sqlite:///{home / 'ledger.db'}")) as books:
        job = books.submit(task("a"), task("b", "a"))
        books.run(job, "a")
    yield Desk(home=home, files=files, job=job, capsys=capsys)
    shutil.rmtree(home)
    shutil.rmtree(files)
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_a_backup_holds_what_was_committed_and_restoring_it_keeps_the_old_ledger(desk: Desk) -> None:
    copy = desk.files / "monday.db"
    assert desk("ledger", "backup", str(copy)).startswith(f"{copy} holds 1 job, ")
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(desk.open()) as books:
        later = books.submit(task("later"))
    assert desk.jobs() == [later, desk.job]
    said = desk("ledger", "restore", str(copy), "--yes")
    (old,) = desk.home.glob("ledger.db.before-????????T??????Z")
    assert said == f"the ledger holds 1 job; the old one is {old}\n"
    assert desk.jobs() == [desk.job]
    assert desk("ledger", "check") == "the ledger is whole, and it balances\n"
    with closing(desk.open()) as books:
        assert books.state(desk.job, "b") is State.READY
        books.run(desk.job, "b")
    old.rename(desk.ledger)
    assert desk.jobs() == [later, desk.job]


def test_a_backup_of_a_ledger_that_is_being_written_is_consistent(desk: Desk) -> None:
    stop, written = threading.Event(), []

    def write() -> None:
        with closing(desk.open()) as books:
            while not stop.is_set():
                key = f"a{len(written)}"  # a question that nobody has asked yet
                written.append(books.submit(task(key), task("b", key)))
                books.run(written[-1], key)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for n in range(5):
            seen = len(written)
            upkeep.backup(f"sqlite:///{desk.ledger}", desk.files / f"{n}.db")
            with closing(LedgerDesk(f"sqlite:///{desk.files / f'{n}.db'}")) as copy:
                copy.check()
                assert len(copy.ledger.jobs(limit=10_000)) >= seen + 1
    finally:
        stop.set()
        writer.join()


def test_a_restore_without_yes_says_what_it_would_do_and_does_nothing(desk: Desk) -> None:
    copy = desk.files / "copy.db"
    desk("ledger", "backup", str(copy))
    before = desk.ledger.read_bytes()
    code = run(["ledger", "restore", str(copy)])
    out, err = desk.capsys.readouterr()
    assert (code, out) == (2, f"{copy} holds 1 job; the ledger would become that, the old one is kept\n")
    assert err == "farm: restore: nothing was done; give --yes to do it\n"
    assert desk.ledger.read_bytes() == before
    assert list(desk.home.glob("ledger.db.*")) == []


def test_a_home_without_a_ledger_takes_a_backup(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = desk.files / "copy.db"
    desk("ledger", "backup", str(copy))
    monkeypatch.setenv("FARM_HOME", str(desk.files / "new"))
    assert desk("ledger", "restore", str(copy), "--yes") == "the ledger holds 1 job\n"
    assert desk.jobs() == [desk.job]


def test_no_ledger_is_restored_under_a_farm_at_work(desk: Desk) -> None:
    copy = desk.files / "copy.db"
    desk("ledger", "backup", str(copy))
    with farm_lock.held(desk.home):
        assert "has a farm open on" in desk("ledger", "restore", str(copy), "--yes", code=2)
    assert list(desk.home.glob("ledger.db.*")) == []


def truncated(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def scribbled(path: Path) -> None:
    """Pages in the middle are garbage; the header is whole."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for page in range(4096 * 3, size - 4096, 4096):
            file.seek(page)
            file.write(b"\x5a" * 512)


def with_a_damaged_index(path: Path) -> None:
    """What no query of a look at it would read."""
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_tasks_backoff'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\x5a" * size)


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def of_something_else(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


def no_database(path: Path) -> None:
    path.write_text("a letter to my grandmother, which is long enough to be a header of a file")


BROKEN = [truncated, scribbled, with_a_damaged_index, newer, emptied, of_something_else, no_database]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda f: f.__name__)
def test_a_file_that_is_no_whole_ledger_is_refused_and_nothing_changes(
    desk: Desk, broken: Callable[[Path], None]
) -> None:
    copy = desk.files / "copy.db"
    desk("ledger", "backup", str(copy))
    broken(copy)
    said = desk("ledger", "restore", str(copy), "--yes", code=1)
    assert str(copy) in said
    assert ("newer version" in said) == (broken is newer)
    assert "is damaged" in said or "is no ledger" in said or "newer version" in said
    assert desk.jobs() == [desk.job]
    assert [*desk.home.glob("ledger.db.*"), *desk.home.glob(".*")] == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (no_database, "the ledger file is damaged (file is not a database); restore a backup of it"),
        (newer, "the ledger was written by a newer version of Reelfarm (schema 9999); upgrade Reelfarm"),
        (of_something_else, "the ledger file is a database of something else"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("argv", [["ls"], ["ledger", "check"]], ids=" ".join)
def test_a_ledger_that_cannot_be_read_is_one_line(
    desk: Desk, broken: Callable[[Path], None], said: str, argv: list[str]
) -> None:
    broken(desk.ledger)
    assert said in desk(*argv, code=1)


def test_a_ledger_with_damaged_pages_is_seen_and_its_backup_is_refused(desk: Desk) -> None:
    scribbled(desk.ledger)
    code = run(["ledger", "check"])
    out, err = desk.capsys.readouterr()
    assert code == 1
    assert "integrity: " in out or "damaged" in err
    assert "is damaged" in desk("ledger", "backup", str(desk.files / "copy.db"), code=1)
    assert list(desk.files.iterdir()) == []


def test_check_finds_a_budget_that_is_not_what_its_lines_come_to(desk: Desk) -> None:
    with closing(desk.open()) as books:
        budget = books.ledger.set_budget(BudgetSpec(tenant="studio", scope=Scope.TENANT, cap_nano=NANO))
    assert desk("ledger", "check") == "the ledger is whole, and it balances\n"
    assert desk("cost", "check").startswith("1 cost lines balance: ")
    spoiled("UPDATE budgets SET spent_nano = spent_nano - 1")(desk.ledger)
    assert desk("ledger", "check", code=1).startswith(f"budgets equal a recount: {budget.id} says ")
    assert desk("cost", "check", code=1).startswith(f"budgets equal a recount: {budget.id} says ")


def spoiled(statement: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(statement)

    return spoil


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE jobs SET n_ready = 7", "counters equal a recount"),
        ("UPDATE cost_lines SET nano = nano + 1 WHERE kind = 'busy'", "ledger balanced"),
        ("DELETE FROM events WHERE seq = (SELECT seq FROM jobs)", "a job knows its newest event"),
        ("DELETE FROM events WHERE seq = 2", "the log cannot be replayed"),
        ("UPDATE tasks SET state = 'succeeded' WHERE key = 'b'", "the log replays to the tables"),
        ("UPDATE tasks SET job_id = 'job_nobody' WHERE key = 'b'", "foreign keys: row"),
    ],
    ids=["counters", "money", "newest event", "an event between", "states", "foreign keys"],
)
def test_check_finds_what_was_tampered_with(desk: Desk, statement: str, said: str) -> None:
    spoiled(statement)(desk.ledger)
    text = desk("ledger", "check", code=1)
    assert said in text
    assert text.splitlines()[-1].endswith("in the ledger")
    flaws = [json.loads(line)["flaw"] for line in desk("ledger", "check", "--json", code=1).splitlines()]
    assert any(flaw.startswith(said) for flaw in flaws)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["backup", "FILES/there.db"], "is there already; name a new file"),
        (["backup", "FILES/no/such/folder.db"], "cannot be written: No such file or directory"),
        (["restore", "FILES/nobody.db", "--yes"], "there is no file"),
        (["restore", "FILES", "--yes"], "there is no file"),
        (["restore", "HOME/ledger.db", "--yes"], "is the ledger itself; name a backup of it"),
        (["backup"], "Missing argument 'FILE'"),
        (["bogus"], "No such command 'bogus'"),
    ],
    ids=["exists", "no folder", "no file", "a folder", "itself", "nothing", "no verb"],
)
def test_bad_files_are_refused(desk: Desk, argv: list[str], said: str) -> None:
    (desk.files / "there.db").touch()
    places = {"FILES": str(desk.files), "HOME": str(desk.home)}
    named = [part.replace("FILES", places["FILES"]).replace("HOME", places["HOME"]) for part in argv]
    assert said in desk("ledger", *named, code=1 if "cannot be written" in said else 2)
    assert [path.name for path in desk.files.iterdir()] == ["there.db"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["backup", "x"], "back it up with pg_dump"), (["restore", "x", "--yes"], "restore it with pg_restore")],
    ids=["backup", "restore"],
)
def test_a_postgresql_ledger_is_left_to_its_own_tools(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, argv: list[str], said: str
) -> None:
    monkeypatch.setenv("FARM_LEDGER_URL", "postgresql+psycopg://farm:secret@db.invalid/farm")
    text = desk("ledger", *argv, code=2)
    assert said in text
    assert "secret" not in text


def test_backup_and_restore_in_json(desk: Desk) -> None:
    copy = desk.files / "copy.db"
    row = json.loads(desk("ledger", "backup", str(copy), "--json"))
    assert (row["verb"], row["file"], row["jobs"], row["bytes"]) == ("backup", str(copy), 1, copy.stat().st_size)
    row = json.loads(desk("ledger", "restore", str(copy), "--yes", "--json"))
    assert (row["verb"], row["jobs"], row["done"]) == ("restore", 1, True)
    assert Path(row["old"]).exists()


def test_two_jobs_with_one_idempotency_key_are_one_job_or_a_mistake(desk: Desk) -> None:
    with closing(desk.open()) as books:
        first, created = books.ledger.submit(brief(idempotency_key="k"), [task("once")])
        assert (first, False) == books.ledger.submit(brief(idempotency_key="k"), [task("once")])
        assert created
        with pytest.raises(InvalidInput, match="the idempotency key was used for another request"):
            books.ledger.submit(brief(idempotency_key="k", spec={"n": 2}), [task("once")])
    assert sorted(desk.jobs()) == sorted([desk.job, first])
