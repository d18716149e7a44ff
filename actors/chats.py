"""The chats of one worker, beside its orders: counted, let to their end when it leaves, told apart from its death."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from actors.contract import Chat, Piece
from cluster.errors import WorkerLost


class Talker(Protocol):
    """An engine that answers chats: `actors.finisher.StepEngine`."""

    @property
    def dead(self) -> bool: ...

    def chat(self, chat: Chat, *, gone: Callable[[], bool]) -> Iterator[Piece]: ...


class Chats:
    """`answer` may run in any number of threads at once."""

    def __init__(self, talker: Talker, *, price_class: str, on_death: Callable[[str], None]) -> None:
        self._talker, self._price_class, self._on_death = talker, price_class, on_death
        self._changed = threading.Condition()
        self._num_open = 0
        self._leaving = False

    def answer(self, chat: Chat, *, gone: Callable[[], bool]) -> Iterator[Piece]:
        """Pieces as of `Writer.stream`. Raises as it does, and WorkerLost on a worker that leaves."""
        with self._changed:
            if self._leaving:
                raise WorkerLost("this worker leaves")
            self._num_open += 1
        try:
            for piece in self._talker.chat(chat, gone=gone):
                yield replace(piece, price_class=self._price_class)
        except WorkerLost as error:
            if self._talker.dead:
                self._on_death(error.line())
            raise
        finally:
            with self._changed:
                self._num_open -= 1
                self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Takes no more and waits for those that are open. Returns whether all of them ended in time."""
        with self._changed:
            self._leaving = True
            ends_s = time.monotonic() + timeout_s
            while self._num_open and (left_s := ends_s - time.monotonic()) > 0:
                self._changed.wait(left_s)
            return self._num_open == 0
