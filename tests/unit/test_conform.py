"""A film out of takes: what a person finds in the directory, on real clips and a real script."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import opentimelineio as otio
import pytest
import webvtt
from PIL import Image, ImageDraw

from actors.contract import ShotSpec
from cluster.assets import ReceiptFile, blob_key, canonical_json
from cluster.disk import sha256_of
from cluster.errors import FarmError, InvalidInput, NotFound
from cluster.frames import Frames
from cluster.media import encode_clip, probe, read_frames
from pipelines.conform import Conformed, Take, captions, conform, dollars
from pipelines.delivery import check_out_dir, deliver
from pipelines.manifest import Work, manifest
from pipelines.script import Scene, Script, Shot

REPOSITORY = Path(__file__).parents[2]
FPS = Fraction(12)
NARRATIONS = ("The red boat waits.", "It hears the sea <and> the wind & more.", "The moon rises --> slowly.", "Home.")


def drawn(number: int, num_frames: int) -> Frames:
    frames = []
    for index in range(num_frames):
        picture = Image.new("RGB", (64, 48), (240, 214, 165))
        for dot in range(number + 1):  # a later shot shows more
            ImageDraw.Draw(picture).ellipse(
                [index + dot * 9, dot * 8, index + dot * 9 + 14, dot * 8 + 14], (200, 40, 50)
            )
        frames.append(np.asarray(picture))
    return np.stack(frames)


def a_script(narrations: tuple[str, ...] = NARRATIONS) -> Script:
    shots = [
        Shot(
            id=f"sh{number:02d}0", fields={"subject": "boat"}, prompt=f"a red boat, take {number}", narration=narration
        )
        for number, narration in enumerate(narrations, 1)
    ]
    return Script(
        title="The Red Boat",
        logline="A red boat finds its way home",
        model="house-writer",
        seed=7,
        scenes=(
            Scene(heading="The harbour", place="harbour", shots=tuple(shots[:2])),
            Scene(heading="The open sea", place="sea", shots=tuple(shots[2:])),
        ),
    )


@pytest.fixture
def takes(tmp_path: Path) -> list[Take]:
    (tmp_path / "clips").mkdir()
    made = []
    for number in range(4):
        num_frames = 6 + 3 * number
        spec = ShotSpec(
            prompt=f"a red boat, take {number + 1}",
            num_frames=num_frames,
            fps=FPS,
            width_px=64,
            height_px=48,
            num_steps=8,
            guidance_scale=3.0,
            seed=2**63 - 1 - number,
        )
        clip = encode_clip(tmp_path / "clips" / f"{number}.mp4", [drawn(number, num_frames)], fps=FPS)
        made.append(
            Take(
                shot_id=f"sh{number + 1:02d}0",
                clip=clip.path,
                spec=spec,
                model="house-video",
                revision="abc123",
                sha256=sha256_of(clip.path),
                content_sha256=clip.content_sha256,
                held_s=1.25,
                cost_usd=Decimal("0.000035"),
            )
        )
    return made


@pytest.fixture
def conformed(takes: list[Take], tmp_path: Path) -> Conformed:
    (tmp_path / "film").mkdir()
    return conform(a_script(), takes, tmp_path / "film")


def path_of(conformed: Conformed, name: str) -> Path:
    return next(file.path for file in conformed.files if file.name == name)


def test_a_film_is_its_title_and_its_shots_in_order(conformed: Conformed, takes: list[Take]) -> None:
    film = path_of(conformed, "film.mp4")
    facts = probe(film)
    assert (facts.num_frames, facts.fps, facts.faststart, facts.has_sound) == (18 + 6 + 9 + 12 + 15, FPS, True, False)
    assert conformed.first_frames == (18, 24, 33, 45)
    assert conformed.copied
    shown = list(read_frames(film))
    for first, take in zip(conformed.first_frames, takes, strict=True):
        for index, frame in enumerate(read_frames(take.clip)):
            assert np.array_equal(shown[first + index], frame)


def test_a_person_finds_these_files_and_no_others(conformed: Conformed, tmp_path: Path) -> None:
    names = ["contact-sheet.png", "film.mp4", "film.otio", "film.vtt", "poster.png"]
    assert sorted(file.name for file in conformed.files) == names
    assert sorted(path.name for path in (tmp_path / "film").iterdir()) == names


def test_the_same_takes_make_the_same_files(conformed: Conformed, takes: list[Take], tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    again = conform(a_script(), takes, tmp_path / "again")
    for first, second in zip(conformed.files, again.files, strict=True):
        assert first.path.read_bytes() == second.path.read_bytes(), first.name
        assert first.content_sha256 == second.content_sha256


def test_captions_stand_with_their_shots(conformed: Conformed) -> None:
    cues = webvtt.read(str(path_of(conformed, "film.vtt"))).captions
    assert [(cue.start, cue.end) for cue in cues] == [
        ("00:00:01.500", "00:00:02.000"),
        ("00:00:02.000", "00:00:02.750"),
        ("00:00:02.750", "00:00:03.750"),
        ("00:00:03.750", "00:00:05.000"),
    ]
    assert [cue.identifier for cue in cues] == ["1", "2", "3", "4"]
    text = path_of(conformed, "film.vtt").read_text(encoding="utf-8")
    assert "It hears the sea &lt;and&gt; the wind &amp; more." in text
    assert "The moon rises --&gt; slowly." in text


@pytest.mark.parametrize("narration", ["a\n\n00:00:00.000 --> 00:00:09.000\nb", "NOTE x", "STYLE", "a\r\rb", "\0x"])
def test_no_narration_can_break_out_of_its_cue(narration: str) -> None:
    text = captions([narration, "The end."], first_frames=[0, 24], num_frames=48, fps=Fraction(24))
    cues = webvtt.from_string(text).captions
    assert [(cue.start, cue.end) for cue in cues] == [
        ("00:00:00.000", "00:00:01.000"),
        ("00:00:01.000", "00:00:02.000"),
    ]
    assert cues[1].text == "The end."


def test_a_shot_without_a_narration_has_no_cue() -> None:
    text = captions(["One.", " \n", "Three."], first_frames=[0, 12, 24], num_frames=36, fps=FPS)
    assert [cue.identifier for cue in webvtt.from_string(text).captions] == ["1", "3"]


def test_captions_of_a_long_film_count_hours_and_rationals() -> None:
    fps = Fraction(24000, 1001)
    text = captions(["One."], first_frames=[0], num_frames=100_000, fps=fps)
    assert "00:00:00.000 --> 01:09:30.833" in text  # 100000 * 1001 / 24000 s


def test_the_timeline_comes_back_with_every_seed(conformed: Conformed, takes: list[Take]) -> None:
    text = path_of(conformed, "film.otio").read_text(encoding="utf-8")
    film: Any = otio.adapters.read_from_string(text, "otio_json")
    track = film.video_tracks()[0]
    assert [clip.name for clip in track] == ["title", "sh010", "sh020", "sh030", "sh040"]
    assert [clip.source_range.start_time.value for clip in track] == [0, *conformed.first_frames]
    assert [clip.source_range.duration.value for clip in track] == [18, 6, 9, 12, 15]
    assert [clip.metadata["reelfarm"]["seed"] for clip in track[1:]] == [str(take.spec.seed) for take in takes]
    assert track[1].metadata["reelfarm"]["prompt"] == "a red boat, take 1"
    assert track[1].metadata["reelfarm"]["model"] == "house-video"
    assert {clip.media_reference.target_url for clip in track} == {"film.mp4"}
    assert [(mark.name, mark.marked_range.start_time.value) for mark in film.tracks.markers] == [
        ("The harbour", 18),
        ("The open sea", 33),
    ]
    assert otio.adapters.write_to_string(film, "otio_json") + "\n" == text


def test_the_poster_is_of_the_shot_with_most_to_see(conformed: Conformed, takes: list[Take]) -> None:
    poster = np.asarray(Image.open(path_of(conformed, "poster.png")))
    assert np.array_equal(poster, list(read_frames(takes[3].clip))[7])


def test_takes_that_are_not_the_scripts_are_refused(takes: list[Take], tmp_path: Path) -> None:
    for wrong in (takes[::-1], takes[:3], []):
        with pytest.raises(InvalidInput):
            conform(a_script(), wrong, tmp_path)


def test_one_shot_of_one_frame_is_a_film(takes: list[Take], tmp_path: Path) -> None:
    still = encode_clip(tmp_path / "still.mp4", [drawn(0, 1)], fps=FPS)
    script = a_script().model_copy(update={"scenes": (Scene(heading="x", place="y", shots=a_script().shots[:1]),)})
    take = Take(**{**{name: getattr(takes[0], name) for name in Take.__dataclass_fields__}, "clip": still.path})
    made = conform(script, [take], tmp_path)
    assert probe(path_of(made, "film.mp4")).num_frames == 19


def a_manifest(conformed: Conformed, takes: list[Take], brief: Mapping[str, Any] | None = None) -> dict[str, Any]:
    files = []
    for file in conformed.files:
        digest = sha256_of(file.path)
        files.append(
            ReceiptFile(
                name=file.name,
                key=blob_key("acme", digest),
                sha256=digest,
                content_sha256=file.content_sha256 or digest,
                size_bytes=file.path.stat().st_size,
                media_type=file.media_type,
            )
        )
    return manifest(
        brief=brief or {"logline": "A red boat finds its way home", "seed": 7, "num_shots": 4},
        script=json.loads(a_script().to_json()),
        takes=takes,
        conformed=conformed,
        files=files,
        work=[Work(step="script", held_s=2.5, cost_usd=Decimal("0.00007"), model="house-writer", revision="r1")],
        versions={"reelfarm": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
    )


def test_a_manifest_says_all_that_a_replay_needs(conformed: Conformed, takes: list[Take]) -> None:
    document = json.loads(canonical_json(a_manifest(conformed, takes)))
    assert document["schema"] == "reelfarm.manifest/1"
    assert Script.from_json(json.dumps(document["script"])) == a_script()
    assert [ShotSpec.from_json(shot["spec"]) for shot in document["shots"]] == [take.spec for take in takes]
    assert [shot["content_sha256"] for shot in document["shots"]] == [take.content_sha256 for take in takes]
    assert {shot["model"] for shot in document["shots"]} == {"house-video"}
    assert document["totals"] == {"num_shots": 4, "held_s": 7.5, "cost_usd": "0.000210"}
    assert set(document["files"]) == {"film.mp4", "film.vtt", "film.otio", "contact-sheet.png", "poster.png"}
    assert document["versions"]["torch"] == "2.13.0"


def test_a_manifest_names_no_folder_and_no_secret(conformed: Conformed, takes: list[Take], tmp_path: Path) -> None:
    brief = {
        "logline": "/home is where the heart is",
        "model": f"{tmp_path}/weights/mine",
        "api_key": "hush",
        "more": {"HF_TOKEN": "hush", "dirs": ["C:\\films\\boat", "~/films/boat"]},
    }
    document = a_manifest(conformed, takes, brief)
    text = canonical_json(document).decode()
    assert "hush" not in text
    assert str(tmp_path) not in text
    assert document["brief"]["logline"] == "/home is where the heart is"
    assert document["brief"]["model"] == "mine"
    assert document["brief"]["more"] == {"dirs": ["boat", "boat"]}


@pytest.mark.parametrize(
    ("amount", "text"),
    [("0", "$0.0000"), ("0.00001", "under $0.0001"), ("0.00037", "$0.0004"), ("1.005", "$1.00"), ("12.3", "$12.30")],
)
def test_a_cost_is_said_in_dollars(amount: str, text: str) -> None:
    assert dollars(Decimal(amount)) == text


# Delivery


def test_finished_files_replace_those_of_an_older_film(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"new film")
    out = tmp_path / "deep" / "out"
    deliver({"film.mp4": b"old film", "manifest.json": b"old"}, out)
    paths = deliver({"manifest.json": b"{}", "film.mp4": tmp_path / "film.mp4"}, out)
    assert [path.name for path in paths] == ["film.mp4", "manifest.json"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"film.mp4": b"new film", "manifest.json": b"{}"}


def test_a_delivery_cut_short_leaves_no_manifest_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver({"film.mp4": b"old", "poster.png": b"old", "manifest.json": b"of the old film"}, tmp_path)
    replace = os.replace

    def interrupted(source: Path, final: Path) -> None:
        if final.name == "poster.png":
            raise KeyboardInterrupt
        replace(source, final)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deliver({"film.mp4": b"new", "poster.png": b"new", "manifest.json": b"of the new film"}, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"film.mp4": b"new", "poster.png": b"old"}


def test_a_directory_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "taken" / "film.mp4").mkdir(parents=True)
    acts: list[Callable[[], object]] = [
        lambda: check_out_dir(tmp_path / "file" / "out"),
        lambda: deliver({"film.mp4": b"film"}, tmp_path / "file"),
        lambda: deliver({"film.mp4": b"film"}, tmp_path / "taken"),
    ]
    for act in acts:
        with pytest.raises(InvalidInput) as caught:
            act()
        assert caught.value.exit_code == 2
        assert "--out" in caught.value.line()
        assert caught.value.remedy
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["film.mp4"]


def test_a_directory_of_somebody_else_is_the_users_mistake(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from pipelines.delivery import check_out_dir\n"
        "from cluster.errors import InvalidInput\n"
        "if os.getuid() == 0: os.seteuid(65534)\n"
        "try: check_out_dir(Path(sys.argv[1]))\n"
        "except InvalidInput as error: print(error.line())"
    )
    tmp_path.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
        )
    finally:
        tmp_path.chmod(0o755)
    assert done.stdout.startswith("--out"), done.stderr
    assert "Permission denied" in done.stdout


def test_a_full_disk_leaves_the_older_film_whole(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from pipelines.delivery import deliver\n"
        "from cluster.errors import StoreFull\n"
        "out = Path(sys.argv[1]); deliver({'film.mp4': b'old', 'manifest.json': b'{}'}, out)\n"
        "try: deliver({'film.mp4': b'new', 'poster.png': os.urandom(900_000), 'manifest.json': b'[]'}, out)\n"
        "except StoreFull as error: print(error.line())"
    )
    command = ["prlimit", "--fsize=300000", sys.executable, "-c", script, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert "--out" in done.stdout, done.stderr
    left = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert left == {"film.mp4": b"old", "manifest.json": b"{}"}


def test_only_plain_names_are_delivered(tmp_path: Path) -> None:
    for name in ("../film.mp4", "a/b", ".hidden", "", "/etc/x"):
        with pytest.raises(InvalidInput):
            deliver({name: b""}, tmp_path / "out")
    with pytest.raises(NotFound, match="film"):
        deliver({"film.mp4": tmp_path / "never-made.mp4"}, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_take_says_which_clip(takes: list[Take], tmp_path: Path) -> None:
    takes[2].clip.write_bytes(b"gone bad")
    (tmp_path / "film").mkdir()
    with pytest.raises(FarmError, match=r"2\.mp4"):
        conform(a_script(), takes, tmp_path / "film")
    assert os.listdir(tmp_path / "film") == []


def test_a_sheet_of_forty_shots_is_a_picture(takes: list[Take], tmp_path: Path) -> None:
    (tmp_path / "film").mkdir()
    fields = {name: getattr(takes[0], name) for name in Take.__dataclass_fields__}
    shots = tuple(Shot(id=f"s{n:02d}", fields={}, prompt="a red boat", narration=f"Boat {n}.") for n in range(40))
    script = a_script().model_copy(update={"scenes": (Scene(heading="All", place="sea", shots=shots),)})
    made = conform(script, [Take(**{**fields, "shot_id": shot.id}) for shot in shots], tmp_path / "film")
    assert probe(path_of(made, "film.mp4")).num_frames == 18 + 40 * 6
    sheet = Image.open(io.BytesIO(path_of(made, "contact-sheet.png").read_bytes()))
    assert sheet.height > 8 * 300
