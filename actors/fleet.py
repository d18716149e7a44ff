"""Workers and the dispatcher as Ray actors: spawned, watched and replaced. The plain classes do the work."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ulid import ULID

from actors.catalog import Catalog
from actors.chats import Chats
from actors.contract import Beat, Chat, Engine, Json, Order, Piece, Report, WorkerFacts
from actors.dispatcher import Dispatcher
from actors.worker import Worker
from cluster import faults, logs
from cluster.accelerators import Fleet, ray_options, torch_device, torch_dtype
from cluster.clock import SystemClock
from cluster.errors import FarmError, InvalidSettings, StoreUnavailable, Unavailable, WorkerLost
from cluster.ledger.ledger import Ledger
from cluster.logs import say
from cluster.metrics import Meters
from cluster.rates import load_rate_card
from cluster.runtime import NAMESPACE, draining_nodes
from cluster.settings import Settings
from cluster.store.opening import open_store, place_of
from cluster.store.port import Store

log = logging.getLogger(__name__)
DISPATCHER = "dispatcher"
CALL_S = 30.0
MAX_SPAWNS_IN_A_ROW = 5
BROKE_S = 5.0
"""A pause after what nobody foresaw, so that no log is filled with it."""
CHATS = 32
"""Chats that a worker hands to its engine at once; more wait for one of them to end."""
ENGINES = {
    "render": "actors.fleet:render_engine",
    "writer": "actors.fleet:writer_engine",
    "finish": "actors.fleet:finish_engine",
}


class DispatcherHost:
    """The dispatcher as one named actor. Ray re-runs `__init__` after a crash; the first call reads the ledger."""

    def __init__(self, settings: Settings) -> None:
        faults.arm_by(settings.faults, settings.faults_dir)
        self._settings = settings
        self._starting = asyncio.Lock()
        self._dispatcher: Dispatcher | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._meters = Meters()
        logs.set_up()
        self._meters.export()

    async def _up(self) -> Dispatcher:
        async with self._starting:
            if self._dispatcher is None:
                settings = self._settings
                dispatcher = Dispatcher(
                    ledger=await asyncio.to_thread(Ledger, settings.ledger),
                    store=open_store(settings),
                    rates=load_rate_card(settings.rate_card),
                    clock=SystemClock(),
                    settings=settings,
                    meters=self._meters,
                )
                await dispatcher.start()
                self._ticking = asyncio.create_task(dispatcher.run())
                self._dispatcher = dispatcher
        return self._dispatcher

    async def ready(self) -> bool:
        await self._up()
        return True

    async def join(self, worker: WorkerFacts) -> None:
        await (await self._up()).join(worker)

    async def lease(self, worker_id: str, request_id: str) -> Order | None:
        return await (await self._up()).lease(worker_id, request_id)

    async def dismiss(self, worker_id: str) -> None:
        await (await self._up()).dismiss(worker_id)

    async def beat(self, worker_id: str, beats: Sequence[Beat]) -> dict[str, str]:
        return await (await self._up()).beat(worker_id, beats)

    async def report(self, report: Report) -> str:
        return await (await self._up()).report(report)

    async def leave(self, worker_id: str, *, died: bool = False) -> None:
        await (await self._up()).leave(worker_id, died=died)

    async def condemned(self) -> dict[str, str]:
        return await (await self._up()).condemned()

    async def poke(self) -> None:
        await (await self._up()).poke()

    async def progress(self, *job_ids: str) -> list[Json]:
        return await (await self._up()).progress(*job_ids)

    async def workers(self) -> list[WorkerFacts]:
        return await (await self._up()).workers()

    async def cancel(self, job_id: str) -> int:
        return await (await self._up()).cancel(job_id)


class RayDesk:
    """The dispatcher from another process. Whatever Ray raises becomes Unavailable; our own errors pass."""

    def __init__(self, *, lease_wait_s: float) -> None:
        self._lease_wait_s = lease_wait_s
        self._handle: Any = None

    def join(self, worker: WorkerFacts) -> None:
        self._ask("join", CALL_S, worker)

    def lease(self, worker_id: str, request_id: str) -> Order | None:
        order: Order | None = self._ask("lease", self._lease_wait_s + CALL_S, worker_id, request_id)
        return order

    def dismiss(self, worker_id: str) -> None:
        self._ask("dismiss", CALL_S, worker_id)

    def beat(self, worker_id: str, beats: Sequence[Beat]) -> dict[str, str]:
        stops: dict[str, str] = self._ask("beat", CALL_S, worker_id, list(beats))
        return stops

    def report(self, report: Report) -> str:
        answer: str = self._ask("report", 2 * CALL_S, report)
        return answer

    def leave(self, worker_id: str, *, died: bool = False) -> None:
        self._ask("leave", CALL_S, worker_id, died=died)

    def condemned(self) -> dict[str, str]:
        condemned: dict[str, str] = self._ask("condemned", CALL_S)
        return condemned

    def poke(self) -> None:
        self._ask("poke", CALL_S)

    def progress(self, *job_ids: str) -> list[Json]:
        progress: list[Json] = self._ask("progress", CALL_S, *job_ids)
        return progress

    def workers(self) -> list[WorkerFacts]:
        workers: list[WorkerFacts] = self._ask("workers", CALL_S)
        return workers

    def cancel(self, job_id: str) -> int:
        count: int = self._ask("cancel", CALL_S, job_id)
        return count

    def _ask(self, method: str, timeout_s: float, *args: Any, **more: Any) -> Any:
        try:
            if self._handle is None:
                self._handle = ray.get_actor(DISPATCHER, namespace=NAMESPACE)
            return ray.get(getattr(self._handle, method).remote(*args, **more), timeout=timeout_s)
        except FarmError:
            raise
        except (ray.exceptions.RayError, ValueError, ConnectionError) as error:
            self._handle = None
            raise Unavailable(f"the dispatcher does not answer to {method}: {type(error).__name__}") from error


class WorkerHost:
    """A worker as an actor: one thread runs the pull loop, one the orders, others answer control calls."""

    def __init__(self, fleet: Fleet, worker_id: str, spawned_us: int, settings: Settings, host: str) -> None:
        faults.arm_by(settings.faults, settings.faults_dir)
        self._fleet, self._settings = fleet, settings
        self._desk = RayDesk(lease_wait_s=settings.lease_wait_s)
        factory = resolved_engine(fleet)
        facts = WorkerFacts(
            id=worker_id,
            fleet=fleet.name,
            role=fleet.role,
            models=(fleet.model,) if fleet.model else (),
            node=ray.get_runtime_context().get_node_id(),
            accelerator=fleet.accelerator,
            num_accelerators=fleet.accelerators_per_worker,
            price_class=fleet.price_class,
            spawned_us=spawned_us,
        )
        engine: Any = factory(fleet, settings)
        meters = Meters()
        self._worker = Worker(
            facts,
            engine=engine,
            desk=self._desk,
            store=_store(settings, host),
            scratch=settings.home / "scratch",
            heartbeat_s=settings.heartbeat_s,
            execute=self._execute_as_named_call,
            meters=meters,
        )
        meters.export()
        self._chats = Chats(engine, price_class=fleet.price_class, on_death=self._worker.break_off)
        logs.set_up()

    def __repr__(self) -> str:
        """How the Ray dashboard and its logs call it."""
        return " ".join(part for part in (self._fleet.role, self._fleet.model, f"({self._fleet.name})") if part)

    @ray.method(concurrency_group="loop")
    def run(self) -> None:
        """Loads, joins and pulls until it is told to stop. The actor's life is this call."""
        context = ray.get_runtime_context()
        facts = self._worker.start()
        pinned = {name: ids for name, ids in context.get_accelerator_ids().items() if ids}
        seen = {"accelerators": pinned, "num_threads": self._fleet.num_threads, "pid": os.getpid()}
        try:
            self._worker.run(replace(self._worker.facts, facts={**facts, **seen}))
        finally:
            self._chats.close(self._settings.chat_s)
        self._worker.close()

    @ray.method(concurrency_group="work")
    def execute(self, order: Order) -> None:
        self._worker.execute(order)

    @ray.method(concurrency_group="chat", num_returns="streaming")
    def chat(self, chat: Chat) -> Iterator[Piece]:
        """See `actors.chats.Chats.answer`. Ray closes it at its next piece when it is cancelled."""
        yield from self._chats.answer(chat, gone=ray.get_runtime_context().is_canceled)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        self._worker.stop()

    @ray.method(concurrency_group="control")
    def interrupt(self, why: str) -> None:
        self._worker.interrupt(why)

    def _execute_as_named_call(self, order: Order) -> None:
        """A named call of the actor to itself, so that the Ray dashboard shows job, task and attempt."""
        me = ray.get_runtime_context().current_actor
        ray.get(me.execute.options(name=f"{order.step} {order.key} {order.job_id} {order.attempt_id}").remote(order))


def _store(settings: Settings, host: str) -> Store:
    """Whoever is spawned while the store is away waits for it. `host` is where the farm was started.

    Raises InvalidSettings for a directory on another host, StoreUnavailable after `ready_timeout_s`.
    """
    if place_of(settings) is None and socket.gethostname() != host:
        raise InvalidSettings(
            f"a directory is a store for one host: the farm is on {host}, this worker on {socket.gethostname()}",
            field="FARM_STORE",
            remedy="put the store on S3 (FARM_STORE=s3://BUCKET/PREFIX), and begin with what is in the directory",
        )
    ends_s = time.monotonic() + settings.ready_timeout_s
    while True:
        try:
            store = open_store(settings)
            store.capabilities()  # one on S3 is tried out now, not by the first task
            return store
        except StoreUnavailable:
            if time.monotonic() > ends_s:
                raise
            time.sleep(1.0)


_DispatcherActor: Any = ray.remote(DispatcherHost)
_as_actor: Any = ray.remote  # its types do not know concurrency groups
_WorkerActor = _as_actor(concurrency_groups={"loop": 1, "work": 1, "control": 2, "chat": CHATS})(WorkerHost)


@dataclass(slots=True)
class _Spawned:
    fleet: Fleet
    worker_id: str
    actor: Any
    run: Any  # the reference to its life
    since_s: float
    joined: bool = False
    moves: bool = False  # its node goes away: another one takes its place


class Fleets:
    """Starts the dispatcher, spawns the workers of fleets as they are wanted, watches them and replaces the dead."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._fleets: dict[str, Fleet] = {}
        self._spawned: list[_Spawned] = []
        self._failures: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="fleets", daemon=True)
        self._dispatcher: Any = None  # held, because Ray ends an actor whose handles are gone
        self.broken: dict[str, FarmError] = {}
        """Fleets of which no worker can start, by name: weights that are damaged, a model that is not there."""
        self.desk = RayDesk(lease_wait_s=settings.lease_wait_s)

    def start(self) -> None:
        """Starts the dispatcher. Raises what it raises: LedgerUnavailable, DamagedLedger, InvalidSettings, ...; after
        that it may be tried again. Raises Unavailable while one of before is still there."""
        env = {"CUDA_VISIBLE_DEVICES": ""}
        options = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 1000, "runtime_env": {"env_vars": env}}
        try:
            actor = _DispatcherActor.options(name=DISPATCHER, namespace=NAMESPACE, **options).remote(self._settings)
        except ValueError as error:
            raise Unavailable("another dispatcher is at work in this Ray", remedy="end the farm that has it") from error
        try:
            ray.get(actor.ready.remote(), timeout=self._settings.ready_timeout_s)
        except BaseException as error:
            ray.kill(actor)
            if isinstance(error, ray.exceptions.RayError) and not isinstance(error, FarmError):
                raise Unavailable(f"the dispatcher did not start: {type(error).__name__}") from error
            raise
        self._dispatcher = actor
        self._watcher.start()

    def want(self, fleet: Fleet) -> None:
        """Spawns the fleet's workers if it is not there yet. They load while others work."""
        with self._lock:
            if fleet.name not in self._fleets:
                for _ in range(fleet.num_workers):
                    self._spawn(fleet)
                self._fleets[fleet.name] = fleet

    def have(self, role: str, model: str | None) -> bool:
        """Whether a fleet is there that runs tasks of this role and model."""
        with self._lock:
            return any(f.role == role and model in (None, f.model) for f in self._fleets.values())

    def forget(self, name: str) -> None:
        """A fleet that is broken may be wanted again: what it lacks may be there now."""
        with self._lock:
            self._fleets.pop(name, None)
            self._failures.pop(name, None)
            self.broken.pop(name, None)

    def loading(self) -> list[str]:
        """Names of the fleets that have a worker which has not joined yet."""
        return sorted({one.fleet.name for one in self._spawned if not one.joined})

    def num_workers(self) -> dict[str, int]:
        """Workers by role, those that still load included."""
        counts: dict[str, int] = {}
        for one in self._spawned:
            counts[one.fleet.role] = counts.get(one.fleet.role, 0) + 1
        return counts

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stops each worker at its next denoise step, lets it leave, then ends what is left."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for one in self._spawned:
            one.actor.interrupt.remote("the farm stops")
        if self._spawned:
            ray.wait([one.run for one in self._spawned], num_returns=len(self._spawned), timeout=timeout_s)
        for one in self._spawned:
            ray.kill(one.actor)
        self._spawned.clear()

    def _spawn(self, fleet: Fleet) -> None:
        worker_id = f"{fleet.name}/{ULID()}".lower()
        actor = _WorkerActor.options(name=worker_id, namespace=NAMESPACE, **ray_options(fleet)).remote(
            fleet, worker_id, SystemClock().now_us(), self._settings, socket.gethostname()
        )
        self._spawned.append(_Spawned(fleet, worker_id, actor, actor.run.remote(), time.monotonic()))

    def _watch(self) -> None:
        while not self._stopping.wait(0.2):
            try:
                self._look()
            except FarmError:
                continue  # the dispatcher does not answer for a moment
            except Exception:  # of nobody's foreseeing, as of a Ray that is just starting again: the next look may do
                log.exception("A look after the fleets broke.")
                self._stopping.wait(BROKE_S)

    def _look(self) -> None:
        with self._lock:
            alive = list(self._spawned)
        if not alive:
            return
        ended, _ = ray.wait([one.run for one in alive], num_returns=1, timeout=0.5)
        for one in [one for one in alive if one.run in ended]:
            self._ended(one)
            with self._lock:
                self._spawned.remove(one)
        self._look_after(alive)

    def _look_after(self, alive: list[_Spawned]) -> None:
        """Ends the processes of workers that the dispatcher gave up, and of those that do not get ready in time.
        Workers on a node that goes away save what they run and leave."""
        here = {worker.id: worker.node for worker in self.desk.workers()}
        condemned, going = self.desk.condemned(), draining_nodes()
        for one in alive:
            one.joined = one.joined or one.worker_id in here
            late = not one.joined and time.monotonic() - one.since_s > self._settings.ready_timeout_s
            if late or one.worker_id in condemned:
                why = condemned.get(one.worker_id, f"it was not ready after {self._settings.ready_timeout_s:.0f} s")
                say(log, "A worker is killed.", action="worker.kill", worker=one.worker_id, why=why)
                ray.kill(one.actor)
            elif here.get(one.worker_id) in going and not one.moves:
                one.moves = True
                say(log, "A worker leaves its node.", action="worker.move", worker=one.worker_id)
                one.actor.interrupt.remote("its node goes away")

    def _ended(self, one: _Spawned) -> None:
        """A worker that was told to leave is gone; any other is replaced, unless none of its fleet can get ready."""
        try:
            ray.get(one.run)
            if one.moves:
                with self._lock:
                    self._spawn(one.fleet)
            return
        except FarmError as error:
            reason: FarmError = error
            died = False
        except ray.exceptions.RayError as error:
            said = str(error).partition("\n")[0]
            reason = WorkerLost(f"worker {one.worker_id} died: {said}")
            died = "its node has died" not in str(error)
        say(log, "A worker ended.", action="worker.ended", worker=one.worker_id, error=reason.line())
        with contextlib.suppress(FarmError):  # its leases run out by themselves
            self.desk.leave(one.worker_id, died=died)
        failures = 0 if one.joined else self._failures.get(one.fleet.name, 0) + 1
        self._failures[one.fleet.name] = failures
        if not isinstance(reason, WorkerLost) or failures >= MAX_SPAWNS_IN_A_ROW:
            self.broken[one.fleet.name] = reason
            return
        self._stopping.wait(0.0 if one.joined else min(10.0, 0.5 * 2 ** (failures - 1)))
        with self._lock:
            self._spawn(one.fleet)


def resolved_engine(fleet: Fleet) -> Callable[[Fleet, Settings], Engine]:
    """The factory of a fleet's engine. Raises InvalidSettings."""
    module, _, name = (fleet.engine or ENGINES.get(fleet.role, "")).partition(":")
    if not name:
        raise InvalidSettings(f"fleet {fleet.name} has no role {fleet.role!r}", field="role", remedy=", ".join(ENGINES))
    factory: Callable[[Fleet, Settings], Engine] = getattr(importlib.import_module(module), name)
    return factory


def render_engine(fleet: Fleet, settings: Settings) -> Engine:
    from actors.renderer import Renderer, load_family, processor, versions
    from actors.weights import weights_dir

    model = Catalog.load(settings.home / "models.d").model(fleet.model or "", role="render")

    def load() -> Any:
        import torch

        device = torch_device(fleet, cuda_is_there=torch.cuda.is_available())
        return load_family(
            model.family,
            weights_dir(model, settings.home),
            device=device,
            dtype=torch_dtype(device),
            num_threads=fleet.num_threads,
        )

    where = {"accelerator": fleet.accelerator, "processor": processor(), "threads": fleet.num_threads}
    return Renderer(load, checkpoint_every_s=settings.checkpoint_s, facts={"model": model.id, **versions(), **where})


def writer_engine(fleet: Fleet, settings: Settings) -> Engine:
    from actors.finisher import StepEngine
    from actors.weights import weights_dir
    from actors.writer import Writer

    catalog = Catalog.load(settings.home / "models.d")
    model = catalog.model(fleet.model or "", role="writer")
    return StepEngine(
        catalog, lambda: Writer(weights_dir(model, settings.home), num_threads=fleet.num_threads, **model.engine)
    )


def finish_engine(fleet: Fleet, settings: Settings) -> Engine:
    from actors.finisher import StepEngine

    return StepEngine(Catalog.load(settings.home / "models.d"))
