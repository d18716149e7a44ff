"""The family `ltx` on a tiny model of random weights: the numbers of diffusers' own pipeline, states that survive."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXPipeline

from actors.contract import ShotSpec
from actors.families import ltx
from cluster.errors import DamagedCheckpoint, DamagedWeights, InvalidSpec
from tests.tiny_models import tiny_ltx

SPEC = ShotSpec(
    prompt="a red boat drifts over the sea",
    num_frames=9,
    fps=Fraction(24),
    width_px=32,
    height_px=16,
    num_steps=4,
    guidance_scale=3.0,
    seed=5,
    negative_prompt="blurry grey",
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ltx(tmp_path_factory.mktemp("tiny") / "ltx")


@pytest.fixture(scope="module")
def family(model_dir: Path) -> ltx.LtxFamily:
    return ltx.load(model_dir, device="cpu", dtype="float32", num_threads=torch.get_num_threads())


def begun(family: ltx.LtxFamily, spec: ShotSpec) -> ltx.State:
    return family.start(spec, family.encode([spec])[0])


def finished(family: ltx.LtxFamily, spec: ShotSpec) -> ltx.State:
    state = begun(family, spec)
    for _ in range(spec.num_steps):
        family.step([state])
    return state


def pictures(family: ltx.LtxFamily, state: ltx.State) -> np.ndarray:
    return np.concatenate(list(family.decode(state)))


def piped(family: ltx.LtxFamily, spec: ShotSpec, **more: Any) -> np.ndarray:
    """What diffusers' own pipeline makes of the same components."""
    pipeline: Any = LTXPipeline(
        scheduler=family.scheduler,
        vae=family.vae,
        text_encoder=family.text_encoder,
        tokenizer=family.tokenizer,
        transformer=family.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        width=spec.width_px,
        height=spec.height_px,
        num_frames=spec.num_frames,
        frame_rate=float(spec.fps),
        num_inference_steps=spec.num_steps,
        guidance_scale=spec.guidance_scale,
        generator=torch.Generator().manual_seed(spec.seed),
        output_type="np",
        **more,
    ).frames[0]
    return np.asarray(video)


# diffusers' pipeline takes sides divisible by 32 only
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(replace(SPEC, height_px=32), id="guided"),
        pytest.param(replace(SPEC, height_px=32, guidance_scale=1.0), id="without guidance"),
        pytest.param(replace(SPEC, height_px=64, num_frames=17, num_steps=2), id="another shape"),
        pytest.param(replace(SPEC, height_px=32, num_frames=1), id="a still"),
    ],
)
def test_the_pictures_are_those_of_the_pipeline_of_diffusers(family: ltx.LtxFamily, spec: ShotSpec) -> None:
    ours = pictures(family, finished(family, spec))
    theirs = (piped(family, spec) * 255).round()
    assert ours.shape == (spec.num_frames, spec.height_px, spec.width_px, 3)
    assert theirs.std() > 5, "flat pictures would prove nothing"
    np.testing.assert_allclose(ours, theirs, atol=1)
    assert (ours == theirs).mean() > 0.999


def test_the_latents_are_those_of_the_pipeline_to_the_fifth_decimal(family: ltx.LtxFamily) -> None:
    spec = replace(SPEC, height_px=32)
    state = finished(family, spec)
    pipeline: Any = LTXPipeline(
        scheduler=family.scheduler,
        vae=family.vae,
        text_encoder=family.text_encoder,
        tokenizer=family.tokenizer,
        transformer=family.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        width=spec.width_px,
        height=spec.height_px,
        num_frames=spec.num_frames,
        frame_rate=float(spec.fps),
        num_inference_steps=spec.num_steps,
        guidance_scale=spec.guidance_scale,
        generator=torch.Generator().manual_seed(spec.seed),
        output_type="latent",
    ).frames
    torch.testing.assert_close(state.latents, theirs, atol=1e-5, rtol=1e-5)


def test_a_scheduler_that_shifts_by_length_is_followed(model_dir: Path, tmp_path: Path) -> None:
    moved = tmp_path / "model"
    shutil.copytree(model_dir, moved)
    path = moved / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {
        "use_dynamic_shifting": True,
        "base_shift": 0.95,
        "max_shift": 2.05,
        "base_image_seq_len": 1024,
        "shift_terminal": 0.1,
    }
    path.write_text(json.dumps(config))
    shifted = ltx.load(moved, device="cpu", dtype="float32", num_threads=torch.get_num_threads())
    spec = replace(SPEC, height_px=32)
    theirs = (piped(shifted, spec) * 255).round()
    np.testing.assert_allclose(pictures(shifted, finished(shifted, spec)), theirs, atol=1)


def test_the_same_seed_twice_is_the_same_bytes_and_another_seed_is_not(family: ltx.LtxFamily) -> None:
    first, again = (pictures(family, finished(family, SPEC)) for _ in range(2))
    other = pictures(family, finished(family, replace(SPEC, seed=6)))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("stop_after", [0, 1, 3, 4])
def test_a_resumed_denoise_equals_one_that_never_stopped_bit_for_bit(family: ltx.LtxFamily, stop_after: int) -> None:
    straight = finished(family, SPEC)
    state = begun(family, SPEC)
    for _ in range(stop_after):
        family.step([state])
    state = family.load(family.save(state), SPEC)
    assert family.progress(state) == (stop_after, SPEC.num_steps)
    assert state.spec == SPEC
    for _ in range(SPEC.num_steps - stop_after):
        family.step([state])
    assert torch.equal(state.latents, straight.latents)
    assert pictures(family, state).tobytes() == pictures(family, straight).tobytes()


def test_states_that_step_together_end_where_each_ends_alone(family: ltx.LtxFamily) -> None:
    specs = [
        SPEC,
        replace(SPEC, prompt="a blue ball spins", seed=9),
        replace(SPEC, guidance_scale=1.0, seed=2),
        replace(SPEC, num_steps=6, seed=3),
    ]
    states = [family.start(spec, given) for spec, given in zip(specs, family.encode(specs), strict=True)]
    family.step(states[-1:])  # one of them is ahead: each has its own place in its own schedule
    for _ in range(4):
        family.step(states)
    family.step(states[-1:])
    for spec, state in zip(specs, states, strict=True):
        assert family.progress(state) == (spec.num_steps, spec.num_steps)
        torch.testing.assert_close(state.latents, finished(family, spec).latents, atol=1e-4, rtol=1e-4)


def test_a_prompt_is_encoded_once(family: ltx.LtxFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    family.encode([SPEC])
    monkeypatch.setattr(family, "_embed", lambda texts: pytest.fail(f"encoded again: {texts}"))
    family.encode([SPEC, SPEC])


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.999])
def test_a_flipped_bit_in_a_checkpoint_is_noticed(family: ltx.LtxFamily, where: float) -> None:
    data = family.save(begun(family, SPEC))
    with pytest.raises(DamagedCheckpoint):
        family.load(damaged(data, int(where * len(data))), SPEC)


def test_a_checkpoint_of_another_shot_is_refused_by_name(family: ltx.LtxFamily) -> None:
    with pytest.raises(DamagedCheckpoint, match="spec"):
        family.load(family.save(begun(family, SPEC)), replace(SPEC, seed=6))


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_a_cut_checkpoint_is_noticed(family: ltx.LtxFamily, keep: int) -> None:
    with pytest.raises(DamagedCheckpoint):
        family.load(family.save(begun(family, SPEC))[:keep], SPEC)


def test_a_checkpoint_of_other_weights_is_refused_by_name(
    family: ltx.LtxFamily, model_dir: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "model"
    shutil.copytree(model_dir, moved)
    path = moved / "transformer" / "diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(damaged(data, len(data) - 1))
    other = ltx.load(moved, device="cpu", dtype="float32", num_threads=torch.get_num_threads())
    with pytest.raises(DamagedCheckpoint, match="weights"):
        other.load(family.save(begun(family, SPEC)), SPEC)


def test_a_checkpoint_of_another_number_of_threads_is_refused(family: ltx.LtxFamily, model_dir: Path) -> None:
    data = family.save(begun(family, SPEC))
    threads = torch.get_num_threads()
    try:
        other = ltx.load(model_dir, device="cpu", dtype="float32", num_threads=threads + 1)
        with pytest.raises(DamagedCheckpoint, match="threads"):
            other.load(data, SPEC)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        pytest.param(replace(SPEC, width_px=30), "width_px", id="width"),
        pytest.param(replace(SPEC, height_px=18), "height_px", id="height"),
    ],
)
def test_a_size_between_patches_is_refused(family: ltx.LtxFamily, spec: ShotSpec, field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        begun(family, spec)
    assert caught.value.field == field


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "tokenizer", "scheduler", "vae"])
def test_a_damaged_part_of_the_model_is_named(model_dir: Path, tmp_path: Path, part: str) -> None:
    moved = tmp_path / "model"
    shutil.copytree(model_dir, moved)
    for path in (moved / part).iterdir():
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DamagedWeights, match=part):
        ltx.load(moved, device="cpu", dtype="float32", num_threads=torch.get_num_threads())


def test_a_file_whose_checksum_differs_is_named(model_dir: Path, tmp_path: Path) -> None:
    moved = tmp_path / "model"
    shutil.copytree(model_dir, moved)
    (moved / "farm.json").write_text(json.dumps({"sha256": {"vae/config.json": "0" * 64}}))
    with pytest.raises(DamagedWeights, match=r"vae/config\.json"):
        ltx.load(moved, device="cpu", dtype="float32", num_threads=torch.get_num_threads())


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedWeights, match="no model directory"):
        ltx.load(tmp_path, device="cpu", dtype="float32", num_threads=1)


def test_a_codec_from_elsewhere_is_not_loaded(model_dir: Path, tmp_path: Path) -> None:
    moved = tmp_path / "model"
    shutil.copytree(model_dir, moved)
    path = moved / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vae": ["os", "system"]}))
    with pytest.raises(DamagedWeights, match="not trusted"):
        ltx.load(moved, device="cpu", dtype="float32", num_threads=torch.get_num_threads())
