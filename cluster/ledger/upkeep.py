"""Backup, restore and check of a ledger. SQLite is copied by its own online backup; PostgreSQL has tools for it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select, text

from cluster.errors import DamagedLedger, FarmError, InvalidInput, NotFound, StoreFull, Unavailable
from cluster.ledger import money
from cluster.ledger.database import MIGRATIONS
from cluster.ledger.schema import events, jobs, tasks
from cluster.states import State

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Flaw:
    check: str
    text: str


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
        schema, num_jobs = _read(part)
    return Copied(path=to, num_bytes=to.stat().st_size, num_jobs=num_jobs, schema=schema)


def restore(url: str, source: Path, *, at: datetime) -> Copied:
    """Puts a backup in the place of the ledger, and the old ledger beside it, named by the instant `at`.

    No farm may be at work: the caller holds its lock. Raises InvalidInput, NotFound, DamagedLedger (a file that is
    damaged, is no ledger, or was written by a newer version), StoreFull, Unavailable; then nothing has changed.
    """
    ledger = _sqlite(url, "restore it with pg_restore --clean")
    if not source.exists():
        raise NotFound(f"there is no file {source}", field="FILE")
    if ledger.exists() and source.samefile(ledger):
        raise InvalidInput(f"{source} is the ledger itself", field="FILE", remedy="name a backup of it")
    old = ledger.with_name(f"{ledger.name}.before-{at:%Y%m%dT%H%M%SZ}")
    if old.exists():
        raise InvalidInput(f"{old} is there already", field="FILE", remedy="wait a second")
    ledger.parent.mkdir(parents=True, exist_ok=True)
    replaced = ledger.exists()
    part = ledger.with_name(f".{ledger.name}.restoring")
    with _made_whole(ledger, part=part) as copy:
        _copy(source, copy)
        schema, num_jobs = _read(copy)
        if replaced:
            for side in ("", *SIDES):
                if (whole := Path(f"{ledger}{side}")).exists():
                    os.replace(whole, f"{old}{side}")
    return Copied(
        path=ledger, num_bytes=ledger.stat().st_size, num_jobs=num_jobs, schema=schema, old=old if replaced else None
    )


def check(connection: Connection) -> list[Flaw]:
    """What is wrong with a ledger that can be opened; empty when all is well."""
    flaws = [
        Flaw(check="money", text=f"the lines of {w} are not held x rate") for w in money.unbalanced_workers(connection)
    ]
    if connection.dialect.name == "sqlite":
        for (said,) in connection.execute(text("PRAGMA integrity_check(20)")):
            flaws += [Flaw(check="integrity", text=str(said))] if said != "ok" else []
        for row in connection.execute(text("PRAGMA foreign_key_check")):
            flaws.append(Flaw(check="foreign keys", text=f"row {row[1]} of {row[0]} names no row of {row[2]}"))
    return [*flaws, *_counters(connection)]


def _counters(connection: Connection) -> Iterator[Flaw]:
    """Each job counts its tasks by state, and knows the number of its newest event."""
    counted: dict[str, dict[str, int]] = {}
    by_state = select(tasks.c.job_id, tasks.c.state, func.count()).group_by(tasks.c.job_id, tasks.c.state)
    for job_id, state, n in connection.execute(by_state):
        counted.setdefault(job_id, {})[state] = n
    newest = dict(connection.execute(select(events.c.job_id, func.max(events.c.seq)).group_by(events.c.job_id)).all())
    for job in connection.execute(select(jobs)):
        own = {s.value: job._mapping[f"n_{s.value}"] for s in State if job._mapping[f"n_{s.value}"]}
        there = counted.get(job.id, {})
        if own != there or job.num_tasks != sum(there.values()):
            yield Flaw(check="counters", text=f"{job.id} counts {own} of {job.num_tasks}, its tasks are {there}")
        if job.seq != newest.get(job.id, 0):
            yield Flaw(
                check="events", text=f"{job.id} has numbered {job.seq} events, the newest is {newest.get(job.id)}"
            )


def _sqlite(url: str, remedy: str) -> Path:
    file = file_of(url)
    if file is None:
        raise InvalidInput("the ledger is a database of PostgreSQL", field="FARM_LEDGER_URL", remedy=remedy)
    return file


@contextmanager
def _made_whole(path: Path, *, part: Path | None = None) -> Iterator[Path]:
    """A file to write beside `path`, which becomes it when the block ends well, and goes when it does not."""
    part = part or path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
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
            os.chmod(to, 0o600)
            reader.backup(writer)
            writer.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise _explained(error, source) from error


def _read(copy: Path) -> tuple[str, int]:
    """(schema, number of jobs) of a whole ledger of this version or an older one."""
    script = ScriptDirectory.from_config(_config())
    try:
        with closing(sqlite3.connect(copy)) as connection:
            said = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if said != "ok":
                raise DamagedLedger(f"the ledger file is damaged ({said})", field="FILE", remedy="use an older backup")
            (schema,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or (None,)
            (num_jobs,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
    except sqlite3.Error as error:
        raise _explained(error, copy) from error
    if schema not in {revision.revision for revision in script.walk_revisions()}:
        raise DamagedLedger(
            f"it was written by a newer version of Reelfarm (schema {schema})", field="FILE", remedy="upgrade Reelfarm"
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
