"""`/v1/names`: which job, task, worker or key a part of an id means, among those that the caller may see."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from serve.auth import Admin, Operator, Reader
from serve.farm.access import books
from serve.farm.keys import keyring
from serve.openai.documents import refusals
from serve.rows import KeyRow, Named
from serve.service import off_the_loop

router = APIRouter(prefix="/v1/names", tags=["names"])
STATUSES = (401, 403, 404, 422, 429, 503)
Part = Annotated[str, Query(description="Of an id: its beginning or its end, or all of it", max_length=300)]


class NamedWorker(BaseModel):
    worker: str


@router.get("/jobs", operation_id="name_job", response_model=Named, responses=refusals(*STATUSES))
async def job(
    request: Request,
    caller: Reader,
    part: Part,
    tasks: Annotated[bool, Query(description="JOB/KEY, or the id of a task, is understood too")] = True,
) -> Named:
    """The one job, or task of a job, that `part` fits. What fits several is refused with some of them."""
    desk = books(request, caller)
    return await off_the_loop(lambda: desk.named(part) if tasks else Named(job=desk.job_named(part)))


@router.get("/workers", operation_id="name_worker", response_model=NamedWorker, responses=refusals(*STATUSES))
async def worker(request: Request, caller: Operator, part: Part) -> NamedWorker:
    """The one worker that `part` fits; FLEET/END is understood too."""
    desk = books(request, caller)
    return NamedWorker(worker=await off_the_loop(lambda: desk.worker_named(part)))


@router.get("/keys", operation_id="name_key", response_model=KeyRow, responses=refusals(*STATUSES))
async def key(request: Request, caller: Admin, part: Part) -> KeyRow:
    """The one key that `part` of its id fits."""
    ring = keyring(request, caller)
    return await off_the_loop(lambda: ring.named(part))
