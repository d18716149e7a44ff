"""`/v1/costs/export`: costs as a file for finance, in the words of FOCUS."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.errors import Forbidden, RateLimited
from cluster.focus.columns import Mode, Version
from cluster.focus.files import Format
from cluster.ledger import keys
from cluster.ledger.statement import Whose
from serve import exports
from serve.auth import Caller, caller_with
from serve.openai.documents import refusals
from serve.service import off_the_loop, service_of

router = APIRouter(prefix="/v1/costs", tags=["costs"])
Finance = Annotated[Caller, Depends(caller_with(keys.Scope.READ, keys.Scope.OPERATE))]
Instant = Annotated[str | None, Query(max_length=40)]
BUSY_S = 10.0
FILES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file; it is whole if the answer ends as it should",
        "content": {kind.media_type: {"schema": {"type": "string", "format": "binary"}} for kind in Format},
    }
}


@router.get(
    "/export",
    operation_id="export_costs",
    response_class=Response,
    responses=FILES | refusals(401, 403, 409, 422, 429, 503),
)
async def export(
    request: Request,
    caller: Finance,
    from_: Annotated[
        Instant, Query(alias="from", description="A date or a whole hour, ISO 8601; UTC if it does not say")
    ] = None,
    to: Annotated[
        Instant, Query(description="Not part of it. Without both it is the last month that is closed")
    ] = None,
    focus: Annotated[Version, Query(description="Whose column names")] = Version.V1_4,
    mode: Annotated[Mode, Query(description="showback: nothing is billed; invoice: whole months")] = Mode.SHOWBACK,
    format: Annotated[Format, Query(description="Of the file")] = Format.CSV,
    provisional: Annotated[bool, Query(description="Also while something of it may still be booked")] = False,
    everyone: Annotated[
        bool, Query(description="All tenants, and the farm's own idle and load time; for keys with `operate`")
    ] = False,
) -> Response:
    """The costs of the key's tenant, or of the show that it is bound to, as one file: charges of an hour each, exact to
    the nano-dollar. All of it is what the ledger held at one instant. A month is closed an hour after its end; what is
    booked again later is a correction on a later bill, so that a file of a closed month never changes."""
    service = service_of(request)
    if everyone and (caller.key.show is not None or not caller.key.may((keys.Scope.OPERATE,))):
        raise Forbidden(
            "this API key may not see the costs of everyone", field="everyone",
            remedy="use one with the scope operate that is bound to no show, or leave it out",
        )  # fmt: skip
    asked = exports.Export(
        period=exports.period_of(from_, to, now_us=service.ledger.clock.now_us()),
        manner=exports.manner_of(focus, mode, service.settings),
        format=format,
        whose=Whose() if everyone else Whose(tenant=caller.tenant, show=caller.key.show),
        provisional=provisional,
    )
    if service.exports.locked():
        raise RateLimited("too many exports are being written", remedy="ask again in a while", retry_after_s=BUSY_S)
    await off_the_loop(lambda: exports.check(service.ledger, asked))
    headers = {
        "content-disposition": f'attachment; filename="{asked.file_name}"',
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }
    pieces = exports.pieces(service.ledger, asked)
    return _Written(pieces, service.exports, headers=headers, media_type=format.media_type)


class _Written(StreamingResponse):
    """Gives the ledger's snapshot back, also if the client has gone before the last piece, or before the first."""

    def __init__(self, pieces: Generator[bytes], places: asyncio.Semaphore, **more: Any) -> None:
        super().__init__(pieces, **more)
        self._pieces, self._places = pieces, places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._places:
            try:
                await super().__call__(scope, receive, send)
            finally:
                self._pieces.close()
