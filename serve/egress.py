"""Bytes that leave through this process, counted by tenant, show and minute, and written into the ledger."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from ulid import ULID

from cluster.errors import LedgerUnavailable
from cluster.ledger.ledger import Ledger
from cluster.ledger.meters import Leaving
from cluster.ledger.tokens import minute_of
from cluster.logs import say

log = logging.getLogger(__name__)


class EgressMeter:
    """What the ledger did not take is written with the next download; totals written again change nothing."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._source = ledger, str(ULID()).lower()
        self._lock = threading.Lock()
        self._totals: Counter[Leaving] = Counter()
        self._unbooked: set[Leaving] = set()

    def book(self, tenant: str, show: str, num_bytes: int) -> None:
        """So many more have left, or will: whoever is sent to the store itself is counted when it is told where.
        Blocks for the ledger. Raises nothing."""
        if num_bytes == 0:
            return
        minute_us = minute_of(self._ledger.clock.now_us())
        with self._lock:
            leaving = Leaving(tenant=tenant, show=show, minute_us=minute_us)
            self._totals[leaving] += num_bytes
            self._unbooked.add(leaving)
            totals = [(one, self._totals[one]) for one in self._unbooked]
        try:
            self._ledger.book_egress(self._source, totals)
        except LedgerUnavailable as error:
            say(log, "Egress is booked later.", action="egress.later", level=logging.WARNING, error=error.line())
            return
        with self._lock:
            self._unbooked -= {one for one, total in totals if self._totals[one] == total}
            for one in [m for m in self._totals if m.minute_us < minute_us and m not in self._unbooked]:
                del self._totals[one]
