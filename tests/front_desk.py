"""The HTTP application in this process, with keys in the hand; with or without a farm that does the work."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI
from starlette.testclient import TestClient

from actors.catalog import Catalog
from actors.contract import Engine, Json
from cluster.clock import Clock
from cluster.errors import Unavailable
from cluster.ledger.keys import KeySpec, Scope
from cluster.ledger.ledger import Ledger
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from cluster.store.port import Store
from serve.chats import ChatDesk
from serve.http import create_app
from serve.service import Desk
from tests.farm import InProcessFarm
from tests.picture_engine import PictureEngine

BOAT = "a red boat crosses the sea"
CATALOG = Catalog.load()
NOBODY: Mapping[str, Engine] = {}
EVERYTHING = (Scope.GENERATE, Scope.READ)


class FrontDesk:
    """`client` has no key of its own; `headers(...)` makes one."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        settings: Settings,
        desk: Desk | None = None,
        chat_desk: ChatDesk | None = None,
    ) -> None:
        self.ledger, self.store, self.settings = ledger, store, settings
        self.app = create_app(ledger, store, CATALOG, settings, desk, chat_desk)
        self.client = TestClient(self.app, raise_server_exceptions=False)
        self.secret = self.key()

    def key(self, *scopes: Scope, tenant: str = "studio", **more: Any) -> str:
        return self.ledger.create_key(KeySpec(tenant=tenant, name="test", scopes=scopes or EVERYTHING, **more))[1]

    def ask(self, method: str, path: str, *, key: str | None = None, **more: Any) -> Any:
        """The response. `key` None: the usual one; "": none."""
        secret = self.secret if key is None else key
        headers = {**({"Authorization": f"Bearer {secret}"} if secret else {}), **more.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **more)

    def create(self, prompt: str = BOAT, **more: Any) -> Json:
        """A video that was taken on."""
        response = self.ask("POST", "/v1/videos", json={"prompt": prompt, "seed": 7, **more})
        assert response.status_code == 200, response.text
        video: Json = response.json()
        return video

    def openai(self, app: Any = None, **more: Any) -> OpenAI:
        """The real client; its transport hands requests to the application, or to `app` around it."""
        warnings.filterwarnings("ignore", category=DeprecationWarning, message="The Sora API")
        transport = self.client if app is None else TestClient(app, raise_server_exceptions=False)
        return OpenAI(api_key=self.secret, base_url="http://testserver/v1", http_client=transport, **more)


@contextmanager
def front_desk(
    url: str, home: Path, chat_desk: ChatDesk | None = None, *, clock: Clock | None = None, **settings: Any
) -> Iterator[FrontDesk]:
    """Without a farm: what is submitted waits, and `chat_desk` answers chats."""
    ledger = Ledger(url, clock=clock, durable=False)
    try:
        yield FrontDesk(ledger, DirectoryStore(home / "store"), Settings(home=home, **settings), None, chat_desk)
    finally:
        ledger.close()


class Working:
    """A front desk with a dispatcher and a render worker behind it, until it is closed."""

    def __init__(
        self,
        home: Path,
        engine: PictureEngine,
        beside: Mapping[str, Engine] = NOBODY,
        chat_desk: ChatDesk | None = None,
        store: Store | None = None,
        **settings: Any,
    ) -> None:
        """`beside` are engines of other workers, by their roles; a writer holds the house writer. `chat_desk` chats."""
        self.engine = engine
        self.farm = InProcessFarm(home, store=store)
        self._reachable, told = Reachable(self.farm), Settings(home=home, **settings)
        self.desk = FrontDesk(self.farm.ledger, self.farm.store, told, self._reachable, chat_desk)
        self._ticking = self.farm.desk.ask(self._tick())
        self.workers = [self.farm.worker(engine, models=("house-video",))]
        for role, other in beside.items():
            models = ("house-writer",) if role == "writer" else ()
            self.workers.append(self.farm.worker(other, role=role, models=models))
        self._threads = [threading.Thread(target=worker.run, daemon=True) for worker in self.workers]
        for worker, thread in zip(self.workers, self._threads, strict=True):
            worker.start()
            thread.start()

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()
        for thread in self._threads:
            thread.join(timeout=30)
        self._reachable.close()
        self.farm.desk.ask(self._rest())
        self.farm.close()

    async def _tick(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.farm.desk.dispatcher.run(0.05))

    async def _rest(self) -> None:
        self._ticking.cancel()
        await asyncio.gather(self._ticking, return_exceptions=True)


class Reachable:
    """The farm's dispatcher, as the service asks it from threads of its own. Who is late is told that it is away: on a
    loop that has stopped a question is never awaited, which a later test would be warned of."""

    def __init__(self, farm: InProcessFarm) -> None:
        self._farm, self._closed = farm, False
        self._poking, self._hearing = threading.Lock(), threading.Lock()

    def close(self) -> None:
        with self._poking, self._hearing:
            self._closed = True

    def poke(self) -> None:
        with self._poking:
            self._check()
            self._farm.desk.ask(self._farm.desk.dispatcher.poke())

    def progress(self, *job_ids: str) -> list[Json]:
        with self._hearing:
            self._check()
            return self._farm.desk.ask(self._farm.desk.dispatcher.progress(*job_ids))

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("the farm is closed")
