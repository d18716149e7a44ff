"""Chats between a client and a writer: the port to who answers, the life of one answer, places and the meter.

An answer is read by a task of its own. However its client leaves, the writer is told, what was made is booked, and its
place is free again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing
from typing import Protocol

from ulid import ULID

from actors.contract import Chat, Piece
from cluster.errors import EngineFailed, FarmError, LedgerUnavailable, RateLimited, WorkerLost
from cluster.ledger.keys import Key
from cluster.ledger.ledger import Ledger
from cluster.ledger.tokens import Counts, Meter, minute_of
from cluster.logs import say

log = logging.getLogger(__name__)
LATE_S = 5.0
"""A writer ends an answer in time by itself; so long after that nobody believes any more that it will."""
AGAIN_S = 1.0


class ChatDesk(Protocol):
    """Who answers chats."""

    def answer(self, chat: Chat) -> AsyncGenerator[Piece, None]:
        """Pieces as of `actors.writer.Writer.stream`; closing the generator aborts the answer.

        Raises NoWriter, WorkerLost, and what the writer refuses: InvalidInput, TooLong.
        """


class Places:
    """How many chats of a key are answered at once, by this process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, key: Key) -> Iterator[None]:
        """Raises RateLimited."""
        if self._taken[key.id] >= self._most:
            raise RateLimited(
                f"{self._most} chats of this key are being answered",
                remedy="wait until one of them is done",
                retry_after_s=AGAIN_S,
            )
        self._taken[key.id] += 1
        try:
            yield
        finally:
            self._taken[key.id] -= 1
            self._taken += Counter()  # forgets keys that have none


class TokenMeter:
    """Counts what is read and made, and writes this process's totals of each minute into the ledger.

    What the ledger did not take is written with the next answer; totals written again change nothing.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._source = ledger, str(ULID()).lower()
        self._lock = threading.Lock()
        self._totals: dict[Meter, Counts] = {}
        self._unbooked: set[Meter] = set()

    def book(self, key: Key, show: str, model: str, last: Piece) -> None:
        """One answer, by its last piece. Blocks for the ledger. Raises nothing."""
        minute_us = minute_of(self._ledger.clock.now_us())
        meter = Meter(
            key_id=key.id, tenant=key.tenant, show=show, model=model, price_class=last.price_class, minute_us=minute_us
        )
        counts = Counts(
            requests=1,
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
            cached_tokens=last.cached_tokens,
        )
        with self._lock:
            self._totals[meter] = self._totals.get(meter, Counts()) + counts
            self._unbooked.add(meter)
            totals = [(one, self._totals[one]) for one in self._unbooked]
        try:
            self._ledger.book_tokens(self._source, totals)
        except LedgerUnavailable as error:
            say(log, "Tokens are booked later.", action="tokens.later", level=logging.WARNING, error=error.line())
            return
        with self._lock:
            self._unbooked -= {one for one, total in totals if self._totals[one] == total}
            for one in [m for m in self._totals if m.minute_us < minute_us and m not in self._unbooked]:
                del self._totals[one]


class Answer:
    """One answer, as it comes. Make it on the event loop; `close` it in any case."""

    def __init__(
        self,
        desk: ChatDesk,
        chat: Chat,
        *,
        place: AbstractContextManager[None],
        book: Callable[[Piece], Awaitable[None]],
    ) -> None:
        """Raises what `place` raises."""
        self.chat = chat
        self._desk, self._book = desk, book
        self._arrived: asyncio.Queue[Piece | FarmError | None] = asyncio.Queue()
        self._leaving = False
        place.__enter__()
        self._task = asyncio.get_running_loop().create_task(self._run(place), name=chat.id)

    async def next(self, wait_s: float | None = None) -> Piece | None:
        """The next piece, None after the last. Raises TimeoutError if none came within `wait_s`, and what the desk
        raises."""
        item = await asyncio.wait_for(self._arrived.get(), wait_s)
        if isinstance(item, FarmError):
            raise item
        return item

    def close(self) -> None:
        """Nobody reads any further."""
        if not self._leaving:
            self._leaving = True
            self._task.cancel()

    async def _run(self, place: AbstractContextManager[None]) -> None:
        last: Piece | None = None
        end: FarmError | None = None
        try:
            async with (
                asyncio.timeout(self.chat.timeout_s + LATE_S),
                aclosing(self._desk.answer(self.chat)) as pieces,
            ):
                async for piece in pieces:
                    last = piece
                    self._arrived.put_nowait(piece)
            if last is None or last.finish_reason is None:
                end = WorkerLost("the writer left in the middle of its answer")
        except TimeoutError:
            end = WorkerLost(f"the writer gave no answer within {self.chat.timeout_s:g} s")
        except FarmError as error:
            end = error
        except Exception as error:
            log.exception("Something unforeseen happened in a chat.")
            end = EngineFailed(f"{type(error).__name__}: {error}")
        finally:
            self._leaving = True  # from here on it is left to its end
            place.__exit__(None, None, None)
            if last is not None:
                await self._book(last)
            self._arrived.put_nowait(end)
