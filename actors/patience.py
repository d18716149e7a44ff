"""A store that is away costs time, not the work that has been paid for: what was made is kept until it can be put."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from cluster.errors import StoreUnavailable
from cluster.logs import say

T = TypeVar("T")
log = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
LOOK_S = 0.1


def patiently(call: Callable[[], T], *, on_wait: Callable[[int], object], check: Callable[[], object]) -> T:
    """`call()` of a store, which may be repeated, for as long as the store is away.

    `on_wait` hears which try is waited for; `check`, asked again and again, raises if the wait shall end. Raises that,
    and whatever `call` raises but StoreUnavailable.
    """
    for tried in count(1):
        try:
            return call()
        except StoreUnavailable as error:
            say(log, "The store does not answer; it is asked again.", action="store.retry", error=error.line())
            on_wait(tried)
            ends_s = time.monotonic() + min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(tried - 1, 10))
            while (left_s := ends_s - time.monotonic()) > 0:
                check()
                time.sleep(min(LOOK_S, left_s))
    raise AssertionError("unreachable")
