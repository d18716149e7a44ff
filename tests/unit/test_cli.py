"""The command line before anything is started: help, version, the catalog, and every kind of bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from actors.catalog import Catalog
from cluster.errors import DamagedWeights, FarmError
from serve.cli import commands, terminal
from serve.cli.ending import SIGNALS, Ending, descendants
from serve.cli.main import run

ROOT = Path(__file__).resolve().parents[2]
BOAT = "a red boat crosses the sea"


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home and a working directory of the test's own; pytest's signal handlers are put back."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for signum, handler in before.items():
        signal.signal(signum, handler)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of a command that was refused as the user's mistake."""
    code = run(argv)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("farm: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert err.isprintable() or err.removesuffix("\n").isprintable()
    return err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["--bogus"], "No such option: --bogus"),
        (["clip"], "Missing argument 'PROMPT'"),
        (["render"], "a film needs a logline"),
        (["render", " \t "], "a film needs a logline"),
        (["render", "x" * 10_000], "the logline has 10,000 characters; use 2,000 at most"),
        (["clip", "boat " * 2000], "characters; use 400 at most"),
        (["clip", ""], "the prompt is empty"),
        (["clip", "🎈🎉"], "nothing in the prompt can be drawn by house-video; name some of these"),
        (["clip", "שלום עולם"], "nothing in the prompt can be drawn"),
        (["clip", "a\x1b[31m boat"], "control characters; take them out"),
        (["render", "a\x07 boat"], "control character"),
        (["clip", "\udcff boat"], "the prompt is not UTF-8 text"),
        (["render", BOAT, "--shots", "0"], "--shots must be greater than or equal to 1; see farm render --help"),
        (["render", BOAT, "--shots", "41"], "a film has 1 to 40 shots, not 41"),
        (["render", BOAT, "--shots", "abc"], "--shots must be a valid integer"),
        (["render", BOAT, "--shots", "1.5"], "--shots must be a valid integer"),
        (["render", BOAT, "--seconds", "-1"], "--seconds: -1 is not a length above 0"),
        (["render", BOAT, "--seconds", "0"], "--seconds: 0 is not a length above 0"),
        (["render", BOAT, "--seconds", "nan"], "--seconds: nan is not a length above 0"),
        (["render", BOAT, "--seconds", "inf"], "--seconds: inf is not a length above 0"),
        (["render", BOAT, "--seconds", "60"], "house-video draws no clip of 60 s; use 2 s"),
        (["clip", BOAT, "--seed", "-1"], "--seed: -1 is not from 0 to 2^63-1"),
        (["clip", BOAT, "--seed", "9" * 30], "is not from 0 to 2^63-1"),
        (["clip", BOAT, "--quality", "great"], "'great' is not one of 'draft', 'standard', 'final'"),
        (["clip", BOAT, "--model", "house-vidoe"], "no render model 'house-vidoe'; use house-video"),
        (["clip", BOAT, "--model", "house-writer"], "no render model 'house-writer'"),
        (["render", BOAT, "--writer", "house-video"], "no writer model 'house-video'; use house-writer"),
        (["clip", BOAT, "--size", "640x480"], "640 x 480 is no size of house-video; it draws 512 x 512"),
        (["clip", BOAT, "--size", "big"], "--size 'big' is no size; write it as in --size 512x512"),
        (["clip", BOAT, "--size", "-1x5"], "is no size"),
        (["image", BOAT, "--gpus", "-1"], "--gpus must be greater than or equal to 0"),
        (["image", BOAT, "--out", ""], "--out is empty"),
        (["image", BOAT, "--out", "/proc/nobody"], "--out /proc/nobody cannot be written"),
        (["image", BOAT, "--out", "n" * 300], "cannot be written: File name too long"),
        (["render", "--script", "nowhere.json"], "the script nowhere.json cannot be read: No such file or directory"),
    ],
    ids=lambda value: " ".join(value)[:40].encode("ascii", "replace").decode() if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    assert said in refused(capsys, *argv)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is not JSON"),
        (b"[]", "is no JSON object"),
        (b"{\x00", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b'{"title": NaN}', "NaN is no JSON number"),
        (b"[" * 200_000, "is not JSON"),
        (b" " * (commands.MAX_SCRIPT_BYTES + 1), "it may have a megabyte"),
        (b"{}", "title"),
        (b'{"title": "a\\u0000b"}', "title"),
    ],
    ids=["empty", "array", "NUL", "not UTF-8", "NaN", "deep", "big", "no script", "NUL in it"],
)
def test_a_script_file_that_is_no_script_is_refused(
    capsys: pytest.CaptureFixture[str], desk: Path, text: bytes, said: str
) -> None:
    (desk / "script.json").write_bytes(text)
    assert said in refused(capsys, "render", "--script", "script.json")


def test_an_output_that_is_a_file_is_refused(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    (desk / "taken").write_text("mine")
    assert "--out taken cannot be written" in refused(capsys, "clip", BOAT, "--out", "taken")
    assert (desk / "taken").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_permission_is_refused(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    (desk / "closed").mkdir(mode=0o500)
    assert "Permission denied" in refused(capsys, "clip", BOAT, "--out", "closed/film")


def test_a_misspelt_setting_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_HOMEE", "x")
    assert "no setting is called FARM_HOMEE" in refused(capsys, "clip", BOAT)


def test_a_mistake_starts_nothing_and_writes_nothing(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    refused(capsys, "render", BOAT, "--shots", "99")
    assert list(desk.iterdir()) == []


def test_an_unforeseen_error_is_one_line_and_its_traceback_a_file(
    capsys: pytest.CaptureFixture[str], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Catalog:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(Catalog, "load", broken)
    assert run(["clip", BOAT]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "ZeroDivisionError: by zero" in err
    (log,) = (desk / "home" / "logs").iterdir()
    assert str(log) in err
    assert "in broken" in log.read_text()


def test_an_error_of_a_ray_actor_still_is_one_line() -> None:
    crossed = RayTaskError("start", "a\ntrace", DamagedWeights("x is short", field="x", remedy="restore it"))
    error = crossed.as_instanceof_cause()
    assert isinstance(error, FarmError)
    assert error.line() == "x is short; restore it"


def test_help_teaches_with_examples_and_loads_no_engine() -> None:
    code = (
        "import sys\nfrom serve.cli.main import run\n"
        "codes = [run(['--help']), run(['render', '--help']), run([]), run(['clip', 'x', '--shots'])]\n"
        "heavy = {'torch', 'ray', 'vllm', 'numpy', 'av', 'sqlalchemy', 'diffusers', 'pipelines'} & set(sys.modules)\n"
        "print(codes, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 2] set()"
    assert done.stderr.count("\n") == 1
    assert 'farm render "A cat dreams of the moon" --shots 6' in done.stdout
    for option in ("--shots", "--seconds", "--seed", "--quality", "--model", "--writer", "--script", "--out", "--gpus"):
        assert option in done.stdout


def test_the_version_is_the_projects_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    name, number = capsys.readouterr().out.split()
    assert name == "reelfarm"
    assert f'version = "{number}"' in (ROOT / "pyproject.toml").read_text()


def test_the_catalog_names_models_needs_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    text = capsys.readouterr().out
    catalog = Catalog.load()
    for model in catalog.models.values():
        assert model.id in text
    vocabulary = catalog.model("house-video").vocabulary
    assert vocabulary is not None
    flat = " ".join(text.split())
    for words in vocabulary.summary().values():
        assert ", ".join(words) in flat
    assert max(len(line) for line in text.splitlines()) <= 80


def test_the_catalog_as_json_says_what_a_script_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    entries = {entry["id"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["house-video"]["sizes"] == [[512, 512]]
    assert entries["house-video"]["steps"]["standard"] > entries["house-video"]["steps"]["draft"]
    assert "boat" in entries["house-video"]["vocabulary"]["subject"]
    assert entries["house-writer"]["role"] == "writer"


def test_the_catalog_says_once_what_accelerator_a_model_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    large = [model for model in Catalog.load().models.values() if model.accelerator_gib]
    assert words.count("an accelerator with") == len(large) > 0


@pytest.fixture(scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two model directories as diffusers lays them out: a video model and one of stills."""
    from tests.tiny_models import tiny_stable_diffusion, tiny_wan

    folder = tmp_path_factory.mktemp("models")
    tiny_wan(folder / "My Wan 1.3B")
    tiny_stable_diffusion(folder / "stills")
    return folder


def test_a_model_that_is_added_is_in_the_catalog_and_says_how_to_use_it(
    capsys: pytest.CaptureFixture[str], desk: Path, small_models: Path
) -> None:
    assert run(["models", "add", str(small_models / "My Wan 1.3B")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "832 × 480" in out
    assert 'farm clip "..." --model my-wan-1.3b' in out
    assert str(desk / "home" / "models.d" / "my-wan-1.3b.yaml") in "".join(out.split("\n"))
    assert run(["models", "--json"]) == 0
    entries = {entry["id"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert (entries["my-wan-1.3b"]["family"], entries["my-wan-1.3b"]["ready"]) == ("wan", True)


def test_a_model_of_stills_is_added_under_a_name_as_json(
    capsys: pytest.CaptureFixture[str], desk: Path, small_models: Path
) -> None:
    assert run(["models", "add", str(small_models / "stills"), "--name", "pictures", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert (entry["id"], entry["family"], entry["clips"]) == ("pictures", "generic", None)
    assert Path(entry["file"]).is_file()
    assert run(["models"]) == 0
    assert "stills only" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["add"], "Missing argument 'PATH|HUB_ID'"),
        (["add", "MODELS/nobody"], "is neither a directory nor a hub id; use PATH or OWNER/NAME"),
        (["add", "MODELS"], "it has no model_index.json; give a model as diffusers lays it out"),
        (["add", "MODELS/stills", "--name", "house-video"], "there is a model house-video already; give another name"),
        (["add", "MODELS/stills", "--name", "../x"], "'../x' is no name for a model"),
        (["add", "a\udcffb"], "the source is not UTF-8 text"),
        (["remove"], "No such command 'remove'"),
    ],
    ids=["nothing", "nowhere", "no model", "taken", "a path", "no text", "no verb"],
)
def test_what_is_no_model_is_not_added(
    capsys: pytest.CaptureFixture[str], desk: Path, small_models: Path, argv: list[str], said: str
) -> None:
    assert said in refused(capsys, "models", *(part.replace("MODELS", str(small_models)) for part in argv))
    assert list(desk.rglob("*.yaml")) == []


def test_what_libraries_print_goes_to_the_log_and_ours_to_the_terminal(desk: Path) -> None:
    code = (
        "import os, subprocess, sys\nfrom pathlib import Path\nfrom serve.cli.terminal import take_over\n"
        "t = take_over(Path('logs'))\nprint('noise 1', flush=True)\nos.write(2, b'noise 2\\n')\n"
        "subprocess.run(['sh', '-c', 'echo noise 3'])\n"
        "print('to people', file=t.out, flush=True)\nprint('an error', file=t.err, flush=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=desk, env=env, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("to people\n", "an error\n")
    (log,) = (desk / "logs").iterdir()
    assert log.read_text().split("\n")[:3] == ["noise 1", "noise 2", "noise 3"]


def test_old_logs_make_room(desk: Path) -> None:
    for n in range(terminal.KEEP_LOGS + 5):
        (desk / f"farm-2020010{n:03}T000000Z-1.log").touch()
    newest = terminal.new_log(desk)
    kept = sorted(desk.glob("*.log"))
    assert len(kept) == terminal.KEEP_LOGS
    assert newest in kept


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
MIDDLE = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.DEVNULL)"
ORPHANED = """
import subprocess, sys
from serve.cli.ending import Ending, descendants
ending = Ending()
ending.adopt()
subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]])  # it ends, its child does not: an orphan
(orphan,) = descendants()
print("orphan", orphan, ending.sweep(grace_s=0.0), descendants(), flush=True)
"""
STOPPED = """
import signal, subprocess, sys, time
from serve.cli.ending import SIGNALS, Ending
for signum in SIGNALS:
    signal.signal(signum, signal.SIG_DFL)  # whatever started the tests may ignore them
ending = Ending()
ending.watch()
ending.adopt()
def wait():
    while True:
        time.sleep(0.01)
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
try:
    print(child.pid, flush=True)
    wait()
except KeyboardInterrupt:
    print("stopping", flush=True)
    if sys.argv[2] == "hangs":
        wait()
    ending.sweep(grace_s=0.0)
    sys.exit(ending.exit_code)
"""


def test_the_sweep_ends_even_orphans_that_ignore_everything() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHANED, MIDDLE, STUBBORN], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("orphan"))
    _, orphan, killed, left = line.split(maxsplit=3)
    assert (killed, left) == ("1", "[]")
    assert not Path(f"/proc/{orphan}").exists()


def signalled(cleaning_up: str, *signals: int) -> tuple[int, str, int]:
    """(exit code, what it printed last, pid of its child) of a process with a stubborn child that gets `signals`."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, STUBBORN, cleaning_up], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(signals[0])
    line = process.stdout.readline()
    for signum in signals[1:]:
        process.send_signal(signum)
    process.communicate(timeout=60)
    return process.returncode, line, pid


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_each_signal_stops_cleanly_with_its_code(signum: int, code: int) -> None:
    returned, line, pid = signalled("ends", signum)
    assert (returned, line) == (code, "stopping\n")
    assert not Path(f"/proc/{pid}").exists()


def test_a_second_signal_during_the_cleaning_up_leaves_no_process() -> None:
    returned, _, pid = signalled("hangs", signal.SIGINT, signal.SIGINT)
    assert returned == 130
    assert not Path(f"/proc/{pid}").exists()


@pytest.fixture
def own_signals() -> Iterator[None]:
    """The handlers of pytest stand again after the test."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("own_signals")
def test_a_signal_that_a_parent_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Ending().watch()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.usefixtures("own_signals")
def test_after_the_result_a_signal_does_not_undo_it() -> None:
    ending = Ending()
    ending.watch()
    ending.settled = True
    os.kill(os.getpid(), signal.SIGTERM)
    until = time.monotonic() + 10
    while ending.signum is None and time.monotonic() < until:
        pass
    ending.rest()
    assert ending.signum == signal.SIGTERM


def test_descendants_are_found_below_a_process_only() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in descendants()
        assert child.pid not in descendants(child.pid)
        child.communicate(b"\n")
    assert child.pid not in descendants()
