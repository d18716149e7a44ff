"""`farm up` and `farm down` around a farm that somebody else started: another process with the lock and the record."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.errors import Unavailable
from cluster.settings import Settings
from serve import up

OTHER = """
import os, sys
from pathlib import Path
from cluster import farm_lock
from serve import up

home = Path(sys.argv[1])
with farm_lock.held(home):
    for line in sys.stdin:  # what it says of itself, when it is told to
        if line.strip() != "nothing":
            phase, _, failed = line.strip().partition("|")
            url = "" if phase == "starting Ray" else "http://127.0.0.1:1"
            up.say(home, up.Up(pid=os.getpid(), phase=phase, url=url, failed=failed))
        print("said", flush=True)
"""


class Other:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def say(self, line: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "said\n"


@contextmanager
def other(home: Path, first: str) -> Iterator[Other]:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    )
    try:
        farm = Other(process)
        farm.say(first)
        yield farm
    finally:
        process.kill()
        process.communicate()


def test_a_farm_that_is_being_started_is_waited_for_and_no_second_one_starts(tmp_path: Path) -> None:
    with other(tmp_path, "starting Ray") as farm:
        phases: list[str] = []

        def told(phase: str) -> None:
            phases.append(phase)
            farm.say("")

        found = up.start(Settings(home=tmp_path), [], told)
        assert (found.pid, found.ready, phases) == (farm.process.pid, True, ["starting Ray"])


def test_why_it_did_not_start_is_said_to_whoever_waits(tmp_path: Path) -> None:
    with other(tmp_path, "loading models|no space left") as farm, pytest.raises(Unavailable, match="no space left"):
        up.start(Settings(home=tmp_path), [], lambda phase: None)
    assert farm.process.returncode is not None


def test_one_that_dies_while_it_starts_is_not_waited_for(tmp_path: Path) -> None:
    with other(tmp_path, "starting Ray") as farm, pytest.raises(Unavailable, match="ended while it started"):
        up.start(Settings(home=tmp_path), [], lambda phase: farm.process.kill())


def test_a_farm_of_one_run_is_named_and_left_alone(tmp_path: Path) -> None:
    with other(tmp_path, "nothing") as farm:
        with pytest.raises(Unavailable, match=f"pid {farm.process.pid}"):
            up.start(Settings(home=tmp_path), [], lambda phase: None)
        assert up.here(Settings(home=tmp_path)) is None


def test_what_a_farm_said_that_is_gone_is_not_believed(tmp_path: Path) -> None:
    with other(tmp_path, "") as farm:
        found = up.here(Settings(home=tmp_path))
        assert found is not None
        assert found.ready
        assert farm.process.poll() is None
    assert up.here(Settings(home=tmp_path)) is None


def test_down_returns_when_it_has_ended(tmp_path: Path) -> None:
    with other(tmp_path, "") as farm:
        found = up.here(Settings(home=tmp_path))
        assert found is not None
        up.stop(Settings(home=tmp_path), found)  # it has no handler of its own for SIGTERM
        assert farm.process.wait(10) != 0
        assert up.here(Settings(home=tmp_path)) is None


def test_a_farm_ends_for_as_long_as_it_is_there(tmp_path: Path) -> None:
    with other(tmp_path, "ending"):
        assert up.ends(tmp_path)
    assert not up.ends(tmp_path)  # its record is left


@pytest.mark.parametrize(
    ("host", "said"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("10.0.0.7", "10.0.0.7"), ("farm.local", "farm.local")],
)
def test_the_address_of_a_farm_is_one_that_can_be_asked(host: str, said: str) -> None:
    assert up.url_of(host, 8000) == f"http://{said}:8000"
