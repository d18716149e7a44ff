"""`/v1/shows`: what each show is owed of the farm, does, and has spent."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field

from cluster.errors import Forbidden
from cluster.graph import flaw_of_text
from serve.auth import Admin, Reader
from serve.farm.access import asked, books, line
from serve.farm.orders import STATUSES
from serve.openai.documents import body_of, refusals
from serve.openai.schemas import Body
from serve.rows import Page, ShowRow
from serve.service import off_the_loop, service_of

router = APIRouter(prefix="/v1/shows", tags=["shows"])


MOST_OF_OTHERS = 1.0
"""What a show has that nobody has said anything of."""


class ShareRequest(Body):
    share: float = Field(gt=0, le=1e6, allow_inf_nan=False, description="A weight beside the other shows with work")


@router.get("", operation_id="list_shows", response_model=Page[ShowRow], responses=refusals(401, 403, 429, 503))
async def listed(request: Request, caller: Reader) -> Page[ShowRow]:
    """All shows of the tenant; of a key that is bound to a show, that one."""
    desk = books(request, caller)
    rows = await off_the_loop(desk.shows)
    return Page(data=rows, last_id=rows[-1].show if rows else None, has_more=False)


@router.get(
    "/{show:path}",
    operation_id="retrieve_show",
    response_model=ShowRow,
    responses=refusals(401, 403, 404, 429, 503),
)
async def retrieve(request: Request, caller: Reader, show: str) -> ShowRow:
    """One show."""
    desk, name = books(request, caller), "" if flaw_of_text(show, 64) else show
    return await off_the_loop(lambda: desk.show(name))


@router.put(
    "/{show:path}",
    operation_id="set_share",
    response_model=ShowRow,
    responses=refusals(*(status for status in STATUSES if status != 409)),
    openapi_extra=body_of(ShareRequest, forms=False),
)
async def set_share(request: Request, caller: Admin, show: str) -> ShowRow:
    """Sets its share; a show that is not there yet is made. It counts from the dispatcher's next look. Above 1 is for
    keys of the farm's own tenant: it takes from all others."""
    if caller.key.show is not None:
        raise Forbidden("this API key is bound to a show", remedy="shares are set with a key of the whole tenant")
    desk, name, body = books(request, caller), line(show, "show"), await asked(request, ShareRequest)
    if body.share > MOST_OF_OTHERS and caller.tenant != service_of(request).settings.tenant:
        raise Forbidden(
            f"a share above {MOST_OF_OTHERS:g} takes from other tenants", field="share",
            remedy=f"use {MOST_OF_OTHERS:g} or less, or a key of the farm's own tenant",
        )  # fmt: skip
    return await off_the_loop(lambda: desk.set_share(name, body.share))
