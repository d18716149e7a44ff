"""The collection of what nobody needs any more: files of jobs that failed or were deleted long ago, and stray blobs.

One run, of one tenant after the other: expired jobs are released (their takes, receipts and checkpoints go), what no
other job and no take names is marked, and what an earlier run marked long enough ago is claimed and removed. Any number
of runs at once, and commits beside them, lose nothing; see `cluster.ledger.inventory`. Source: section 8 of the design.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cluster import faults
from cluster.assets import attempts_prefix, blob_key, receipt_key, sha256_of_key
from cluster.errors import NotFound
from cluster.ledger import inventory, retention
from cluster.ledger.ledger import Ledger
from cluster.logs import say
from cluster.store.port import Store

if TYPE_CHECKING:  # SQL is spoken in the ledger alone
    from sqlalchemy import Connection

    Row = Any

T = TypeVar("T")
log = logging.getLogger(__name__)
CLAIMED_AT_ONCE = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a run would do, or has done. `marked`: by it, or by an earlier one not long enough ago to be removed."""

    jobs: int = 0
    marked: int = 0
    marked_bytes: int = 0
    strays: int = 0  # blobs that no ledger names; of those that are marked
    removed: int = 0
    removed_bytes: int = 0

    def __add__(self, other: Found) -> Found:
        return Found(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(Found)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """`kept_s`: files of failed, canceled and deleted jobs are kept so long; None: for ever. `grace_s`: what is marked
    is left for so long, in which whoever makes it again keeps it."""

    kept_s: float | None
    grace_s: float


class Collector:
    """On one ledger and its store. `now_s` is a monotonic clock."""

    def __init__(self, ledger: Ledger, store: Store, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._ledger, self._store, self._now_s = ledger, store, now_s

    def plan(self, rules: Rules, *, tenant: str | None = None) -> Found:
        """What `run` would do; nothing is changed."""
        return self._each(rules, tenant, dry_run=True)

    def run(self, rules: Rules, *, tenant: str | None = None) -> Found:
        """Of one tenant, or of all. Raises StoreUnavailable, LedgerUnavailable; what was done stays done."""
        found = self._each(rules, tenant, dry_run=False)
        say(log, "A collection is over.", action="assets.collected", jobs=found.jobs, marked=found.marked,
            removed=found.removed, removed_bytes=found.removed_bytes)  # fmt: skip
        return found

    def _each(self, rules: Rules, tenant: str | None, *, dry_run: bool) -> Found:
        whose = [tenant] if tenant is not None else self._ledger.view(inventory.tenants)
        return sum((self._collect(one, rules, dry_run=dry_run) for one in whose), Found())

    def _collect(self, tenant: str, rules: Rules, *, dry_run: bool) -> Found:
        began_us = self._ledger.clock.now_us()
        before_us = 0 if rules.kept_s is None else began_us - round(rules.kept_s * 1e6)
        expired = self._ledger.view(lambda c: retention.expired(c, tenant, before_us)) if before_us > 0 else []
        if not dry_run:
            expired = [job_id for job_id in expired if self._ledger.release_job(job_id, before_us=before_us)]
            self._clear(tenant, expired)
            self._ledger.drop_assets(tenant)
        needed = self._needed(tenant, expired if dry_run else [])
        marking, marked, due = dict[str, int](), dict[str, int](), dict[str, int]()
        sizes = dict[str, int]()
        wanted = set[str]()
        for row in self._rows(tenant):
            sizes[row.sha256] = row.size
            if row.swept_us is not None:
                continue
            if row.sha256 in needed:
                wanted |= {row.sha256} if row.marked_us is not None else set()
            elif row.marked_us is None and row.used_us < began_us:
                marking[row.sha256] = began_us
            elif row.marked_us is not None and row.marked_us + rules.grace_s * 1e6 > began_us:
                marked[row.sha256] = row.marked_us
            elif row.marked_us is not None:
                due[row.sha256] = row.marked_us
        strays = {
            sha: self._size(tenant, sha) for sha in self._stored(tenant) if sha not in sizes and sha not in needed
        }
        if not dry_run:
            self._ledger.unmark_assets(tenant, wanted)
            self._ledger.mark_assets(tenant, list(marking), before_us=began_us)
            self._ledger.mark_strays(tenant, [_stray(tenant, sha, size) for sha, size in strays.items()])
            due = self._removed(tenant, due)
        stays = [sizes[sha] for sha in (*marking, *marked)]
        return Found(
            jobs=len(expired),
            marked=len(stays) + len(strays),
            marked_bytes=sum(stays) + sum(strays.values()),
            strays=len(strays),
            removed=len(due),
            removed_bytes=sum(sizes[sha] for sha in due),
        )

    def _clear(self, tenant: str, released: Sequence[str]) -> None:
        """Receipts and checkpoints of jobs that nobody can open again, but for receipts that others took answers of.
        What is left after a crash goes with what attempts left, in the sweep."""
        ids = [attempt["id"] for job_id in released for attempt in self._ledger.attempts(job_id)]
        receipts = [receipt_key(tenant, attempt_id) for attempt_id in ids]
        kept = self._ledger.view(lambda c: retention.receipts_in_use(c, receipts))
        for attempt_id in ids:
            for key in list(self._store.list(attempts_prefix(tenant, attempt_id))):
                if key not in kept:
                    self._store.delete(key)

    def _needed(self, tenant: str, without: Sequence[str]) -> set[str]:
        """Page by page: what is committed meanwhile is in use since then, and is not marked."""
        doomed = self._ledger.view(lambda c: retention.doomed_takes(c, tenant, without)) if without else set[str]()
        found = set[str]()
        for some in self._pages(lambda c, after: inventory.needed(c, tenant, after, frozenset(without))):
            found |= some
        for some in self._pages(lambda c, after: inventory.needed_by_takes(c, tenant, after, doomed)):
            found |= some
        return found

    def _rows(self, tenant: str) -> Iterator[Row]:
        for rows in self._pages(lambda c, after: inventory.rows_of(c, tenant, after)):
            yield from rows

    def _pages(self, look: Callable[[Connection, str], tuple[T, str | None]]) -> Iterator[T]:
        after: str | None = ""
        while after is not None:
            some, after = self._ledger.view(partial(_looked, look, after))
            yield some

    def _stored(self, tenant: str) -> list[str]:
        keys = self._store.list(f"{tenant}/assets/sha256/")
        return [sha for sha in map(sha256_of_key, keys) if sha is not None]

    def _size(self, tenant: str, sha256: str) -> int:
        try:
            with self._store.open(blob_key(tenant, sha256)) as reader:
                size: int = reader.seek(0, io.SEEK_END)
                return size
        except NotFound:  # another run was quicker
            return 0

    def _removed(self, tenant: str, due: dict[str, int]) -> dict[str, int]:
        """Claims and removes, some at a time; what is left when a claim is half over is a stray of the next run."""
        gone = dict[str, int]()
        shas, derived = list(due), self._derived(tenant) if due else {}
        for first in range(0, len(shas), CLAIMED_AT_ONCE):
            since_s = self._now_s()
            marks = {sha: due[sha] for sha in shas[first : first + CLAIMED_AT_ONCE]}
            for sha in self._ledger.claim_assets(tenant, marks):
                if self._now_s() - since_s > inventory.CLAIM_US / 2e6:
                    break
                with faults.point("assets.remove"):
                    for key in (*derived.get(sha, ()), blob_key(tenant, sha)):
                        self._store.delete(key)
                gone[sha] = due[sha]
        return gone

    def _derived(self, tenant: str) -> dict[str, list[str]]:
        """Keys that say what was made of a blob, by its sha256."""
        found: dict[str, list[str]] = {}
        for key in self._store.list(f"{tenant}/derived/"):
            found.setdefault(key.split("/")[2], []).append(key)
        return found


def _looked(look: Callable[[Connection, str], T], after: str, connection: Connection) -> T:
    return look(connection, after)


def _stray(tenant: str, sha256: str, size: int) -> dict[str, object]:
    return {"sha256": sha256, "key": blob_key(tenant, sha256), "size": size, "media_type": inventory.STRAY_TYPE}
