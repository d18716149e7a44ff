"""What the routes of operators have in common: the books as the caller may see them, ids in paths, bodies."""

from __future__ import annotations

import re
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel

from cluster.errors import InvalidInput
from cluster.graph import flaw_of_text
from serve import bodies
from serve.auth import Caller
from serve.books import Books, farm_runs
from serve.openai.schemas import checked
from serve.service import service_of

B = TypeVar("B", bound=BaseModel)


def books(request: Request, caller: Caller) -> Books:
    service = service_of(request)
    return Books(
        ledger=service.ledger,
        farm_runs=farm_runs(service.settings),
        tenant=caller.tenant,
        sight=caller.sight(),
        foresight=service.foresight,
    )


def whole(text: str, kind: str) -> str:
    """The id of a job, task or key. What is none becomes the id of nothing, and is looked for all the same."""
    return text if re.fullmatch(rf"{kind}_[0-9a-hjkmnp-tv-z]{{26}}", text) else f"{kind}_none"


def line(text: str, field: str, longest: int = 64) -> str:
    """Text that a database can be asked for. Raises InvalidInput."""
    flaw = flaw_of_text(text, longest) if text else "is empty"
    if flaw:
        raise InvalidInput(f"{field} {flaw}", field=field)
    return text


async def asked(request: Request, kind: type[B]) -> B:
    """The body, in which all members may be left out. Raises Unreadable, TooSlow, InvalidInput."""
    service = service_of(request)
    return checked(kind, await bodies.fields(request, wait_s=service.settings.http_read_s, required=False))
