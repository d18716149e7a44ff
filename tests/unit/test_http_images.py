"""Images over HTTP with the real client of OpenAI: a call that waits, a call that is sent again, a call that fails."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from PIL import Image
from starlette.types import Message, Receive, Scope, Send

from cluster.errors import FailureClass, FarmError, InvalidSpec, JobFailed, StoreUnavailable
from cluster.settings import Settings
from tests.front_desk import BOAT, FrontDesk, Working, front_desk
from tests.picture_engine import PictureEngine


def ends(prompt: str) -> FarmError | None:
    return InvalidSpec("too sad to draw", field="prompt") if "cloud" in prompt else None


@pytest.fixture(scope="module")
def working(fast_folder: Path) -> Iterator[Working]:
    home = fast_folder / "http-images"
    home.mkdir()
    working = Working(home, PictureEngine(ends), image_wait_s=60)
    yield working
    working.close()


@pytest.fixture
def desk(sqlite_url: str, tmp_path: Path) -> Iterator[FrontDesk]:
    with front_desk(sqlite_url, tmp_path, image_wait_s=0.05) as desk:
        yield desk


def picture(data: bytes) -> tuple[tuple[int, int], int]:
    """(its size, the red that tells its seed)."""
    read = Image.open(io.BytesIO(data))
    red = read.getpixel((0, 0))
    assert isinstance(red, tuple)
    return read.size, int(red[0])


def test_stills_are_drawn_each_with_a_seed_of_its_own(working: Working):
    made = working.desk.openai(timeout=60).images.generate(
        prompt=BOAT, n=3, size="512x512", quality="low", extra_body={"seed": 7}
    )
    assert made.data is not None
    seen = [picture(base64.b64decode(image.b64_json or "")) for image in made.data]
    assert [size for size, _ in seen] == [(512, 512)] * 3
    assert seen[0][1] == 7
    assert len({red for _, red in seen}) == 3
    assert all("red boat" in (image.revised_prompt or "") for image in made.data)
    assert (made.size, made.quality) == ("512x512", "draft")


def test_an_address_leads_to_the_bytes_for_whoever_has_a_key(working: Working):
    made = working.desk.openai().images.generate(prompt=BOAT, response_format="url", extra_body={"seed": 8})
    assert made.data is not None
    url = made.data[0].url
    assert url is not None
    answered = working.desk.ask("GET", url)
    assert picture(answered.content) == ((512, 512), 8)
    assert working.desk.ask("GET", url, key="").status_code == 401
    assert working.desk.ask("GET", url.replace("index=0", "index=1")).status_code == 404


def test_a_call_that_waited_too_long_is_sent_again_and_finds_the_same_job(working: Working):
    working.engine.at_half = gate = threading.Event()
    hasty = FrontDesk(working.farm.ledger, working.farm.store, Settings(image_wait_s=0.2))
    gave_up: list[int] = []

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message.get("status") == 408:
                gave_up.append(408)
                gate.set()
            await send(message)

        await hasty.app(scope, receive, sent)

    try:
        made = hasty.openai(door, max_retries=50).images.generate(prompt="a blue fish drifts on a coral reef")
    finally:
        gate.set()
        working.engine.at_half = None
    assert gave_up
    assert made.data is not None
    assert made.data[0].b64_json
    assert [job.title for job in working.farm.ledger.jobs()].count("a blue fish drifts on a coral reef") == 1


def test_a_still_that_the_store_does_not_give_out_for_a_moment_is_waited_for_and_not_drawn_again(
    working: Working, monkeypatch: pytest.MonkeyPatch
):
    get, failed = working.farm.store.get, list[str]()

    def away_once(key: str) -> bytes:
        if "/assets/" in key and not failed:
            failed.append(key)
            raise StoreUnavailable("the store does not answer")
        return get(key)

    monkeypatch.setattr(working.farm.store, "get", away_once)
    body = {"prompt": "a green boat crosses the sea", "seed": 9}
    early, late = (
        working.desk.ask("POST", "/v1/images/generations", json=body, headers={"Idempotency-Key": "once"})
        for _ in range(2)
    )
    assert (early.status_code, early.json()["error"]["code"], len(failed)) == (408, "request_timeout", 1)
    assert late.json()["data"][0]["b64_json"]
    assert [job.title for job in working.farm.ledger.jobs()].count(body["prompt"]) == 1


def test_a_still_that_cannot_be_drawn_is_no_error_of_the_server(working: Working):
    with pytest.raises(openai.UnprocessableEntityError, match="too sad to draw"):
        working.desk.openai().images.generate(prompt="a grey cloud drifts over the sea")
    assert [job.title for job in working.farm.ledger.jobs()].count("a grey cloud drifts over the sea") == 1


def test_a_call_that_gives_up_says_how_to_wait_on(desk: FrontDesk):
    gave_up = desk.ask("POST", "/v1/images/generations", json={"prompt": BOAT})
    error = gave_up.json()["error"]
    assert (gave_up.status_code, error["code"]) == (408, "request_timeout")
    assert "Idempotency-Key" in error["message"]
    [job] = desk.ledger.jobs()
    assert job.state == "queued"
    early = desk.ask("GET", f"/v1/images/{job.id.replace('job_', 'image_')}/content")
    assert (early.status_code, early.headers["x-should-retry"]) == (409, "false")


def test_a_job_that_dies_of_our_own_fault_is_not_repeated_by_the_client(desk: FrontDesk):
    first = desk.ask("POST", "/v1/images/generations", json={"prompt": BOAT}, headers={"Idempotency-Key": "k"})
    assert first.status_code == 408
    [job] = desk.ledger.jobs()
    [task] = desk.ledger.tasks(job.id)
    term = desk.ledger.take_term()
    facts = {"id": "w1", "fleet": "f", "role": "render", "model": None, "node": "n", "accelerator": "cpu"}
    money = {"num_accelerators": 0, "price_class": "x", "rate_card": "t", "nano_per_hour": 0, "spawned_us": 0}
    desk.ledger.join(term, {**facts, **money, "facts": {}})
    for _ in range(3):
        now = desk.ledger.task(task["id"])
        if now["state"] == "backoff":
            with desk.ledger.database.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE tasks SET not_before_us = 0")
            desk.ledger.backoff_over(term)
            now = desk.ledger.task(task["id"])
        leased = desk.ledger.lease(term, now["id"], epoch=now["epoch"], worker_id="w1", request_id=f"r{now['epoch']}")
        assert leased is not None
        who = {"task_id": now["id"], "attempt_id": leased[0]["attempt_id"], "epoch": leased[0]["epoch"]}
        desk.ledger.fail(term, **who, failure=FailureClass.BUG, code=JobFailed.code, message="it broke", facts={})
    dead = desk.ask("POST", "/v1/images/generations", json={"prompt": BOAT}, headers={"Idempotency-Key": "k"})
    assert (dead.status_code, dead.headers["x-should-retry"]) == (409, "false")
    assert "it broke" in dead.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"size": "1x1"}, "size"),
        ({"quality": "best"}, "quality"),
        ({"output_format": "webp"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"stream": True}, "stream"),
        ({"model": "dall-e-3"}, "model"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_named(desk: FrontDesk, fields: dict[str, object], param: str):
    refused = desk.ask("POST", "/v1/images/generations", json={"prompt": BOAT, **fields})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)
    assert desk.ledger.jobs() == []
