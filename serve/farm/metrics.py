"""`/metrics`: the totals of the whole farm for Prometheus. It names shows of every tenant, so it is the farm's own."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from serve.auth import FarmOperator
from serve.openai.documents import refusals
from serve.service import off_the_loop, service_of

router = APIRouter(tags=["metrics"])
KINDS = ("text/plain", "application/openmetrics-text")
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "All metrics of the ledger, in the format that `Accept` asks for",
        "content": {kind: {"schema": {"type": "string"}} for kind in KINDS},
    }
}


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={**ANSWERS, **refusals(401, 403, 422, 429, 503)},
)
async def scraped(request: Request, caller: FarmOperator) -> Response:
    """Cost, time, jobs and queues of the farm, read from the ledger at most about once a second: every replica answers
    alike, and a restart resets nothing. For a key of the farm's own tenant that is bound to no show."""
    service = service_of(request)
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    text = await off_the_loop(lambda: encode(service.scrape.registry))
    return Response(text, media_type=kind)
