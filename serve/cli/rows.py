"""Rows on standard output: one JSON object a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from serve.rows import Row


def write(rows: Iterable[Row | Mapping[str, Any]]) -> None:
    """Each on a line of its own, at once."""
    for row in rows:
        document = row.plain() if isinstance(row, Row) else row
        print(json.dumps(document, ensure_ascii=False), file=sys.stdout, flush=True)
