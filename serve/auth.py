"""Who asks: a bearer key, its scopes and its tenant. Every refusal takes the same way and the same one statement."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from cluster.errors import Forbidden, InvalidInput, RateLimited, Unauthenticated
from cluster.graph import flaw_of_text
from cluster.ledger.keys import Allowance, Key, Scope
from cluster.ledger.outcomes import Sight
from serve.gate import HEADERS
from serve.service import off_the_loop, service_of

BEARER = HTTPBearer(auto_error=False, description="A key of the farm; `farm keys add` makes one.")
PROJECT = "openai-project"
"""The OpenAI clients' `project` is a show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks, and for which show. A key that is bound to a show sees and submits to that one only."""

    key: Key
    show: str
    tokens: Allowance | None = None  # what its minute has left; None: it has no limit

    @property
    def tenant(self) -> str:
        return self.key.tenant

    def sight(self, recipe: str | None = None) -> Sight:
        """Of the jobs of one recipe, or of all."""
        return Sight(tenant=self.key.tenant, recipe=recipe, show=self.key.show)


def caller_with(*scopes: Scope) -> Callable[..., Awaitable[Caller]]:
    """A dependency: the caller, who has one of `scopes`. Raises Unauthenticated, Forbidden, RateLimited."""

    async def check(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
    ) -> Caller:
        service = service_of(request)
        secret = credentials.credentials if credentials else ""
        admitted = await off_the_loop(lambda: service.ledger.authenticate(secret))
        if admitted is None:
            raise Unauthenticated("no such API key", remedy="send `Authorization: Bearer` with a key of this farm")
        key = admitted.key
        if key.requests_per_minute is not None:
            request.scope[HEADERS] |= {
                "x-ratelimit-limit-requests": str(key.requests_per_minute),
                "x-ratelimit-remaining-requests": str(admitted.left),
                "x-ratelimit-reset-requests": f"{admitted.full_s:.3f}s",
                "ratelimit-policy": f'"requests";q={key.requests_per_minute};w=60',
                "ratelimit": f'"requests";r={admitted.left};t={math.ceil(admitted.full_s)}',
            }
        if not key.may(scopes):
            named = " or ".join(scope.value for scope in scopes)
            raise Forbidden("this API key may not do that", remedy=f"use a key with the scope {named}")
        if admitted.wait_s > 0:
            raise RateLimited(
                f"this key may ask {key.requests_per_minute} times a minute",
                remedy=f"wait {admitted.wait_s:.1f} s",
                retry_after_s=admitted.wait_s,
            )
        show = _show(request.headers.get(PROJECT), key, service.settings.show)
        return Caller(key=key, show=show, tokens=admitted.tokens)

    return check


def _show(asked: str | None, key: Key, usual: str) -> str:
    if asked is None:
        return key.show or usual
    flaw = flaw_of_text(asked, 64) if asked else "is empty"
    if flaw:
        raise InvalidInput(f"the show {flaw}", field=PROJECT)
    if key.show not in (None, asked):
        raise Forbidden("this API key is bound to another show", field=PROJECT, remedy=f"leave {PROJECT} out")
    return asked


Reader = Annotated[Caller, Depends(caller_with(Scope.READ))]
Generator = Annotated[Caller, Depends(caller_with(Scope.GENERATE))]
Admin = Annotated[Caller, Depends(caller_with(Scope.ADMIN))]
Stopper = Annotated[Caller, Depends(caller_with(Scope.GENERATE, Scope.OPERATE))]
"""May stop and delete: who may ask for work, and who operates it."""
Operator = Annotated[Caller, Depends(caller_with(Scope.OPERATE))]


async def _of_the_farm(request: Request, caller: Operator) -> Caller:
    """Raises Forbidden."""
    if caller.tenant != service_of(request).settings.tenant or caller.key.show is not None:
        raise Forbidden(
            "this is about the whole farm", remedy="use a key of the farm's own tenant that is bound to no show"
        )
    return caller


FarmOperator = Annotated[Caller, Depends(_of_the_farm)]
"""Operates what all tenants share."""
