"""`/v1/keys`: who may ask this farm. An admin's key makes and sees keys of its own tenant, and show if it is bound."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import Field

from serve.auth import Admin, Caller
from serve.farm.access import asked, whole
from serve.farm.orders import STATUSES, extra_of
from serve.keyring import LIMITS, LedgerKeyring
from serve.openai.documents import body_of, refusals
from serve.openai.schemas import Body
from serve.rows import KeyAsked, KeyRow, NewKey, Page
from serve.service import off_the_loop, service_of

router = APIRouter(prefix="/v1/keys", tags=["keys"])
ScopeName = Literal["generate", "read", "operate", "admin"]
YEAR_S = 31_536_000.0


class KeyRequest(Body):
    name: str = Field(description="What it is for, as people will read it")
    tenant: str | None = Field(default=None, description="No other than that of the key which asks")
    show: str | None = Field(default=None, description="The only show that it sees")
    scopes: list[ScopeName] = Field(
        default=["generate", "read"], min_length=1, max_length=8, description="`admin` includes the others"
    )
    requests_per_minute: int | None = None
    in_flight_s: float | None = Field(default=None, description="At most so many predicted seconds of open work")
    tokens_per_minute: int | None = Field(default=None, description="Of chats, prompt and answer together")


class RotateRequest(Body):
    keep_old_s: float = Field(
        default=0.0, ge=0, le=YEAR_S, allow_inf_nan=False, description="How long the old one opens"
    )


def keyring(request: Request, caller: Caller) -> LedgerKeyring:
    return LedgerKeyring(
        ledger=service_of(request).ledger,
        usual=caller.tenant,
        tenant=caller.tenant,
        show=caller.key.show,
        limits={name: getattr(caller.key, name) for name in LIMITS},
    )


@router.get("", operation_id="list_keys", response_model=Page[KeyRow], responses=refusals(401, 403, 429, 503))
async def listed(request: Request, caller: Admin) -> Page[KeyRow]:
    """All of them, oldest first, the revoked ones too; of no secret more than its beginning."""
    ring = keyring(request, caller)
    rows = await off_the_loop(lambda: ring.keys(None))
    return Page(data=rows, last_id=rows[-1].key if rows else None, has_more=False)


@router.post(
    "",
    operation_id="create_key",
    response_model=NewKey,
    responses=refusals(*(status for status in STATUSES if status not in (404, 409))),
    openapi_extra=body_of(KeyRequest, forms=False),
)
async def create(request: Request, caller: Admin) -> NewKey:
    """Makes a key, with no more than the limits of the one that asks. Its secret is in this answer and nowhere else,
    ever."""
    ring, body = keyring(request, caller), await asked(request, KeyRequest)
    return await off_the_loop(lambda: ring.add(KeyAsked(**body.model_dump())))


@router.post(
    "/{key_id}/rotate",
    operation_id="rotate_key",
    response_model=NewKey,
    responses=refusals(*STATUSES),
    openapi_extra=extra_of(RotateRequest),
)
async def rotate(request: Request, caller: Admin, key_id: str) -> NewKey:
    """Gives a key a new secret, told in this answer alone. The old one opens for `keep_old_s` more. While an older one
    still opens, that one is kept and the one in between ends: so a call whose answer was lost can be made again."""
    ring, body = keyring(request, caller), await asked(request, RotateRequest)
    return await off_the_loop(lambda: ring.rotate(whole(key_id, "key"), keep_old_s=body.keep_old_s))


@router.post(
    "/{key_id}/revoke", operation_id="revoke_key", response_model=KeyRow, responses=refusals(401, 403, 404, 429, 503)
)
async def revoke(request: Request, caller: Admin, key_id: str) -> KeyRow:
    """Ends a key for good, at once. What was submitted with it goes on. Again is fine."""
    ring = keyring(request, caller)
    return await off_the_loop(lambda: ring.revoke(whole(key_id, "key")))
