"""The codec of the house model: what goes in comes out, colours snap, edges are sharp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.families.codecs.paper import CODE_CHANNELS, PaperCodec
from actors.families.codecs.paper_light import SHADOW_GRID_PX
from pipelines.house.draw import draw
from pipelines.house.evaluate import WEIGHTS
from pipelines.house.latents import normalise
from pipelines.house.papers import HUE_PAPERS, NUM_BACKDROP_ROLES, PLACE_PAPERS
from pipelines.house.scenes import NUM_FRAMES, Scene, held_out_scenes

SCENES = held_out_scenes(6, seed=12)


@pytest.fixture(scope="module", autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def codec() -> PaperCodec:
    loaded: PaperCodec = PaperCodec.from_pretrained(WEIGHTS / "vae")
    return loaded.eval()


def indices(scene: Scene) -> tuple[int, int]:
    return list(PLACE_PAPERS).index(scene.place), list(HUE_PAPERS).index(scene.hue)


def encoded(codec: PaperCodec, scene: Scene) -> tuple[Tensor, Tensor]:
    """(maps, latents) of a drawn clip."""
    place, hue = indices(scene)
    maps = draw(scene)
    return maps, codec.encode_maps(maps[None], torch.tensor([place]), torch.tensor([hue]))


def agreement(found: Tensor, maps: Tensor) -> tuple[float, float]:
    """Share of points that show the right paper: of all, and of those of the subject."""
    right = found.argmax(1) == maps.argmax(1)
    subject = maps.argmax(1) >= NUM_BACKDROP_ROLES
    return float(right.float().mean()), float(right[subject].float().mean())


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: f"{scene.subject} {scene.motion}")
def test_papers_survive_the_codec(codec: PaperCodec, scene: Scene) -> None:
    maps, latents = encoded(codec, scene)
    found, places, hues = codec.decode_maps(latents)
    everywhere, on_subject = agreement(found[0], maps)
    assert everywhere > 0.96
    assert on_subject > 0.85
    assert (int(places[0]), int(hues[0])) == indices(scene)


def test_colours_survive_heavy_noise(codec: PaperCodec) -> None:
    generator = torch.Generator().manual_seed(1)
    for scene in SCENES:
        latents = normalise(codec, encoded(codec, scene)[1])
        noisy = latents + 0.5 * torch.randn(latents.shape, generator=generator)
        _, places, hues = codec.decode_maps(noisy * codec.latents_std.view(1, -1, 1, 1, 1))
        assert (int(places[0]), int(hues[0])) == indices(scene)


def test_latents_have_the_shape_that_the_pipeline_of_diffusers_expects(codec: PaperCodec) -> None:
    _, latents = encoded(codec, SCENES[0])
    out_px = codec.config.out_px
    assert latents.shape == (
        1,
        codec.latent_channels,
        (NUM_FRAMES - 1) // codec.temporal_compression_ratio + 1,
        out_px // codec.spatial_compression_ratio,
        out_px // codec.spatial_compression_ratio,
    )
    assert codec.latents_mean.shape == codec.latents_std.shape == (codec.latent_channels,)
    assert float(normalise(codec, latents)[:, :-CODE_CHANNELS].std()) == pytest.approx(1, abs=0.5)


def test_delivered_frames_have_sharp_edges(codec: PaperCodec) -> None:
    """Most of a step between two papers lies within three pixels of the 512."""
    place, hue = indices(SCENES[0])
    maps = torch.zeros(1, len(codec.config.roles), 64, 64)
    maps[:, 0, :, :32] = 1
    maps[:, 4, :, 32:] = 1
    row = codec.paint(maps, place, hue)[0, :, 256].mean(0)
    assert row.shape == (512,)
    step = float((row[240] - row[270]).abs())
    assert step > 0.1
    assert float((row[254] - row[258]).abs()) > 0.6 * step


def test_pictures_are_bytes_alike_each_time(codec: PaperCodec) -> None:
    maps, _ = encoded(codec, SCENES[1])
    first, again = (codec.paint(maps[:2], *indices(SCENES[1])) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (2, 3, 512, 512)
    assert 0 <= first.min() < first.max() <= 1


def test_a_small_picture_looks_like_the_large_one_made_small(codec: PaperCodec) -> None:
    maps, _ = encoded(codec, SCENES[2])
    large = codec.paint(maps[:1], *indices(SCENES[2]))
    small = codec.paint(maps[:1], *indices(SCENES[2]), px=SHADOW_GRID_PX)
    assert float((torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean()) < 0.02


@pytest.mark.parametrize("scene", SCENES[:2], ids=lambda scene: f"{scene.hue} {scene.subject}, {scene.place}")
def test_pictures_are_read_back(codec: PaperCodec, scene: Scene) -> None:
    maps, _ = encoded(codec, scene)
    frames = codec.paint(maps, *indices(scene), px=256)
    latents = codec.encode((frames * 2 - 1).permute(1, 0, 2, 3)[None])
    found, places, hues = codec.decode_maps(latents)
    assert (int(places[0]), int(hues[0])) == indices(scene)
    assert agreement(found[0], maps)[0] > 0.9


def test_decoding_in_chunks_is_decoding_whole(codec: PaperCodec) -> None:
    _, latents = encoded(codec, SCENES[3])
    chunks = []
    for i, chunk in enumerate(codec.decode_frames(latents)):
        chunks.append(chunk)
        if i == 1:
            break
    maps, places, hues = codec.decode_maps(latents)
    whole = codec.paint(maps[0, :8], int(places[0]), int(hues[0]))
    np.testing.assert_allclose(torch.cat(chunks).numpy(), whole.numpy(), atol=1e-5)


def test_no_two_tokens_have_the_same_position(codec: PaperCodec) -> None:
    features = codec.position_features(1, 8, 8)
    assert features.shape == (64, codec.config.position_channels)
    distances = torch.cdist(features, features) + 9 * torch.eye(64)
    assert distances.min() > 0.1


def test_a_codec_can_be_saved_and_loaded(codec: PaperCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    again: PaperCodec = PaperCodec.from_pretrained(tmp_path)
    _, latents = encoded(codec, SCENES[4])
    assert torch.equal(codec.decode_maps(latents)[0], again.decode_maps(latents)[0])
