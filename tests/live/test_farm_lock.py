"""Two commands at once on one FARM_HOME, as real processes: the second waits, says so, and goes on or stops cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import farm_lock
from cluster.errors import Unavailable, UserMistake

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
HOLDS = (
    "import sys; from pathlib import Path; from cluster import farm_lock\n"
    "with farm_lock.held(Path(sys.argv[1])): print('held', flush=True); input()\n"
)
OPENS = (
    "import sys; from serve.local import Farm\n"
    "farm = Farm(home=sys.argv[1], gpus=0)\n"
    "farm.on_wait = lambda pid: print('waits for', pid, flush=True)\n"
    "farm.on_go = lambda: print('goes on', flush=True)\n"
    "with farm: print('up', flush=True)\n"
)
CLIP = ["-m", "serve.cli.main", "clip", "a red boat drifts right over the sea", "--out", "boat"]


def started(*args: str, cwd: Path, home: Path) -> subprocess.Popen[str]:
    def take_the_signals_of_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    env = {**os.environ, "PYTHONPATH": str(ROOT), "FARM_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, *args], cwd=cwd, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=take_the_signals_of_a_terminal,
    )  # fmt: skip


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@contextmanager
def held_by_another_process(home: Path) -> Iterator[subprocess.Popen[str]]:
    home.mkdir(exist_ok=True)
    with started("-c", HOLDS, str(home), cwd=home, home=home) as holder:
        assert line(holder) == "held\n"
        yield holder
        if holder.poll() is None:
            holder.communicate("\n", timeout=60)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_second_film_says_who_it_waits_for_and_a_signal_ends_it_cleanly(tmp_path: Path, signum: int) -> None:
    with held_by_another_process(tmp_path / "home") as holder:
        second = started(*CLIP, "--json", cwd=tmp_path, home=tmp_path / "home")
        assert json.loads(line(second))["event"] == "farm.starting"
        waiting = json.loads(line(second))
        assert (waiting["event"], waiting["pid"]) == ("farm.waiting", holder.pid)
        assert waiting["message"] == (
            f"another film is being rendered on this farm (pid {holder.pid}): waiting for it to end"
        )
        second.send_signal(signum)
        out, err = second.communicate(timeout=60)
        assert second.returncode == 128 + signum
        assert err == "farm: stopped before anything was finished; the same command starts again\n"
        assert json.loads(out)["code"] == "stopped"
        assert holder.poll() is None
    assert list((tmp_path / "boat").iterdir()) == []


def test_without_json_the_wait_is_one_sentence(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path / "home") as holder:
        second = started(*CLIP, cwd=tmp_path, home=tmp_path / "home")
        assert "the farm is starting" in line(second)
        assert f"(pid {holder.pid}): waiting for it to end" in line(second)
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=60)


def test_a_farm_that_waited_goes_on_when_the_first_one_was_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with held_by_another_process(home) as holder:
        second = started("-c", OPENS, str(home), cwd=tmp_path, home=home)
        assert line(second) == f"waits for {holder.pid}\n"
        assert farm_lock.is_held(home)
        holder.kill()
        assert line(second) == "goes on\n"
        assert line(second) == "up\n"
        second.communicate(timeout=120)
        assert second.returncode == 0
    assert not farm_lock.is_held(home)


def test_a_farm_that_is_open_twice_in_one_program_is_refused_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    with (
        farm_lock.held(tmp_path),
        pytest.raises(UserMistake, match="has a farm open"),
        farm_lock.held(tmp_path, on_wait=print),
    ):
        pass
    assert not farm_lock.is_held(tmp_path)


def test_who_may_not_wait_is_told_who_is_there(tmp_path: Path) -> None:
    with (
        held_by_another_process(tmp_path) as holder,
        pytest.raises(Unavailable, match=f"a farm \\(pid {holder.pid}\\) is at work"),
        farm_lock.held(tmp_path),
    ):
        pass
