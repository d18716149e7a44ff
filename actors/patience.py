"""A store that errs for a moment costs a moment, not the attempt that has been paid for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from cluster.errors import StoreUnavailable
from cluster.logs import say

T = TypeVar("T")
log = logging.getLogger(__name__)
WAITS_S = (0.1, 0.4, 1.6)
"""Between the tries; after the last one the attempt fails, and its next one goes on from its checkpoint."""


def patiently(call: Callable[[], T]) -> T:
    """`call()` of a store, which may be repeated. Raises what it raises, StoreUnavailable only after all tries."""
    for wait_s in WAITS_S:
        try:
            return call()
        except StoreUnavailable as error:
            say(log, "The store does not answer; it is asked again.", action="store.retry", error=error.line())
            time.sleep(wait_s)
    return call()
