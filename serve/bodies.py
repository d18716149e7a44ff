"""Bodies of requests as one mapping, however they came: JSON, a multipart form or an urlencoded one.

The OpenAI clients send `POST /videos` as multipart, older ones and curl as JSON. In forms `a[b]` is a member of the
object `a`, `a[]` an item of the list `a`; every value is text. Sizes are bounded by the gate before anything is read.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from cluster.errors import TooSlow, Unreadable
from serve.gate import OPEN

MAX_FIELDS, MAX_FILES, MAX_VALUE_BYTES, MAX_DEPTH = 200, 8, 256 << 10, 4
MAX_NESTING = 64
"""Of JSON: what is read and written again further down must not reach the bound of the interpreter there."""
_NAME = re.compile(r"(?P<name>[^\[\]]{1,64})(?P<path>(?:\[[^\[\]]{0,64}\])*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePart:
    """A file in a form. Its bytes lie in memory or on disk, as large as they are, until the request is answered."""

    media_type: str
    sha256: str
    file: BinaryIO = field(repr=False, compare=False)

    def read(self) -> bytes:
        self.file.seek(0)
        return self.file.read()


async def fields(request: Request, *, wait_s: float, required: bool = True) -> dict[str, Any]:
    """The fields of the body; none, where it is not `required` and empty. Raises Unreadable, TooSlow, and TooLarge from
    the gate."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise Unreadable(
            f"a body packed by {coding[:80]!r} is not unpacked", field="Content-Encoding", remedy="send it as it is"
        )
    try:
        async with asyncio.timeout(wait_s):
            if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
                return await _form(request)
            if kind != "application/json":
                raise Unreadable(
                    f"a body of type {kind[:80]!r} is not understood",
                    field="Content-Type",
                    remedy="send application/json or multipart/form-data",
                )
            body = await request.body()
            return _json(body) if body or required else {}
    except TimeoutError as error:
        raise TooSlow(f"the body did not come within {wait_s:g} s", remedy="send it faster") from error


def _json(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body, parse_constant=_no_number, object_pairs_hook=_object)
        json.dumps(document, ensure_ascii=False).encode()  # a lone surrogate is no text
        nested = _is_deeper(document, MAX_NESTING)
    except ValueError as error:
        raise Unreadable(f"the body is not JSON: {error}", remedy="send one JSON object in UTF-8") from error
    except RecursionError:
        nested = True
    if nested:
        raise Unreadable("the body is nested too deeply", remedy=f"nest {MAX_NESTING} objects and lists at most")
    if not isinstance(document, dict):
        raise Unreadable("the body is no JSON object", remedy="send one, as in {...}")
    return document


def _is_deeper(value: Any, most: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (most == 0 or any(_is_deeper(one, most - 1) for one in inner))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice[:80]!r} is given twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


async def _form(request: Request) -> dict[str, Any]:
    try:
        form = await request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_VALUE_BYTES)
    except HTTPException as error:
        raise Unreadable(f"the form cannot be read: {error.detail}") from error
    request.scope[OPEN].append(form)
    found: dict[str, Any] = {}
    for name, value in form.multi_items():
        _place(found, name, await _file(value) if isinstance(value, UploadFile) else value)
    return found


async def _file(part: UploadFile) -> FilePart:
    digest = hashlib.sha256()
    while chunk := await part.read(1 << 20):
        digest.update(chunk)
    return FilePart(
        media_type=part.content_type or "application/octet-stream", sha256=digest.hexdigest(), file=part.file
    )


def _place(found: dict[str, Any], name: str, value: Any) -> None:
    match = _NAME.fullmatch(name)
    steps = [match["name"], *re.findall(r"\[([^\[\]]*)\]", match["path"])] if match else []
    if not steps or len(steps) > MAX_DEPTH or "" in steps[:-1]:
        raise Unreadable(f"{name[:80]!r} is no name of a field", remedy="write name, name[member] or name[]")
    where: Any = found
    for step, then in zip(steps, [*steps[1:], None], strict=True):
        if then is None and step == "":
            where.append(value)
        elif then is None:
            if step in where:
                raise Unreadable(f"{name} is given twice", field=name)
            where[step] = value
        else:
            where = where.setdefault(step, [] if then == "" else {})
            if not isinstance(where, list if then == "" else dict):
                raise Unreadable(f"{name} is given in two ways", field=name)
