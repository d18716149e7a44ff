"""A clip on S3, over HTTP: by signed URLs, to clients that keep their key to themselves; and `aws s3 ls` sees it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from openai import OpenAI

from cluster.ledger import meters
from cluster.ledger.meters import Metered
from cluster.store.port import find_receipt
from cluster.store.s3 import S3Store
from cluster.store.s3_place import Place
from serve.remote import Remote
from tests.front_desk import BOAT, Working
from tests.listening import served
from tests.picture_engine import PictureEngine
from tests.s3_proxy import Trouble, proxied
from tests.seaweedfs import BUCKET, SeaweedFS, keys_of

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A video that is done, the farm that made it, and what its S3 server heard."""

    working: Working
    video: Any
    url: str
    client: OpenAI
    place: Place
    heard: Trouble
    sha256: str  # as the receipt says

    @property
    def path(self) -> str:
        return f"/v1/videos/{self.video.id}/content"


@pytest.fixture(scope="module")
def shown(s3_server: SeaweedFS, fast_folder: Path) -> Iterator[Shown]:
    home = fast_folder / "s3-film"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch, proxied(s3_server) as (through, heard):
        for key, value in keys_of("farm").items():
            patch.setenv(key, value)
        place = Place(bucket=BUCKET, prefix=f"{uuid4().hex}/", endpoint=through.endpoint)
        working = Working(home, PictureEngine(), store=S3Store(place))
        try:
            with served(working.desk.app) as url:
                client = OpenAI(api_key=working.desk.secret, base_url=f"{url}/v1")
                video = client.videos.create_and_poll(prompt=BOAT, poll_interval_ms=50)
                [task] = working.farm.ledger.tasks(video.id.replace("video_", "job_"))
                receipt = find_receipt(working.farm.store, "studio", task["attempt_id"])
                clip = receipt.file("clip.mp4") if receipt else None
                assert clip is not None
                yield Shown(
                    working=working, video=video, url=url, client=client, place=place, heard=heard, sha256=clip.sha256
                )
        finally:
            working.close()


def test_a_signed_url_gives_the_bytes_of_the_receipt(shown: Shown) -> None:
    answer = shown.working.desk.ask("GET", f"http://127.0.0.1{shown.path}", follow_redirects=False)
    assert answer.status_code == 302
    with urllib.request.urlopen(answer.headers["location"]) as clip:
        assert hashlib.sha256(clip.read()).hexdigest() == shown.sha256
        assert clip.headers["content-type"] == "video/mp4"
    part = urllib.request.Request(answer.headers["location"], headers={"Range": "bytes=4-7"})
    with urllib.request.urlopen(part) as clip:
        assert (clip.status, clip.read()) == (206, b"ftyp")


def test_who_is_sent_to_the_store_for_a_range_is_billed_for_that_range(shown: Shown) -> None:
    address, ledger = f"http://127.0.0.1{shown.path}", shown.working.farm.ledger
    meter = Metered("studio", "default", "egress")
    size = int(shown.working.desk.ask("HEAD", address).headers["content-length"])
    booked = []
    for asked in ({"Range": "bytes=4-7"}, {"Range": "bytes=0-1", "If-Range": '"another"'}, {}):
        before, _ = ledger.view(meters.read).get(meter, (0, 0))
        answer = shown.working.desk.ask("GET", address, headers=asked, follow_redirects=False)
        assert answer.status_code == 302
        after, _ = ledger.view(meters.read)[meter]
        booked.append(after - before)
    assert booked == [4, size, size]


def test_clients_follow_and_keep_their_key_to_themselves(shown: Shown) -> None:
    shown.heard.authorized.clear()
    content = shown.client.videos.download_content(shown.video.id).read()
    assert hashlib.sha256(content).hexdigest() == shown.sha256
    with Remote(shown.url, shown.working.desk.secret) as remote, remote.opened(shown.path, wait_s=30.0) as answer:
        assert hashlib.sha256(answer.read()).hexdigest() == shown.sha256
        assert answer.url.path.startswith(f"/{BUCKET}/")
    assert [request for request in shown.heard.authorized if request.startswith("GET") and "Signature" in request] == []


@pytest.mark.parametrize(
    ("host", "headers"),
    [("127.0.0.1", {"Prefer": "proxy"}), ("farm.example.org", {})],
    ids=["who wants them from here", "who cannot reach the store"],
)
def test_bytes_come_through_the_farm_for_some(shown: Shown, host: str, headers: dict[str, str]) -> None:
    answer = shown.working.desk.ask("GET", f"http://{host}{shown.path}", headers=headers, follow_redirects=False)
    assert answer.status_code == 200
    assert hashlib.sha256(answer.content).hexdigest() == shown.sha256
    asked = {**headers, "Range": "bytes=4-7"}
    answer = shown.working.desk.ask("GET", f"http://{host}{shown.path}", headers=asked, follow_redirects=False)
    assert (answer.status_code, answer.content) == (206, b"ftyp")


def test_the_real_command_line_of_aws_sees_the_clip(shown: Shown) -> None:
    aws = os.environ.get("REELFARM_AWS")
    if aws is None:
        pytest.skip("`make s3` installs it, in an environment of its own")
    address = f"s3://{BUCKET}/{shown.place.prefix}studio/assets/"
    command = [aws, "--endpoint-url", shown.place.endpoint, "--region", "us-east-1", "s3"]
    listed = subprocess.run(
        [*command, "ls", "--recursive", address], capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert listed.returncode == 0, listed.stderr
    assert shown.sha256 in listed.stdout
    print(listed.stdout)
