"""First frames: from whatever somebody sends to an asset of the tenant, and from there into the take."""

from __future__ import annotations

import base64
import io
import json
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.assets import blob_key
from cluster.errors import InvalidInput, InvalidSpec
from cluster.frames import MAX_PICTURE_PIXELS, fitted
from cluster.ledger import inventory, outcomes
from cluster.ledger.outcomes import Sight
from tests.farm import in_process_farm
from tests.front_desk import CATALOG, FrontDesk, front_desk
from tests.listener import listening

MODEL = "wan2.2-ti2v-5b"
ASKED = {"model": MODEL, "prompt": "A boat crosses the sea.", "seconds": 0.2, "size": "64x32", "quality": "draft"}


def picture(width: int = 128, height: int = 64, *, kind: str = "PNG", mode: str = "RGB", **more: Any) -> bytes:
    across = np.linspace(0, 255, width, dtype=np.uint8)
    pixels = np.stack([np.tile(across, (height, 1)), np.full((height, width), 90, np.uint8),
                       np.tile(across[::-1], (height, 1))], axis=2)  # fmt: skip
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **more)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of a few kilobytes that unfolds to 60,000 x 60,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(2**20)))
        + chunk(b"IEND", b"")
    )


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "1", "I;16")]
    + [("JPEG", mode) for mode in ("RGB", "L", "CMYK")]
    + [("WEBP", mode) for mode in ("RGB", "RGBA")],
)
def test_a_picture_of_any_kind_becomes_a_png_of_the_size(kind: str, mode: str):
    made = fitted(picture(kind=kind, mode=mode), width_px=64, height_px=32, field="f")
    assert (pixels(made).shape, pixels(made).dtype) == ((32, 64, 3), np.uint8)
    assert made.startswith(b"\x89PNG")
    assert fitted(picture(kind=kind, mode=mode), width_px=64, height_px=32, field="f") == made


def test_it_is_turned_as_the_camera_says_and_cut_to_its_middle_and_nothing_else_is_kept():
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = 6, "where I live"  # turned by a quarter; a description
    turned = fitted(picture(64, 128, kind="JPEG", exif=tags), width_px=64, height_px=32, field="f")
    assert pixels(turned)[2, 32, 0] < pixels(turned)[-2, 32, 0]  # what ran across runs down
    assert b"where I live" not in turned
    square = pixels(fitted(picture(256, 64), width_px=64, height_px=64, field="f"))
    assert 80 < square[0, 0, 0] < 110  # the left three eighths are cut away
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear, "PNG")
    assert pixels(fitted(clear.getvalue(), width_px=8, height_px=8, field="f")).min() == 255


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>", picture()[:200], picture(kind="JPEG")[:300],
     b"\x89PNG\r\n\x1a\n" + b"\xff" * 500, picture(kind="GIF", mode="P"), picture(kind="TIFF"), bomb()],
    ids=["nothing", "gif-head", "svg", "cut-png", "cut-jpeg", "garbage", "gif", "tiff", "bomb"],
)  # fmt: skip
def test_what_is_no_picture_or_unfolds_too_far_is_refused_with_its_field(data: bytes):
    with pytest.raises(InvalidInput) as refused:
        fitted(data, width_px=64, height_px=32, field="input_reference")
    assert refused.value.field == "input_reference"


def test_the_bound_of_pixels_is_looked_at_before_they_are_there():
    side = int(MAX_PICTURE_PIXELS**0.5) + 1
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    with pytest.raises(InvalidInput, match=f"{side} x {side}"):
        fitted(out.getvalue(), width_px=64, height_px=32, field="f")


def with_worker(desk: FrontDesk) -> FrontDesk:
    """Some worker holds the model: so it may be asked for, though its weights are not on this machine."""
    here: dict[str, Any] = dict.fromkeys(("fleet", "role", "node", "accelerator", "price_class", "rate_card"), "x")
    row = {**here, "id": "w1", "model": MODEL, "num_accelerators": 0, "nano_per_hour": 1, "facts": {},
           "spawned_us": desk.ledger.clock.now_us()}  # fmt: skip
    desk.ledger.join(desk.ledger.take_term(), row)
    return desk


@pytest.fixture
def desk(sqlite_url: str, tmp_path: Path) -> Iterator[FrontDesk]:
    with front_desk(sqlite_url, tmp_path, private_urls=True, http_upload_bytes=200_000) as desk:
        yield with_worker(desk)


def asked_of(desk: FrontDesk, video_id: str) -> dict[str, Any]:
    [task] = desk.ledger.tasks(video_id.replace("video_", "job_"))
    spec: dict[str, Any] = task["params"]["spec"]
    return spec


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_a_file_a_url_and_the_bytes_themselves_are_one_asset_and_part_of_the_question(desk: FrontDesk):
    by_file = desk.openai().videos.create(
        model=MODEL, prompt=ASKED["prompt"], input_reference=picture(), seconds="0.2", size="64x32",  # type: ignore[arg-type]
        extra_body={"quality": "draft", "seed": 7},
    )  # fmt: skip
    ways = [
        {"json": {**ASKED, "seed": 7, "input_reference": {"image_url": data_url(picture())}}},
        {"json": {**ASKED, "seed": 7, "input_reference": json.dumps({"image_url": data_url(picture())})}},
        {"data": {**ASKED, "seed": "7", "input_reference[image_url]": data_url(picture())}},
        {"data": {**ASKED, "seed": "7"}, "files": {"input_reference[]": ("a.png", picture(), "image/png")}},
    ]
    ids = [by_file.id]
    for way in ways:
        response = desk.ask("POST", "/v1/videos", **way)  # type: ignore[arg-type]
        assert response.status_code == 200, response.text
        ids.append(response.json()["id"])
    [sha256] = {asked_of(desk, each)["first_frame"] for each in ids}
    assert desk.store.get(blob_key("studio", sha256)) == fitted(picture(), width_px=64, height_px=32, field="f")
    keys = {desk.ledger.tasks(each.replace("video_", "job_"))[0]["content_key"] for each in ids}
    assert len(keys) == 1
    another = {"image_url": data_url(picture(64, 64))}
    other = desk.ask("POST", "/v1/videos", json={**ASKED, "seed": 7, "input_reference": another})
    without = desk.ask("POST", "/v1/videos", json={**ASKED, "seed": 7})
    for response in (other, without):
        assert desk.ledger.tasks(response.json()["id"].replace("video_", "job_"))[0]["content_key"] not in keys
    assert "first_frame" not in asked_of(desk, without.json()["id"])


def test_a_url_is_fetched_through_the_guard(desk: FrontDesk):
    with listening() as listener:
        listener.content = picture()
        url = listener.url
        video = desk.ask("POST", "/v1/videos", json={**ASKED, "input_reference": {"image_url": url}})
        assert video.status_code == 200, video.text
        assert asked_of(desk, video.json()["id"])["first_frame"]
        listener.content = bytes(300_000)
        large = desk.ask("POST", "/v1/videos", json={**ASKED, "input_reference": {"image_url": url}})
        assert (large.status_code, large.json()["error"]["param"]) == (422, "input_reference[image_url]")
        heard = len(listener.heard)
        closed = FrontDesk(desk.ledger, desk.store, desk.settings.model_copy(update={"private_urls": False}))
        for place in (url, url.replace("http:", "https:"), "file:///etc/passwd", "https://169.254.169.254/x"):
            refused = closed.ask("POST", "/v1/videos", json={**ASKED, "input_reference": {"image_url": place}})
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, "input_reference[image_url]")
        assert len(listener.heard) == heard
    assert len(desk.ledger.jobs()) == 1


@pytest.mark.parametrize(
    ("reference", "param"),
    [
        ("x", "input_reference"),
        ("{", "input_reference"),
        ({"file_id": "file-1"}, "input_reference"),
        ({"image_url": 7}, "input_reference"),
        ([], "input_reference"),
        (7, "input_reference"),
        ({"image_url": "data:text/html,x"}, "input_reference[image_url]"),
        ({"image_url": "data:image/png;base64,!!"}, "input_reference[image_url]"),
        ({"image_url": "data:image/png;base64,aGVsbG8="}, "input_reference[image_url]"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_is_no_picture_is_refused_and_nothing_is_taken_on(desk: FrontDesk, reference: Any, param: str):
    refused = desk.ask("POST", "/v1/videos", json={**ASKED, "input_reference": reference})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)
    assert desk.ledger.jobs() == []


def test_what_is_wrong_otherwise_is_said_before_anything_is_fetched(desk: FrontDesk):
    with listening() as listener:
        body = {**ASKED, "size": "63x32", "input_reference": {"image_url": listener.url}}
        assert desk.ask("POST", "/v1/videos", json=body).json()["error"]["param"] == "size"
        assert listener.heard == []


def test_a_model_that_draws_on_from_a_picture_alone_wants_one():
    needs = CATALOG.models["wan2.2-i2v-a14b"]
    with pytest.raises(InvalidSpec, match="draws on from a first frame alone"):
        needs.spec(prompt="A boat.", seconds=2, seed=1)
    assert needs.spec(prompt="A boat.", seconds=2, seed=1, first_frame="0" * 64).first_frame == "0" * 64


def test_a_request_with_a_picture_that_comes_again_is_one_job_and_another_picture_another_request(desk: FrontDesk):
    body = {**ASKED, "input_reference": {"image_url": data_url(picture())}}
    first, again = (desk.ask("POST", "/v1/videos", json=body, headers={"Idempotency-Key": "one"}) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    other = {**ASKED, "input_reference": {"image_url": data_url(picture(64, 64))}}
    clash = desk.ask("POST", "/v1/videos", json=other, headers={"Idempotency-Key": "one"})
    assert (clash.status_code, clash.json()["error"]["param"]) == (422, "idempotency_key")


@pytest.mark.parametrize(
    "same", [{"Idempotency-Key": "one"}, {"x-stainless-retry-count": "1"}], ids=["by its name", "as a retry"]
)
def test_the_picture_of_a_request_that_comes_again_is_not_fetched_again(desk: FrontDesk, same: dict[str, str]):
    """A URL that is good for one fetch: the job is committed, so its retry is no error."""
    with listening() as listener:
        listener.content = picture()
        body = {**ASKED, "input_reference": {"image_url": listener.url}}
        first = desk.ask("POST", "/v1/videos", json=body, headers=same)
        listener.content = b"gone"
        again = desk.ask("POST", "/v1/videos", json=body, headers=same)
        assert (first.status_code, again.status_code) == (200, 200), again.text
        assert first.json()["id"] == again.json()["id"]
        assert len(listener.heard) == 1


def test_a_picture_is_paid_by_the_show_that_it_was_sent_for(desk: FrontDesk):
    body = {**ASKED, "input_reference": {"image_url": data_url(picture())}}
    video = desk.ask("POST", "/v1/videos", json=body, headers={"OpenAI-Project": "trailer"}).json()["id"]
    [asset], _ = desk.ledger.view(lambda c: inventory.page(c, Sight(tenant="studio"), after=None, limit=9))
    assert (asset.sha256, asset.show) == (asked_of(desk, video)["first_frame"], "trailer")


def test_the_take_begins_with_the_picture(tmp_path: Path):
    """A worker with tiny weights of the same kind, which draw nothing without one, finds it in the store."""
    from actors.families import wan
    from actors.renderer import Renderer
    from tests.tiny_models import tiny_wan

    model = "wan2.2-i2v-a14b"
    load = partial(wan.load, tiny_wan(tmp_path / "weights", beside=True), device="cpu", dtype="float32", num_threads=1)
    with in_process_farm(tmp_path) as farm:
        desk = FrontDesk(farm.ledger, farm.store, farm.settings)
        worker = farm.worker(Renderer(load), models=(model,))
        worker.start()
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        try:
            farm.wait_for(lambda: model in farm.ledger.view(outcomes.models_here))
            body = {**ASKED, "model": model, "seconds": 0.3, "input_reference": {"image_url": data_url(picture())}}
            response = desk.ask("POST", "/v1/videos", json=body)
            assert response.status_code == 200, response.text
            video = response.json()["id"]
            farm.wait_for(lambda: farm.ledger.job(video.replace("video_", "job_")).over, timeout_s=120)
            done = desk.ask("GET", f"/v1/videos/{video}").json()
            assert (done["status"], done["error"]) == ("completed", None)
            again = desk.ask("POST", f"/v1/videos/{video}/remix", json={"prompt": "A cat sits."}).json()["id"]
            assert asked_of(desk, again)["first_frame"] == asked_of(desk, video)["first_frame"]
        finally:
            worker.stop()
            thread.join(timeout=60)
