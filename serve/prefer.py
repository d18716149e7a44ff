"""What a client would rather have: an answer at once, or one that waits for the end of the job. Source: RFC 7240."""

from __future__ import annotations

import asyncio
import re

from fastapi import Request

from serve.auth import Caller
from serve.gate import HEADERS
from serve.service import service_of

LONGEST_S = 60
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,6})\"?")


def answer_at_once(request: Request) -> bool:
    return "respond-async" in _wishes(request)


def through_here(request: Request) -> bool:
    """Whether bytes shall come from the farm itself, and not by a URL of its store: `Prefer: proxy`."""
    return "proxy" in _wishes(request)


def applied(wish: str) -> dict[str, str]:
    return {"preference-applied": wish}


async def waited(request: Request, caller: Caller, job_id: str, *, seen: int, over: bool) -> bool:
    """Whether it is worth looking again: `Prefer: wait=n` holds an answer for n seconds, 60 at most, or until the job
    is over. `seen` is the number of its newest event that is known."""
    asked = next((match for wish in _wishes(request) if (match := _WAIT.fullmatch(wish))), None)
    if asked is None:
        return False
    wait_s, feed = min(LONGEST_S, int(asked[1])), service_of(request).feed
    if not over and feed.full(caller.key.id):
        return False
    request.scope[HEADERS] |= applied(f"wait={wait_s}")
    if over:
        return False
    try:
        async with asyncio.timeout(wait_s), feed.following(job_id, seen, caller.key.id) as listener:
            while (news := await listener.news(wait_s)) is not None and not news.last:
                continue
    except TimeoutError:
        pass
    return True


def _wishes(request: Request) -> list[str]:
    return [wish.strip().lower() for line in request.headers.getlist("prefer") for wish in line.split(",")]
