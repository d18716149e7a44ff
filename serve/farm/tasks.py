"""`/v1/tasks`: one task of a job, as operators see it."""

from __future__ import annotations

from fastapi import APIRouter, Request

from serve.auth import Reader
from serve.books import Books
from serve.farm.access import books, whole
from serve.farm.orders import add_verbs
from serve.openai.documents import refusals
from serve.rows import ReasonRow
from serve.service import off_the_loop

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])


@router.get(
    "/{task_id}/why", operation_id="explain_task", response_model=ReasonRow, responses=refusals(401, 403, 404, 429, 503)
)
async def why(request: Request, caller: Reader, task_id: str) -> ReasonRow:
    """Why a task does not run: every predicate that holds it back, until when, and what to do."""
    desk = books(request, caller)
    return await off_the_loop(lambda: desk.why_task(desk.task_named(whole(task_id, "task"))))


add_verbs(router, "task", Books.task_named)
