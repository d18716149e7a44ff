from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from actors.grouped import Grouped
from cluster.errors import NotFound, Unavailable


class Counter:
    """Doubles numbers. It waits at a gate, so that others come meanwhile."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()

    async def work(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.groups.append(list(items))
        self.begun.set()
        await self.gate.wait()
        if 13 in items:
            raise Unavailable("bad luck")
        return [NotFound(f"no {n}") if n < 0 else 2 * n for n in items]


async def ask_all(grouped: Grouped[int, int], *items: int) -> list[int | BaseException]:
    return await asyncio.gather(*(grouped.ask(n) for n in items), return_exceptions=True)


def test_what_comes_meanwhile_is_answered_together_and_in_its_order() -> None:
    async def run() -> None:
        counter = Counter()
        grouped = Grouped(counter.work, most=3)
        first = asyncio.create_task(grouped.ask(1))
        await counter.begun.wait()
        others = asyncio.create_task(ask_all(grouped, 2, 3, 4, 5))
        await asyncio.sleep(0)
        counter.gate.set()
        assert await first == 2
        assert await others == [4, 6, 8, 10]
        assert counter.groups == [[1], [2, 3, 4], [5]]

    asyncio.run(run())


def test_an_error_reaches_whom_it_concerns() -> None:
    async def run() -> None:
        counter = Counter()
        counter.gate.set()
        grouped = Grouped(counter.work, most=3)
        good, bad, other = await ask_all(grouped, 1, -2, 3)
        assert (good, str(bad), other) == (2, "no -2", 6)
        assert [type(x) for x in await ask_all(grouped, 1, 13)] == [Unavailable, Unavailable]
        assert await grouped.ask(4) == 8

    asyncio.run(run())


def test_who_gives_up_takes_nothing_from_the_others() -> None:
    async def run() -> None:
        counter = Counter()
        grouped = Grouped(counter.work, most=9)
        first, second = asyncio.create_task(grouped.ask(1)), asyncio.create_task(grouped.ask(2))
        await counter.begun.wait()
        third, fourth = asyncio.create_task(grouped.ask(3)), asyncio.create_task(grouped.ask(4))
        await asyncio.sleep(0)
        first.cancel()
        third.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        counter.gate.set()
        assert [await second, await fourth] == [4, 8]
        assert counter.groups == [[1, 2], [4]]

    asyncio.run(run())
