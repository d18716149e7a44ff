"""The store on a directory, for one host.

Nothing half-written is ever visible under a final key: bytes go to a temporary file of the same file system, are
flushed to the disk, and get their name by a hard link, which fails if the name is taken. So two writers of one
key cannot both win, and a crash leaves at most a temporary file, which `sweep` removes. Nothing is overwritten.
Source: section 8 of the design.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from cluster import disk, faults
from cluster.assets import (
    Blob,
    blob_key,
    check_key,
    check_media_type,
    check_tenant,
    sha256_of_key,
)
from cluster.errors import DamagedAsset, InvalidInput, StoreUnavailable, WrittenOnce
from cluster.store.port import Capabilities


class DirectoryStore:
    """A store for one host. `root` is created; it must allow hard links, which is how names are given once."""

    def __init__(self, root: Path) -> None:
        self._root = Path(root)
        self._temporary = self._root / ".incoming"  # no key has a segment that begins with a dot
        with self._ours():
            self._temporary.mkdir(parents=True, exist_ok=True)
        if not self.capabilities().conditional_write:
            raise StoreUnavailable(
                f"the file system of {self._root} has no hard links", remedy="choose a store directory on another one"
            )

    @property
    def name(self) -> str:
        return str(self._root)

    @faults.at("store.put_blob")
    def put_blob(self, tenant: str, source: Path | bytes, *, media_type: str, rehash: bool = False) -> Blob:
        check_tenant(tenant)
        check_media_type(media_type)
        with disk.opened(source) as reader, self._written(reader) as (written, sha256, size_bytes):
            blob = Blob(key=blob_key(tenant, sha256), sha256=sha256, size_bytes=size_bytes, media_type=media_type)
            if not self._publish(written, blob.key) and not self._is_sound(blob, rehash=rehash):
                with self._ours():  # damaged at rest: the bytes in hand are what the key names
                    os.replace(written, self._path(blob.key))
                    disk.flush_directory(self._path(blob.key).parent)
        return blob

    @faults.at("store.put_once")
    def put_once(self, key: str, data: bytes) -> None:
        check_key(key)
        if sha256_of_key(key):
            raise InvalidInput(f"{key} is a content address", field="key", remedy="use put_blob")
        with self._written(io.BytesIO(data)) as (written, _, _):
            if not self._publish(written, key) and self.get(key) != data:
                raise WrittenOnce(f"{key} has been written with other bytes")

    @faults.at("store.get")
    def get(self, key: str) -> bytes:
        with self.open(key) as reader, self._ours():
            data = reader.read()
        sha256 = sha256_of_key(key)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise DamagedAsset(f"{key} does not match its address")
        return data

    def open(self, key: str) -> BinaryIO:
        path = self._path(key)
        with self._ours(missing=f"no such asset: {key}"):
            return path.open("rb")

    @faults.at("store.fetch")
    def fetch(self, key: str, to: Path) -> None:
        with self.open(key) as reader, disk.errors(to.parent), disk.whole_file(to) as temporary:
            with temporary.open("wb") as writer:
                sha256, _ = disk.copy(reader, writer)
            if sha256_of_key(key) not in (None, sha256):
                raise DamagedAsset(f"{key} does not match its address")

    def exists(self, key: str) -> bool:
        with self._ours():
            self._see_root()
            return self._path(key).is_file()

    def list(self, prefix: str) -> Iterator[str]:
        tenant, slash, rest = prefix.partition("/")
        check_tenant(tenant)
        if not slash:
            raise InvalidInput(f"prefix {prefix!r} has no slash after the tenant", field="prefix")
        if rest:
            check_key(prefix.removesuffix("/"))
        with self._ours():
            self._see_root()
            top = self._root / prefix.rpartition("/")[0]
            found = [path.relative_to(self._root).as_posix() for path in top.rglob("*") if path.is_file()]
        return iter(sorted((key for key in found if key.startswith(prefix)), key=str.encode))

    def delete(self, key: str) -> None:
        with self._ours():
            self._see_root()
            self._path(key).unlink(missing_ok=True)

    @faults.at("store.verify")
    def verify(self, blob: Blob, *, reread: bool = False) -> None:
        with self.open(blob.key) as reader, self._ours():
            sha256, size_bytes = disk.copy(reader, None)
        if (sha256, size_bytes) != (blob.sha256, blob.size_bytes):
            raise DamagedAsset(f"{blob.key} holds {size_bytes} bytes of {sha256}, expected {blob.size_bytes} bytes")

    def presigned(self, key: str, *, name: str, media_type: str, seconds: int) -> str | None:
        return None

    def capabilities(self) -> Capabilities:
        return Capabilities(
            conditional_write=self._links_once(), server_checksum=False, lifecycle=False, presigned_urls=False
        )

    def sweep(self, *, older_than_s: float) -> int:
        num_removed = 0
        with self._ours(), tempfile.NamedTemporaryFile(dir=self._temporary) as now:
            now_s = os.stat(now.name).st_mtime  # the file system's clock, which also stamped the others
            for path in self._temporary.iterdir():
                if path.name != Path(now.name).name and now_s - path.stat().st_mtime > older_than_s:
                    path.unlink(missing_ok=True)
                    num_removed += 1
        return num_removed

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _see_root(self) -> None:
        self._temporary.stat()  # a root that has gone is not an empty store

    def _ours(self, missing: str | None = None) -> AbstractContextManager[None]:
        return disk.errors(self._root, marker=self._temporary, missing=missing)

    @contextmanager
    def _written(self, reader: BinaryIO) -> Iterator[tuple[str, str, int]]:
        """A flushed temporary copy of `reader`: its path, sha256 and size; removed at the end."""
        with self._ours():
            descriptor, path = tempfile.mkstemp(dir=self._temporary)
        try:
            with self._ours(), os.fdopen(descriptor, "wb") as writer:
                sha256, size_bytes = disk.copy(reader, writer)
                writer.flush()
                os.fchmod(writer.fileno(), 0o644)
                os.fsync(writer.fileno())
            yield path, sha256, size_bytes
        finally:
            Path(path).unlink(missing_ok=True)

    def _publish(self, written: str, key: str) -> bool:
        """Give the written file its final name; False if the name is taken."""
        path = self._path(key)
        with self._ours():
            path.parent.mkdir(parents=True, exist_ok=True)
            with faults.point("store.publish"):
                try:
                    os.link(written, path)
                except FileExistsError:
                    return False
            folder = path.parent
            while folder != self._root.parent:  # new folders must survive a crash as well
                disk.flush_directory(folder)
                folder = folder.parent
        return True

    def _is_sound(self, blob: Blob, *, rehash: bool) -> bool:
        with self.open(blob.key) as reader, self._ours():
            if os.fstat(reader.fileno()).st_size != blob.size_bytes:
                return False
            return not rehash or disk.copy(reader, None) == (blob.sha256, blob.size_bytes)

    def _links_once(self) -> bool:
        """Whether a name can be given by a hard link, and only once."""
        with self._ours(), tempfile.TemporaryDirectory(dir=self._temporary) as folder:
            first, second = Path(folder, "first"), Path(folder, "second")
            first.touch()
            try:
                os.link(first, second)
            except OSError as error:
                if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                    return False
                raise
            try:
                os.link(first, second)
            except FileExistsError:
                return True
            return False
