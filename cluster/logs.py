"""Structured logs: one JSON line each, with the job, task, attempt and worker that the line belongs to."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO

_NOTHING: Mapping[str, str] = MappingProxyType({})
_context: ContextVar[Mapping[str, str]] = ContextVar("farm_log_context", default=_NOTHING)


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Within it every log line of this thread or task carries `ids` (job, task, attempt, worker)."""
    token = _context.set({**_context.get(), **ids})
    try:
        yield
    finally:
        _context.reset(token)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "about", {}),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class _ContextFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.about = _context.get()
        return True


def set_up(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Sends the farm's own loggers (cluster, actors, pipelines, serve) to `stream`, standard error by default."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(_ContextFilter())
    for name in ("cluster", "actors", "pipelines", "serve"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def say(logger: logging.Logger, message: str, *, action: str, level: int = logging.INFO, **facts: Any) -> None:
    """A constant sentence, the action it is about, and facts beside it."""
    logger.log(level, message, extra={"facts": {"action": action, **facts}})
