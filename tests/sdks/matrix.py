"""OpenAI's real client in its oldest, a middle and its newest version, each in an environment of its own, against one
farm: `make sdks`, or `python -m tests.sdks.matrix --url URL --key KEY` for a farm that stands. Prints version x call.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.echo_writer import EchoWriter
from tests.front_desk import Working
from tests.picture_engine import PictureEngine

VERSIONS = ("2.9.0", "2.54.0", "3.54.0")
CALLS = Path(__file__).with_name("calls.py")
ENVIRONMENTS = Path(__file__).parents[2] / "out" / "sdks"
MORE = {"false": {"x-should-retry": "false"}, "true": {"x-should-retry": "true"}, "after": {"retry-after": "300"}}


class Shim:
    """`/status/409-false/...` is always answered 409 with `x-should-retry: false`; `/count/409-false`: how often."""

    def __init__(self) -> None:
        self._asked: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, what, case, *_ = scope["path"].split("/")
        status, _, more = case.partition("-")
        if what == "count":
            answer = JSONResponse(self._asked.pop(case, 0))
        else:
            self._asked[case] += 1
            error = {"message": "no", "type": "t", "param": None, "code": "c"}
            wait = {} if more == "after-300" else {"retry-after-ms": "1"}
            headers = {**wait, **MORE.get(more.partition("-")[0], {})}
            answer = JSONResponse({"error": error}, status_code=int(status), headers=headers)
        await answer(scope, receive, send)


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The url of an application on a port of this machine, for the block."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)


@contextmanager
def small_farm() -> Iterator[tuple[str, str]]:
    """(url, key) of a farm in this process, with an engine of milliseconds and a writer that repeats what it hears."""
    with tempfile.TemporaryDirectory() as folder:
        working = Working(Path(folder), PictureEngine(), chat_desk=EchoWriter())
        try:
            with served(working.desk.app) as url:
                yield url, working.desk.secret
        finally:
            working.close()


def environment(version: str) -> Path:
    """The python of an environment with this version of the client, which is made if it is not there."""
    python = ENVIRONMENTS / version / "bin" / "python"
    done = ENVIRONMENTS / version / "made"
    if not done.exists():
        shutil.rmtree(ENVIRONMENTS / version, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENTS / version], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"openai=={version}"], check=True)
        done.touch()
    return python


def calls(python: Path | str, url: str, key: str) -> dict[str, str]:
    """What each call came to, by the client of that environment."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    with served(Shim()) as shim:
        done = subprocess.run(
            [str(python), "-P", str(CALLS), url, key, shim],
            capture_output=True, text=True, env=env, timeout=280, check=True,
        )  # fmt: skip
    told: dict[str, str] = json.loads(done.stdout)
    return told


def main() -> int:
    asked = argparse.ArgumentParser(prog="tests.sdks.matrix")
    asked.add_argument("--url")
    asked.add_argument("--key")
    told = asked.parse_args()
    pythons = [environment(version) for version in VERSIONS]
    if told.url:
        found = [calls(python, told.url, told.key) for python in pythons]
    else:
        found = []
        for python in pythons:
            with small_farm() as (url, key):
                found.append(calls(python, url, key))
    for name in found[0]:
        print(f"{name:18}" + "".join(f"{one[name][:24]:26}" for one in found))
    broken = [(one["version"], name, said) for one in found for name, said in one.items() if said.startswith("FAILED")]
    for line in broken:
        print(*line)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
