"""Sends what stands in the outbox of webhooks: signed, at least once, always under the same id (Standard Webhooks 1.0).

Any number of deliverers may run on one ledger. Each takes some of what is due under a lease; what it does not settle,
because it was killed in the middle, is due again when the lease ends.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import random
import time
from collections.abc import Sequence

from cluster import faults
from cluster.errors import InvalidInput, Unavailable
from cluster.ledger.hooks import BUDGET_REACHED, Message, Tried, topic
from cluster.ledger.ledger import Ledger
from cluster.logs import say
from cluster.metrics import Meters
from cluster.states import JobState
from serve.guard import Guard

log = logging.getLogger(__name__)
DELAYS_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Between two tries: ten in about three days. Each is drawn out by up to a fifth: no herd comes back at once."""
WAIT_S = 15.0
LEASE_S = 60.0
AT_ONCE, OF_TENANT, EACH = 64, 16, 4
"""Tries at a time of one deliverer, and of them for one tenant and for one endpoint: who is slow holds up no others."""
LOOK_S = 1.0
KEPT_S, TIDY_S = 30 * 86_400.0, 3600.0
"""How long what is over stays in the log, and how often that is looked after."""
RECIPES = {"video": "clip", "film": "film", "image": "image"}
WORDS = {"completed": JobState.SUCCEEDED, "failed": JobState.FAILED, "canceled": JobState.CANCELED}
TOPICS = {
    **{
        f"{thing}.{word}": topic(f"pipelines.recipes.{recipe}", state)
        for thing, recipe in RECIPES.items()
        for word, state in WORDS.items()
    },
    "film.in_review": topic("pipelines.recipes.film", JobState.IN_REVIEW),
    "budget.threshold_reached": BUDGET_REACHED,
}
"""What the ledger calls an event, by its type."""
TYPES = {name: kind for kind, name in TOPICS.items()}


class Deliverer:
    """`deliver_due` once, or `run` until told to stop. `dice` is for jitter."""

    def __init__(
        self, ledger: Ledger, guard: Guard, *, dice: random.Random | None = None, meters: Meters | None = None
    ) -> None:
        self._ledger, self._guard, self._dice = ledger, guard, dice or random.Random()
        self._meters = meters or Meters()
        self._sending = set[Message]()
        self._tidied_s = time.monotonic()

    async def deliver_due(self) -> int:
        """Tries what is due now, waits for the answers, and returns how many there were. Raises Unavailable."""
        async with asyncio.TaskGroup() as sending:
            messages = await self._take_up(sending)
        return len(messages)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what is being sent is waited for, WAIT_S at most. A ledger that is away is waited for."""
        async with asyncio.TaskGroup() as sending:
            while not stop.is_set():
                pause_s = LOOK_S
                try:
                    if await self._take_up(sending):
                        pause_s = 0.0
                    await self._tidy()
                except Unavailable as error:
                    say(
                        log, "No webhook can be sent now.", action="webhook.wait", level=logging.WARNING, why=str(error)
                    )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause_s)

    async def _take_up(self, sending: asyncio.TaskGroup) -> list[Message]:
        beside = tuple(self._sending)
        if len(beside) >= AT_ONCE:
            return []
        bounds = {"limit": AT_ONCE - len(beside), "of_tenant": OF_TENANT, "each": EACH}
        messages = await asyncio.to_thread(self._ledger.claim_deliveries, **bounds, beside=beside, lease_s=LEASE_S)
        self._sending.update(messages)
        for message in messages:
            sending.create_task(self._deliver(message))
        return messages

    async def _deliver(self, message: Message) -> None:
        """One try. Whatever breaks here, the lease ends and the message is due again."""
        try:
            with faults.point("webhooks.send"):
                tried = await self._tried(message)
            next_us = self._next_us(message, tried)
            self._meters.count("farm_webhook_tries_total", outcome="delivered" if tried.heard else "failed")
            if await asyncio.to_thread(self._ledger.settle_delivery, message, tried, next_us=next_us):
                action = "webhook.delivered" if tried.heard else "webhook.failed"
                say(log, "A webhook was tried.", action=action, endpoint=message.hook_id, event=message.id,
                    status=tried.status, ms=tried.ms)  # fmt: skip
        except Unavailable as error:
            say(log, "A try of a webhook was lost.", action="webhook.lost", level=logging.WARNING, why=str(error))
        except Exception:
            log.exception("Something unforeseen happened to a webhook.")
        finally:
            self._sending.discard(message)

    async def _tried(self, message: Message) -> Tried:
        kind = TYPES[message.topic]
        about = about_of(kind, message.job_id)
        body = event(message.id, kind, about, created_us=message.created_us)
        return await send(
            self._guard, message.url, message.secrets, message.id, body, now_us=self._ledger.clock.now_us()
        )

    def _next_us(self, message: Message, tried: Tried) -> int | None:
        """When to try again; None after the last one."""
        if message.num_tries >= len(DELAYS_S):
            return None
        delay_s = DELAYS_S[message.num_tries] * (1.0 + 0.2 * self._dice.random())
        return tried.at_us + round(delay_s * 1e6)

    async def _tidy(self) -> None:
        if time.monotonic() - self._tidied_s >= TIDY_S:
            self._tidied_s = time.monotonic()
            await asyncio.to_thread(self._ledger.forget_deliveries, older_s=KEPT_S)


def about_of(kind: str, of: str) -> str:
    """What an event is about, as its surface names it: a job by what it makes, a budget by itself."""
    return f"{kind.partition('.')[0]}_{of.removeprefix('job_')}" if of.startswith("job_") else of


async def send(guard: Guard, url: str, secrets: Sequence[str], event_id: str, body: bytes, *, now_us: int) -> Tried:
    """One POST, signed now; what comes of it is told and never raised."""
    began_s, status, error = time.monotonic(), None, None
    try:
        headers = signed(secrets, event_id, now_us // 1_000_000, body)
        status = await guard.post(url, body, headers, field="url", wait_s=WAIT_S)
    except InvalidInput as refused:
        error = str(refused)
    return Tried(at_us=now_us, ms=round((time.monotonic() - began_s) * 1000), status=status, error=error)


def event(event_id: str, kind: str, about: str, *, created_us: int) -> bytes:
    """The body, the same at every try: what happened to what; whoever wants more asks for it."""
    told = {
        "id": event_id,
        "object": "event",
        "type": kind,
        "created_at": created_us // 1_000_000,
        "data": {"id": about},
    }
    return json.dumps(told, separators=(",", ":")).encode()


def signed(secrets: Sequence[str], event_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """The headers; one signature by each secret. Source: Standard Webhooks 1.0, symmetric signatures."""
    text = f"{event_id}.{at_s}.".encode() + body
    keys = [base64.b64decode(secret.removeprefix("whsec_")) for secret in secrets]
    signatures = [base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode() for key in keys]
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
