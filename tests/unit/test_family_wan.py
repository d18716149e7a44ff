"""Family `wan` on tiny random weights, against diffusers' own pipeline."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image

from actors.contract import ShotSpec
from actors.families import wan
from cluster.errors import DamagedCheckpoint, DamagedWeights, InvalidSpec
from tests.tiny_models import tiny_wan

STEPS = 4
SPEC = ShotSpec(
    prompt="a red ball drifts over the sea",
    negative_prompt="blurry",
    num_frames=5,
    fps=Fraction(16),
    width_px=32,
    height_px=48,
    num_steps=STEPS,
    guidance_scale=5.0,
    seed=7,
)
MODELS: dict[str, dict[str, Any]] = {
    "wan-2.1": {},
    "wan-2.2-two-transformers": {"boundary_ratio": 0.8},
    "wan-2.2-5b-timesteps-per-token": {"expand_timesteps": True},
    "flow-match-euler": {"scheduler": "flow-match-euler"},
}


def loaded(place: Path) -> wan.WanFamily:
    return wan.load(place, device="cpu", dtype="float32", num_threads=1)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> wan.WanFamily:
    return loaded(tiny_wan(tmp_path_factory.mktemp("wan")))


def begun(family: wan.WanFamily, **changes: Any) -> wan.State:
    spec = dataclasses.replace(SPEC, **changes)
    return family.start(spec, family.encode([spec])[0])


def denoised(family: wan.WanFamily, *states: wan.State) -> None:
    while live := [state for state in states if state.index < state.spec.num_steps]:
        family.step(live)


def frames_of(family: wan.WanFamily, state: wan.State) -> np.ndarray:
    return np.concatenate(list(family.decode(state)))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_take_is_bit_equal_to_the_pipeline_of_diffusers(tmp_path: Path, model: dict[str, Any]):
    place = tiny_wan(tmp_path, **model)
    family = loaded(place)
    pipeline: Any = WanPipeline.from_pretrained(place, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    state = begun(family)
    noise = state.latents.clone()
    denoised(family, state)

    def drawn(output_type: str) -> Any:
        return pipeline(
            prompt=SPEC.prompt,
            negative_prompt=SPEC.negative_prompt,
            height=SPEC.height_px,
            width=SPEC.width_px,
            num_frames=SPEC.num_frames,
            num_inference_steps=STEPS,
            guidance_scale=SPEC.guidance_scale,
            latents=noise.clone(),
            output_type=output_type,
        ).frames

    assert torch.equal(state.latents, drawn("latent"))
    assert np.array_equal(frames_of(family, state), (drawn("np")[0] * 255).round().astype(np.uint8))


FRAME = np.random.default_rng(5).integers(0, 256, (SPEC.height_px, SPEC.width_px, 3), dtype=np.uint8)
FRAMED = dataclasses.replace(SPEC, first_frame="0" * 64)
FRAMED_MODELS: dict[str, dict[str, Any]] = {
    "wan-2.2-i2v": {"beside": True, "boundary_ratio": 0.8},
    "one-transformer": {"beside": True},
    "wan-2.2-5b": {"expand_timesteps": True},
}


def framed(family: wan.WanFamily, frame: np.ndarray = FRAME, **changes: Any) -> wan.State:
    spec = dataclasses.replace(FRAMED, **changes)
    return family.start(spec, family.encode_from(spec, frame))


@pytest.mark.parametrize("model", FRAMED_MODELS.values(), ids=FRAMED_MODELS)
def test_a_take_that_begins_with_a_picture_is_bit_equal_to_the_pipeline_of_diffusers(
    tmp_path: Path, model: dict[str, Any]
):
    place = tiny_wan(tmp_path, **model)
    family = loaded(place)
    pipeline: Any = WanImageToVideoPipeline.from_pretrained(place, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    state = framed(family)
    noise = state.latents.clone()
    denoised(family, state)

    def drawn(output_type: str) -> Any:
        return pipeline(
            image=Image.fromarray(FRAME),
            prompt_embeds=state.conditioning.embeds,  # cleaning a text needs a package that is not here
            negative_prompt_embeds=state.conditioning.negative_embeds,
            height=SPEC.height_px,
            width=SPEC.width_px,
            num_frames=SPEC.num_frames,
            num_inference_steps=STEPS,
            guidance_scale=SPEC.guidance_scale,
            latents=noise.clone(),
            output_type=output_type,
        ).frames

    assert torch.equal(state.latents, drawn("latent"))
    assert np.array_equal(frames_of(family, state), (drawn("np")[0] * 255).round().astype(np.uint8))
    other = framed(family, 255 - FRAME)
    denoised(family, other)
    assert not torch.equal(other.latents[:, :, 1:], state.latents[:, :, 1:])  # what follows the frame hears of it


@pytest.mark.parametrize("model", FRAMED_MODELS.values(), ids=FRAMED_MODELS)
def test_a_take_that_begins_with_a_picture_goes_on_from_its_checkpoint_alone(tmp_path: Path, model: dict[str, Any]):
    family = loaded(tiny_wan(tmp_path, **model))
    whole, stopped = framed(family), framed(family)
    family.step([stopped])
    saved = family.save(stopped)
    again = family.load(saved, FRAMED)
    denoised(family, whole)
    denoised(family, again)
    assert torch.equal(whole.latents, again.latents)
    with pytest.raises(DamagedCheckpoint):
        family.load(saved, SPEC)


def test_takes_with_and_without_a_first_frame_share_a_batch(tmp_path: Path):
    family = loaded(tiny_wan(tmp_path, expand_timesteps=True))
    alone = [framed(family), begun(family, seed=9)]
    for state in alone:
        denoised(family, state)
    together = [framed(family), begun(family, seed=9)]
    denoised(family, *together)
    for state, mate in zip(alone, together, strict=True):
        torch.testing.assert_close(state.latents, mate.latents, rtol=1e-4, atol=1e-4)


def test_a_first_frame_that_the_weights_cannot_read_or_that_is_missing_is_refused(
    tmp_path: Path, family: wan.WanFamily
):
    with pytest.raises(InvalidSpec, match="take no first frame"):
        framed(family)
    beside = loaded(tiny_wan(tmp_path / "beside", beside=True))
    with pytest.raises(InvalidSpec, match="need a first frame"):
        begun(beside)
    with pytest.raises(InvalidSpec, match="no picture of 32 x 48"):
        framed(beside, FRAME[:16])
    for field, value in {"width_px": 40, "num_frames": 6}.items():
        frame = np.zeros((48, 40 if field == "width_px" else 32, 3), dtype=np.uint8)
        with pytest.raises(InvalidSpec, match=field):
            framed(beside, frame, **{field: value})
    with pytest.raises(DamagedWeights, match="CLIP"):
        loaded(tiny_wan(tmp_path / "clip", beside=True, image_dim=8))


def test_both_transformers_of_wan_2_2_draw(tmp_path: Path):
    family = loaded(tiny_wan(tmp_path, boundary_ratio=0.8))
    state = begun(family)
    took = []
    while state.index < STEPS:
        took.append(family._is_low(state))
        family.step([state])
    assert took[0] is False
    assert took[-1] is True


def test_the_noise_is_of_the_seed_alone(family: wan.WanFamily):
    one, again, other = begun(family), begun(family), begun(family, seed=8)
    assert torch.equal(one.latents, again.latents)
    assert not torch.equal(one.latents, other.latents)


def test_a_prompt_has_the_same_embedding_whatever_was_asked_before(tmp_path: Path, family: wan.WanFamily):
    warm = family
    warm.encode([dataclasses.replace(SPEC, prompt="a blue cat"), dataclasses.replace(SPEC, prompt="the moon spins")])
    cold = loaded(tiny_wan(tmp_path))
    assert torch.equal(warm.encode([SPEC])[0].embeds, cold.encode([SPEC])[0].embeds)


def test_a_prompt_is_embedded_once(family: wan.WanFamily):
    first, second = family.encode([SPEC, SPEC])
    assert first.embeds is second.embeds
    assert first.embeds is family.encode([SPEC])[0].embeds


def test_without_guidance_no_negative_prompt_is_read(family: wan.WanFamily):
    assert family.encode([dataclasses.replace(SPEC, guidance_scale=1.0)])[0].negative_embeds is None


def test_takes_in_one_batch_are_the_takes_alone_to_the_eye(tmp_path: Path):
    """Each at its own step, on its own side of the boundary, one without guidance; mates may change the last bits."""
    family = loaded(tiny_wan(tmp_path, boundary_ratio=0.8))
    changes: list[dict[str, Any]] = [{}, {"seed": 9, "prompt": "a blue boat spins"}, {"seed": 3, "guidance_scale": 1.0}]
    alone = [begun(family, **change) for change in changes]
    for state in alone:
        denoised(family, state)
    together = [begun(family, **change) for change in changes]
    family.step(together[:1])  # one is ahead of its mates
    denoised(family, *together)
    for state, mate in zip(alone, together, strict=True):
        torch.testing.assert_close(state.latents, mate.latents, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0].latents, together[1].latents, atol=1e-2)


def test_chunks_follow_the_latent_frames(family: wan.WanFamily):
    state = begun(family, num_frames=9)
    assert [chunk.shape for chunk in family.decode(state)] == [(1, 48, 32, 3), (4, 48, 32, 3), (4, 48, 32, 3)]


def test_two_decodes_may_interleave(family: wan.WanFamily):
    one, other = begun(family, seed=1), begun(family, seed=2)
    expected = [frames_of(family, one), frames_of(family, other)]
    pairs = list(zip(family.decode(one), family.decode(other), strict=True))
    assert np.array_equal(np.concatenate([first for first, _ in pairs]), expected[0])
    assert np.array_equal(np.concatenate([second for _, second in pairs]), expected[1])


@pytest.mark.parametrize(
    ("field", "value"), [("width_px", 40), ("height_px", 24), ("num_frames", 6)], ids=["width", "height", "frames"]
)
def test_a_shot_that_the_grid_cannot_hold_is_refused(family: wan.WanFamily, field: str, value: int):
    with pytest.raises(InvalidSpec) as refused:
        begun(family, **{field: value})
    assert refused.value.field == field


def test_a_damaged_checkpoint_is_refused(family: wan.WanFamily):
    saved = bytearray(family.save(begun(family)))
    saved[-5] ^= 1
    for damaged in (bytes(saved), bytes(saved[:-9]), b"", b"no checkpoint at all"):
        with pytest.raises(DamagedCheckpoint):
            family.load(damaged, SPEC)


def test_a_checkpoint_of_other_weights_is_refused(tmp_path: Path, family: wan.WanFamily):
    other = loaded(tiny_wan(tmp_path, scheduler="dpm++-2m"))
    with pytest.raises(DamagedCheckpoint, match="another weights"):
        other.load(family.save(begun(family)), SPEC)


@pytest.mark.parametrize("field", ["threads", "dtype", "torch", "diffusers", "device"])
def test_a_checkpoint_from_elsewhere_is_refused(tmp_path: Path, family: wan.WanFamily, field: str):
    saved = family.save(begun(family))
    elsewhere = loaded(tiny_wan(tmp_path))
    elsewhere.__dict__["_fingerprint"] = {**family._fingerprint, field: "another"}
    with pytest.raises(DamagedCheckpoint, match=f"another {field}"):
        elsewhere.load(saved, SPEC)


def test_a_directory_without_its_second_transformer_is_refused(tmp_path: Path):
    place = tiny_wan(tmp_path, boundary_ratio=0.8)
    (place / "transformer_2" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DamagedWeights, match="transformer_2"):
        loaded(place)


def test_pickled_weights_are_refused(tmp_path: Path):
    place = tiny_wan(tmp_path)
    weights = place / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(DamagedWeights, match="transformer"):
        loaded(place)
