"""A reader of one S3 object that can seek: each place that is read from is a range of its own."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from cluster.errors import StoreUnavailable

TRIES = 3
BUFFER_BYTES = 1 << 20


class RangeReader(io.RawIOBase):
    """`body_from(offset)` opens the object there. A connection that breaks is opened again where it broke."""

    def __init__(self, size_bytes: int, body_from: Callable[[int], Any], read: Callable[[Any, int], bytes]) -> None:
        self._size, self._body_from, self._read = size_bytes, body_from, read
        self._at = 0
        self._body: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        to = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if to != self._at:
            self._drop()
            self._at = to
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Raises StoreUnavailable after some tries."""
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        for tries_left in reversed(range(TRIES)):
            try:
                if self._body is None:
                    self._body = self._body_from(self._at)
                data = self._read(self._body, wanted)
                if data:
                    break
                raise StoreUnavailable("an object ended before its end")
            except StoreUnavailable:
                self._drop()
                if not tries_left:
                    raise
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
