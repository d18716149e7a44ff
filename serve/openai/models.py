"""`/v1/models`: the catalog, and which of it can be used here now."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from actors.catalog import Model
from cluster.errors import NotFound, Unsupported
from cluster.ledger import outcomes
from serve.auth import Reader
from serve.openai.documents import refusals
from serve.openai.schemas import ModelEntry, Models
from serve.service import Service, off_the_loop, service_of

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", operation_id="list_models", response_model=Models, responses=refusals(401, 403, 429, 503))
async def listed(request: Request, caller: Reader) -> Models:
    """All that the farm knows by name; `reelfarm.ready` says what can be used now."""
    service = service_of(request)
    held = await off_the_loop(lambda: service.ledger.view(outcomes.models_here))
    return Models(data=await off_the_loop(lambda: [_entry(service, m, held) for m in service.catalog.models.values()]))


@router.get(
    "/{model_id:path}",
    operation_id="retrieve_model",
    response_model=ModelEntry,
    responses=refusals(401, 403, 404, 429, 503),
)
async def retrieve(request: Request, caller: Reader, model_id: str) -> ModelEntry:
    """One model. Ids with a slash may be written with `%2F` or as they are."""
    service = service_of(request)
    held = await off_the_loop(lambda: service.ledger.view(outcomes.models_here))
    model = service.catalog.models.get(model_id)
    if model is None:
        raise NotFound("no such model", field="model", remedy="GET /v1/models lists them")
    return await off_the_loop(lambda: _entry(service, model, held))


async def ready_model(service: Service, model_id: str, *, role: str = "render", field: str = "model") -> Model:
    """A model that can be used here now: a worker holds it, or this machine has all it needs.

    Raises UnknownModel, and Unsupported for one whose job would wait for ever.
    """
    model = service.catalog.model(model_id, role=role, field=field)
    if not await off_the_loop(lambda: model.availability(service.settings.home).ready):
        held = await off_the_loop(lambda: service.ledger.view(outcomes.models_here))
        if model.id not in held:
            raise Unsupported(
                f"no worker of this farm holds {model.id}",
                field=field,
                remedy="use one that GET /v1/models calls ready",
            )
    return model


def _entry(service: Service, model: Model, held: set[str]) -> ModelEntry:
    ready = model.id in held or model.availability(service.settings.home).ready
    owner = model.weights.get("hub", "reelfarm").partition("/")[0]
    return ModelEntry(id=model.id, created=0, owned_by=owner, reelfarm=_facts(model, ready=ready))


def _facts(model: Model, *, ready: bool) -> dict[str, Any]:
    """What a client needs to ask for something; where weights lie on this machine is not among it."""
    facts: dict[str, Any] = {
        "role": model.role,
        "family": model.family,
        "title": model.title,
        "description": model.description,
        "license": model.licence,
        "revision": model.revision,
        "ready": ready,
        "packages": list(model.packages),
        "memory_mb": model.memory_mb,
        "accelerator_gib": model.accelerator_gib,
    }
    if model.limits is not None:
        facts |= {
            "sizes": [f"{width}x{height}" for width, height in model.limits.sizes],
            "fps": float(model.limits.fps),
            "seconds": model.limits.seconds()
            if model.limits.max_frames > 1 or max(model.limits.frames or (0,)) > 1
            else None,
            "steps": {quality.value: preset.steps for quality, preset in model.defaults.items()},
            "first_frame": model.first_frame,
            "vocabulary": model.vocabulary.summary() if model.vocabulary else None,
            "example": model.example(),
        }
    return facts
