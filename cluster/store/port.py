"""The port to bytes at rest, and what is done with receipts through it. Source: section 8 of the design."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cluster.assets import Blob, Receipt, receipt_key
from cluster.errors import DamagedAsset, NotFound


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What this store was seen to do, not what it says. What it lacks, its user must make up for."""

    conditional_write: bool  # of two writers of one key, one is refused
    server_checksum: bool  # the store itself refuses bytes that do not match; else they are read back
    lifecycle: bool  # the store expires objects by rule
    presigned_urls: bool


class Store(Protocol):
    """Bytes by key. Every method may raise StoreUnavailable, those that write StoreFull."""

    @property
    def name(self) -> str:
        """Which one it is, for people."""

    def put_blob(self, tenant: str, source: Path | bytes, *, media_type: str, rehash: bool = False) -> Blob:
        """Put bytes at their content address; putting them again is free. `rehash` re-reads a blob that is there."""

    def put_once(self, key: str, data: bytes) -> None:
        """Write `key` for the first and last time; the same bytes again are fine. Other bytes raise WrittenOnce."""

    def get(self, key: str) -> bytes:
        """All bytes of `key`. Raises NotFound, DamagedAsset."""

    def open(self, key: str) -> BinaryIO:
        """A reader of `key` for ranges; what it reads is not verified. Raises NotFound."""

    def fetch(self, key: str, to: Path) -> None:
        """Copy `key` to the file `to`, whole and verified or not at all. Raises NotFound, DamagedAsset."""

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that begin with `prefix` (a tenant at least), in byte order."""

    def delete(self, key: str) -> None:
        """Deleting what is not there is fine."""

    def verify(self, blob: Blob, *, reread: bool = False) -> None:
        """See that the store holds the blob: by the checksum of the server where that was seen to check, else by
        reading it back, as always if `reread`. Raises NotFound if it is gone, DamagedAsset if it is something else."""

    def presigned(self, key: str, *, name: str, media_type: str, seconds: int) -> str | None:
        """A URL that gives the bytes to anybody for so long, as a file called `name`; None if there are no such."""

    def sweep(self, *, older_than_s: float) -> int:
        """Remove what writers began and never finished, if it is older than any write takes. Returns how many."""

    def capabilities(self) -> Capabilities: ...


def put_receipt(store: Store, tenant: str, receipt: Receipt) -> str:
    """Write the receipt of an attempt, once. Returns its key. Raises WrittenOnce if another one is there."""
    key = receipt_key(tenant, receipt.attempt_id)
    store.put_once(key, receipt.to_bytes())
    return key


def find_receipt(store: Store, tenant: str, attempt_id: str) -> Receipt | None:
    """The receipt that an attempt left, None if it left none. Raises DamagedAsset."""
    try:
        receipt = Receipt.from_bytes(store.get(receipt_key(tenant, attempt_id)))
    except NotFound:
        return None
    if receipt.attempt_id != attempt_id:
        raise DamagedAsset(f"the receipt of attempt {attempt_id} names attempt {receipt.attempt_id}")
    return receipt


def verify_receipt(store: Store, receipt: Receipt) -> None:
    """Read every file of the receipt back. Raises NotFound or DamagedAsset, naming the file."""
    for file in receipt.files:
        try:
            store.verify(file.blob)
        except (NotFound, DamagedAsset) as error:
            raise type(error)(f"{file.name} of attempt {receipt.attempt_id}: {error}") from error
