"""The port to time. Instants are aware UTC datetimes outside and integer microseconds in the tables."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    def now_us(self) -> int:
        """Wall time in microseconds since 1970 UTC: for records and bills, never for a decision about a lease."""

    def monotonic_s(self) -> float:
        """Seconds that never jump: for leases, waits and back-off inside one process."""


class SystemClock:
    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def monotonic_s(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves when told to; `jump` moves only the wall, as an operator who sets the date does."""

    def __init__(self, start_us: int = 1_790_000_000_000_000) -> None:
        self._wall_us = start_us
        self._mono_s = 0.0

    def now_us(self) -> int:
        return self._wall_us

    def monotonic_s(self) -> float:
        return self._mono_s

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("a clock does not run backwards; use jump")
        self._wall_us += round(seconds * 1e6)
        self._mono_s += seconds

    def jump(self, seconds: float) -> None:
        self._wall_us += round(seconds * 1e6)


def to_datetime(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def from_iso(text: str) -> int:
    """Microseconds, of an instant in ISO 8601 with its offset. Raises ValueError."""
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
