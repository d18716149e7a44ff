"""Bytes on a local disk: copying with a hash, flushing, whole files or none, and the system's errors as ours."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from cluster.errors import InvalidInput, NotFound, StoreFull, StoreUnavailable

CHUNK_BYTES = 1 << 20
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


@contextmanager
def errors(folder: Path, *, marker: Path | None = None, missing: str | None = None) -> Iterator[None]:
    """Errors of the system become ours.

    A name that is not there is NotFound with the words of `missing`, as long as `marker` shows that `folder` is there.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise StoreFull(f"no space left for {folder}", remedy="make room on that disk, then try again") from error
        if error.errno in _NOT_THERE and missing and marker and marker.is_dir():
            raise NotFound(missing) from error
        raise StoreUnavailable(
            f"{folder}: {error.strerror or error}", remedy="check that the directory is there and may be written"
        ) from error


def copy(reader: IO[bytes], writer: IO[bytes] | None) -> tuple[str, int]:
    """Copy to `writer`, or to nowhere; the sha256 and the number of bytes."""
    digest, size_bytes = hashlib.sha256(), 0
    while chunk := reader.read(CHUNK_BYTES):
        digest.update(chunk)
        size_bytes += len(chunk)
        if writer is not None:
            writer.write(chunk)
    return digest.hexdigest(), size_bytes


def sha256_of(path: Path) -> str:
    with path.open("rb") as reader:
        return copy(reader, None)[0]


def flush_directory(folder: Path) -> None:
    """Make the names in `folder` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """A temporary name beside `final`, which becomes `final` when the block ends well and vanishes when it does not."""
    descriptor, name = tempfile.mkstemp(dir=final.parent, prefix=".", suffix=f".{final.name[-40:]}")
    temporary = Path(name)
    try:
        os.fchmod(descriptor, 0o644)
        os.close(descriptor)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def opened(source: Path | bytes) -> Iterator[BinaryIO]:
    """A reader of bytes that are given, or of a file. Raises InvalidInput."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        reader = source.open("rb")
    except OSError as error:
        raise InvalidInput(f"cannot read {source.name}: {error.strerror}", field="source") from error
    with reader:
        yield reader
