"""Chats over HTTP (proxy, replica, Ray, writer) against vLLM's engine called directly, in pairs of one run.

make bench
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from cluster.ledger.ledger import Ledger
from tests.bench.chat_alone import NUM_TOKENS, question
from tests.standing_farm import StandingFarm, standing_farm, until

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]
PAIRS = 5
GOALS = {1: 0.95, 8: 0.85}
Measured = tuple[float, float]
"""(tokens per second, median seconds to the first token)."""


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingFarm]:
    home: Path = tmp_path_factory.mktemp("standing") / "home"
    farm = standing_farm(home, FARM_WARM="house-writer", FARM_HTTP_REPLICAS="1")
    del farm.env["FARM_FLEETS"]  # a real writer instead
    farm.up()
    try:
        yield farm
    finally:
        farm.down()


@pytest.mark.parametrize("at_once", GOALS)
def test_tokens_per_second_and_the_first_one_beside_the_engine_alone(farm: StandingFarm, at_once: int) -> None:
    ledger = Ledger(f"sqlite:///{farm.home / 'ledger.db'}")
    try:
        until(lambda: _through(farm, 99, 1) is not None, timeout_s=600)
        _alone(ledger, 98, at_once)
        pairs = [(_through(farm, pair, at_once), _alone(ledger, 1000 + pair, at_once)) for pair in range(PAIRS)]
    finally:
        ledger.close()
    found = [(through, alone) for through, alone in pairs if through is not None]
    for place, what in enumerate(("tokens/s", "first token, s")):
        ratios = [through[place] / alone[place] for through, alone in found]
        here, there = (statistics.median(side[place] for side in sides) for sides in zip(*found, strict=True))
        print(
            f"\n{at_once} at once, {what}: HTTP {here:.3f}, engine {there:.3f}, ratio {statistics.median(ratios):.2f} "
            f"(of {', '.join(f'{ratio:.2f}' for ratio in ratios)})"
        )
    assert len(found) == PAIRS


def _through(farm: StandingFarm, pair: int, at_once: int) -> Measured | None:
    """None while no writer is up."""

    async def every() -> list[tuple[int, float]]:
        headers = {"Authorization": f"Bearer {farm.key}"}
        async with httpx.AsyncClient(headers=headers, timeout=600, limits=httpx.Limits(max_connections=16)) as client:
            return await asyncio.gather(*(_one(client, farm.url, pair, n) for n in range(at_once)))

    began_s = time.perf_counter()
    try:
        answers = asyncio.run(every())
    except httpx.HTTPStatusError:
        return None
    took_s = time.perf_counter() - began_s
    return sum(tokens for tokens, _ in answers) / took_s, statistics.median(first_s for _, first_s in answers)


async def _one(client: httpx.AsyncClient, url: str, pair: int, n: int) -> tuple[int, float]:
    body = {
        "messages": question(pair, n),
        "seed": pair * 10 + n,
        "temperature": 0.7,
        "max_tokens": NUM_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began_s, first_s, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                first_s = first_s or time.perf_counter() - began_s
            tokens = (chunk.get("usage") or {"completion_tokens": tokens})["completion_tokens"]
    return tokens, first_s


def _alone(ledger: Ledger, pair: int, at_once: int) -> Measured:
    task = TaskSpec(
        key=f"alone-{pair}", step="bench", role="writer", model="house-writer",
        entry="tests.bench.chat_alone:alone", params={"pair": pair, "at_once": at_once},
    )  # fmt: skip
    job_id, _ = ledger.submit(JobSpec(recipe="bench", version=1, title="bench", spec={}), [task])
    until(lambda: ledger.job(job_id).over, timeout_s=600)
    [done] = ledger.tasks(job_id)
    return done["result"]["tokens"] / done["result"]["seconds"], statistics.median(done["result"]["firsts"])
