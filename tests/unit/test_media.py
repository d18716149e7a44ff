"""Clips, joins, titles and sheets on real codecs: what is written can be read, and is the same every time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from cluster.errors import DamagedAsset, InvalidInput, StoreUnavailable
from cluster.frames import Frames
from cluster.joins import join
from cluster.media import (
    ClipEncoder,
    EncodedClip,
    coded_sha256,
    content_sha256,
    encode_clip,
    poster,
    probe,
    read_frames,
)
from cluster.sheet import SheetScene, SheetShot, contact_sheet
from cluster.sound import SAMPLE_RATE_HZ, add_sound, read_sound
from cluster.titles import title_card

REPOSITORY = Path(__file__).parents[2]
FPS = Fraction(12)


def drawn(num_frames: int = 12, *, width_px: int = 96, height_px: int = 64, hue: int = 0) -> Frames:
    """A disc that crosses a wall."""
    frames = []
    for index in range(num_frames):
        picture = Image.new("RGB", (width_px, height_px), ((250, 214, 165), (170, 210, 230), (40, 50, 90))[hue % 3])
        x = 4 + index * 3
        ImageDraw.Draw(picture).ellipse([x, 20, x + 24, 44], fill=(200, 40, 50 + hue))
        frames.append(np.asarray(picture))
    return np.stack(frames)


def clip(path: Path, frames: Frames | None = None, fps: Fraction = FPS) -> EncodedClip:
    return encode_clip(path, [drawn() if frames is None else frames], fps=fps)


def boxes(path: Path) -> Iterator[str]:
    data, at = path.read_bytes(), 0
    while at < len(data):
        yield data[at + 4 : at + 8].decode()
        at += int.from_bytes(data[at : at + 4], "big")


def test_a_clip_says_what_browsers_need(tmp_path: Path) -> None:
    made = clip(tmp_path / "clip.mp4")
    facts = probe(made.path)
    assert (facts.codec, facts.pix_fmt, facts.width_px, facts.height_px) == ("h264", "yuv420p", 96, 64)
    assert (facts.fps, facts.num_frames, facts.duration_s, facts.has_sound) == (FPS, 12, 1.0, False)
    with av.open(str(made.path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)


def test_the_index_of_a_clip_stands_before_its_pictures(tmp_path: Path) -> None:
    order = list(boxes(clip(tmp_path / "clip.mp4").path))
    assert order.index("moov") < order.index("mdat")
    assert probe(tmp_path / "clip.mp4").faststart
    with av.open(str(tmp_path / "clip.mp4")) as source, av.open(str(tmp_path / "slow.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            packet.stream = stream
            if packet.size:
                target.mux(packet)
    assert not probe(tmp_path / "slow.mp4").faststart


def test_the_same_frames_make_the_same_bytes_however_they_are_cut(tmp_path: Path) -> None:
    frames = drawn()
    whole = encode_clip(tmp_path / "a.mp4", [frames], fps=FPS)
    pieces = encode_clip(tmp_path / "b.mp4", [frames[:1], frames[1:7], frames[7:]], fps=FPS)
    assert whole.path.read_bytes() == pieces.path.read_bytes()
    assert whole.content_sha256 == pieces.content_sha256 == content_sha256([frames[:5], frames[5:]], fps=FPS)


ENCODE_SCRIPT = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
from fractions import Fraction
from pathlib import Path
from cluster.media import encode_clip
for name in ("narrow", "tall"):
    encode_clip(Path(sys.argv[1], f"{name}-again.mp4"), [np.load(f"{sys.argv[1]}/{name}.npy")], fps=Fraction(12))
"""


def test_one_core_and_a_dirty_heap_make_the_same_bytes(tmp_path: Path) -> None:
    """x264's output depends on its threads, and its macroblock trees read memory that nobody wrote."""
    narrow = title_card("The Red Boat", width_px=64, height_px=48, num_frames=18)
    for name, frames in (("narrow", narrow), ("tall", drawn(24, height_px=512))):
        np.save(tmp_path / f"{name}.npy", frames)
        clip(tmp_path / f"{name}.mp4", frames)
    subprocess.run(
        [sys.executable, "-c", ENCODE_SCRIPT, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "MALLOC_PERTURB_": "85"},
        check=True,
        timeout=120,
    )
    for name in ("narrow", "tall"):
        assert (tmp_path / f"{name}-again.mp4").read_bytes() == (tmp_path / f"{name}.mp4").read_bytes(), name


def test_content_is_the_frames_their_size_and_their_rate() -> None:
    frames = drawn()
    changed = frames.copy()
    changed[5, 3, 3, 0] ^= 1
    hashes = {
        content_sha256([frames], fps=FPS),
        content_sha256([changed], fps=FPS),
        content_sha256([frames[:-1]], fps=FPS),
        content_sha256([frames], fps=Fraction(24)),
        content_sha256([frames.reshape(12, 96, 64, 3)], fps=FPS),
    }
    assert len(hashes) == 5


def test_colours_survive_the_way_to_the_screen_and_back(tmp_path: Path) -> None:
    colours = [(250, 214, 165), (200, 40, 50), (0, 0, 0), (255, 255, 255), (38, 62, 80), (20, 200, 60), (128, 128, 128)]
    for colour in colours:
        made = clip(tmp_path / "flat.mp4", np.full((3, 64, 64, 3), colour, np.uint8))
        shown = next(read_frames(made.path)).astype(int)
        assert np.abs(shown - colour).max() <= 3, colour


def test_edges_stay_where_they_were_drawn(tmp_path: Path) -> None:
    frames = drawn()
    shown = np.stack(list(read_frames(clip(tmp_path / "clip.mp4", frames).path))).astype(int)
    assert shown.shape == frames.shape
    assert np.abs(shown - frames).mean() < 2


def test_one_frame_is_a_clip(tmp_path: Path) -> None:
    made = clip(tmp_path / "still.mp4", drawn(1))
    assert probe(made.path).num_frames == len(list(read_frames(made.path))) == 1


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(25), Fraction(7, 2)], ids=str)
def test_frame_rates_are_rationals(tmp_path: Path, fps: Fraction) -> None:
    assert probe(clip(tmp_path / "clip.mp4", fps=fps).path).fps == fps


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 64, 64, 3), np.float32), np.zeros((2, 64, 64, 4), np.uint8), np.zeros((64, 64, 3), np.uint8)],
    ids=["floats", "four channels", "no time"],
)
def test_what_are_no_frames_are_refused(tmp_path: Path, frames: Frames) -> None:
    with pytest.raises(InvalidInput):
        clip(tmp_path / "clip.mp4", frames)
    assert list(tmp_path.iterdir()) == []


def test_odd_sizes_and_empty_clips_are_refused_without_a_trace(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        ClipEncoder(tmp_path / "clip.mp4", fps=FPS, width_px=65, height_px=64)
    with pytest.raises(InvalidInput):
        ClipEncoder(tmp_path / "clip.mp4", fps=FPS, width_px=64, height_px=64).close()
    with pytest.raises(InvalidInput):
        encode_clip(tmp_path / "clip.mp4", [], fps=FPS)
    assert list(tmp_path.iterdir()) == []


def test_a_clip_that_fails_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ClipEncoder(tmp_path / "clip.mp4", fps=FPS, width_px=96, height_px=64) as encoder:
            encoder.push(drawn())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_leaving_the_block_closes_the_clip_once(tmp_path: Path) -> None:
    with ClipEncoder(tmp_path / "clip.mp4", fps=FPS, width_px=96, height_px=64) as encoder:
        encoder.push(drawn())
        made = encoder.close()
    assert made.num_frames == 12
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


FULL_DISK_SCRIPT = """
import json, os, sys
import numpy as np
from fractions import Fraction
from pathlib import Path
from cluster.errors import StoreFull
from cluster.joins import join
from cluster.media import encode_clip
folder, said = Path(sys.argv[1]), []
noise = np.random.default_rng(1).integers(0, 255, (24, 256, 256, 3), dtype=np.uint8)
small = encode_clip(folder / "small.mp4", [noise[:1]], fps=Fraction(12)).path
for act in (
    lambda: encode_clip(folder / "large.mp4", [noise], fps=Fraction(12)),
    lambda: join([small] * 12, folder / "film.mp4"),
):
    try:
        act()
    except StoreFull as error:
        said.append(error.line())
print(json.dumps({"said": said, "files": sorted(os.listdir(folder))}))
"""


def test_a_full_disk_ends_a_clip_and_a_join_without_a_half_file(tmp_path: Path) -> None:
    command = ["prlimit", "--fsize=300000", sys.executable, "-c", FULL_DISK_SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert len(outcome["said"]) == 2
    assert outcome["files"] == ["small.mp4"]


def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        clip(tmp_path / "nowhere" / "clip.mp4")


@pytest.mark.parametrize("data", [b"", b"no clip at all", b"\0" * 5000], ids=["empty", "text", "zeros"])
def test_what_is_no_clip_is_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "clip.mp4").write_bytes(data)
    for read in (probe, coded_sha256, lambda path: list(read_frames(path))):
        with pytest.raises(DamagedAsset):
            read(tmp_path / "clip.mp4")


def test_a_clip_cut_short_is_damaged_or_short_but_never_a_crash(tmp_path: Path) -> None:
    data = clip(tmp_path / "clip.mp4").path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:400])
    with pytest.raises(DamagedAsset):
        probe(tmp_path / "cut.mp4")


def test_a_join_copies_every_frame_in_order(tmp_path: Path) -> None:
    clips = [clip(tmp_path / f"{hue}.mp4", drawn(8 + hue, hue=hue)).path for hue in range(4)]
    film = join(clips, tmp_path / "film.mp4")
    assert film.copied
    assert film.first_frames == (0, 8, 17, 27)
    facts = probe(film.path)
    assert (facts.num_frames, facts.fps, facts.faststart) == (38, FPS, True)
    assert facts.duration_s == pytest.approx(38 / 12)
    shown = list(read_frames(film.path))
    assert np.array_equal(np.stack(shown), np.concatenate([np.stack(list(read_frames(path))) for path in clips]))
    with av.open(str(film.path)) as container:
        times = sorted((packet.pts or 0) * packet.time_base for packet in container.demux(video=0) if packet.size)
    assert times == [Fraction(index, 12) for index in range(38)]


def test_a_join_of_the_same_clips_has_the_same_bytes(tmp_path: Path) -> None:
    clips = [clip(tmp_path / f"{hue}.mp4", drawn(hue=hue)).path for hue in range(2)]
    first, second = join(clips, tmp_path / "a.mp4"), join(clips, tmp_path / "b.mp4")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert coded_sha256(first.path) == coded_sha256(second.path)
    assert coded_sha256(first.path) != coded_sha256(join(clips[::-1], tmp_path / "c.mp4").path)


def test_coded_content_survives_a_box_that_a_signature_adds(tmp_path: Path) -> None:
    made = clip(tmp_path / "clip.mp4")
    signed = tmp_path / "signed.mp4"
    signed.write_bytes(made.path.read_bytes() + (24).to_bytes(4, "big") + b"uuid" + b"s" * 16)
    assert hashlib.sha256(signed.read_bytes()).digest() != hashlib.sha256(made.path.read_bytes()).digest()
    assert coded_sha256(signed) == coded_sha256(made.path)


def test_clips_of_other_sizes_and_rates_are_fitted_to_the_first(tmp_path: Path) -> None:
    clips = [
        clip(tmp_path / "a.mp4", drawn(12)).path,
        clip(tmp_path / "b.mp4", drawn(24, width_px=64, height_px=64, hue=1), fps=Fraction(24)).path,
        clip(tmp_path / "c.mp4", drawn(6, hue=2), fps=Fraction(6)).path,
    ]
    film = join(clips, tmp_path / "film.mp4")
    facts = probe(film.path)
    assert not film.copied
    assert film.first_frames == (0, 12, 24)
    assert (facts.num_frames, facts.width_px, facts.height_px, facts.fps) == (36, 96, 64, FPS)
    shown = list(read_frames(film.path))
    assert np.abs(shown[18][32, 90].astype(int) - (24, 20, 18)).max() < 8  # a bar beside the square picture
    assert np.abs(shown[30][5, 5].astype(int) - (40, 50, 90)).max() < 8


def test_a_join_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        join([], tmp_path / "film.mp4")


def test_a_film_has_sound_where_its_clips_have_it_and_silence_elsewhere(tmp_path: Path) -> None:
    quiet = clip(tmp_path / "quiet.mp4", drawn(12)).path
    tone = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ).astype(np.float32) * 0.5
    with av.open(str(tmp_path / "tone.wav"), "w") as wav:
        stream = wav.add_stream("pcm_s16le", rate=SAMPLE_RATE_HZ, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            (np.stack([tone, tone], 1) * 32767).astype(np.int16).reshape(1, -1), format="s16", layout="stereo"
        )
        frame.sample_rate = SAMPLE_RATE_HZ
        wav.mux(stream.encode(frame))
        wav.mux(stream.encode(None))
    loud = tmp_path / "loud.mp4"
    with av.open(str(quiet)) as pictures, av.open(str(tmp_path / "tone.wav")) as wav, av.open(str(loud), "w") as out:
        video, audio = out.add_stream_from_template(pictures.streams.video[0]), out.add_stream("aac", rate=48_000)
        for packet in pictures.demux(video=0):
            packet.stream = video
            if packet.size:
                out.mux(packet)
        for decoded in wav.decode(audio=0):
            out.mux(audio.encode(decoded))
        out.mux(audio.encode(None))
    film = join([quiet, loud, quiet], tmp_path / "film.mp4")
    facts = probe(film.path)
    assert (facts.has_sound, facts.num_frames, facts.faststart, film.copied) == (True, 36, True, True)
    sound = read_sound(film.path, duration_s=Fraction(3))
    loudness = [float(np.sqrt((sound[0, at : at + 20_000] ** 2).mean())) for at in (10_000, 62_000, 110_000)]
    assert loudness[1] > 0.2
    assert max(loudness[0], loudness[2]) < 0.01
    again = join([quiet, loud, quiet], tmp_path / "again.mp4")
    assert again.path.read_bytes() == film.path.read_bytes()
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_sound_is_exactly_as_long_as_its_pictures(tmp_path: Path) -> None:
    quiet = clip(tmp_path / "quiet.mp4").path
    assert read_sound(quiet, duration_s=Fraction(1, 12)).shape == (2, 4000)
    add_sound(quiet, [(quiet, Fraction(1))], tmp_path / "out.mp4")
    assert probe(tmp_path / "out.mp4").has_sound


def test_a_poster_is_a_png_of_its_frame() -> None:
    frame = drawn()[3]
    data = poster(frame)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), frame)
    assert data == poster(frame)


TEXTS = {
    "plain": "The Red Boat Goes Home",
    "accents": "Ça là-bas, mañana",
    "emoji": "🚀🌕 to the moon",
    "right to left": "ספינה אדומה",
    "combining": "e\u0301" * 40,
    "controls": "a\0b\x1b[31m\u202ec",
    "one long word": "W" * 300,
    "empty": "",
    "spaces": " \n\t ",
    "surrogate": "\ud800",
    "long": "and on " * 200,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_titles_and_sheets_take_any_text(text: str) -> None:
    frames = title_card(text, text, width_px=128, height_px=96, num_frames=3)
    assert frames.shape == (3, 96, 128, 3)
    assert frames.dtype == np.uint8
    shot = SheetShot(shot_id=text, frames=[drawn(1)[0]], caption=text, narration=text, facts=text)
    sheet = contact_sheet(text, [SheetScene(heading=text, shots=[shot])], subtitle=text, footer=text)
    assert Image.open(io.BytesIO(sheet)).width > 600


def test_the_curtain_parts_on_the_title() -> None:
    frames = title_card("Home", width_px=128, height_px=128, num_frames=18).astype(int)
    reddish = (frames[:, 60, :, 0] - frames[:, 60, :, 2] > 80).mean(axis=1)
    assert reddish[0] > 0.9
    assert reddish[-1] < 0.6
    assert np.array_equal(frames[-1], frames[-5])
    other = title_card("Away", width_px=128, height_px=128, num_frames=18)
    assert not np.array_equal(other[-1], frames[-1])


def test_a_title_is_drawn_the_same_twice() -> None:
    first, second = (title_card("Home", width_px=64, height_px=64, num_frames=2) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(("num_scenes", "num_shots"), [(1, 1), (2, 2), (1, 4), (5, 8)], ids=str)
def test_every_shot_stands_on_the_sheet(num_scenes: int, num_shots: int) -> None:
    def green(scene: int, shot: int) -> Frames:
        return np.full((32, 48, 3), (0, 255 - scene, 40 + shot), np.uint8)

    scenes = [
        SheetScene(
            heading=f"Place {scene}",
            shots=[
                SheetShot(shot_id=f"sh{scene}{shot}", frames=[green(scene, shot)] * 3, caption="a fish swims " * shot)
                for shot in range(num_shots)
            ],
        )
        for scene in range(num_scenes)
    ]
    picture = Image.open(io.BytesIO(contact_sheet("A Film", scenes, footer="12 s")))
    colours = picture.getcolors(maxcolors=1 << 24) or []
    wanted = {(0, 255 - scene, 40 + shot) for scene in range(num_scenes) for shot in range(num_shots)}
    assert wanted <= {colour for _, colour in colours}


def test_a_sheet_is_the_same_twice_and_scenes_may_be_empty() -> None:
    scenes = [SheetScene(heading="Nothing yet", shots=[])]
    assert contact_sheet("A Film", scenes) == contact_sheet("A Film", scenes)
    assert contact_sheet("A Film", []).startswith(b"\x89PNG")


def test_a_shot_without_a_picture_is_refused() -> None:
    with pytest.raises(InvalidInput):
        SheetShot(shot_id="sh010", frames=[], caption="")


def test_no_wall_clock_and_no_versions_are_in_a_clip(tmp_path: Path) -> None:
    data = clip(tmp_path / "clip.mp4").path.read_bytes()
    assert b"Lavf" not in data
    at = data.index(b"mvhd")
    assert data[at + 8 : at + 16] == bytes(8)  # creation and modification time
    assert os.fspath(tmp_path).encode() not in data
