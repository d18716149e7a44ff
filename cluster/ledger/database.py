"""One way to a database: `transaction(work)` runs `work` whole, or not at all, and again when it lost a race."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError

from cluster.errors import DamagedLedger, InvalidSettings, LedgerUnavailable

T = TypeVar("T")
MIGRATIONS = Path(__file__).parent / "migrations"
TRIES = 12


class Database:
    """SQLite for one host, PostgreSQL for more. Statements are the same on both."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("sqlite:///", "postgresql+psycopg://")):
            raise InvalidSettings(
                "the ledger is neither SQLite nor PostgreSQL",
                field="FARM_LEDGER_URL",
                remedy="use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME",
            )
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            self.engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})
            _make_sqlite_strict(self.engine)
        else:
            self.engine = create_engine(url, isolation_level="SERIALIZABLE", pool_pre_ping=True, pool_size=4)

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, after its commit. It may run more than once: it must have no other effect.

        Raises LedgerUnavailable when the database does not answer or keeps refusing; then nothing was committed, or,
        if the connection broke during the commit, the caller finds out by reading.
        """
        delay_s = 0.002
        for attempt in range(1, TRIES + 1):
            try:
                with self.engine.begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                if not _worth_a_retry(error):
                    raise self._explained(error) from error
                if attempt == TRIES:
                    raise LedgerUnavailable(f"the ledger kept refusing a transaction: {_first_line(error)}") from error
                time.sleep(delay_s * (0.5 + random.random()))
                delay_s = min(delay_s * 2, 0.5)
        raise AssertionError("unreachable")

    def _explained(self, error: DBAPIError) -> Exception:
        line = _first_line(error)
        if self.is_sqlite and ("malformed" in line or "not a database" in line):
            return DamagedLedger(f"the ledger file is damaged ({line})", remedy="restore a backup of it")
        if isinstance(error, OperationalError) or error.connection_invalidated:
            return LedgerUnavailable(f"the ledger does not answer: {line}")
        return error

    def migrate(self) -> None:
        """Brings the schema forward. Raises DamagedLedger for a file that is none, or that a newer version wrote."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        script = ScriptDirectory.from_config(config)
        try:
            with self.engine.begin() as connection:
                if not self.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(7245011)"))
                current = MigrationContext.configure(connection).get_current_revision()
                known = {s.revision for s in script.walk_revisions()}
                if current is not None and current not in known:
                    raise DamagedLedger(
                        f"the ledger was written by a newer version of Reelfarm (schema {current})",
                        remedy="upgrade Reelfarm, or point FARM_HOME at another directory",
                    )
                if current != script.get_current_head():
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")
        except DatabaseError as error:
            raise self._explained(error) from error

    def close(self) -> None:
        self.engine.dispose()


def _make_sqlite_strict(engine: Engine) -> None:
    """BEGIN IMMEDIATE for every transaction, so that no race hides behind a lock upgrade; foreign keys on; WAL."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begins(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _worth_a_retry(error: DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    if state in {"40001", "40P01"}:  # serialization failure, deadlock: the transaction was rolled back
        return True
    return isinstance(error, OperationalError) and "database is locked" in str(error.orig)


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error).__name__
