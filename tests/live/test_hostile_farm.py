"""The corpus of hostile requests against a farm that stands: Ray Serve's real proxy, two replicas, bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psutil
import pytest

from serve.envelope import ErrorBody
from tests import hostile, raw_http
from tests.hostile import Attack
from tests.standing_farm import StandingFarm, standing_farm

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
GROWTH_BYTES = 100 << 20


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingFarm]:
    farm = standing_farm(tmp_path_factory.mktemp("hostile"), FARM_HTTP_READ_S="20").up()
    yield farm
    farm.down()


class Peak(threading.Thread):
    """How many bytes each process has grown since, at its most."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        super().__init__(daemon=True)
        self._before = {process: process.memory_info().rss for process in processes}
        self.bytes, self._over = 0, threading.Event()

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.02):
            grown = [process.memory_info().rss - before for process, before in self._before.items()]
            self.bytes = max(self.bytes, *grown)


def check(farm: StandingFarm, attack: Attack) -> None:
    reply = raw_http.ask(farm.url, attack.pieces(farm.key), half_close=attack.half_close)
    assert reply.status in attack.fair, (attack.name, reply.status, reply.body[:300])
    if reply.status >= 400:
        assert reply.error is not None, (attack.name, reply.status, reply.headers, reply.body[:300])
        ErrorBody.model_validate(reply.error)


def test_every_hostile_request_gets_a_typed_answer_through_the_real_proxy(farm: StandingFarm):
    for attack in hostile.CORPUS:
        check(farm, attack)
    assert farm.ledger().jobs() == []


@pytest.mark.parametrize("attack", hostile.BIG, ids=lambda attack: attack.name)
def test_a_hundred_megabytes_cost_the_proxy_and_its_replicas_little(farm: StandingFarm, attack: Attack):
    with Peak([*farm.processes("ray::ProxyActor"), *farm.processes("ray::ServeReplica")]) as peak:
        check(farm, attack)
    assert peak.bytes < GROWTH_BYTES


@pytest.mark.parametrize(
    "start", [b"GET /v1/models HTTP/1.1\r\nX-A: ", hostile.CHUNKED + b"2;"], ids=["headers", "body"]
)
def test_fifty_slow_clients_are_given_up_and_others_are_served_meanwhile(farm: StandingFarm, start: bytes):
    over, told = threading.Event(), list[bytes]()
    start = start.replace(b"KEY", farm.key.encode())
    slow = threading.Thread(target=lambda: told.extend(raw_http.drip(farm.url, start, b"G", num=50, until=over)))
    slow.start()
    served = raw_http.ask(farm.url, [hostile.head("GET", "/v1/models", farm.key)])
    slow.join(timeout=120)
    over.set()
    slow.join()
    assert served.status == 200
    assert b"HTTP/1.1 408" in {said[:12] for said in told} <= {b"HTTP/1.1 408", b""}
