"""The writers of a farm on Ray, as chats find them: whoever is up, the one with the fewest open answers first."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from typing import Any

import ray

from actors.contract import Chat, Piece, WorkerFacts
from cluster.errors import FarmError, Interrupted, NoWriter, Unavailable, WorkerLost
from cluster.runtime import NAMESPACE
from serve.service import off_the_loop

ROLE = "writer"
FRESH_S = 1.0
LOADS_S = 5.0
"""When to ask again while none is up: a small model is loaded in about so long, a large one in more."""


class RayWriters:
    """A `ChatDesk`. `workers` are those that the dispatcher knows; while it is away, those that it knew last."""

    def __init__(self, workers: Callable[[], Sequence[WorkerFacts]]) -> None:
        self._workers = workers
        self._known: Sequence[WorkerFacts] = ()
        self._until_s = float("-inf")
        self._looking = asyncio.Lock()
        self._handles: dict[str, Any] = {}
        self._open: Counter[str] = Counter()

    async def answer(self, chat: Chat) -> AsyncGenerator[Piece, None]:
        """A worker that is lost before its first piece is nobody's fault: the next one is asked."""
        lost: set[str] = set()
        while True:
            worker_id = await self._choose(chat.model, lost)
            begun = False
            self._open[worker_id] += 1
            try:
                async with aclosing(self._from(worker_id, chat)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except Unavailable:
                if begun:
                    raise
                lost.add(worker_id)
            finally:
                self._open[worker_id] -= 1
                self._open += Counter()  # forgets those that have none

    async def _choose(self, model: str, lost: Collection[str]) -> str:
        """Raises NoWriter."""
        async with self._looking:
            now_s = time.monotonic()
            if now_s >= self._until_s or lost:
                with contextlib.suppress(Unavailable):
                    self._known = await off_the_loop(self._workers)
                self._until_s = now_s + FRESH_S
                here = {worker.id for worker in self._known}
                self._handles = {name: handle for name, handle in self._handles.items() if name in here}
        able = [w.id for w in self._known if w.role == ROLE and model in w.models and w.id not in lost]
        if not able:
            raise NoWriter(
                f"no worker that writes with {model} is up",
                field="model",
                remedy="wait until it has loaded; FARM_WARM names the models that a farm holds from its beginning",
                retry_after_s=LOADS_S,
            )
        return min(able, key=lambda worker_id: (self._open[worker_id], random.random()))

    async def _from(self, worker_id: str, chat: Chat) -> AsyncGenerator[Piece, None]:
        """Raises what the worker raises, WorkerLost if it is gone."""
        pieces: Any = None
        try:
            if worker_id not in self._handles:
                self._handles[worker_id] = await off_the_loop(lambda: ray.get_actor(worker_id, NAMESPACE))
            pieces = self._handles[worker_id].chat.options(name=f"chat {chat.id}").remote(chat)
            async for piece in pieces:
                yield await piece
            pieces = None
        except FarmError as error:
            raise getattr(error, "cause", error) from None  # Ray's is ours around ours
        except ray.exceptions.TaskCancelledError as error:
            raise Interrupted("the answer was aborted") from error
        except (ray.exceptions.RayError, ValueError) as error:
            self._handles.pop(worker_id, None)
            raise WorkerLost(f"the writer is gone: {type(error).__name__}") from error
        finally:
            if pieces is not None:
                ray.cancel(pieces, recursive=False)
