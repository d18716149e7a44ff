"""Family `generic` on two very different tiny pipelines: a video of rectified flow, a still of noise prediction."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from actors.contract import Order, ShotSpec
from actors.families import generic
from actors.renderer import Renderer
from cluster.errors import Canceled, DamagedCheckpoint, DamagedWeights, FarmError, InvalidSettings, InvalidSpec
from tests.tiny_models import tiny_ltx, tiny_stable_diffusion

STEPS = 4
CLIP = ShotSpec(
    prompt="a red ball drifts over the sea",
    negative_prompt="blurry",
    num_frames=9,
    fps=Fraction(24),
    width_px=32,
    height_px=64,
    num_steps=STEPS,
    guidance_scale=3.0,
    seed=7,
)
STILL = dataclasses.replace(CLIP, num_frames=1)
CASES = {"clip": (tiny_ltx, CLIP, {"num_frames": 9, "frame_rate": 24}), "still": (tiny_stable_diffusion, STILL, {})}


def loaded(place: Path) -> generic.GenericFamily:
    return generic.load(place, device="cpu", dtype="float32", num_threads=1)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> generic.GenericFamily:
    return loaded(tiny_ltx(tmp_path_factory.mktemp("ltx")))


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> generic.GenericFamily:
    return loaded(tiny_stable_diffusion(tmp_path_factory.mktemp("sd")))


def begun(family: generic.GenericFamily, spec: ShotSpec) -> generic.State:
    return family.start(spec, family.encode([spec])[0])


def frames_of(family: generic.GenericFamily, state: generic.State) -> np.ndarray:
    return np.concatenate(list(family.decode(state)))


def pipelines_that_run() -> int:
    return sum(thread.name == "pipeline" for thread in threading.enumerate())


@pytest.mark.parametrize("case", CASES)
def test_a_take_is_what_the_pipeline_draws_when_it_is_called(tmp_path: Path, case: str):
    build, spec, more = CASES[case]
    place = build(tmp_path)
    family = loaded(place)
    state = begun(family, spec)
    seen = [family.progress(state)]
    while seen[-1][0] < seen[-1][1]:
        family.step([state])
        seen.append(family.progress(state))
    assert seen == [(n, STEPS) for n in range(STEPS + 1)]
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(place, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        height=spec.height_px,
        width=spec.width_px,
        num_inference_steps=STEPS,
        guidance_scale=spec.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(spec.seed),
        output_type="np",
        **more,
    )
    wanted = drawn.frames[0] if case == "clip" else drawn.images
    assert np.array_equal(frames_of(family, state), (wanted * 255).round().astype(np.uint8))


def test_takes_that_run_in_turns_do_not_touch_each_other(stills: generic.GenericFamily):
    specs = [STILL, dataclasses.replace(STILL, seed=8, guidance_scale=1.0), dataclasses.replace(STILL, num_steps=6)]
    alone = [frames_of(stills, begun(stills, spec)) for spec in specs]
    states = [begun(stills, spec) for spec in specs]
    stills.step(states[:2])
    stills.step(states)
    assert [stills.progress(state) for state in states] == [(2, 4), (2, 4), (1, 6)]
    for state, frames in zip(states, alone, strict=True):
        assert np.array_equal(frames_of(stills, state), frames)


def test_a_take_that_nobody_holds_any_more_ends_its_pipeline(video: generic.GenericFamily):
    before = pipelines_that_run()
    state = begun(video, CLIP)
    video.step([state])
    assert pipelines_that_run() == before + 1
    del state
    assert pipelines_that_run() == before


def test_a_take_has_no_checkpoint(video: generic.GenericFamily):
    state = begun(video, CLIP)
    video.step([state])
    assert video.save(state) is None
    with pytest.raises(DamagedCheckpoint):
        video.load(b"whatever", CLIP)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers 0.42 with numpy 2
def test_a_solver_that_takes_more_steps_says_so(tmp_path: Path):
    """Heun's second order asks the network nearly twice as often; progress counts what happens."""
    place = tiny_stable_diffusion(tmp_path)
    diffusers.HeunDiscreteScheduler(steps_offset=1).save_pretrained(place / "scheduler")
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "HeunDiscreteScheduler"]}))
    family = loaded(place)
    state = begun(family, STILL)
    family.step([state])
    done, total = family.progress(state)
    assert (done, total) == (1, 2 * STEPS - 1)
    while done < total:
        family.step([state])
        done, total = family.progress(state)
    assert frames_of(family, state).shape == (1, 64, 32, 3)


def test_a_clip_is_refused_by_a_pipeline_of_stills(stills: generic.GenericFamily):
    with pytest.raises(InvalidSpec, match="draws stills"):
        begun(stills, CLIP)


def test_what_the_pipeline_refuses_is_the_mistake_of_the_shot(video: generic.GenericFamily):
    state = begun(video, dataclasses.replace(CLIP, width_px=40))
    with pytest.raises(InvalidSpec, match=r"LTXPipeline refuses the shot: .*divisible by 32"):
        video.step([state])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("WanImageToVideoPipeline", "needs image"),
        ("StableAudioPipeline", "takes no height"),
        ("NoSuchPipeline", "has no pipeline NoSuchPipeline"),
        ("AutoencoderKL", "has no pipeline AutoencoderKL"),
    ],
    ids=["wants a picture", "draws sound", "unknown", "no pipeline"],
)
def test_a_pipeline_that_a_shot_cannot_drive_is_refused(name: str, said: str):
    with pytest.raises(InvalidSettings, match=said):
        generic.parameters(name)


def test_pickled_weights_are_never_read(tmp_path: Path):
    place = tiny_stable_diffusion(tmp_path)
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(DamagedWeights, match="cannot be loaded"):
        loaded(place)


def test_code_beside_the_weights_is_never_run(tmp_path: Path):
    place = tiny_stable_diffusion(tmp_path)
    (place / "unet" / "my_unet.py").write_text("raise SystemExit")
    with pytest.raises(DamagedWeights, match="code of its own"):
        loaded(place)


class Bench:
    """One attempt without a dispatcher: it notes what the engine tells, and may ask it to stop."""

    def __init__(self, spec: ShotSpec, scratch: Path, *, cancel_at: int | None = None) -> None:
        fields: dict[str, Any] = dict.fromkeys(("task_id", "attempt_id", "job_id", "tenant", "show", "title"), "x")
        more: dict[str, Any] = {"key": "take", "step": "render", "entry": "", "model": "tiny", "inputs": ()}
        params = {"spec": spec.to_json()}
        self.order = Order(epoch=1, generation=0, spec={}, params=params, **fields, **more)
        self.scratch, self._cancel_at = scratch, cancel_at
        self.seen: list[tuple[str, int, int]] = []
        self.checkpoints: list[int] = []

    def fetch(self, input_key: str, name: str) -> Path:
        raise AssertionError("a take has no inputs")

    def progress(self, stage: str, done: int, total: int) -> None:
        self.seen.append((stage, done, total))
        if stage == "denoise" and done == self._cancel_at:
            raise Canceled("somebody asked for it")

    def checkpoint(self, data: bytes, index: int) -> None:
        self.checkpoints.append(index)

    def resume(self) -> Iterator[bytes]:
        return iter(())

    def refuse(self, error: FarmError) -> None:
        raise AssertionError("there was no checkpoint to refuse") from error


def test_the_renderer_draws_a_clip_and_asks_for_no_checkpoint(video: generic.GenericFamily, tmp_path: Path):
    renderer = Renderer(lambda: video, checkpoint_every_s=0)
    renderer.start()
    bench = Bench(CLIP, tmp_path)
    made = renderer.run(bench)
    renderer.close()
    assert [file.name for file in made.files] == ["clip.mp4", "poster.png"]
    assert made.result["num_frames"] == CLIP.num_frames
    assert [(done, total) for stage, done, total in bench.seen if stage == "denoise"] == [(n, 4) for n in range(5)]
    assert bench.checkpoints == []


def test_a_cancel_in_the_middle_of_a_denoise_ends_the_pipeline(video: generic.GenericFamily, tmp_path: Path):
    before = pipelines_that_run()
    renderer = Renderer(lambda: video)
    renderer.start()
    with pytest.raises(Canceled) as canceled:
        renderer.run(Bench(CLIP, tmp_path, cancel_at=2))
    del canceled  # its traceback holds the take, as a worker's report does not
    renderer.close()
    assert pipelines_that_run() == before
