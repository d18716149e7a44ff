"""A film, as a person makes one: from the command line and from Python, twice the same, edited, watched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest
import webvtt
from PIL import Image

from actors.catalog import Catalog
from serve.finished import Finished
from serve.local import Farm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
FARM = Path(sys.executable).with_name("farm")
LOGLINE = "A green fish looks for a yellow moon in the deep sea"
FILES = {
    "film.mp4",
    "film.vtt",
    "film.otio",
    "script.json",
    "contact-sheet.png",
    "poster.png",
    "manifest.json",
}


@dataclass(frozen=True)
class Made:
    home: Path
    out: Path
    lines: list[dict[str, Any]]
    status: str


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The film of the command line, on a farm that has never seen anything."""
    root = tmp_path_factory.mktemp("first")
    command = [str(FARM), "render", LOGLINE, "--shots", "2", "--seed", "11", "--out", str(root / "film"), "--json"]
    env = {**os.environ, "FARM_HOME": str(root / "home")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1500, cwd=root)
    assert done.returncode == 0, done.stderr
    return Made(root / "home", root / "film", [json.loads(line) for line in done.stdout.splitlines()], done.stderr)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Another farm, from Python, that has never seen anything either."""
    with Farm(home=tmp_path_factory.mktemp("second"), gpus=0) as farm:
        yield farm


@pytest.fixture(scope="module")
def again(warm: Farm, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return warm.render(LOGLINE, shots=2, seed=11, out=tmp_path_factory.mktemp("again"))


def test_the_film_has_all_its_files_and_plays_in_a_browser(film: Made) -> None:
    assert {path.name for path in film.out.iterdir()} == FILES
    with av.open(str(film.out / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.width, stream.codec_context.height) == (512, 512)
        assert sum(1 for _ in container.decode(stream)) >= 2 * 24
    data = (film.out / "film.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert len(webvtt.read(str(film.out / "film.vtt"))) == 2
    for picture in ("contact-sheet.png", "poster.png"):
        with Image.open(film.out / picture) as opened:
            opened.verify()


def test_every_line_is_an_event_and_the_last_one_is_the_result(film: Made) -> None:
    assert film.status == ""
    starting, *events, result = film.lines
    assert starting["event"] == "farm.starting"
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert events[0]["event"] == "job.created"
    assert events[-1]["event"] == "job.ended"
    assert Path(result["path"]) == film.out / "film.mp4"
    assert float(result["cost_usd"]) > 0


def test_the_film_is_about_its_logline_and_every_shot_can_be_drawn(film: Made) -> None:
    model = Catalog.load(None).model("house-video")
    script = json.loads((film.out / "script.json").read_bytes())
    fields = [shot["fields"] for scene in script["scenes"] for shot in scene["shots"]]
    assert [model.caption(f) for f in fields] == [s["prompt"] for c in script["scenes"] for s in c["shots"]]
    drawn = {word for f in fields for word in f.values()}
    assert {"fish", "green", "moon"} <= drawn


def test_the_manifest_is_enough_to_replay_the_film_and_names_no_path(film: Made) -> None:
    text = (film.out / "manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    assert [s["spec"]["prompt"] for s in manifest["shots"]] == [s["prompt"] for s in manifest["shots"]]
    assert {"seed", "model", "revision", "content_sha256", "cost_usd", "held_s"} <= set(manifest["shots"][0])
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    assert {"reelfarm", "torch", "diffusers", "ray", "python"} <= set(manifest["versions"])
    assert str(film.home) not in text
    assert str(Path.home()) + "/" not in text


def test_the_same_command_and_seed_on_another_farm_gives_the_same_script_and_the_same_pixels(
    film: Made, again: Finished
) -> None:
    assert (again.out / "script.json").read_bytes() == (film.out / "script.json").read_bytes()
    assert hashes(again.out) == hashes(film.out)


def test_editing_one_shot_renders_one_shot(warm: Farm, again: Finished, tmp_path: Path) -> None:
    script = json.loads((again.out / "script.json").read_bytes())
    shot = script["scenes"][0]["shots"][0]
    shot["fields"]["hue"] = "pink"
    shot["prompt"] = warm.catalog.model("house-video").caption(shot["fields"])
    edited = warm.render(script=script, seed=11, out=tmp_path / "cut")
    attempts = warm.ledger.attempts(edited.job_id)
    step_of = {t["id"]: t["step"] for t in warm.ledger.tasks(edited.job_id)}
    assert sorted(step_of[a["task_id"]] for a in attempts) == ["conform", "publish", "render"]
    before, after = hashes(again.out), hashes(edited.out)
    assert [key for key in before if before[key] != after[key]] == [shot["id"]]


def test_a_still_and_a_clip_come_from_a_prompt(warm: Farm, tmp_path: Path) -> None:
    still = warm.image("a white rocket rises over the mountains", out=tmp_path / "still")
    with Image.open(still.path) as picture:
        assert picture.size == (512, 512)
    clip = warm.clip("a purple cat spins in the forest", quality="draft", out=tmp_path / "clip")
    with av.open(str(clip.path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24


def test_the_readme_s_python_runs(film: Made, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [one for one in blocks if "serve.local" in one]
    env = {**os.environ, "FARM_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", block], env=env, capture_output=True, text=True, timeout=1500, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "film.mp4" in done.stdout
    assert (tmp_path / "film" / "film.mp4").is_file()


def hashes(out: Path) -> dict[str, str]:
    """Content hash of each shot's clip."""
    manifest = json.loads((out / "manifest.json").read_bytes())
    return {shot["id"]: shot["content_sha256"] for shot in manifest["shots"]}
