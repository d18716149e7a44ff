"""Exports as bytes, a piece at a time: CSV, and Parquet with exact decimals. However many rows, few are in memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from itertools import islice
from typing import Any

from cluster.focus.columns import Column, Type, Value, plain

ROWS = 5_000
"""In one piece; of a Parquet file, in one row group."""


class Format(StrEnum):
    CSV = "csv"
    PARQUET = "parquet"

    @property
    def media_type(self) -> str:
        return {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}[self.value]


def written(columns: Sequence[Column], rows: Iterable[Sequence[Value]], kind: Format) -> Iterator[bytes]:
    """The file, piece by piece. The last piece comes only when all rows have: what breaks off is no whole file."""
    return _csv(columns, iter(rows)) if kind is Format.CSV else _parquet(columns, iter(rows))


def _csv(columns: Sequence[Column], rows: Iterator[Sequence[Value]]) -> Iterator[bytes]:
    texts = [_TEXTS[column.type] for column in columns]
    yield _page([[column.name for column in columns]])
    while batch := list(islice(rows, ROWS)):
        yield _page([[text(value) for text, value in zip(texts, row, strict=True)] for row in batch])


def _page(rows: Iterable[Sequence[str]]) -> bytes:
    page = io.StringIO()
    csv.writer(page, lineterminator="\n").writerows(rows)
    return page.getvalue().encode()


def _parquet(columns: Sequence[Column], rows: Iterator[Sequence[Value]]) -> Iterator[bytes]:
    import pyarrow as pa  # 60 MB, which nobody needs who serves no Parquet
    from pyarrow import parquet

    types = {
        Type.TEXT: pa.string(),
        Type.MONEY: pa.decimal128(38, 14),
        Type.PRICE: pa.decimal128(38, 16),
        Type.TIME: pa.timestamp("us", tz="UTC"),
    }
    schema = pa.schema([pa.field(column.name, types[column.type]) for column in columns])
    pieces = _Pieces()
    with parquet.ParquetWriter(pa.PythonFile(pieces, mode="w"), schema, compression="zstd") as writer:
        while batch := list(islice(rows, ROWS)):
            fields = zip(zip(*batch, strict=True), schema, strict=True)
            writer.write_batch(pa.record_batch([pa.array(v, f.type) for v, f in fields], schema=schema))
            yield pieces.taken()
    yield pieces.taken()


class _Pieces(io.RawIOBase):
    """What a writer writes, until somebody takes it."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, piece: Any) -> int:
        self._held += piece
        self._at += len(piece)
        return len(piece)

    def taken(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _number(value: Any) -> str:
    """With a point, also of a whole number: readers take a column without any for one of integers."""
    text = "" if value is None else plain(value)
    return text if "." in text or not text else f"{text}.0"


@lru_cache(maxsize=4096)
def _instant(us: Any) -> str:
    return datetime.fromtimestamp(us // 1_000_000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_TEXTS: dict[Type, Callable[[Any], str]] = {
    Type.TEXT: _text,
    Type.MONEY: _number,
    Type.PRICE: _number,
    Type.TIME: _instant,
}
