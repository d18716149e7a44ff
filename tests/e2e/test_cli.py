"""`farm` as people run it: real processes, the real model, and nothing left behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.catalog import Catalog

ROOT = Path(__file__).resolve().parents[2]
FARM = [sys.executable, "-m", "serve.cli.main"]
WEIGHTS = ROOT / "pipelines" / "house" / "weights"
LONGEST_S = 280.0
BOAT = "a red boat drifts right over the sea"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not os.environ.get("CI") and not any(WEIGHTS.rglob("*.safetensors")), reason="the house weights are not here"
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """A home shared by the tests of this module, and a mark that every process of theirs carries."""

    home: Path
    mark: str

    def env(self) -> dict[str, str]:
        keep = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
        return {**keep, "FARM_HOME": str(self.home), "PYTHONPATH": str(ROOT), "REELFARM_TEST_MARK": self.mark}

    def farm(self, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*FARM, *args], cwd=cwd, env=self.env(), capture_output=True, text=True, timeout=LONGEST_S, check=False
        )

    def left_behind(self) -> list[str]:
        """What still runs and was started by these tests, directly or not."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue  # it has ended, or is somebody else's
        return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def desk(home: Path) -> Iterator[Desk]:
    made = Desk(home=home, mark=uuid.uuid4().hex)
    yield made
    assert made.left_behind() == []


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.stderr.startswith("farm: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


def test_a_clip_in_json_ends_with_its_path_seconds_and_cost(desk: Desk, tmp_path: Path) -> None:
    done = desk.farm("clip", BOAT, "--quality", "draft", "--out", "boat", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["seq"] for line in lines if "seq" in line] == list(range(1, len(lines) - 1))
    assert {"task.lease", "task.commit", "job.ended"} <= {line["event"] for line in lines}
    result = lines[-1]
    assert result["event"] == "result"
    assert result["seconds"] > 0
    assert float(result["cost_usd"]) > 0
    clip = tmp_path / result["path"]
    assert clip.read_bytes()[4:8] == b"ftyp"
    assert sorted(path.name for path in (tmp_path / "boat").iterdir()) == ["clip.mp4", "poster.png"]


def test_a_clip_while_it_is_drawn_and_after_is_looked_at_by_other_commands(desk: Desk, tmp_path: Path) -> None:
    """What a second terminal sees: the job, who runs it, why the rest waits; and what it leaves when it is canceled."""
    seed = str(time.time_ns() % 10**9)  # not yet drawn
    hang = [{"point": "store.put_blob", "action": "hang", "seconds": 600}]  # so that it is at work while we look
    process = subprocess.Popen(
        [*FARM, "clip", BOAT, "--seed", seed, "--quality", "draft", "--json"], cwd=tmp_path, text=True,
        env={**desk.env(), "FARM_FAULTS": json.dumps(hang)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

    def rows(*args: str) -> list[dict[str, Any]]:
        done = desk.farm(*args, "--json", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    assert process.stdout is not None
    job = ""
    for line in process.stdout:
        event = json.loads(line)
        job = event.get("job", job)
        if event["event"] == "task.lease":
            break
    assert rows("ls", "--state", "running")[0]["job"] == job
    (running,) = rows("why", job)
    assert running["state"] == "running"
    worker = next(w for w in rows("workers") if w["running"])
    assert worker["running"] == [{"job": job, "task": running["task"]}]
    assert float(rows("info", job)[0]["cost_by_kind_usd"]["running"]) > 0
    (answer,) = rows("cancel", job, "--yes")
    assert answer["done"]
    process.communicate(timeout=LONGEST_S)
    assert process.returncode == 1
    assert rows("info", job)[0]["state"] == "canceled"
    assert {"job.cancel", "task.cancel", "job.ended"} <= {row["event"] for row in rows("log", job)}
    assert rows("ledger", "check") == []


def test_the_same_clip_again_is_kept_and_costs_nothing(desk: Desk, tmp_path: Path) -> None:
    first = desk.farm("clip", BOAT, "--quality", "draft", "--out", "one", "--json", cwd=tmp_path)
    again = desk.farm("clip", BOAT, "--quality", "draft", "--out", "two", "--json", cwd=tmp_path)
    assert (first.returncode, again.returncode) == (0, 0)
    assert (tmp_path / "one" / "clip.mp4").read_bytes() == (tmp_path / "two" / "clip.mp4").read_bytes()
    assert float(json.loads(again.stdout.splitlines()[-1])["cost_usd"]) == 0


def test_an_image_without_a_terminal_says_one_sentence_for_each_event(desk: Desk, tmp_path: Path) -> None:
    done = desk.farm("image", "a white house in the snowy mountains", "--quality", "draft", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "image" / "still.png").read_bytes().startswith(b"\x89PNG")
    lines = done.stdout.splitlines()
    assert "still: drawing" in done.stdout
    assert "image/still.png" in lines[-1]
    assert "$" in lines[-1]
    assert "\x1b" not in done.stdout


def test_ctrl_c_while_it_draws_leaves_no_process_and_no_file(desk: Desk, tmp_path: Path) -> None:
    seed = str(time.time_ns() % 10**9)  # not yet drawn
    code, screen = on_a_terminal(
        desk, ["clip", BOAT, "--seed", seed, "--quality", "final", "--out", "boat"], cwd=tmp_path, stop_at=b"/24"
    )
    assert code == 130
    assert "stopped before anything was finished" in screen.splitlines()[-1]
    assert "Traceback" not in screen
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h") == 1  # the cursor is back
    assert list((tmp_path / "boat").iterdir()) == []


def test_sigterm_while_the_farm_starts_leaves_no_process(desk: Desk, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*FARM, "clip", BOAT, "--out", "boat"], cwd=tmp_path, env=desk.env(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "the farm is starting" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 143
    assert err.startswith("farm: stopped before anything was finished")
    assert list((tmp_path / "boat").iterdir()) == []


def test_weights_that_are_damaged_are_named_in_one_line(desk: Desk, tmp_path: Path) -> None:
    broken = tmp_path / "weights"
    shutil.copytree(WEIGHTS, broken)
    file = max(broken.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    with file.open("r+b") as weights:
        weights.truncate(file.stat().st_size // 2)
    entry = yaml.safe_load((ROOT / "actors" / "models" / "house-video.yaml").read_text())
    (desk.home / "models.d").mkdir(exist_ok=True)
    (desk.home / "models.d" / "broken.yaml").write_text(
        yaml.safe_dump(entry | {"name": "broken-video", "weights": {"path": str(broken)}}, sort_keys=False)
    )
    assert "broken-video" in Catalog.load(desk.home / "models.d").models
    done = desk.farm("clip", BOAT, "--model", "broken-video", "--out", "boat", cwd=tmp_path)
    assert done.returncode == 1
    assert file.name in one_line(done)
    assert list((tmp_path / "boat").iterdir()) == []


def test_a_full_disk_leaves_no_half_written_file(desk: Desk, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        done = desk.farm("clip", BOAT, "--quality", "draft", "--out", str(small), cwd=tmp_path)
        assert done.returncode == 1
        assert "no space left for --out" in one_line(done)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["clip", BOAT, "--out", "/proc/nobody"], "--out /proc/nobody cannot be written"),
        (["clip", BOAT, "--model", "nobody"], "no render model 'nobody'"),
        (["render", "", "--shots", "2"], "a film needs a logline"),
    ],
    ids=["unwritable", "unknown model", "no logline"],
)
def test_a_mistake_is_answered_before_anything_starts(desk: Desk, tmp_path: Path, args: list[str], said: str) -> None:
    done = desk.farm(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in one_line(done)


def test_a_reader_that_goes_away_ends_it_quietly(desk: Desk, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*FARM, "clip", BOAT, "--quality", "draft", "--out", "boat"], cwd=tmp_path, env=desk.env(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=LONGEST_S) == 141
    assert err == ""


def on_a_terminal(desk: Desk, args: list[str], *, cwd: Path, stop_at: bytes) -> tuple[int, str]:
    """Runs `farm` on a terminal of its own and types Ctrl-C once it shows `stop_at`: (exit code, all it drew)."""
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

    def sit_down() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        [*FARM, *args], cwd=cwd, env={**desk.env(), "TERM": "xterm-256color"}, stdin=theirs, stdout=theirs,
        stderr=theirs, start_new_session=True, preexec_fn=sit_down,
    )  # fmt: skip
    os.close(theirs)
    drawn, typed, until_s = b"", False, time.monotonic() + LONGEST_S
    while time.monotonic() < until_s:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the last process on it has ended
            break
        drawn += chunk
        if not typed and stop_at in drawn:
            typed = True
            os.write(terminal, b"\x03")
    else:
        process.terminate()
    code = process.wait(timeout=LONGEST_S)
    os.close(terminal)
    return code, drawn.decode(errors="replace")
