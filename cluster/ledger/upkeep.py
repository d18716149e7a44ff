"""Backup, restore and check of a ledger. SQLite is copied by its own online backup; PostgreSQL has tools for it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from cluster.errors import DamagedLedger, FarmError, InvalidInput, NotFound, StoreFull, Unavailable
from cluster.ledger import budget_recount, recount
from cluster.ledger.database import MIGRATIONS

PREFIX = "sqlite:///"
SIDES = ("-wal", "-shm")
"""What SQLite keeps beside its file while somebody has it open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """What a backup or a restore holds. `old` is where the ledger that was replaced lies now."""

    path: Path
    num_bytes: int
    num_jobs: int
    schema: str
    old: Path | None = None


def file_of(url: str) -> Path | None:
    """The file of a SQLite ledger; None for PostgreSQL."""
    return Path(url.removeprefix(PREFIX)) if url.startswith(PREFIX) else None


def backup(url: str, to: Path) -> Copied:
    """A consistent copy of the ledger in the new file `to`, while a farm may go on writing.

    Raises InvalidInput for a PostgreSQL ledger or a file that is there already, NotFound, DamagedLedger, StoreFull and
    Unavailable; then no file is left.
    """
    source = _sqlite(url, "back it up with pg_dump --format=custom")
    if not source.exists():
        raise NotFound(f"there is no ledger at {source}", field="FARM_HOME")
    if to.exists():
        raise InvalidInput(f"{to} is there already", field="FILE", remedy="name a new file")
    with _made_whole(to) as part:
        _copy(source, part)
        schema, num_jobs = _read(part, source)
    return Copied(path=to, num_bytes=to.stat().st_size, num_jobs=num_jobs, schema=schema)


def looked_at(url: str, source: Path) -> Copied:
    """What a restore of `source` would put in place; errors as of `restore`."""
    ledger = _restorable(url, source)
    with TemporaryDirectory(dir=ledger.parent, prefix=".restore-") as folder:
        copy = Path(folder) / "ledger.db"
        _copy(source, copy)
        schema, num_jobs = _read(copy, source)
        return Copied(path=source, num_bytes=copy.stat().st_size, num_jobs=num_jobs, schema=schema)


def restore(url: str, source: Path, *, at: datetime) -> Copied:
    """Puts a backup in the place of the ledger, and the old ledger beside it, named by the instant `at`.

    No farm may be at work: the caller holds its lock. Raises InvalidInput, NotFound, DamagedLedger (a file that is
    damaged, is no ledger, or was written by a newer version), StoreFull, Unavailable; then nothing has changed.
    """
    ledger = _restorable(url, source)
    old = ledger.with_name(f"{ledger.name}.before-{at:%Y%m%dT%H%M%SZ}")
    if old.exists():
        raise InvalidInput(f"{old} is there already", field="FILE", remedy="wait a second")
    replaced = ledger.exists()
    part = ledger.with_name(f".{ledger.name}.restoring")
    with _made_whole(ledger, part=part) as copy:
        _copy(source, copy)
        schema, num_jobs = _read(copy, source)
        if replaced:
            for side in ("", *SIDES):
                if (whole := Path(f"{ledger}{side}")).exists():
                    os.replace(whole, f"{old}{side}")
    return Copied(
        path=ledger, num_bytes=ledger.stat().st_size, num_jobs=num_jobs, schema=schema, old=old if replaced else None
    )


def check(connection: Connection) -> list[str]:
    """What is wrong with a ledger that can be opened, each as "check: what"; empty when all is well."""
    flaws = []
    if connection.dialect.name == "sqlite":
        said = connection.execute(text("PRAGMA integrity_check(20)")).scalars().all()
        flaws += [f"integrity: {line}" for line in said if line != "ok"]
        for row in connection.execute(text("PRAGMA foreign_key_check")):
            flaws.append(f"foreign keys: row {row[1]} of {row[0]} names no row of {row[2]}")
    try:
        return [*flaws, *recount.flaws(recount.read_books(connection)), *budget_recount.flaws(connection)]
    except Exception as error:  # what somebody tampered with may break any rule that a replay stands on
        return [*flaws, f"the log cannot be replayed: {type(error).__name__} {error}"]


def _sqlite(url: str, remedy: str) -> Path:
    file = file_of(url)
    if file is None:
        raise InvalidInput("the ledger is a database of PostgreSQL", field="FARM_LEDGER_URL", remedy=remedy)
    return file


def _restorable(url: str, source: Path) -> Path:
    ledger = _sqlite(url, "restore it with pg_restore --clean")
    if not source.is_file():
        raise NotFound(f"there is no file {source}", field="FILE")
    if ledger.exists() and source.samefile(ledger):
        raise InvalidInput(f"{source} is the ledger itself", field="FILE", remedy="name a backup of it")
    ledger.parent.mkdir(parents=True, exist_ok=True)
    return ledger


@contextmanager
def _made_whole(path: Path, *, part: Path | None = None) -> Iterator[Path]:
    """A file to write beside `path`, which becomes it when the block ends well, and goes when it does not."""
    part = part or path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield part
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, path)
    except OSError as error:
        kind = StoreFull if error.errno == 28 else Unavailable
        raise kind(
            f"{path} cannot be written: {error.strerror}", field="FILE", remedy="make room, or name another"
        ) from error
    finally:
        for side in ("", *SIDES, "-journal"):
            Path(f"{part}{side}").unlink(missing_ok=True)


def _copy(source: Path, to: Path) -> None:
    """By SQLite's online backup, in one step: what one reader sees at one instant. `to` ends as one file alone."""
    try:
        with (
            closing(sqlite3.connect(f"file:{source.resolve()}?mode=ro", uri=True, timeout=15)) as reader,
            closing(sqlite3.connect(to)) as writer,
        ):
            reader.backup(writer)
            writer.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise _explained(error, source) from error


def _read(copy: Path, source: Path) -> tuple[str, int]:
    """(schema, number of jobs) of a copy of `source`, once it is a whole ledger of this version or an older one."""
    script = ScriptDirectory.from_config(_config())
    try:
        with closing(sqlite3.connect(copy)) as connection:
            said = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if said != "ok":
                raise DamagedLedger(f"{source} is damaged ({said})", field="FILE", remedy="use another backup")
            (schema,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or (None,)
            (num_jobs,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
    except sqlite3.Error as error:
        raise _explained(error, source) from error
    if schema not in {revision.revision for revision in script.walk_revisions()}:
        raise DamagedLedger(
            f"{source} was written by a newer version of Reelfarm (schema {schema})",
            field="FILE",
            remedy="upgrade Reelfarm",
        )
    return schema, num_jobs


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _explained(error: sqlite3.Error, file: Path) -> FarmError:
    said = str(error)
    if "malformed" in said or "not a database" in said:
        return DamagedLedger(f"{file} is damaged, or no ledger ({said})", field="FILE", remedy="use another backup")
    if "no such table" in said:
        return DamagedLedger(f"{file} is no ledger ({said})", field="FILE", remedy="name a backup of a ledger")
    if "full" in said:
        return StoreFull(f"no space left: {said}", remedy="make room")
    return Unavailable(f"{file}: {said}", field="FILE")
