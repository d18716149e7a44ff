"""Estimates over HTTP: refused as a create would be, learned from what was done, and nothing is left behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.ledger.keys import Scope
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from tests.front_desk import BOAT, FrontDesk
from tests.ledger_desk import LedgerDesk

FIRST_GUESS_S = 6.0  # of a take of 24 frames in 16 steps


class Farm:
    """A front desk on a ledger whose clock is moved by hand; one worker draws."""

    def __init__(self, url: str, home: Path) -> None:
        self.desk = LedgerDesk(url)
        self.home = home
        self.worker("painter")

    def worker(self, worker_id: str, **more: Any) -> None:
        row = {
            "id": worker_id, "fleet": "render", "role": "render", "model": "house-video", "node": "n1",
            "accelerator": "cpu", "num_accelerators": 0, "price_class": "spot", "rate_card": "test",
            "nano_per_hour": 3_600_000_000, "spawned_us": self.desk.clock.now_us(), "facts": {},
        }  # fmt: skip
        self.desk.ledger.join(self.desk.term, {**row, **more})

    def front(self) -> FrontDesk:
        """A replica that has just begun: it has not looked at the queue yet."""
        return FrontDesk(self.desk.ledger, DirectoryStore(self.home / "store"), Settings(home=self.home))

    def make(self, front: FrontDesk, seconds: float, **fields: Any) -> Any:
        """A video that takes so long; as it is answered when it is done."""
        video = front.create(**fields)
        job = video["id"].replace("video_", "job_")
        leased = self.desk.lease(job, "clip", worker="painter")
        self.desk.clock.advance(seconds)
        self.desk.commit(leased)
        return front.ask("GET", f"/v1/videos/{video['id']}").json()


@pytest.fixture
def farm(sqlite_url: str, tmp_path: Path) -> Iterator[Farm]:
    farm = Farm(sqlite_url, tmp_path)
    yield farm
    farm.desk.close()


def estimate(front: FrontDesk, **fields: Any) -> Any:
    response = front.ask("POST", "/v1/estimates", json={"kind": "video", "prompt": BOAT, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_before_anything_was_done_it_is_the_recipes_guess_and_says_so(farm: Farm):
    found = estimate(farm.front())
    assert found["seconds"] == {"p50": FIRST_GUESS_S, "p95": 3 * FIRST_GUESS_S}
    assert found["wait_seconds"] == {"p50": 0.0, "p95": 0.0}
    assert found["cost"] == {"p50": "0.006000000", "p95": "0.018000000", "currency": "USD"}
    [step] = found["steps"]
    assert (step["step"], step["model"], step["tasks"], step["samples"]) == ("render", "house-video", 1, 0)
    assert (step["price_class"], step["usd_per_hour"], step["workers"]) == ("spot", "3.6", 1)
    assert farm.desk.ledger.jobs() == []


def test_after_twenty_takes_it_is_within_a_quarter_of_what_the_next_ones_take_and_cost(farm: Farm):
    draw, front = random.Random(3), farm.front()
    for seed in range(20):
        farm.make(front, draw.uniform(8.0, 10.0), seed=seed)
        farm.make(front, draw.uniform(3.0, 4.0), seed=seed, quality="draft")
    front = farm.front()
    for quality, low_s, high_s in (("standard", 8.0, 10.0), ("draft", 3.0, 4.0)):
        found = estimate(front, quality=quality)
        assert found["steps"][0]["samples"] == 20
        for seed in range(100, 105):
            actual = farm.make(front, draw.uniform(low_s, high_s), seed=seed, quality=quality)
            held_s = actual["usage"]["accelerator_seconds"]
            assert found["accelerator_seconds"]["p50"] == pytest.approx(held_s, rel=0.25)
            assert float(found["cost"]["p50"]) == pytest.approx(float(actual["cost"]["amount"]), rel=0.25)
            assert low_s <= found["seconds"]["p50"] <= found["seconds"]["p95"] <= high_s


def test_the_wait_is_what_stands_before_it_in_its_tier_and_above(farm: Farm):
    front = farm.front()
    front.create(seed=1, tier="batch")
    front.create(seed=2, tier="normal")
    held = front.create(seed=3, tier="interactive")["id"].replace("video_", "job_")
    farm.desk.ledger.set_held(held, True)
    waits = {
        tier: estimate(farm.front(), tier=tier)["wait_seconds"]["p50"] for tier in ("interactive", "normal", "batch")
    }
    assert waits == {"interactive": 0.0, "normal": FIRST_GUESS_S, "batch": 2 * FIRST_GUESS_S}


def test_where_nobody_works_the_price_is_that_of_the_last_who_did_and_the_wait_is_not_known(farm: Farm):
    farm.desk.ledger.leave(farm.desk.term, "painter")
    found = estimate(farm.front())
    assert found["wait_seconds"] is None
    assert (found["steps"][0]["workers"], found["steps"][0]["price_class"]) == (0, "spot")
    stills = farm.front().ask("POST", "/v1/estimates", json={"kind": "image", "prompt": BOAT, "n": 3}).json()
    assert [(step["tasks"], step["role"]) for step in stills["steps"]] == [(3, "render")]


def test_a_film_is_estimated_with_the_takes_of_a_script_that_is_not_written_yet(farm: Farm):
    farm.worker("second")
    farm.worker("pen", role="writer", model="house-writer")
    found = farm.front().ask(
        "POST", "/v1/estimates", json={"kind": "film", "logline": BOAT, "shots": 3, "takes": 2, "quality": "draft"}
    )
    assert found.status_code == 200, found.text
    steps = {step["step"]: step for step in found.json()["steps"]}
    assert {name: step["tasks"] for name, step in steps.items()} == {
        "script": 1, "expand": 1, "render": 6, "conform": 1, "publish": 1,
    }  # fmt: skip
    assert steps["render"]["predicted_seconds"] == FIRST_GUESS_S / 2  # a draft has half the steps
    alone_s = sum(steps[name]["predicted_seconds"] for name in ("script", "expand", "conform", "publish"))
    assert found.json()["seconds"]["p50"] == pytest.approx(alone_s + 3 * FIRST_GUESS_S / 2)  # two workers draw six
    assert farm.desk.ledger.jobs() == []


@pytest.mark.parametrize(
    ("kind", "path", "fields"),
    [
        ("video", "/v1/videos", {}),
        ("video", "/v1/videos", {"prompt": BOAT, "seconds": 99}),
        ("video", "/v1/videos", {"prompt": BOAT, "size": "8x8"}),
        ("video", "/v1/videos", {"prompt": BOAT, "model": "no-such"}),
        ("video", "/v1/videos", {"prompt": BOAT, "model": "ltx-video"}),
        ("video", "/v1/videos", {"prompt": BOAT, "nothing": 1}),
        ("video", "/v1/videos", {"prompt": BOAT, "metadata": {"a": 1}}),
        ("video", "/v1/videos", {"prompt": "\x00"}),
        ("video", "/v1/videos", {"prompt": BOAT, "input_reference": "x"}),
        ("image", "/v1/images/generations", {"prompt": BOAT, "n": 11}),
        ("image", "/v1/images/generations", {"prompt": BOAT, "seconds": 2}),
        ("film", "/v1/films", {}),
        ("film", "/v1/films", {"logline": BOAT, "shots": 41}),
        ("film", "/v1/films", {"logline": BOAT, "takes": 0}),
        ("film", "/v1/films", {"script": {"scenes": [{"shots": [{}]}]}}),
        ("film", "/v1/films", {"logline": BOAT, "deadline": "2001-01-01T00:00:00Z"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_it_is_refused_with_the_words_of_the_create(farm: Farm, kind: str, path: str, fields: dict[str, Any]):
    front = farm.front()
    created, estimated = (
        front.ask("POST", path, json=fields), front.ask("POST", "/v1/estimates", json={"kind": kind, **fields}),
    )  # fmt: skip
    assert created.status_code == 422
    assert (estimated.status_code, estimated.json()) == (422, created.json())


@pytest.mark.parametrize("kind", [None, "song", 1, ["video"]], ids=str)
def test_what_it_is_of_has_to_be_said(farm: Farm, kind: Any):
    response = farm.front().ask("POST", "/v1/estimates", json={"kind": kind, "prompt": BOAT})
    assert (response.status_code, response.json()["error"]["param"]) == (422, "kind")


def test_who_may_only_read_may_ask_for_it(farm: Farm):
    front = farm.front()
    for scope, status in ((Scope.READ, 200), (Scope.GENERATE, 200), (Scope.OPERATE, 403)):
        asked = front.ask("POST", "/v1/estimates", key=front.key(scope), json={"kind": "video", "prompt": BOAT})
        assert asked.status_code == status
