"""The supervisor goes on whatever breaks beneath it: what waits gets workers, and webhooks are sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.accelerators import Fleet
from cluster.errors import FarmError, LedgerUnavailable, Unavailable
from cluster.ledger.ledger import Ledger
from cluster.settings import Settings
from serve import supervisor
from serve.supervisor import Supervisor
from tests.ledger_desk import LedgerDesk, task


class Crews:
    """Fleets without Ray: it notes whom the supervisor wants, and breaks as often as it is told."""

    def __init__(self) -> None:
        self.wanted: list[str] = []
        self.render = threading.Event()
        self.num_breaks = 0
        self.started = False
        self.broken: dict[str, FarmError] = {}

    def start(self) -> None:
        """Once, as a dispatcher that is there already is in the way of another."""
        if self.started:
            raise Unavailable("another dispatcher is at work")
        self.started = True

    def stop(self, timeout_s: float) -> None:
        """Nothing is to be stopped."""

    def want(self, fleet: Fleet) -> None:
        if fleet.role == "render" and self.num_breaks:
            self.num_breaks -= 1
            raise RuntimeError("the cluster is in no mood")
        self.wanted.append(fleet.name)
        if fleet.role == "render":
            self.render.set()

    def have(self, role: str, model: str | None) -> bool:
        return any(name.startswith(role) for name in self.wanted)


@pytest.fixture
def crews(monkeypatch: pytest.MonkeyPatch) -> Crews:
    monkeypatch.setattr(supervisor, "BROKE_S", 0.01)
    monkeypatch.setattr(supervisor, "LOOK_S", 0.01)
    return Crews()


@pytest.fixture
def standing(sqlite_url: str, tmp_path: Path, crews: Crews) -> Iterator[Callable[[], None]]:
    """Begins a farm on the ledger, which ends with the test."""
    begun: list[Supervisor] = []

    def begin() -> None:
        settings = Settings(home=tmp_path, ledger_url=sqlite_url, warm="")
        begun.append(Supervisor(settings, crews, gpus=0))  # type: ignore[arg-type]
        begun[0].start()

    yield begin
    for one in begun:
        one.drain(10.0)


def test_work_finds_workers_though_the_cluster_broke_when_it_was_asked(
    sqlite_url: str, crews: Crews, standing: Callable[[], None]
) -> None:
    desk = LedgerDesk(sqlite_url)
    desk.submit(task("shot", role="render", model="house-video"))
    desk.close()
    crews.num_breaks = 2
    standing()
    assert crews.render.wait(30), "nobody was wanted after the cluster broke"


def test_a_ledger_that_goes_away_while_the_farm_starts_is_waited_for(
    sqlite_url: str, crews: Crews, standing: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = LedgerDesk(sqlite_url)
    desk.submit(task("shot", role="render", model="house-video"))
    desk.close()
    away = [True]

    def away_once(url: str) -> Ledger:
        if away:
            away.pop()
            raise LedgerUnavailable("the ledger does not answer")
        return Ledger(url)

    monkeypatch.setattr(supervisor, "Ledger", away_once)
    standing()
    assert crews.render.wait(30), "the farm never began"


def test_webhooks_are_sent_though_the_deliverer_broke_once(
    monkeypatch: pytest.MonkeyPatch, standing: Callable[[], None]
) -> None:
    claims, again = Ledger.claim_deliveries, threading.Event()
    broken = [True]

    def break_once(self: Ledger, **how: object) -> object:
        if broken:
            broken.pop()
            raise RuntimeError("nobody foresaw this")
        again.set()
        return claims(self, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "claim_deliveries", break_once)
    standing()
    assert again.wait(30), "nobody sends webhooks any more"
