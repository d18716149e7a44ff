"""`/v1/budgets`: what the tenant, its shows and its films may cost, what is left, and what happens at the end."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Request
from pydantic import Field

from cluster.budgets import DEFAULT, MOST_THRESHOLDS, Action, Period, Scope
from cluster.errors import Forbidden
from serve.auth import Admin, Operator
from serve.farm.access import asked, books, whole
from serve.openai.documents import body_of, refusals
from serve.openai.schemas import Body
from serve.rows import BudgetAsked, BudgetCard, BudgetRow, Page, ThresholdRow
from serve.service import off_the_loop, service_of

router = APIRouter(prefix="/v1/budgets", tags=["budgets"])


class ThresholdOf(Body):
    at: float = Field(gt=0, le=10, allow_inf_nan=False, description="Of the cap; 0.8 is four fifths of it")
    action: Action


class BudgetRequest(Body):
    """The one budget of a scope. Setting it again changes it; what is spent is counted all the same."""

    scope: Scope
    subject: str = Field(default="", max_length=64, description="A show's name, or a film's id; none of a tenant")
    cap_usd: Annotated[
        str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$", description='Dollars as text, exact: "12.50"')
    ]
    currency: str = Field(default="USD", max_length=8, description="USD: nothing else is accounted")
    period: Period = Period.TOTAL
    thresholds: list[ThresholdOf] | None = Field(
        default=None,
        max_length=MOST_THRESHOLDS,
        description="null: " + ", ".join(f"{one.action} at {one.at:g}" for one in DEFAULT),
    )


@router.get("", operation_id="list_budgets", response_model=Page[BudgetRow], responses=refusals(401, 403, 429, 503))
async def listed(request: Request, caller: Operator) -> Page[BudgetRow]:
    """All budgets of the tenant; of a key that is bound to a show, those of the show and of its films."""
    desk = books(request, caller)
    rows = await off_the_loop(desk.budgets)
    return Page(data=rows, last_id=rows[-1].budget if rows else None, has_more=False)


@router.get(
    "/{budget_id}",
    operation_id="retrieve_budget",
    response_model=BudgetCard,
    responses=refusals(401, 403, 404, 429, 503),
)
async def retrieve(request: Request, caller: Operator, budget_id: str) -> BudgetCard:
    """One budget, with what happened to it: caps that were set, thresholds that were reached, work that was stopped."""
    desk = books(request, caller)
    return await off_the_loop(lambda: desk.budget(whole(budget_id, "budget")))


@router.put(
    "",
    operation_id="set_budget",
    response_model=BudgetRow,
    responses=refusals(400, 401, 403, 404, 408, 413, 422, 429, 503),
    openapi_extra=body_of(BudgetRequest, forms=False),
)
async def put(request: Request, caller: Admin, after: BackgroundTasks) -> BudgetRow:
    """Sets the budget of the tenant, a show or a film. It holds from the next lease on; work that had to stop for want
    of money goes on if there is some now, and thresholds count anew."""
    if caller.key.show is not None:
        raise Forbidden("this API key is bound to a show", remedy="budgets are set with a key of the whole tenant")
    desk, body = books(request, caller), await asked(request, BudgetRequest)
    given = None if body.thresholds is None else [ThresholdRow(at=x.at, action=x.action) for x in body.thresholds]
    want = BudgetAsked(
        scope=body.scope, subject=body.subject, cap_usd=str(Decimal(body.cap_usd)), currency=body.currency,
        period=body.period, thresholds=given,
    )  # fmt: skip
    row = await off_the_loop(lambda: desk.set_budget(want))
    after.add_task(service_of(request).poke)
    return row


@router.delete(
    "/{budget_id}",
    operation_id="remove_budget",
    response_model=BudgetRow,
    responses=refusals(401, 403, 404, 429, 503),
)
async def remove(request: Request, caller: Admin, budget_id: str, after: BackgroundTasks) -> BudgetRow:
    """Takes a budget away: it caps nothing any more, and what it held goes on. Answers with it as it was."""
    desk, own = books(request, caller), whole(budget_id, "budget")
    await off_the_loop(lambda: desk.budget(own))
    if caller.key.show is not None:
        raise Forbidden("this API key is bound to a show", remedy="budgets are set with a key of the whole tenant")
    row = await off_the_loop(lambda: desk.remove_budget(own))
    after.add_task(service_of(request).poke)
    return row
