"""`/v1/workers`: who works. They are the farm's, not a tenant's: what they run for others is counted, not named."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Query, Request
from pydantic import Field

from serve.auth import FarmOperator, Operator
from serve.farm.access import asked, books, line
from serve.farm.orders import STATUSES, DryRun, extra_of
from serve.openai.documents import refusals
from serve.openai.schemas import Body
from serve.rows import Deed, Workers
from serve.service import off_the_loop, service_of

router = APIRouter(prefix="/v1/workers", tags=["workers"])


class DrainRequest(Body):
    reason: str = Field(default="a person asked", description="Kept in the ledger")
    dry_run: DryRun = False


@router.get("", operation_id="list_workers", response_model=Workers, responses=refusals(401, 403, 422, 429, 503))
async def listed(
    request: Request,
    caller: Operator,
    gone: Annotated[bool, Query(description="Also those that have left")] = False,
    limit: Annotated[int, Query(ge=1, le=10_000, description="At most so many, the newest")] = 200,
) -> Workers:
    """The workers that are here, oldest first: what each holds, runs and costs."""
    desk = books(request, caller)
    return await off_the_loop(lambda: desk.workers(gone=gone, limit=limit))


@router.post(
    "/{worker_id:path}/drain",
    operation_id="drain_worker",
    response_model=Deed,
    response_model_exclude_none=True,
    responses=refusals(*(status for status in STATUSES if status != 409)),
    openapi_extra=extra_of(DrainRequest),
)
async def drain(request: Request, caller: FarmOperator, worker_id: str, after: BackgroundTasks) -> Deed:
    """It gets no more work, and ends or checkpoints what it runs. An id may be written with `%2F` or as it is. For keys
    of the farm's own tenant that are bound to no show: it works for all tenants."""
    desk, body = books(request, caller), await asked(request, DrainRequest)
    name, reason = line(worker_id, "worker", 128), line(body.reason, "reason", 300)
    deed = await off_the_loop(lambda: desk.drain(name, reason=reason, dry_run=body.dry_run))
    if deed.done:
        after.add_task(service_of(request).poke)
    return deed
