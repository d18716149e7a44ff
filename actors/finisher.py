"""The engine of writer and finish workers: it runs the step function that an order names."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from actors.catalog import Catalog
from actors.contract import Bench, Chat, Json, Made, Piece
from actors.writer import Writer
from cluster.errors import EngineFailed, WorkerLost

PACKAGES = ("pipelines", "tests")
"""Where step functions may live: an order is data, and data must not name just any code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """What a step function may use beside its bench."""

    catalog: Catalog
    writer: Writer | None = None  # warm, on writer workers only


class StepEngine:
    """Runs `step(bench, tools) -> Made`. With `make_writer` it holds a warm language model for its steps."""

    def __init__(self, catalog: Catalog, make_writer: Callable[[], Writer] | None = None) -> None:
        self._catalog, self._make_writer = catalog, make_writer
        self._writer: Writer | None = None

    def start(self) -> Json:
        if self._make_writer is None:
            return {}
        began = time.monotonic()
        self._writer = self._make_writer()
        return {**self._writer.start(), "load_s": round(time.monotonic() - began, 3)}

    def run(self, bench: Bench) -> Made:
        step = resolved(bench.order.entry)
        made = step(bench, Tools(catalog=self._catalog, writer=self._writer))
        assert isinstance(made, Made), f"{bench.order.entry} returned {type(made).__name__}"
        return made

    def chat(self, chat: Chat, *, gone: Callable[[], bool]) -> Iterator[Piece]:
        """See `Writer.stream`; beside an order, or alone. Raises WorkerLost on a worker that holds no model."""
        if self._writer is None:
            raise WorkerLost("this worker does not write")
        return self._writer.stream(chat, gone=gone)

    @property
    def dead(self) -> bool:
        return self._writer is not None and self._writer.dead

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def resolved(entry: str) -> Callable[..., Any]:
    """The function that "package.module:function" names. Raises EngineFailed."""
    module_name, _, name = entry.partition(":")
    if module_name.split(".")[0] not in PACKAGES:
        raise EngineFailed(f"entry {entry!r} is not a step of this project")
    try:
        return getattr(importlib.import_module(module_name), name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        raise EngineFailed(f"cannot find the step {entry!r}: {error}") from error
