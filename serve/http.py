"""The farm over HTTP, as one plain ASGI application: a composition root hands it the parts, anything may host it.

It holds no state of a job: any number of them on one ledger answer alike.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from pydantic import BaseModel

from actors.catalog import Catalog
from cluster.errors import Unavailable
from cluster.ledger import outcomes
from cluster.ledger.holdings import SILENT_US
from cluster.ledger.ledger import Ledger
from cluster.settings import Settings
from cluster.store.port import Store
from serve import envelope
from serve.chats import ChatDesk
from serve.document import document_of
from serve.farm import (
    assets,
    budgets,
    cost_export,
    costs,
    estimates,
    films,
    follow,
    jobs,
    keys,
    metrics,
    names,
    shows,
    takes,
    tasks,
    usage,
    webhook_endpoints,
    workers,
)
from serve.gate import Gate
from serve.openai import chat, images, models, videos
from serve.openai.documents import refusals
from serve.service import Desk, Service, off_the_loop, service_of

VERSION = "1"
ABOUT = (
    "Video and pictures by the shapes of OpenAI's clients; whatever is accepted is done, once. Every answer has an "
    "`x-request-id`. A request for work may be sent again with the same `Idempotency-Key`: it is the same job."
)
OPERATING = (assets, jobs, follow, tasks, workers, shows, budgets, keys, names, metrics)
"""What operators ask and tell the farm."""


class Alive(BaseModel):
    status: str = "ok"


class Ready(BaseModel):
    status: str = "ready"
    dispatcher_term: int


def create_app(
    ledger: Ledger,
    store: Store,
    catalog: Catalog,
    settings: Settings,
    desk: Desk | None = None,
    chat_desk: ChatDesk | None = None,
    *,
    replica: str | None = None,
) -> FastAPI:
    """`desk` is the dispatcher, if it can be reached: submits need it not, progress does. `chat_desk` is who answers
    chats. `replica` is what it is called among those behind one proxy (of Ray Serve), which then names the requests."""
    app = FastAPI(title="Reelfarm", version=VERSION, description=ABOUT, docs_url=None, redoc_url=None)
    app.state.service = Service(
        ledger=ledger, store=store, catalog=catalog, settings=settings, desk=desk, chat=chat_desk
    )
    app.add_middleware(
        Gate,
        body_bytes=settings.http_body_bytes,
        upload_bytes=settings.http_upload_bytes,
        replica=replica,
    )
    envelope.install(app)
    app.add_api_route("/healthz", _alive, methods=["GET"], response_model=Alive, operation_id="alive", tags=["health"])
    app.add_api_route(
        "/readyz",
        _ready,
        methods=["GET"],
        response_model=Ready,
        responses=refusals(503),
        operation_id="ready",
        tags=["health"],
    )
    for surface in (
        videos,
        images,
        models,
        chat,
        films,
        takes,
        estimates,
        usage,
        cost_export,
        costs,
        webhook_endpoints,
        *OPERATING,
    ):
        app.include_router(surface.router)
    app.openapi = lambda: document_of(app)  # type: ignore[method-assign]  # FastAPI's own way to change it
    return app


async def _alive() -> Alive:
    """This process answers."""
    return Alive()


async def _ready(request: Request) -> Ready:
    """What is submitted here is durable, and a dispatcher is there that will give it out."""
    service = service_of(request)
    term, alive_us = await off_the_loop(lambda: service.ledger.view(outcomes.newest_dispatcher))
    if alive_us is None:
        raise Unavailable("no dispatcher has worked on this ledger yet", remedy="wait until the farm is up")
    silent_us = service.ledger.clock.now_us() - alive_us
    if silent_us > SILENT_US:
        raise Unavailable(
            f"the dispatcher was last heard of {silent_us / 1e6:.0f} s ago",
            remedy="look whether the farm is up; what is submitted is kept, and waits for it",
        )
    return Ready(dispatcher_term=term)
