"""Schedulers with and without history: a denoise that was saved and loaded goes on bit for bit, from every step."""

from __future__ import annotations

import importlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler

from actors.contract import ShotSpec
from actors.schedulers import advance, load_scheduler, load_scheduler_state, save_scheduler, started
from cluster.errors import DamagedCheckpoint, DamagedWeights, EngineFailed
from tests.tiny_models import SCHEDULERS, tiny_ltx, tiny_wan

STEPS = 6  # more than any history is long, and the lower orders of the last steps
SPEC = ShotSpec(
    prompt="a red ball drifts over the sea",
    negative_prompt="blurry",
    num_frames=5,
    fps=Fraction(16),
    width_px=32,
    height_px=32,
    num_steps=STEPS,
    guidance_scale=5.0,
    seed=7,
)
# diffusers 0.42 reads a tensor as an array in DPM++ and numpy 2 says so.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
BUILDERS = {"wan": tiny_wan, "ltx": tiny_ltx}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", BUILDERS)
def test_a_denoise_goes_on_bit_for_bit_from_every_step(tmp_path: Path, name: str, scheduler: str):
    place = BUILDERS[name](tmp_path, scheduler=scheduler)

    def family() -> Any:
        loaded = importlib.import_module(f"actors.families.{name}")
        return loaded.load(place, device="cpu", dtype="float32", num_threads=1)

    first, second = family(), family()
    undisturbed = first.start(SPEC, first.encode([SPEC])[0])
    wanted = []
    for _ in range(STEPS):
        first.step([undisturbed])
        wanted.append(undisturbed.latents)
    running = first.start(SPEC, first.encode([SPEC])[0])
    assert type(running.scheduler) is type(SCHEDULERS[scheduler]()), "another solver than the directory names"
    for stopped_at in range(STEPS + 1):
        resumed = second.load(first.save(running), SPEC)
        assert second.progress(resumed) == (stopped_at, STEPS)
        assert resumed.spec == SPEC
        assert running.latents.stride() == resumed.latents.stride(), "another layout in memory rounds otherwise later"
        for index in range(stopped_at, STEPS):
            second.step([resumed])
            assert torch.equal(resumed.latents, wanted[index]), f"stopped at {stopped_at}, differs after {index + 1}"
        if stopped_at < STEPS:
            first.step([running])
            assert torch.equal(running.latents, wanted[stopped_at]), f"saving at {stopped_at} disturbed the denoise"
    assert wanted[-1].isfinite().all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_checkpoint_of_a_resumed_scheduler_is_the_same_checkpoint(name: str):
    loaded = SCHEDULERS[name]()
    scheduler = started(loaded, STEPS, device="cpu")
    generator, sample = torch.Generator().manual_seed(1), torch.ones(1, 2, 3)
    for index in range(3):
        sample = advance(scheduler, sample * 0.3 + index, index, sample, generator)
    tensors, facts = save_scheduler(scheduler, loaded)
    again, facts_again = save_scheduler(load_scheduler_state(loaded, tensors, facts, device="cpu"), loaded)
    assert json.loads(json.dumps(facts)) == facts_again
    assert tensors.keys() == again.keys()
    assert all(torch.equal(tensors[key], again[key]) for key in tensors)


def test_a_solver_that_draws_noise_draws_it_from_the_take():
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(samples))  # the noise of the process must not matter
        scheduler = started(SCHEDULERS["sde-dpm++-2m"](), STEPS, device="cpu")
        sample, generator = torch.ones(1, 2, 3), torch.Generator().manual_seed(seed)
        samples.append(advance(scheduler, sample * 0.5, 0, sample, generator))
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_what_cannot_be_saved_is_an_error_and_no_loss():
    loaded = SCHEDULERS["unipc"]()
    scheduler = started(loaded, STEPS, device="cpu")
    scheduler.something_new = object()
    with pytest.raises(EngineFailed, match="something_new"):
        save_scheduler(scheduler, loaded)


def test_a_checkpoint_that_lacks_a_tensor_is_refused():
    loaded = SCHEDULERS["unipc"]()
    _, facts = save_scheduler(started(loaded, STEPS, device="cpu"), loaded)
    with pytest.raises(DamagedCheckpoint, match="sigmas"):
        load_scheduler_state(loaded, {}, facts, device="cpu")


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [(DDIMScheduler, "DDIMScheduler"), (UniPCMultistepScheduler, "not set to flow matching")],
    ids=["another kind", "unipc of noise prediction"],
)
def test_a_scheduler_that_is_not_of_flow_matching_is_refused(tmp_path: Path, scheduler: Any, said: str):
    scheduler().save_pretrained(tmp_path)
    with pytest.raises(DamagedWeights, match=said):
        load_scheduler(tmp_path)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_is_read_from_its_directory(tmp_path: Path, name: str):
    made = SCHEDULERS[name]()
    made.save_pretrained(tmp_path)
    read = load_scheduler(tmp_path)
    assert type(read) is type(made)
    assert torch.equal(started(read, STEPS, device="cpu").sigmas, started(made, STEPS, device="cpu").sigmas)


def test_takes_do_not_share_a_scheduler():
    loaded = SCHEDULERS["unipc"]()
    one, other = started(loaded, STEPS, device="cpu"), started(loaded, STEPS, device="cpu")
    sample = torch.ones(1, 2, 3)
    advance(one, sample, 0, sample, torch.Generator())
    assert one.model_outputs[-1] is not None
    assert other.model_outputs == [None, None]
    assert loaded.num_inference_steps is None
