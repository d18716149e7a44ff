"""`serve run serve.app:app` on a Ray that runs already, on a home where a farm was up before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cluster.ledger.keys import KeySpec, Scope
from serve import host, up
from tests.listening import stream
from tests.standing_farm import ROOT, StandingFarm, standing_farm, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
BOAT = "a red boat crosses the sea"
RAY = """
import sys
from pathlib import Path

from cluster.runtime import private_ray

listener = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.listener.callback"}
with private_ray(gpus=0, code_dir=Path(sys.argv[1]), environment=listener):
    import ray
    from ray import serve as ray_serve

    ray_serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    print("at", ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@contextmanager
def ray_of_its_own(farm: StandingFarm, port: int) -> Iterator[str]:
    """Its address. HTTP of Serve is at `port`."""
    command = [sys.executable, "-P", "-c", RAY, str(ROOT), str(port)]
    process = subprocess.Popen(command, env=farm.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield next(line.split()[1] for line in process.stdout if line.startswith("at "))
    finally:
        process.communicate(timeout=120)


@contextmanager
def serve_run(farm: StandingFarm, address: str) -> Iterator[None]:
    serve = str(Path(sys.executable).with_name("serve"))
    hears = ["env", "--default-signal=INT"]  # what runs in the background of a shell may be deaf to it
    command = [*hears, serve, "run", "serve.app:app", "--address", address]
    process = subprocess.Popen(command, env={**farm.env, "RAY_AUTH_MODE": "token"}, cwd=ROOT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)


def test_a_video_is_made_and_its_stream_ends_with_it(tmp_path: Path) -> None:
    port = host._free_port(0)
    farm = standing_farm(tmp_path / "home")
    up.say(farm.home, up.Up(pid=os.getpid(), phase=up.ENDING))  # as `farm down` has left it
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    with ray_of_its_own(farm, port) as address, serve_run(farm, address):
        until(ready, timeout_s=480)
        ledger = farm.ledger()
        try:
            _, secret = ledger.create_key(KeySpec(tenant="studio", name="test", scopes=tuple(Scope)))
        finally:
            ledger.close()
        bearer = {"Authorization": f"Bearer {secret}"}
        video = httpx.post(f"{url}/v1/videos", json={"prompt": BOAT}, headers=bearer, timeout=60).json()
        with stream(f"{url}/v1/videos/{video['id']}/events", secret) as told:
            assert [one.name for one in told][-1] == "completed"
