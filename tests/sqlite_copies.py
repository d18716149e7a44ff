"""Empty ledgers for a state machine, which needs a new one for each of its runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def copies(folder: Path, empty_ledger: Path) -> Iterator[Callable[[], str]]:
    home = folder / uuid4().hex
    home.mkdir()

    def new_url() -> str:
        path = home / f"{uuid4().hex}.db"
        shutil.copyfile(empty_ledger, path)
        return f"sqlite:///{path}"

    try:
        yield new_url
    finally:
        shutil.rmtree(home)
