"""One way to a database: `transaction(work)` runs `work` whole, or not at all, and again when it lost a race."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cluster import faults
from cluster.errors import DamagedLedger, FarmError, InvalidInput, InvalidSettings, LedgerUnavailable

T = TypeVar("T")
MIGRATIONS = Path(__file__).parent / "migrations"
TRIES = 12
BUSY_S = 15
"""How long SQLite waits for another process that writes, before a try counts as failed."""
PATIENCE_S = 30.0
READ_ONLY = {"postgresql_readonly": True}
LENGTHS = (0, 1, 4, 16, 64, 256)


class Database:
    """SQLite for one host, PostgreSQL for more. Statements are the same on both. Any thread may call it."""

    def __init__(self, url: str, *, durable: bool = True) -> None:
        """Without `durable` a crash of the machine may lose the newest commits of SQLite: for what is thrown away."""
        if not url.startswith(("sqlite:///", "postgresql+psycopg://")) or url in ("sqlite:///", "sqlite:///:memory:"):
            raise InvalidSettings(
                "the ledger is neither a file of SQLite nor a database of PostgreSQL",
                field="FARM_LEDGER_URL",
                remedy="use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME",
            )
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self._turn = threading.Lock()
        if self.is_sqlite:
            self.engine = create_engine(
                url, connect_args={"timeout": BUSY_S, "check_same_thread": False}, json_serializer=_to_json
            )
            _make_sqlite_strict(self.engine, durable=durable)
        else:
            self.engine = create_engine(
                url,
                isolation_level="SERIALIZABLE",
                pool_pre_ping=True,
                pool_size=4,
                json_serializer=_to_json,
                connect_args={
                    "connect_timeout": 10,
                    "tcp_user_timeout": 30_000,
                    "options": "-c statement_timeout=60s -c idle_in_transaction_session_timeout=60s",
                },
            )
            _keep_plans(self.engine)

    def transaction(self, work: Callable[[Connection], T], *, repeatable: bool = True) -> T:
        """What `work` returns, after its commit. It may run more than once: it must have no other effect.

        `repeatable` says that `work` finds what it did before, so that it runs again too when the connection broke in
        the middle of a commit. Raises LedgerUnavailable when the database does not answer or keeps refusing.
        """
        return self._run(self.engine, work, repeatable=repeatable)

    def snapshot(self, look: Callable[[Connection], T]) -> T:
        """What `look` reads, all of one instant; however long it takes, nobody who writes waits for it or loses a race
        to it. Raises LedgerUnavailable."""
        return self._run(self._reader, look, repeatable=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """The same for who reads more than fits in memory: rows come as they are asked for (`yield_per`), and the look
        is not begun again when the database goes away in the middle. Raises LedgerUnavailable."""
        try:
            with self._reader.connect() as connection, connection.begin():
                connection.exec_driver_sql("SELECT version_num FROM alembic_version")  # the instant is this one
                yield connection
        except PoolTimeout as error:
            raise LedgerUnavailable("the ledger is busy: too many threads wait for it") from error
        except StatementError as error:
            raise self._explained(error) from error

    @property
    def _reader(self) -> Engine:
        options = {"reads": True} if self.is_sqlite else {"isolation_level": "REPEATABLE READ", **READ_ONLY}
        return self.engine.execution_options(**options)

    def _run(self, engine: Engine, work: Callable[[Connection], T], *, repeatable: bool) -> T:
        delay_s, began_s = 0.002, time.monotonic()
        for attempt in range(1, TRIES + 1):
            committing = False
            try:
                with self._in_turn(engine), engine.begin() as connection:
                    result = work(connection)
                    committing = True
                    with faults.point("ledger.transaction"):
                        connection.commit()
                return result
            except PoolTimeout as error:
                raise LedgerUnavailable("the ledger is busy: too many threads wait for it") from error
            except DBAPIError as error:
                lost = _connection_lost(error)
                if lost and committing and not repeatable:
                    raise LedgerUnavailable(
                        "the ledger went away during a commit", remedy="look whether it was done before you repeat it"
                    ) from error
                if not lost and not _lost_a_race(error):
                    raise self._explained(error) from error
                if attempt == TRIES or time.monotonic() - began_s > PATIENCE_S:
                    why = "does not answer" if lost else "kept refusing a transaction"
                    raise LedgerUnavailable(f"the ledger {why}: {_first_line(error)}") from error
                time.sleep(delay_s * (0.5 + random.random()))
                delay_s = min(delay_s * 2, 0.5)
            except StatementError as error:
                raise error.orig if isinstance(error.orig, FarmError) else self._explained(error) from error
        raise AssertionError("unreachable")

    @contextmanager
    def _in_turn(self, engine: Engine) -> Iterator[None]:
        """SQLite has one writer at a time, and who waits for it asks again ever more rarely: the threads of a process
        stand in a line instead."""
        if not self.is_sqlite or engine is not self.engine:
            yield
        elif self._turn.acquire(timeout=PATIENCE_S):
            try:
                yield
            finally:
                self._turn.release()
        else:
            raise LedgerUnavailable("the ledger is busy: too many threads wait for it")

    def _explained(self, error: StatementError) -> FarmError:
        line = _first_line(error)
        if self.is_sqlite and ("malformed" in line or "not a database" in line):
            return DamagedLedger(f"the ledger file is damaged ({line})", remedy="restore a backup of it")
        if isinstance(error, OperationalError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
            return LedgerUnavailable(f"the ledger does not answer: {line}")
        return FarmError(f"the ledger refused a statement: {line}")

    def migrate(self) -> None:
        """Brings the schema forward. Raises DamagedLedger for a file that is none, or that a newer version wrote."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        script = ScriptDirectory.from_config(config)
        try:
            with self.engine.connect() as connection:
                if not self.is_sqlite:
                    # Not SERIALIZABLE: who has waited for the lock must see what the other one has built meanwhile.
                    connection.execution_options(isolation_level="READ COMMITTED")
                with connection.begin():
                    self._upgrade(connection, config, script)
        except DBAPIError as error:
            raise self._explained(error) from error

    def _upgrade(self, connection: Connection, config: Config, script: ScriptDirectory) -> None:
        if not self.is_sqlite:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(7245011)"))
        current = MigrationContext.configure(connection).get_current_revision()
        known = {s.revision for s in script.walk_revisions()}
        if current is not None and current not in known:
            raise DamagedLedger(
                f"the ledger was written by a newer version of Reelfarm (schema {current})",
                remedy="upgrade Reelfarm, or point FARM_HOME at another directory",
            )
        if current is None and self.is_sqlite and inspect(connection).get_table_names():
            raise DamagedLedger(
                "the ledger file is a database of something else", remedy="point FARM_LEDGER_URL at another file"
            )
        if current != script.get_current_head():
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        self.engine.dispose()


def padded(values: Iterable[T]) -> list[T]:
    """What goes into an IN: the values, the last one repeated, so that lists have few lengths.

    A database parses and plans a statement once for each length, and PostgreSQL then keeps the plan.
    """
    found = list(values)
    wanted = next((n for n in LENGTHS if n >= len(found)), len(found))
    return found + found[-1:] * (wanted - len(found))


def _keep_plans(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.prepare_threshold, connection.prepared_max = 2, 400


def _make_sqlite_strict(engine: Engine, *, durable: bool) -> None:
    """BEGIN IMMEDIATE for whatever may write, so that no race hides behind a lock upgrade; foreign keys on; WAL."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begins(connection: Connection) -> None:
        reads = connection.get_execution_options().get("reads", False)
        connection.connection.driver_connection.execute(f"PRAGMA query_only={'ON' if reads else 'OFF'}")  # type: ignore[union-attr]
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _to_json(value: Any) -> str:
    """What both databases take: no NaN, no lone surrogate. Raises InvalidInput."""
    try:
        document = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        document.encode()
        return document
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"not a JSON document: {error}") from error


def _lost_a_race(error: DBAPIError) -> bool:
    """Rolled back whole, and worth another try."""
    state = getattr(error.orig, "sqlstate", None)
    if state in {"40001", "40P01"}:  # serialization failure, deadlock
        return True
    if state == "23505":  # two inserted one key at once; the second finds it when it looks again
        return isinstance(error, IntegrityError)
    return isinstance(error, OperationalError) and "database is locked" in str(error.orig)


def _connection_lost(error: DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # no answer of a server at all
        return error.connection_invalidated or type(error.orig).__module__.startswith("psycopg")
    return state[:2] == "08" or state in {"57P01", "57P02", "57P03"}  # connection, shutdown, starting up


def _first_line(error: StatementError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error).__name__
