"""A dispatcher in a process of its own, and its desk in others, over a socket: what Ray does for the product."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from actors.contract import Beat, Order, Report, WorkerFacts
from actors.dispatcher import Dispatcher
from cluster.errors import FarmError, Unavailable

log = logging.getLogger(__name__)


class SocketDesk:
    """One connection for each call, so that any thread may ask; what breaks is Unavailable."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def join(self, worker: WorkerFacts) -> None:
        self._ask("join", worker)

    def lease(self, worker_id: str, request_id: str) -> Order | None:
        order: Order | None = self._ask("lease", worker_id, request_id)
        return order

    def dismiss(self, worker_id: str) -> None:
        self._ask("dismiss", worker_id)

    def beat(self, worker_id: str, beats: Sequence[Beat]) -> dict[str, str]:
        stops: dict[str, str] = self._ask("beat", worker_id, beats)
        return stops

    def report(self, report: Report) -> str:
        answer: str = self._ask("report", report)
        return answer

    def leave(self, worker_id: str, **more: bool) -> None:
        self._ask("leave", worker_id, **more)

    def _ask(self, method: str, *args: Any, **more: Any) -> Any:
        try:
            with Client(self._path) as connection:
                connection.send((method, args, more))
                answer = connection.recv()
        except (OSError, EOFError) as error:
            raise Unavailable(f"the dispatcher does not answer to {method}: {error!r}") from error
        if isinstance(answer, FarmError):
            raise answer
        return answer


def serve(path: Path, dispatcher: Dispatcher, loop: asyncio.AbstractEventLoop) -> None:
    """Answers calls in threads from now on, until the process ends."""
    path.unlink(missing_ok=True)
    listener = Listener(str(path), backlog=64)

    def accept() -> None:
        while True:
            try:
                connection = listener.accept()
            except OSError:  # somebody hung up between its call and our answer
                continue
            threading.Thread(target=_answer, args=(connection, dispatcher, loop), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _answer(connection: Connection, dispatcher: Dispatcher, loop: asyncio.AbstractEventLoop) -> None:
    with connection:
        try:
            method, args, more = connection.recv()
            call = getattr(dispatcher, method)(*args, **more)
            answer: Any = asyncio.run_coroutine_threadsafe(call, loop).result(timeout=30)
        except FarmError as error:
            answer = error
        except (OSError, EOFError):
            return
        except Exception as error:  # as over Ray: the caller learns that it did not work
            log.exception("A call of the dispatcher broke.")
            answer = Unavailable(f"the dispatcher broke: {error!r}")
        try:
            connection.send(answer)
        except OSError:
            return
