"""Videos over HTTP with the real client of OpenAI, on a farm in this process that makes real clips."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from cluster import media
from cluster.assets import blob_key
from cluster.errors import InvalidSpec
from cluster.ledger import meters, outcomes
from cluster.ledger.meters import Metered
from tests.front_desk import BOAT, FrontDesk, Working, front_desk
from tests.picture_engine import PictureEngine

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture(scope="module")
def working(fast_folder: Path) -> Iterator[Working]:
    home = fast_folder / "http-videos"
    home.mkdir()
    engine = PictureEngine(lambda prompt: InvalidSpec("too sad to draw", field="prompt") if "cloud" in prompt else None)
    working = Working(home, engine)
    yield working
    working.close()


@pytest.fixture
def desk(sqlite_url: str, tmp_path: Path) -> Iterator[FrontDesk]:
    with front_desk(sqlite_url, tmp_path) as desk:
        yield desk


@pytest.fixture(scope="module")
def idle(fast_folder: Path) -> Iterator[FrontDesk]:
    """For requests that leave nothing behind."""
    with front_desk(f"sqlite:///{fast_folder}/idle-videos.db", fast_folder / "idle-videos") as desk:
        yield desk


@pytest.fixture(scope="module")
def done(working: Working) -> Any:
    """A video that the client has created and polled to its end."""
    return working.desk.openai().videos.create_and_poll(prompt=BOAT, seconds="2", poll_interval_ms=20)


def test_a_video_is_created_polled_and_downloaded_with_the_client_of_openai(
    working: Working, done: Any, tmp_path: Path
):
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    assert (done.model, done.seconds, done.size, done.prompt) == ("house-video", "2", "512x512", BOAT)
    assert done.completed_at >= done.created_at
    assert done.usage["frames"] == 24
    assert done.usage["duration_seconds"] == 2.0
    assert done.cost["estimated"] is False
    data = working.desk.openai().videos.download_content(done.id).read()
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    facts = media.probe(path)
    assert (facts.num_frames, facts.width_px, facts.height_px) == (24, 512, 512)
    job_id = done.id.replace("video_", "job_")
    [task] = working.farm.ledger.tasks(job_id)
    receipt = {file["name"]: file["sha256"] for file in task["files"]}
    assert hashlib.sha256(data).hexdigest() == receipt["clip.mp4"]


def test_a_thumbnail_and_a_spritesheet_are_pictures_and_the_sheet_is_made_once(working: Working, done: Any):
    client = working.desk.openai()
    thumbnail = Image.open(io.BytesIO(client.videos.download_content(done.id, variant="thumbnail").read()))
    sheets = [client.videos.download_content(done.id, variant="spritesheet").read() for _ in range(2)]
    sheet = Image.open(io.BytesIO(sheets[0]))
    assert (thumbnail.size, sheet.size) == ((512, 512), (960, 960))
    assert sheets[0] == sheets[1]
    first, last = sheet.getpixel((10, 10)), sheet.getpixel((950, 950))
    assert isinstance(first, tuple)
    assert isinstance(last, tuple)
    assert abs(int(last[1]) - int(first[1]) - 23 * 9) < 8  # from the first frame of the clip to its last
    assert len(list(working.farm.store.list("studio/derived/"))) == 1


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [
        ("bytes=0-9", 206, (0, 10)),
        ("bytes=10-", 206, (10, None)),
        ("bytes=-7", 206, (-7, None)),
        ("bytes=5-99999999999", 206, (5, None)),
        ("bytes=9-3", 200, (0, None)),
        ("bytes=0-1,4-5", 200, (0, None)),
        ("lines=0-9", 200, (0, None)),
        ("bytes=-", 200, (0, None)),
    ],
)
def test_a_range_is_answered_with_its_bytes(working: Working, done: Any, asked: str, status: int, span: Any):
    path = f"/v1/videos/{done.id}/content"
    whole = working.desk.ask("GET", path)
    part = working.desk.ask("GET", path, headers={"Range": asked})
    assert part.status_code == status
    assert part.content == whole.content[span[0] : span[1]]
    assert int(part.headers["content-length"]) == len(part.content)
    if status == 206:
        first = span[0] % len(whole.content)
        assert part.headers["content-range"] == f"bytes {first}-{first + len(part.content) - 1}/{len(whole.content)}"


def test_what_a_client_has_is_not_sent_again_and_what_is_not_there_is_said(working: Working, done: Any):
    path = f"/v1/videos/{done.id}/content"
    meter = Metered("studio", "default", "egress")
    before, _ = working.farm.ledger.view(meters.read).get(meter, (0, 0))
    head = working.desk.ask("HEAD", path)
    etag, size = head.headers["etag"], int(head.headers["content-length"])
    assert (head.status_code, head.content) == (200, b"")
    same = working.desk.ask("GET", path, headers={"If-None-Match": f'"x", {etag}'})
    assert (same.status_code, same.content) == (304, b"")
    beyond = working.desk.ask("GET", path, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    other = working.desk.ask("GET", path, headers={"Range": "bytes=0-1", "If-Range": '"another"'})
    assert (other.status_code, len(other.content)) == (200, size)
    after, _ = working.farm.ledger.view(meters.read)[meter]
    assert after - before == size  # what was sent, and nothing else


def test_a_remix_keeps_all_but_the_prompt_and_says_what_it_was_made_from(working: Working, done: Any):
    client = working.desk.openai()
    made = client.videos.remix(done.id, prompt="a blue fish drifts on a coral reef")
    assert (made.remixed_from_video_id, made.seed, made.size, made.seconds) == (done.id, done.seed, "512x512", "2")
    assert client.videos.poll(made.id, poll_interval_ms=20).status == "completed"


def test_a_remix_is_for_the_same_purpose(working: Working):
    extra = {"tier": "batch", "metadata": {"shot": "sc1"}, "seed": 12}
    client = working.desk.openai()
    first = client.videos.create_and_poll(prompt=BOAT, extra_body=extra, poll_interval_ms=20)
    made = client.videos.remix(first.id, prompt="a blue fish drifts on a coral reef")
    assert made.metadata == {"shot": "sc1"}  # type: ignore[attr-defined]  # an extra of the farm
    assert working.farm.ledger.job(made.id.replace("video_", "job_")).tier == "batch"


def test_a_remix_that_comes_again_is_the_same_though_its_source_was_deleted(working: Working):
    client, desk = working.desk.openai(), working.desk
    first = client.videos.create_and_poll(prompt=BOAT, extra_body={"seed": 13}, poll_interval_ms=20)

    def ask(name: str) -> Any:
        body = {"prompt": "a blue fish drifts on a coral reef"}
        return desk.ask("POST", f"/v1/videos/{first.id}/remix", json=body, headers={"Idempotency-Key": name})

    made = ask("r1").json()["id"]
    client.videos.delete(first.id)
    assert ask("r1").json()["id"] == made
    missing = ask("r2")
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "video_id")
    working.farm.ledger.erase_job(first.id.replace("video_", "job_"))
    assert ask("r1").status_code == 404


def test_progress_follows_the_denoise_steps_and_a_cancelled_video_ends_the_wait(working: Working):
    desk, working.engine.at_half = working.desk, threading.Event()
    try:
        video = desk.create("a green car races in a city at dusk")
        path = f"/v1/videos/{video['id']}"
        working.farm.wait_for(lambda: desk.ask("GET", path).json()["progress"] == 44)  # 3 + 82 / 2
        seen = desk.ask("GET", path)
        assert seen.json()["status"] == "in_progress"
        assert seen.json()["eta_seconds"] is not None
        assert seen.headers["openai-poll-after-ms"].isdigit()
        early = desk.ask("GET", f"{path}/content")
        assert (early.status_code, early.headers["x-should-retry"]) == (409, "false")
        with pytest.raises(openai.ConflictError, match="in progress"):
            desk.openai().videos.remix(video["id"], prompt=BOAT)
        cancelled = desk.ask("POST", f"{path}/cancel").json()
        assert (cancelled["status"], cancelled["error"]) == ("cancelled", None)
        assert desk.openai().videos.poll(video["id"], poll_interval_ms=20).status == "cancelled"
        assert desk.ask("POST", f"{path}/cancel").json()["status"] == "cancelled"
    finally:
        working.engine.at_half.set()
        working.engine.at_half = None


def test_a_video_that_cannot_be_drawn_says_why(working: Working):
    client = working.desk.openai()
    failed = client.videos.create_and_poll(prompt="a grey cloud drifts over the sea", poll_interval_ms=20)
    assert (failed.status, failed.completed_at) == ("failed", None)
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("invalid_spec", "prompt: too sad to draw")
    gone = working.desk.ask("GET", f"/v1/videos/{failed.id}/content")
    assert (gone.status_code, gone.json()["error"]["code"]) == (409, "not_ready")


def test_bytes_that_the_store_has_lost_are_gone_and_nothing_else(working: Working):
    video = working.desk.openai().videos.create_and_poll(prompt=BOAT, extra_body={"seed": 99}, poll_interval_ms=20)
    [task] = working.farm.ledger.tasks(video.id.replace("video_", "job_"))

    def ask(variant: str) -> Any:
        return working.desk.ask("GET", f"/v1/videos/{video.id}/content?variant={variant}")

    sheet = ask("spritesheet")
    clip = next(file for file in task["files"] if file["name"] == "clip.mp4")
    working.farm.store.delete(clip["key"])
    assert ask("video").json()["error"]["code"] == "expired"
    assert ask("spritesheet").content == sheet.content
    sha256 = hashlib.sha256(sheet.content).hexdigest()
    working.farm.store.delete(blob_key("studio", sha256))
    assert [ask(variant).status_code for variant in ("video", "spritesheet", "thumbnail")] == [410, 410, 200]
    video = working.desk.openai().videos.create_and_poll(prompt=BOAT, extra_body={"seed": 99}, poll_interval_ms=20)
    assert ask("video").status_code == 200


def test_the_client_pages_through_a_list_and_deletes(desk: FrontDesk):
    client = desk.openai()
    made = [client.videos.create(prompt=BOAT).id for _ in range(5)]
    assert [video.id for video in client.videos.list(limit=2)] == made[::-1]
    assert [video.id for video in client.videos.list(limit=2, order="asc")] == made
    deleted = client.videos.delete(made[1])
    assert (deleted.id, deleted.deleted, deleted.object) == (made[1], True, "video.deleted")
    assert [video.id for video in client.videos.list()] == [made[4], made[3], made[2], made[0]]
    with pytest.raises(openai.NotFoundError) as missing:
        client.videos.retrieve(made[1])
    assert (missing.value.code, missing.value.param) == ("not_found", "video_id")
    assert missing.value.request_id is not None
    assert desk.ledger.job(made[1].replace("video_", "job_")).state == "canceled"
    for video in client.videos.list(limit=2):
        client.videos.delete(video.id)
    assert client.videos.list().data == []


@pytest.mark.parametrize(
    "send",
    [
        lambda fields: {"json": fields},
        lambda fields: {"data": fields},
        lambda fields: {"files": {name: (None, str(value)) for name, value in fields.items()}},
    ],
    ids=["json", "urlencoded", "multipart"],
)
def test_every_way_to_send_the_fields_makes_the_same_video(desk: FrontDesk, send: Any):
    fields = {"prompt": BOAT, "seconds": "2", "size": "512X512", "seed": "11", "model": "house-video"}
    response = desk.ask("POST", "/v1/videos", headers={"Idempotency-Key": "one"}, **send(fields))
    assert response.status_code == 200, response.text
    video = response.json()
    assert (video["seed"], video["seconds"], video["size"]) == (11, "2", "512x512")
    again = desk.ask("POST", "/v1/videos", json={"prompt": BOAT, "seconds": 2, "size": "512X512", "seed": 11},
                     headers={"Idempotency-Key": '"one"'})  # fmt: skip
    assert again.json()["id"] == video["id"]
    assert len(desk.ledger.jobs()) == 1


def test_a_deadline_is_kept_with_the_video_and_its_work_goes_first(desk: FrontDesk):
    usual = desk.create()["id"]
    late, soon = (
        desk.ask("POST", "/v1/videos", data={"prompt": BOAT, "seed": str(year), "deadline": f"{year}-01-01T00:00Z"})
        for year in (2199, 2150)
    )
    assert soon.json()["deadline"] == 5_680_281_600
    assert desk.ask("GET", f"/v1/videos/{usual}").json()["deadline"] is None
    order = [soon.json()["id"], late.json()["id"], usual]
    assert [job.replace("job_", "video_") for job in desk.ledger.view(outcomes.backlog).before] == order


def test_members_in_brackets_are_read(desk: FrontDesk):
    video = desk.openai().videos.create(prompt=BOAT, extra_body={"metadata": {"shot": "sc1", "tag": "a"}})
    assert video.metadata == {"shot": "sc1", "tag": "a"}  # type: ignore[attr-defined]  # an extra of the farm


def test_names_of_other_servers_are_understood(desk: FrontDesk):
    plain = {"prompt": BOAT, "seconds": 2, "size": "512x512", "seed": 11, "metadata": {"shot": "sc1"}}
    theirs = {"prompt": BOAT, "num_frames": "24", "fps": "12", "width": "512", "height": "512", "seed": "11",
              "metadata": '{"shot": "sc1"}', "negative_prompt": "", "user": "ann"}  # fmt: skip
    shown = [desk.ask("POST", "/v1/videos", **body).json() for body in (
        {"json": plain | {"num_frames": None, "fps": None, "width": None}}, {"data": theirs})]  # fmt: skip
    one, other = ({name: video[name] for name in (*plain, "model", "quality")} for video in shown)
    assert one == other
    jobs = [desk.ledger.job(video["id"].replace("video_", "job_")) for video in shown]
    assert [job.request.get("user") for job in jobs] == [None, "ann"]
    assert desk.ask("POST", "/v1/estimates", json={"kind": "video", **theirs}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": ""}, "prompt", "the prompt is empty; say in a sentence what to draw"),
        ({}, "prompt", "prompt is missing"),
        ({"prompt": "xyzzy"}, "prompt", "nothing in the prompt can be drawn by house-video"),
        ({"prompt": 7}, "prompt", "prompt: input should be a valid string"),
        ({"prompt": BOAT, "seconds": "12"}, "seconds", "house-video draws no clip of 12 s; use 2 s"),
        ({"prompt": BOAT, "seconds": True}, "seconds", "should be a number"),
        ({"prompt": BOAT, "seconds": 1e300}, "seconds", "less than or equal"),
        ({"prompt": BOAT, "size": "720x1280"}, "size", "720 x 1280 is no size of house-video; it draws 512 x 512"),
        ({"prompt": BOAT, "size": "big"}, "size", "is no size; write it as in 512x512"),
        ({"prompt": BOAT, "model": "sora-2"}, "model", "no render model 'sora-2'; use"),
        ({"prompt": BOAT, "model": "house-writer"}, "model", "no render model 'house-writer'"),
        ({"prompt": BOAT, "model": "ltx-video"}, "model", "no worker of this farm holds ltx-video"),
        ({"prompt": BOAT, "seed": -1}, "seed", "greater than or equal to 0"),
        ({"prompt": BOAT, "seed": 10**400}, "seed", "less than"),
        ({"prompt": BOAT, "tier": "now"}, "tier", "'interactive', 'normal' or 'batch'"),
        ({"prompt": BOAT, "deadline": "2001-01-01T00:00:00Z"}, "deadline", "the deadline is over; use a later one"),
        ({"prompt": BOAT, "deadline": "2199-01-01"}, "deadline", "deadline"),
        ({"prompt": BOAT, "frames": 9}, "frames", "there is no parameter frames; use prompt, model"),
        ({"prompt": BOAT, "num_frames": 9}, "num_frames", "num_frames 9 cannot be drawn by house-video; it draws"),
        ({"prompt": BOAT, "num_frames": 1}, "num_frames", "num_frames 1 cannot be drawn by house-video; it draws"),
        ({"prompt": BOAT, "num_frames": 24, "seconds": 4}, "num_frames", "24 frames are 2 s, not 4 s; give one"),
        ({"prompt": BOAT, "fps": 24}, "fps", "house-video draws at 12 fps; leave it out"),
        ({"prompt": BOAT, "width": 512}, "height", "width and height go together"),
        ({"prompt": BOAT, "width": 64, "height": 64, "size": "512x512"}, "size", "it is not 64x64; give one of them"),
        ({"prompt": BOAT, "negative_prompt": "rain"}, "negative_prompt", "no model here takes negative_prompt; say in"),
        ({"prompt": BOAT, "guidance_scale": 7.5}, "guidance_scale", "no model here takes guidance_scale; `quality`"),
        ({"prompt": BOAT, "lora": "{}"}, "lora", "no model here takes lora; leave it out"),
        ({"prompt": BOAT, "image_reference": '{"image_url": "http://x"}'}, "input_reference", "takes no first frame"),
        ({"prompt": BOAT, "metadata": "{"}, "metadata", "is no JSON object"),
        ({"prompt": BOAT, "metadata": "[" * 5000}, "metadata", "is no JSON object"),
        ({"prompt": BOAT, "metadata": {"a": "b" * 513}}, "metadata", "at most 16 pairs"),
        ({"prompt": BOAT, "metadata": {"a": 1}}, "metadata.a", "should be a valid string"),
        ({"prompt": BOAT, "input_reference": {"image_url": "http://x"}}, "input_reference", "takes no first frame"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_named_and_nothing_is_taken_on(idle: FrontDesk, fields: Any, param: str, said: str):
    response = idle.ask("POST", "/v1/videos", json=fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, param)
    assert said in error["message"]
    assert idle.ledger.jobs() == []


def test_a_first_frame_in_a_form_is_refused_by_a_model_that_takes_none(idle: FrontDesk):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        idle.openai().videos.create(prompt=BOAT, input_reference=b"\x89PNG...")
    assert (refused.value.code, refused.value.param) == ("unsupported_input", "input_reference")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=video_none"])
def test_a_wrong_page_is_refused_with_its_parameter(idle: FrontDesk, query: str):
    response = idle.ask("GET", f"/v1/videos?{query}")
    assert response.status_code == (404 if "after" in query else 422)
    assert response.json()["error"]["param"] == query.partition("=")[0]
