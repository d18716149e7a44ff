"""The assets of a farm, as somebody may see them: a port, and the ledger with its store behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cluster.assets import Blob
from cluster.collector import Collector, Rules
from cluster.errors import DamagedAsset, Expired, NotFound
from cluster.ledger import inventory
from cluster.ledger.ledger import Ledger
from cluster.ledger.outcomes import Sight
from cluster.retention import DAY_S, rules_of
from cluster.settings import Settings
from cluster.store.port import Store
from serve import clerk
from serve.rows import AssetRow, Collected, Page, Verified

PAGE = 1000


class Shelf(Protocol):
    """Ids are sha256, whole; `named` takes a part. Any call raises NotFound and Unavailable."""

    def named(self, text: str) -> AssetRow: ...

    def page(self, *, marked: bool, after: str | None, limit: int) -> Page[AssetRow]: ...

    def fetch(self, row: AssetRow, to: Path) -> None:
        """Into the file `to`, whole and verified or not at all. Raises DamagedAsset, Expired."""

    def verify(self, row: AssetRow) -> Verified: ...

    def collect(self, *, older_days: float | None, grace_s: float | None, dry_run: bool) -> Collected:
        """What is not given is as the farm's settings say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerShelf:
    """As `sight` may see it; a collection is of its tenant, of all if it has none."""

    ledger: Ledger
    store: Store
    settings: Settings
    sight: Sight = field(default_factory=Sight)

    def named(self, text: str) -> AssetRow:
        return clerk.asset_row(self.ledger.view(lambda c: inventory.find(c, self.sight, text.strip().lower())))

    def page(self, *, marked: bool, after: str | None, limit: int) -> Page[AssetRow]:
        found, more = self.ledger.view(
            lambda c: inventory.page(c, self.sight, after=after, limit=limit, marked=marked)
        )  # fmt: skip
        rows = [clerk.asset_row(one) for one in found]
        return Page(data=rows, last_id=rows[-1].asset if rows else None, has_more=more)

    def fetch(self, row: AssetRow, to: Path) -> None:
        try:
            self.store.fetch(row.key, to)
        except NotFound as error:
            self._forget(row)
            raise Expired("its bytes are kept no longer", remedy="render it again") from error

    def verify(self, row: AssetRow) -> Verified:
        blob = Blob(key=row.key, sha256=row.asset, size_bytes=row.size_bytes, media_type=row.media_type)
        try:
            self.store.verify(blob, reread=True)
        except (NotFound, DamagedAsset) as error:
            self._forget(row)
            return Verified(asset=row.asset, size_bytes=row.size_bytes, whole=False, said=error.line())
        return Verified(asset=row.asset, size_bytes=row.size_bytes, whole=True, said=None)

    def _forget(self, row: AssetRow) -> None:
        """Whoever asks for it again has it made again."""
        self.ledger.forget_takes(row.key.partition("/")[0], row.asset)

    def collect(self, *, older_days: float | None, grace_s: float | None, dry_run: bool) -> Collected:
        usual = rules_of(self.settings)
        rules = Rules(
            kept_s=usual.kept_s if older_days is None else older_days * DAY_S,
            grace_s=usual.grace_s if grace_s is None else grace_s,
        )
        collector = Collector(self.ledger, self.store)
        found = (collector.plan if dry_run else collector.run)(rules, tenant=self.sight.tenant)
        return clerk.collected(found, done=not dry_run)
