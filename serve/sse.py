"""Server-Sent Events as a client reads them. Source: the HTML standard, section 9.2.6."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    event: str
    data: str
    id: str | None = None  # None: this one has none


def frames(lines: Iterable[str]) -> Iterator[Frame]:
    """The events of a stream that has come as lines; comments and what was cut off are left out."""
    name, last, data = "message", None, list[str]()
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Frame(event=name, data="\n".join(data), id=last)
            name, last, data = "message", None, []
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            last = value
