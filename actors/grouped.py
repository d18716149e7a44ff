"""Calls that come while one is under way are answered by the next one, together: one transaction for all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Grouped(Generic[A, B]):
    """`work` gets what was asked, in its order, and returns an answer or an error for each; or raises one for all.

    Who gives up waiting gives up the answer only: what was begun goes on.
    """

    def __init__(self, work: Callable[[Sequence[A]], Awaitable[Sequence[B | Exception]]], *, most: int) -> None:
        self._work, self._most = work, most
        self._waiting: deque[tuple[A, asyncio.Future[B]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, item: A) -> B:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[B] = loop.create_future()
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._answer())
        return await future

    async def _answer(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            asked = [(item, future) for item, future in taken if not future.done()]
            try:
                answers = await self._work([item for item, _ in asked]) if asked else []
            except Exception as error:  # whatever it is belongs to those who asked
                answers = [error] * len(asked)
            for (_, future), answer in zip(asked, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
