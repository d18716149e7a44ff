"""Watches what running tasks have reserved of their budgets, while they run: more for them, or the word to stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from actors.memory import Lease
from actors.watchdog import Bounds
from cluster.budgets import REASON, Reserves, is_near
from cluster.clock import Clock
from cluster.ledger.ledger import Ledger
from cluster.logs import say

log = logging.getLogger(__name__)
LEARN_EVERY_S = 60.0


class Purser:
    """Part of one dispatcher, on its event loop, once in each of its ticks. `call` runs SQL in its thread.

    A farm without budgets pays one statement a tick: the look whether there are some.
    """

    def __init__(
        self, *, ledger: Ledger, clock: Clock, heartbeat_s: float, tick_s: float, cold_s: float,
        bounds: Bounds, call: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:  # fmt: skip
        self.reserves = Reserves(slack_s=heartbeat_s + tick_s, cold_s=cold_s)
        self._ledger, self._clock, self._bounds, self._call = ledger, clock, bounds, call
        self._learned_s = -math.inf

    async def look(self, term: int, rows: Iterable[Any], leases: Sequence[Lease]) -> bool:
        """`rows` are all attempts that run, as the ledger has them. Whether something may run that could not before."""
        tended = await self._call(partial(self._ledger.tend_budgets, term))
        if tended is None:
            return False
        if self._clock.monotonic_s() - self._learned_s > LEARN_EVERY_S:
            self.reserves = replace(self.reserves, paces=await self._call(self._ledger.paces))
            self._learned_s = self._clock.monotonic_s()
        pauses_s = {x.attempt_id: self._bounds.pause_s(x.step, x.model, x.stage) for x in leases}
        self.reserves = replace(self.reserves, pauses_s=pauses_s)
        stopping = {lease.attempt_id for lease in leases if lease.stop is not None}
        near = [row.attempt_id for row in rows if row.attempt_id not in stopping and self._is_near(row)]
        if near:
            goes_on = await self._call(partial(self._ledger.extend, term, near, self.reserves))
            for lease in leases:
                if goes_on.get(lease.attempt_id) is False:
                    lease.stop = REASON
                    say(
                        log, "An attempt stops: its budget has no more.", action="budget.stop", attempt=lease.attempt_id
                    )
        return bool(tended)

    def _is_near(self, row: Any) -> bool:
        if row.reserved_nano is None or row.ended_us is not None:  # nobody pays for a worker that has left
            return False
        return is_near(
            row.reserved_nano,
            accrued_s=(self._clock.now_us() - row.since_us) / 1e6,
            slack_s=self.reserves.slack_of(row.attempt_id),
            nano_per_hour=row.nano_per_hour,
        )
