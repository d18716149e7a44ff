"""Costs as files for finance: what is asked for, whether it can be had yet, and the file piece by piece."""

from __future__ import annotations

import csv
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from cluster import disk
from cluster.clock import to_datetime
from cluster.errors import InvalidInput
from cluster.focus.charges import charges
from cluster.focus.columns import Manner, Mode, Parties, Version, plain, rows_of
from cluster.focus.files import ROWS, Format, written
from cluster.focus.lines import GRACE_US, Period, month_of
from cluster.ledger import statement
from cluster.ledger.ledger import Ledger
from cluster.ledger.statement import Whose
from cluster.settings import Settings

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """`provisional`: also of a period in which something may still be booked."""

    period: Period
    manner: Manner
    format: Format
    whose: Whose
    provisional: bool = False

    def __post_init__(self) -> None:
        if self.manner.mode is not Mode.INVOICE:
            return
        period = self.period
        if (month_of(period.from_us), month_of(period.to_us)) != (period.from_us, period.to_us):
            raise InvalidInput(
                "invoices are of whole months", field="from",
                remedy="begin and end at the first of a month, as in 2026-11-01 and 2026-12-01",
            )  # fmt: skip
        if self.provisional:
            raise InvalidInput("an invoice is never provisional", field="provisional", remedy="wait until it is closed")

    @property
    def file_name(self) -> str:
        first, last = (f"{to_datetime(us):%Y%m%dT%H}" for us in (self.period.from_us, self.period.to_us))
        return f"costs-{first}-{last}-focus-{self.manner.version}-{self.manner.mode}.{self.format}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """An export as a person words it, for a farm here or elsewhere."""

    from_: str | None
    to: str | None
    focus: str
    mode: str
    format: str
    tenant: str | None = None
    everyone: bool = False
    provisional: bool = False

    def of(self, settings: Settings, *, now_us: int) -> Export:
        """For the ledger here, where all is to be seen. Raises InvalidInput."""
        return Export(
            period=period_of(self.from_, self.to, now_us=now_us),
            manner=manner_of(self.focus, self.mode, settings),
            format=_one_of(Format, self.format, "format"),
            whose=Whose(tenant=self.tenant),
            provisional=self.provisional,
        )

    @property
    def path(self) -> str:
        """Of the same at a farm elsewhere."""
        said = {"from": self.from_, "to": self.to, "focus": self.focus, "mode": self.mode, "format": self.format}
        flags = {name: "true" for name in ("everyone", "provisional") if getattr(self, name)}
        return f"/v1/costs/export?{urlencode({k: v for k, v in said.items() if v is not None} | flags)}"


def parties_of(settings: Settings) -> Parties:
    provider = settings.service_provider
    return Parties(
        provider=provider, issuer=settings.invoice_issuer or provider, host=settings.host_provider or None
    )  # fmt: skip


def manner_of(version: str, mode: str, settings: Settings) -> Manner:
    """Raises InvalidInput for a version or a mode that there is not."""
    return Manner(
        version=_one_of(Version, version, "focus"), mode=_one_of(Mode, mode, "mode"), parties=parties_of(settings)
    )


def period_of(from_: str | None, to: str | None, *, now_us: int) -> Period:
    """Of two dates or hours (ISO 8601, UTC if they do not say otherwise); the last month that is over if there are
    none. Raises InvalidInput."""
    this_month_us = month_of(now_us - GRACE_US)
    to_us = this_month_us if to is None else _hour(to, "to")
    from_us = month_of(min(to_us, this_month_us) - 1) if from_ is None else _hour(from_, "from")
    if from_us >= to_us:
        raise InvalidInput(
            f"{from_ or to_datetime(from_us).date()} is not before the end", field="from", remedy="give an earlier one"
        )
    return Period(from_us=from_us, to_us=to_us)


def check(ledger: Ledger, export: Export) -> None:
    """Raises NotReady for a period that is open, if it is not asked for provisional figures."""
    if not export.provisional:
        now_us = ledger.clock.now_us()
        ledger.view(lambda c: statement.check_closed(c, export.period, now_us=now_us))


def pieces(ledger: Ledger, export: Export) -> Generator[bytes]:
    """The file. All of it is what the ledger held at one instant; nobody who writes waits for it."""
    columns, row = rows_of(export.manner)
    with ledger.database.reading() as connection:
        lines = statement.lines_of(connection, export.period, export.whose)
        rows = (row(charge) for charge in charges(lines, export.period))
        yield from written(columns, rows, export.format)


@contextmanager
def kept(out: Path) -> Iterator[Path]:
    """A file to write beside `out`, which becomes it when the block ends well, and goes when it does not. Raises
    InvalidInput for a file that is there already, or a folder that is not; StoreFull, StoreUnavailable."""
    there = InvalidInput(f"{out} is there already", field="--out", remedy="name a new file")
    if out.exists():
        raise there
    if not out.parent.is_dir():
        raise InvalidInput(f"there is no directory {out.parent}", field="--out", remedy="make it, or name another")
    part = out.with_name(f".{out.name}.{uuid4().hex[:8]}.part")
    with disk.errors(out.parent):
        try:
            part.open("xb").close()
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
            os.link(part, out)  # unlike a rename it takes no name that somebody has taken meanwhile
        except FileExistsError as error:
            raise there from error
        finally:
            part.unlink(missing_ok=True)


def summary(file: Path, kind: str) -> dict[str, Any]:
    """What is in a file that was written: it is read for that, so that what cannot be read is not handed on."""
    sums = {"EffectiveCost": Decimal(0), "BilledCost": Decimal(0)}
    num_rows = 0
    for batch in (_csv_batches if kind == Format.CSV else _parquet_batches)(file, list(sums)):
        num_rows += len(batch)
        for name in sums:
            sums[name] += sum((Decimal(row[name]) for row in batch), Decimal(0))
    return {
        "rows": num_rows,
        "bytes": file.stat().st_size,
        "effective_cost_usd": plain(sums["EffectiveCost"]),
        "billed_cost_usd": plain(sums["BilledCost"]),
    }


def _csv_batches(file: Path, _: list[str]) -> Iterator[list[dict[str, Any]]]:
    with file.open(encoding="utf-8", newline="") as text:
        rows = csv.DictReader(text)
        while batch := list(islice(rows, ROWS)):
            yield batch


def _parquet_batches(file: Path, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as found:
        for batch in found.iter_batches(ROWS, columns=columns):
            yield batch.to_pylist()


def _one_of(kind: Any, name: str, field: str) -> Any:
    try:
        return kind(name)
    except ValueError:
        known = ", ".join(kind)
        raise InvalidInput(f"there is no {field} {name[:40]!r}", field=field, remedy=f"use one of {known}") from None


def _hour(text: str, field: str) -> int:
    """In microseconds."""
    try:
        at = datetime.fromisoformat(text.strip())
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidInput(
            f"{text[:40]!r} is no instant",
            field=field,
            remedy="give a date, or an hour, as 2026-11-01 or 2026-11-01T05Z",
        ) from None
    since = at - EARLIEST
    if at < EARLIEST or at > LATEST or since % timedelta(hours=1):
        raise InvalidInput(
            f"{text} is no whole hour of our time", field=field, remedy="exports begin and end at whole hours, UTC"
        )
    return (round(EARLIEST.timestamp()) + round(since.total_seconds())) * 1_000_000
