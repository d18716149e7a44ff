"""`/v1/assets`: the files of a tenant by their content, whether they are whole, and the collection of the others."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from cluster.errors import Forbidden
from serve.auth import Admin, Caller, Operator, Reader
from serve.download import download
from serve.farm.access import asked
from serve.farm.orders import STATUSES
from serve.openai.documents import DOWNLOAD, body_of, bytes_of, refusals
from serve.openai.schemas import Body
from serve.rows import AssetRow, Collected, Page, Verified
from serve.service import off_the_loop, service_of
from serve.shelf import PAGE, LedgerShelf

router = APIRouter(prefix="/v1/assets", tags=["assets"])
Limit = Annotated[int, Query(ge=1, le=PAGE)]
After = Annotated[str | None, Query(max_length=64, description="The `asset` of the last one")]
Marked = Annotated[bool, Query(description="Only those that nobody needs any more")]


class CollectRequest(Body):
    older_days: float | None = Field(
        default=None, ge=0, le=36_500, allow_inf_nan=False,
        description="Files of jobs that failed, were canceled or deleted so long ago go; null: as the farm is set",
    )  # fmt: skip
    grace_s: float | None = Field(
        default=None, ge=0, le=1e9, allow_inf_nan=False,
        description="What is marked is left for so long before it is removed; null: as the farm is set",
    )  # fmt: skip
    dry_run: bool = Field(default=False, description="Only say what would be done")


def shelf(request: Request, caller: Caller) -> LedgerShelf:
    service = service_of(request)
    return LedgerShelf(
        ledger=service.ledger, store=service.store, settings=service.settings, sight=caller.sight()
    )  # fmt: skip


@router.get(
    "",
    operation_id="list_assets",
    response_model=Page[AssetRow],
    responses=refusals(401, 403, 404, 422, 429, 503),
)
async def listed(
    request: Request, caller: Reader, marked: Marked = False, after: After = None, limit: Limit = 50
) -> Page[AssetRow]:
    """The files of the tenant, in the order of their SHA-256; of a key that is bound to a show, those it pays for."""
    desk = shelf(request, caller)
    return await off_the_loop(lambda: desk.page(marked=marked, after=_sha(after), limit=limit))


@router.post(
    "/collect",
    operation_id="collect_assets",
    response_model=Collected,
    responses=refusals(*(status for status in STATUSES if status not in (404, 409))),
    openapi_extra=body_of(CollectRequest, forms=False),
)
async def collect(request: Request, caller: Admin) -> Collected:
    """Marks the files that no job and no take needs, and removes those that were marked before the grace. What somebody
    makes again meanwhile is kept."""
    if caller.key.show is not None:
        raise Forbidden("this API key is bound to a show", remedy="files are collected with a key of the whole tenant")
    desk, body = shelf(request, caller), await asked(request, CollectRequest)
    return await off_the_loop(
        lambda: desk.collect(older_days=body.older_days, grace_s=body.grace_s, dry_run=body.dry_run)
    )


@router.get(
    "/{asset}", operation_id="retrieve_asset", response_model=AssetRow, responses=refusals(401, 403, 404, 429, 503)
)
async def retrieve(request: Request, caller: Reader, asset: str) -> AssetRow:
    """One file, by its SHA-256 or a beginning of it that no other has."""
    desk = shelf(request, caller)
    return await off_the_loop(lambda: desk.named(_sha(asset) or ""))


@router.api_route(
    "/{asset}/content",
    methods=["GET"],
    operation_id="download_asset",
    response_class=Response,
    responses=bytes_of("video/mp4", "image/png", "application/json", "text/vtt", "application/octet-stream")
    | refusals(401, 403, 404, 410, 416, 429, 503),
    openapi_extra=DOWNLOAD,
)
@router.api_route("/{asset}/content", methods=["HEAD"], include_in_schema=False)
async def content(request: Request, caller: Reader, asset: str) -> Response:
    """Its bytes. Ranges are understood; the `ETag` is the SHA-256."""
    desk = shelf(request, caller)
    row = await off_the_loop(lambda: desk.named(_sha(asset) or ""))
    file = {"key": row.key, "sha256": row.asset, "size_bytes": row.size_bytes, "media_type": row.media_type}
    return await download(service_of(request), request, file, name=row.asset, show=row.show)


@router.post(
    "/{asset}/verify", operation_id="verify_asset", response_model=Verified, responses=refusals(401, 403, 404, 429, 503)
)
async def verify(request: Request, caller: Operator, asset: str) -> Verified:
    """Reads all its bytes and says whether they are what its name says."""
    desk = shelf(request, caller)
    return await off_the_loop(lambda: desk.verify(desk.named(_sha(asset) or "")))


def _sha(text: str | None) -> str | None:
    """What is no beginning of a SHA-256 becomes that of none, which is looked for all the same."""
    if text is None:
        return None
    return text.lower() if re.fullmatch("[0-9a-fA-F]{4,64}", text) else "none"
