"""Files of SQLite: migrations forward, foreign and damaged files, what a database refuses."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text

from cluster.errors import DamagedLedger, FarmError, InvalidInput, InvalidSettings, LedgerUnavailable
from cluster.ledger.database import MIGRATIONS, Database
from cluster.ledger.ledger import Ledger
from cluster.ledger.schema import jobs, metadata, shows
from tests.ledger_desk import LedgerDesk, brief, task


def path_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def test_migrations_build_the_schema_and_building_twice_changes_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'l.db'}")
    for _ in range(2):
        database.migrate()
        with database.engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_a_ledger_with_work_in_flight_is_migrated_forward(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'l.db'}"
    desk = LedgerDesk(url)
    job = desk.submit(task("a"), task("b", "a"), task("c"))
    desk.run(job, "c")
    leased = desk.lease(job, "a")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with desk.ledger.database.engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")  # as the first version left it
    desk.ledger.close()
    after = Ledger(url, clock=desk.clock)
    desk.ledger = after
    with after.database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    desk.commit(leased)
    desk.run(job, "b")
    desk.check()
    desk.close()


def test_a_ledger_of_a_newer_version_is_refused_and_left_alone(sqlite_url: str) -> None:
    with sqlite3.connect(path_of(sqlite_url)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = path_of(sqlite_url).read_bytes()
    with pytest.raises(DamagedLedger, match=r"newer version of Reelfarm \(schema 9999\)") as refused:
        Ledger(sqlite_url)
    assert "upgrade" in str(refused.value.remedy)
    assert path_of(sqlite_url).read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"not a database at all " * 300, b"SQLite format 3\x00" + b"\xff" * 8_000], ids=["text", "bad-header"]
)
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "l.db"
    path.write_bytes(content)
    with pytest.raises(DamagedLedger, match="damaged") as refused:
        Ledger(f"sqlite:///{path}")
    assert refused.value.remedy == "restore a backup of it"
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    with pytest.raises(DamagedLedger, match="something else"):
        Ledger(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]
    connection.close()


def test_pages_that_are_damaged_later_are_said_to_be_damaged(sqlite_url: str) -> None:
    num_pages = path_of(sqlite_url).stat().st_size // 4096  # of the schema
    ledger = Ledger(sqlite_url, durable=False)
    job, _ = ledger.submit(brief(), [task(f"t{n}", params={"x": "y" * 500}) for n in range(400)])
    ledger.close()
    with sqlite3.connect(path_of(sqlite_url)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    data = bytearray(path_of(sqlite_url).read_bytes())
    for page in range(num_pages, len(data) // 4096):
        data[page * 4096 : page * 4096 + 200] = b"\xa5" * 200
    path_of(sqlite_url).write_bytes(data)
    ledger = Ledger(sqlite_url, durable=False)
    with pytest.raises(DamagedLedger, match="damaged"):
        ledger.tasks(job)
    ledger.close()


def test_a_folder_that_is_not_there_is_a_ledger_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="unable to open"):
        Ledger(f"sqlite:///{tmp_path / 'no' / 'l.db'}")


@pytest.mark.parametrize("url", ["", "sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql://x/y", "postgres://x/y"])
def test_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        Database(url)
    assert refused.value.field == "FARM_LEDGER_URL"


def test_a_transaction_is_whole_or_not_at_all(sqlite_url: str) -> None:
    ledger = Ledger(sqlite_url, durable=False)

    def work(connection: Connection) -> None:
        connection.execute(shows.insert().values(tenant="t", name="s", share=1.0, created_us=0))
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        ledger.database.transaction(work)
    assert ledger.database.transaction(lambda c: c.execute(select(shows)).all()) == []
    ledger.close()


def test_what_a_database_refuses_is_an_error_of_ours(sqlite_url: str) -> None:
    ledger = Ledger(sqlite_url, durable=False)
    row = {"tenant": "t", "name": "s", "share": 1.0, "created_us": 0}
    with pytest.raises(FarmError, match="refused a statement"):
        ledger.database.transaction(lambda c: c.execute(shows.insert(), [row, row]))
    with pytest.raises(InvalidInput, match="not a JSON document"):
        ledger.database.transaction(lambda c: c.execute(jobs.update().values(spec={"x": float("nan")})))
    ledger.close()


def test_nothing_is_lost_when_the_process_is_gone_after_a_commit(sqlite_url: str) -> None:
    ledger = Ledger(sqlite_url)
    job, _ = ledger.submit(brief(), [task("a")])
    other = Ledger(sqlite_url)  # while the first still has it open
    assert other.job(job).num_tasks == 1
    with other.database.engine.connect() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2  # FULL
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
    other.close()
    ledger.close()
