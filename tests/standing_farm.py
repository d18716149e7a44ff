"""A standing farm for tests: `farm up` and `farm down` as a person runs them, with an engine of milliseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from actors.contract import Engine
from cluster.accelerators import Fleet
from cluster.ledger.ledger import Ledger
from cluster.settings import Settings
from tests.picture_engine import PictureEngine

ROOT = Path(__file__).parents[1]
FLEETS = """fleets:
  - {name: pictures, role: render, model: house-video, num_workers: 2, engine: "tests.standing_farm:pictures"}
  - {name: finish, role: finish}
"""


def pictures(fleet: Fleet, settings: Settings) -> Engine:
    return PictureEngine()


@dataclass
class StandingFarm:
    home: Path
    env: dict[str, str]
    url: str = ""
    key: str = ""
    dashboard: str = ""
    pid: int = 0

    def farm(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The command line, on this farm's FARM_HOME."""
        command = [sys.executable, "-P", "-m", "serve.cli.main", *arguments]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=600, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    def ray(self, *arguments: str, token: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Ray's command line against this farm's Ray, with its token or another one."""
        env = {name: value for name, value in self.env.items() if not name.startswith("FARM_")}
        env |= {"RAY_API_SERVER_ADDRESS": self.dashboard, "RAY_ADDRESS": self.dashboard, **self._ray_token(token)}
        command = [str(Path(sys.executable).with_name("ray")), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def driver(self, program: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """A program on this farm's Ray. Not by `ray job submit`: Ray 2.60 gives a job the address of whatever Ray it
        finds first on this machine, and other tests have their own."""
        env = self.env | {"RAY_ADDRESS": self._gcs(), **self._ray_token(), **settings}
        command = [sys.executable, "-P", "-c", program]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)

    def up(self) -> StandingFarm:
        try:
            said = json.loads(self.farm("up", "--json").stdout)
        except BaseException:
            self.farm("down", "--now", check=False)
            raise
        self.url, self.key, self.dashboard, self.pid = said["url"], said["key"], said["dashboard"], said["pid"]
        return self

    def down(self) -> None:
        self.farm("down")

    def openai(self, **more: Any) -> OpenAI:
        warnings.filterwarnings("ignore", category=DeprecationWarning, message="The Sora API")
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, **more)

    def processes(self, title: str, word: str = "") -> list[psutil.Process]:
        """Of this farm, whose command (Ray's name of an actor) begins so, and has `word` in it."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            try:
                command = process.cmdline()
                if command and command[0].startswith(title) and (not word or word in command):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _ray_token(self, token: str = "") -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or (self.home / "ray-token").read_text().strip()}

    def _gcs(self) -> str:
        words = (word for child in psutil.Process(self.pid).children() for word in child.cmdline())
        return next(word for word in words if word.startswith("--gcs-address=")).partition("=")[2]

    def kill(self, title: str) -> int:
        """SIGKILL to the one process, or the first, with this title; its pid."""
        process = self.processes(title)[0]
        process.kill()
        return process.pid

    def ledger(self) -> Ledger:
        return Ledger(f"sqlite:///{self.home / 'ledger.db'}")


def standing_farm(home: Path, **settings: str) -> StandingFarm:
    """Not started yet. Its ports are any that are free."""
    home.mkdir(parents=True, exist_ok=True)
    fleets = home / "fleets.yaml"
    fleets.write_text(FLEETS)
    env = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    given = {"FARM_HOME": str(home), "FARM_FLEETS": str(fleets), "FARM_HTTP_PORT": "0", "FARM_DASHBOARD_PORT": "0"}
    other = {"RAY_AUTH_TOKEN": "0" * 64}  # of another Ray, which is none of this farm's business
    return StandingFarm(home, {**env, **other, **given, "PYTHONPATH": str(ROOT), **settings})


def until(holds: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    ends_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends_s, "it did not come to hold in time"
        time.sleep(0.1)
