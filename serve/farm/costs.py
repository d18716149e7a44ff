"""`/v1/costs`: what a tenant has spent, on what, and what that brought."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from cluster.ledger.costs import By
from serve.auth import Reader
from serve.costs import PAGE, CostsAsked, CostTable
from serve.farm.access import books, line
from serve.farm.usage import UnixSeconds
from serve.openai.documents import refusals
from serve.service import off_the_loop

router = APIRouter(prefix="/v1/costs", tags=["costs"])


@router.get("", operation_id="list_costs", response_model=CostTable, responses=refusals(401, 403, 422, 429, 503))
async def listed(
    request: Request,
    caller: Reader,
    by: Annotated[By, Query(description="What the lines are summed by")] = By.SHOW,
    show: Annotated[str | None, Query(description="Only what this show was booked")] = None,
    since: Annotated[UnixSeconds | None, Query(description="Unix seconds; from the beginning if not given")] = None,
    until: Annotated[UnixSeconds | None, Query(description="Not part of it; until now if not given")] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE, description="Groups")] = 100,
    after: Annotated[str | None, Query(description="`last_id` of the page before")] = None,
) -> CostTable:
    """What the tenant of the key was booked, summed by show, film, shot, model, fleet or day, the dearest first; a key
    that is bound to a show sees that show. Time in which workers load or are idle is the farm's, and not in it."""
    desk = books(request, caller)
    asked = CostsAsked(
        by=by,
        show=None if show is None else line(show, "show"),
        since=since,
        until=until,
        limit=limit,
        after=None if after is None else line(after, "after", 400),
    )
    return await off_the_loop(lambda: desk.costs(asked))
