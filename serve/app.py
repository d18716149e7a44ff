"""The composition root of a standing farm: replicas that answer HTTP, and the supervisor that owns all the rest.

`farm up` runs it on a Ray of its own. On a Ray that runs already: `serve run serve.app:app`, with the settings from the
environment of that command.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve import Application

from actors.catalog import Catalog
from cluster import logs
from cluster import settings as settings_module
from cluster.errors import InvalidInput
from cluster.ledger.ledger import Ledger
from cluster.metrics import Meters
from cluster.runtime import NAMESPACE, replica_drains
from cluster.settings import Settings
from cluster.store.opening import open_store
from serve import up
from serve.feed import MOST_LISTENERS
from serve.http import create_app
from serve.supervisor import Standing, Supervisor
from serve.writers import RayWriters

NAME = "reelfarm"
SUPERVISOR = "supervisor"
ASK_S = 10.0
DRAIN_S = 30.0
"""How long a replica that was told to stop lets its requests end; streams end within a second by themselves."""
AT_ONCE = 2 * MOST_LISTENERS
"""Requests that one replica works on, those of who follows a job among them; more wait in the proxy."""


class SupervisorHost:
    """The supervisor as an actor that outlives whoever started it. Ray re-runs `__init__` after a crash."""

    def __init__(self, settings: Settings) -> None:
        from actors.fleet import Fleets

        logs.set_up()
        num_gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
        meters = Meters()
        self._supervisor = Supervisor(settings, Fleets(settings), gpus=num_gpus, meters=meters)
        meters.export()
        self._supervisor.start()

    def standing(self) -> Standing:
        return self._supervisor.standing()

    def drain(self, timeout_s: float) -> None:
        self._supervisor.drain(timeout_s)


_SupervisorActor: Any = ray.remote(SupervisorHost)


def supervisor(settings: Settings) -> Any:
    """The handle of the farm's one supervisor, which is started if it is not there."""
    return _SupervisorActor.options(
        name=SUPERVISOR,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=4,
        runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": ""}},
    ).remote(settings)


class Api:
    """One replica. It owns no accelerator and no state of a job: any of them answers for any other."""

    def __init__(self, settings: Settings) -> None:
        logs.set_up()
        self._settings = settings
        self._supervisor = supervisor(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from actors.fleet import RayDesk

        settings = self._settings
        desk = RayDesk(lease_wait_s=settings.lease_wait_s)
        api = create_app(
            Ledger(settings.ledger),
            open_store(settings),
            Catalog.load(settings.home / "models.d"),
            settings,
            desk=desk,
            chat_desk=RayWriters(desk.workers),
            replica=ray_serve.get_replica_context().replica_id.unique_id,
        )
        api.state.service.feed.draining = lambda: replica_drains() or up.ends(settings.home)
        return api

    async def check_health(self) -> None:
        """A replica whose loop stands still, or that can start no thread, does not answer here and is replaced. A
        ledger that is away or hangs is no reason, however many requests wait for it: another replica has no other one,
        and `/readyz` says it. A supervisor that is gone is started again from here."""
        await run_sync(lambda: None, limiter=CapacityLimiter(1))
        try:
            await asyncio.wait_for(self._supervisor.standing.remote(), ASK_S)
        except TimeoutError:
            return  # busy, not gone
        except ray.exceptions.RayError:
            self._supervisor = supervisor(self._settings)


_wrapped: Any = ray_serve.ingress()(Api)
_Deployment: Any = ray_serve.deployment(
    name="api",
    max_ongoing_requests=AT_ONCE,
    graceful_shutdown_timeout_s=DRAIN_S,
    graceful_shutdown_wait_loop_s=0.5,
    health_check_period_s=5.0,
    health_check_timeout_s=20.0,
    ray_actor_options={"num_cpus": 0},
)(_wrapped)


def app(args: dict[str, str] | None = None) -> Application:
    """What `serve run serve.app:app` runs. Raises InvalidSettings."""
    if args:
        raise InvalidInput("serve.app takes no arguments", remedy="set FARM_* in the environment of `serve run`")
    return built(settings_module.load())


def built(settings: Settings) -> Application:
    bound: Application = _Deployment.options(num_replicas=settings.http_replicas).bind(settings)
    return bound
