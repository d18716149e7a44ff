"""The lines of a batch: one JSON object each, the body of a video, and the key under which it is asked for ever."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from actors.contract import Json
from cluster.assets import canonical_json
from cluster.errors import InvalidInput

MAX_BYTES = 256 << 20
MAX_PAIRS = 16
"""Of the metadata of a video."""
TIER = "batch"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    number: int  # in the file, from 1
    id: str | None  # as the file has it
    body: Json  # what is sent
    key: str  # the Idempotency-Key: the same line asks the same, wherever the file lies and whatever stands around it

    @property
    def name(self) -> str:
        return self.id or f"line {self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Flaw:
    """Why a line cannot be submitted."""

    number: int
    id: str | None
    field: str | None
    message: str
    code: str = InvalidInput.code

    def __str__(self) -> str:
        return f"line {self.number}: {self.message}"


def read(path: Path, *, show: str = "", batch: str = "") -> tuple[list[Line], list[Flaw]]:
    """The lines that may be good, and those that cannot be. Raises InvalidInput for a file without any."""
    lines: list[Line] = []
    flaws: list[Flaw] = []
    ids: dict[str, int] = {}
    same = Counter[bytes]()
    for number, raw in enumerate(_bytes(path).split(b"\n"), start=1):
        if not raw.strip():
            continue
        line_id: str | None = None
        try:
            fields = _object(raw)
            line_id = _id(fields.pop("id", None))
            if line_id is not None and ids.setdefault(line_id, number) != number:
                raise InvalidInput(f"the id {line_id} stands in line {ids[line_id]} too", field="id")
            body = _body(fields, line_id=line_id, batch=batch)
            asked = canonical_json([show, batch, line_id, body])
        except InvalidInput as error:
            flaws.append(Flaw(number=number, id=line_id, field=error.field, message=error.line()))
            continue
        same[asked] += 1
        key = hashlib.sha256(asked + b"#%d" % same[asked]).hexdigest()
        lines.append(Line(number=number, id=line_id, body=body, key=key))
    if not lines and not flaws:
        raise InvalidInput(f"{path} has no lines", field="--input", remedy='write one like {"prompt": "a red boat"}')
    return lines, flaws


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InvalidInput(f"{path} has {size:,} bytes", field="--input", remedy="split it into several batches")
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror}", field="--input", remedy="name a file of JSON lines"
        ) from error


def _object(raw: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"this is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidInput('this is no JSON object; write it as in {"prompt": "a red boat"}')
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _id(value: Any) -> str | None:
    """Ids name files."""
    if value is None or (isinstance(value, str) and _ID.fullmatch(value)):
        return value
    raise InvalidInput("an id has 1 to 100 of A-Z, a-z, 0-9, '.', '_' and '-', none of the signs first", field="id")


def _body(fields: dict[str, Any], *, line_id: str | None, batch: str) -> Json:
    """With what finds the video again: its batch and its line, as far as they have names and there is room."""
    body = {"tier": TIER, **fields}
    metadata = fields.get("metadata", {})
    ours = {name: value for name, value in (("batch", batch), ("line", line_id)) if value}
    if ours and isinstance(metadata, dict) and len({**ours, **metadata}) <= MAX_PAIRS:
        body["metadata"] = {**ours, **metadata}
    return body
