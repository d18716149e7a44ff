"""Workers that ask or report at the same instant: their calls share a transaction, and nobody notices."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.contract import Order, WorkerFacts
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from tests.farm import InProcessFarm, in_process_farm


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcessFarm]:
    monkeypatch.setattr("actors.dispatcher.REAP_S", 60.0)  # these read at once what became of a lost attempt
    with in_process_farm(tmp_path) as running:
        yield running


def submit(farm: InProcessFarm, num: int, **more: Any) -> str:
    graph = [
        TaskSpec(key=f"t{n}", step="render", role="render", entry="x:y", params={"n": n, "of": more.get("show")})
        for n in range(num)
    ]
    job_id, _ = farm.ledger.submit(JobSpec(recipe="tests", title="test", spec={}, **more), graph)
    farm.desk.ask(farm.desk.dispatcher.poke())
    return job_id


def joined(farm: InProcessFarm, num: int, **facts: Any) -> list[WorkerFacts]:
    workers = [replace(farm.facts(), **facts) for _ in range(num)]
    for worker in workers:
        farm.desk.join(worker)
    return workers


def asked_at_once(farm: InProcessFarm, workers: Sequence[WorkerFacts]) -> list[Order | None]:
    async def ask() -> list[Order | None]:
        return await asyncio.gather(*(farm.desk.dispatcher.lease(w.id, f"of-{w.id}") for w in workers))

    return farm.desk.ask(ask())


def test_those_who_ask_at_once_get_a_task_each_in_one_transaction(farm: InProcessFarm) -> None:
    submit(farm, 9)
    workers, groups = joined(farm, 12), list[int]()
    lease_all = farm.ledger.lease_all
    farm.ledger.lease_all = lambda term, asks, **more: groups.append(len(asks)) or lease_all(term, asks, **more)  # type: ignore[method-assign,func-returns-value]
    orders = asked_at_once(farm, workers)
    assert Counter(order.key for order in orders if order) == Counter(f"t{n}" for n in range(9))
    assert groups == [12]
    assert farm.ledger.flaws() == []


def test_those_who_ask_at_once_are_served_by_the_shares_of_shows(farm: InProcessFarm) -> None:
    farm.ledger.set_share("studio", "large", 3)
    for show in ("large", "small"):
        submit(farm, 20, show=show)
    orders = asked_at_once(farm, joined(farm, 16))
    assert Counter(order.show for order in orders if order) == {"large": 12, "small": 4}


def test_a_last_trial_is_alone_though_its_neighbours_ask_in_the_same_instant(farm: InProcessFarm) -> None:
    suspect = submit(farm, 1, priority=100)
    for _ in range(2):
        (doomed,) = joined(farm, 1)
        assert farm.desk.lease(doomed.id, "r") is not None
        farm.desk.leave(doomed.id, died=True)
    submit(farm, 3)
    one, two, elsewhere = *joined(farm, 2, node="n1"), *joined(farm, 1, node="n2")
    orders = asked_at_once(farm, [one, two, elsewhere])
    assert [order and order.job_id == suspect for order in orders] == [True, None, False]
