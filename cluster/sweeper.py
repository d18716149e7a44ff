"""What a store holds that nobody will ever ask for: uploads that were never finished, and what attempts saved that are
long over. Servers with lifecycle rules are swept like any other: the rules know nothing of attempts.

Attempts that the ledger does not know are left alone: they may be of another farm on the same store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice

from cluster.assets import attempt_of, denoise_step_of
from cluster.ledger import remains
from cluster.ledger.ledger import Ledger
from cluster.store.port import Store

AT_ONCE = 500
"""Attempts that the ledger is asked about in one transaction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """How many were removed."""

    uploads: int
    checkpoints: int
    receipts: int


def sweep(ledger: Ledger, store: Store, *, uploads_kept_s: float, remains_kept_s: float) -> Swept:
    """Idempotent. A committed attempt keeps its receipt, and nothing else. Raises StoreUnavailable, Unavailable.

    Uploads come last: keys that may not list them still sweep the rest.
    """
    before_us = ledger.clock.now_us() - round(remains_kept_s * 1e6)
    removed = [key for tenant in ledger.view(remains.tenants) for key in _remains(ledger, store, tenant, before_us)]
    num_checkpoints = sum(denoise_step_of(key) is not None for key in removed)
    uploads = store.sweep(older_than_s=uploads_kept_s)
    return Swept(uploads=uploads, checkpoints=num_checkpoints, receipts=len(removed) - num_checkpoints)


def _remains(ledger: Ledger, store: Store, tenant: str, before_us: int) -> Iterator[str]:
    """The keys of one tenant that are of no more use, each once it is removed."""
    attempts = groupby(store.list(f"{tenant}/attempts/"), attempt_of)
    while some := {attempt_id: list(keys) for attempt_id, keys in islice(attempts, AT_ONCE)}:
        over = ledger.view(partial(remains.over, attempt_ids=list(some), before_us=before_us))
        for attempt_id, committed in over.items():
            for key in some[attempt_id]:
                if not committed or denoise_step_of(key) is not None:
                    store.delete(key)
                    yield key
