"""`farm up` and `farm down`; two replicas behind one door; what is killed comes back and nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import openai
import pytest

from actors.catalog import Catalog
from cluster.ledger.ledger import Ledger
from tests.scripts import script_of
from tests.standing_farm import StandingFarm, standing_farm, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
BOAT = "a red boat crosses the sea"
NUM_REQUESTS = 200 if os.environ.get("REELFARM_TEST_PROFILE") == "chaos" else 60
NUM_LINES = 60 if NUM_REQUESTS == 200 else 20
FIRST = 10_000_000  # seeds of theirs alone
FIRST_LINE = 20_000_000


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingFarm]:
    home = tmp_path_factory.mktemp("standing") / "home"
    farm = standing_farm(home, FARM_LEASE_S="5", FARM_HEARTBEAT_S="1", FARM_PRIVATE_URLS="true")
    with socket.socket() as other:  # the one port at which the agent of every Ray would listen
        with contextlib.suppress(OSError):  # there is another Ray
            other.bind(("0.0.0.0", 52365))
            other.listen()
        farm.up()
    yield farm
    assert farm.farm("down", check=False).returncode in (0, 2)  # 2: the last test has ended it


def test_up_says_where_it_is_and_saying_it_again_starts_no_second_one(farm: StandingFarm) -> None:
    again = json.loads(farm.farm("up", "--json").stdout)
    assert (again["url"], again["pid"], again["key"]) == (farm.url, farm.pid, farm.key)
    assert httpx.get(f"{farm.url}/readyz", timeout=60).json()["status"] == "ready"
    assert httpx.get(farm.dashboard, timeout=60).status_code == 200
    assert (farm.home / "key").stat().st_mode & 0o777 == 0o600
    assert (farm.home / "ray-token").stat().st_mode & 0o777 == 0o600


def test_the_openai_client_gets_a_video_from_it(farm: StandingFarm) -> None:
    client = farm.openai()
    video = client.videos.create_and_poll(prompt=BOAT, model="house-video", seconds="2")  # type: ignore[arg-type]
    assert video.status == "completed"
    assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"


def test_a_signed_webhook_tells_of_a_video_that_is_completed(farm: StandingFarm) -> None:
    heard: queue.Queue[tuple[bytes, dict[str, str]]] = queue.Queue()

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.put((self.rfile.read(int(self.headers["content-length"])), dict(self.headers)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = farm.openai()
        asked = {"name": "test", "url": f"http://127.0.0.1:{server.server_port}/", "event_types": ["video.completed"]}
        made = client.post("/webhook_endpoints", body=asked, cast_to=dict[str, str])
        video = client.videos.create(prompt=BOAT, model="house-video", seconds="2")  # type: ignore[arg-type]
        body, headers = heard.get(timeout=60)
        server.shutdown()
    said = client.webhooks.unwrap(body, headers, secret=made["signing_secret"])
    assert (said.type, said.data.id) == ("video.completed", video.id)


def test_what_one_replica_took_on_the_other_knows(farm: StandingFarm) -> None:
    with httpx.Client(base_url=farm.url, headers={"Authorization": f"Bearer {farm.key}"}, timeout=90.0) as client:

        def by_another(took: str, method: str, path: str) -> httpx.Response:
            """Not read yet."""
            for _ in range(200):
                answer = client.send(client.build_request(method, path), stream=True)
                if answer.headers["farm-replica"] != took:
                    return answer
                answer.close()
            raise AssertionError("all was answered by one replica")

        made = client.post("/v1/videos", json={"prompt": BOAT})
        took, path = made.headers["farm-replica"], f"/v1/videos/{made.json()['id']}"
        heard = list(by_another(took, "GET", f"{path}/events").iter_lines())
        assert [line for line in heard if line.startswith("event:")][-1] == "event: completed"
        assert json.loads(by_another(took, "GET", path).read())["status"] == "completed"
        assert by_another(took, "GET", f"{path}/content").read()[4:8] == b"ftyp"

        made = client.post("/v1/films", json={"script": script_of(Catalog.load(), "boat"), "review": True})
        took, path = made.headers["farm-replica"], f"/v1/films/{made.json()['id']}"
        lines = by_another(took, "GET", f"{path}/events").iter_lines()
        assert next(lines).startswith("retry:")
        until(lambda: bool(client.get(path).json()["waits_for"]))  # a person, so it does not end by itself
        assert json.loads(by_another(took, "POST", f"{path}/cancel").read())["status"] == "cancelled"
        assert [line for line in lines if line.startswith("event:")][-1] == "event: cancelled"
        assert client.get(path).json()["status"] == "cancelled"


AGAIN = """
import ray
from ray import serve
from cluster.settings import load
from serve.app import NAME, built

ray.init()
serve.run(built(load()), name=NAME, route_prefix="/")
"""
"""The same application with the settings of the environment, as `serve run` does."""


def test_a_rolling_update_loses_nothing_and_ends_streams_cleanly(farm: StandingFarm) -> None:
    answers: list[httpx.Response] = []
    updated = threading.Event()
    headers = {"Authorization": f"Bearer {farm.key}"}
    with httpx.Client(base_url=farm.url, headers=headers, timeout=120.0) as client, ThreadPoolExecutor(3) as aside:

        def submit() -> None:
            while not updated.wait(2.0):
                answers.append(client.post("/v1/videos", json={"prompt": BOAT, "seed": len(answers)}))

        def heard(path: str, seen: str | None) -> list[str]:
            """Lines of a stream that ended by itself: one that is cut off raises."""
            mark = {} if seen is None else {"Last-Event-ID": seen}
            with client.stream("GET", f"{path}/events", headers=mark) as stream:
                assert stream.status_code == 200
                return list(stream.iter_lines())

        film = client.post("/v1/films", json={"script": script_of(Catalog.load(), "fish"), "review": True}).json()
        path = f"/v1/films/{film['id']}"
        until(lambda: bool(client.get(path).json()["waits_for"]))  # a person, so it does not end by itself
        old = {client.get("/v1/models").headers["farm-replica"] for _ in range(40)}
        job = client.get(path).json()["revisions"][-1]["job"]
        streamed = aside.submit(heard, path, None)
        waited = aside.submit(client.get, f"/v1/jobs/{job}", headers={"Prefer": "wait=60"})
        submits = aside.submit(submit)
        until(lambda: bool(answers))
        try:
            update = farm.driver(AGAIN, FARM_IMAGE_WAIT_S="77")
        finally:
            updated.set()
        assert update.returncode == 0, update.stderr
        submits.result(60)
        lines, held = streamed.result(120), waited.result(120)
        assert {answer.status_code for answer in answers} == {200}
        assert (held.status_code, held.json()["state"]) == (200, "in_review")
        assert "event: cancelled" not in lines
        assert old.isdisjoint({client.get("/v1/models").headers["farm-replica"] for _ in range(40)})
        client.post(f"{path}/cancel")
        seen = [line.removeprefix("id: ") for line in lines if line.startswith("id:")][-1]
        assert "event: cancelled" in heard(path, seen)
        made = {answer.json()["id"] for answer in answers}
        assert len(made) == len(answers)
        left = set(made)

        def all_over() -> bool:
            left.difference_update(
                one for one in set(left) if client.get(f"/v1/videos/{one}").json()["status"] == "completed"
            )
            return not left

        until(all_over, timeout_s=600)


def test_a_replica_the_proxy_and_the_dispatcher_die_under_many_requests(farm: StandingFarm) -> None:
    accepted: dict[int, str] = {}
    refused: list[str] = []
    doors = threading.Semaphore(0)

    def ask(n: int) -> None:
        """As the SDK does, with a key of its own and more patience."""
        client = farm.openai(max_retries=30, timeout=20.0, default_headers={"Idempotency-Key": f"request-{n}"})
        try:
            accepted[n] = client.videos.create(prompt=BOAT, seconds="2", extra_body={"seed": FIRST + n}).id  # type: ignore[arg-type]
        except openai.APIError as error:
            refused.append(f"{n}: {error}")
        doors.release()

    with ThreadPoolExecutor(8) as pool:
        for n in range(NUM_REQUESTS):
            pool.submit(ask, n)
        for title in ("ray::ServeReplica", "ray::ProxyActor", "ray::DispatcherHost"):
            for _ in range(NUM_REQUESTS // 4):
                doors.acquire()
            farm.kill(title)
    assert refused == []
    assert len(set(accepted.values())) == NUM_REQUESTS
    ledger = farm.ledger()
    try:
        ids = {f"job_{video.removeprefix('video_')}" for video in accepted.values()}
        until(lambda: all(ledger.job(one).over for one in ids), timeout_s=200)
        assert Counter(ledger.job(one).state.value for one in ids) == {"succeeded": NUM_REQUESTS}
        asked = sorted((job.spec["seed"] or 0) - FIRST for job in ledger.jobs(limit=1000))
        assert [n for n in asked if 0 <= n < NUM_REQUESTS] == list(range(NUM_REQUESTS)), (
            "one was lost, or made two jobs"
        )
        assert ledger.flaws() == []
    finally:
        ledger.close()


def test_a_batch_submitted_to_ray_killed_half_way_and_submitted_again_does_nothing_twice(
    farm: StandingFarm, tmp_path: Path
) -> None:
    prompts = [{"id": f"line-{n}", "prompt": BOAT, "seed": FIRST_LINE + n} for n in range(NUM_LINES)]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in prompts))
    (tmp_path / "farm.key").write_text(farm.key)
    out = tmp_path / "out"

    def submit(name: str, *more: str) -> subprocess.CompletedProcess[str]:
        """As a data team does, with a working directory that holds the prompts and the key."""
        env = {"FARM_URL": farm.url, "FARM_API_KEY_FILE": "farm.key"}
        batch = ["farm", "batch", "--input", "prompts.jsonl", "--output", str(out), "--show", "spring"]
        return farm.ray(
            "job", "submit", "--submission-id", name, "--working-dir", str(tmp_path),
            "--runtime-env-json", json.dumps({"env_vars": env, "excludes": ["out"]}), *more, "--", *batch,
        )  # fmt: skip

    def ready() -> bool:
        """Ray's agent is up a moment after the farm, and a call to it costs seconds on a busy machine."""
        done = farm.ray("job", "submit", "--no-wait", "--", "true", check=False)
        print(done.stdout, done.stderr)
        return done.returncode == 0

    until(ready, timeout_s=240)
    ledger = farm.ledger()
    try:
        submit("first", "--no-wait")
        until(lambda: made(ledger) >= NUM_LINES // 2, timeout_s=240)
        [killed] = farm.processes(sys.executable, "batch")
        killed.kill()
        log = submit("second").stdout
        assert f"{NUM_LINES} of {NUM_LINES} lines are made" in log, log
        assert made(ledger) == NUM_LINES, "a line was made twice"
    finally:
        ledger.close()
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(one["id"] for one in results) == sorted(one["id"] for one in prompts)
    assert len({one["video_id"] for one in results}) == NUM_LINES
    assert {one["status"] for one in results} == {"completed"}
    assert len(list((out / "clips").glob("*.mp4"))) == NUM_LINES
    refused = farm.ray("status", token="1" * 64, check=False)  # nobody's
    assert refused.returncode != 0


def made(ledger: Ledger) -> int:
    """How many jobs the lines have made: those of other tests have seeds by chance, or of their own."""
    return sum((job.spec.get("seed") or 0) - FIRST_LINE in range(NUM_LINES) for job in ledger.jobs(limit=1000))


def test_down_ends_streams_cleanly_and_what_was_accepted_goes_on_at_the_next_up(farm: StandingFarm) -> None:
    client = farm.openai()
    ids = [client.videos.create(prompt=BOAT, model="house-video", seconds="2").id for _ in range(20)]  # type: ignore[arg-type]
    headers = {"Authorization": f"Bearer {farm.key}"}
    with httpx.stream("GET", f"{farm.url}/v1/videos/{ids[-1]}/events", headers=headers, timeout=90.0) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith(("id:", "event:", "retry:"))
        with ThreadPoolExecutor(1) as aside:
            ended = aside.submit(farm.down)
            heard = list(lines)  # a stream that is cut off raises
            ended.result()
    assert not any(line.startswith("event: failed") for line in heard)
    farm.up()
    client = farm.openai()
    until(lambda: all(client.videos.retrieve(one).status == "completed" for one in ids), timeout_s=120)
