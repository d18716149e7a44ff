"""The drawn clips that the house model learns from: captions tell the truth, and what is held out stays out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.catalog import Catalog
from pipelines.house.captions import all_words, caption, prompt, vocabulary
from pipelines.house.draw import MAP_PX, draw
from pipelines.house.latents import draw_shard, new_codec
from pipelines.house.papers import HUE_PAPERS, NUM_BACKDROP_ROLES, PLACE_PAPERS, ROLES
from pipelines.house.places import PLACES
from pipelines.house.scenes import CAMERAS, MOTIONS, NUM_FRAMES, Scene, held_out_scenes, random_scene, training_scene
from pipelines.house.shapes import SUBJECTS
from pipelines.house.text import new_tokenizer

SCENE = Scene(subject="boat", hue="red", place="sea", motion="drifts right", camera="still")


def subject_cover(maps: Tensor) -> Tensor:
    return maps[:, NUM_BACKDROP_ROLES:].sum(1)


def middle(cover: Tensor, axis: int) -> Tensor:
    """The mean position of the subject along an axis (1 rows, 2 columns) in each frame."""
    weight = cover.sum(3 - axis)
    return (weight * torch.arange(MAP_PX)).sum(1) / weight.sum(1)


def test_every_word_of_the_catalog_can_be_drawn_and_nothing_else() -> None:
    words = {kind: tuple(each) for kind, each in vocabulary().items()}
    assert set(words["subject"]) == set(SUBJECTS)
    assert set(words["hue"]) == set(HUE_PAPERS)
    assert set(words["place"]) == set(PLACE_PAPERS) == set(PLACES)
    assert set(words["motion"]) == set(MOTIONS)
    assert set(words["camera"]) == set(CAMERAS)


def test_the_prompt_is_the_sentence_that_the_catalog_makes() -> None:
    model = Catalog.load().model("house-video")
    rng = np.random.default_rng(1)
    for _ in range(50):
        scene = random_scene(rng)
        fields = {kind: getattr(scene, kind) for kind in ("subject", "hue", "motion", "place", "camera")}
        assert prompt(scene) == model.caption(fields)


def test_the_same_scene_is_the_same_numbers() -> None:
    assert torch.equal(draw(SCENE), draw(SCENE))
    assert not torch.equal(draw(SCENE), draw(replace(SCENE, x=0.02)))


@pytest.mark.parametrize("place", PLACES)
def test_papers_cover_each_point_once(place: str) -> None:
    maps = draw(replace(SCENE, place=place, camera="pushes in", motion="grows"))
    assert maps.shape == (NUM_FRAMES, len(ROLES), MAP_PX, MAP_PX)
    assert maps.min() >= -1e-5
    torch.testing.assert_close(maps.sum(1), torch.ones(NUM_FRAMES, MAP_PX, MAP_PX), atol=2e-3, rtol=0)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_is_large_and_stays_in_view(subject: str) -> None:
    for motion in ("drifts right", "rises", "sinks", "grows", "bounces"):
        cover = subject_cover(draw(replace(SCENE, subject=subject, motion=motion)))
        assert cover.mean() > 0.03, motion
        assert cover[:, [0, -1]].mean() < 0.01, motion
        assert cover[:, :, [0, -1]].mean() < 0.01, motion


@pytest.mark.parametrize(
    ("motion", "axis", "way"),
    [("drifts right", 2, 1), ("drifts left", 2, -1), ("rises", 1, -1), ("sinks", 1, 1)],
)
def test_a_motion_goes_where_its_name_says(motion: str, axis: int, way: int) -> None:
    at = middle(subject_cover(draw(replace(SCENE, motion=motion))), axis)
    assert way * (at[-1] - at[0]) > 0.3 * MAP_PX
    other = middle(subject_cover(draw(replace(SCENE, motion=motion))), 3 - axis)
    assert (other.max() - other.min()) < 0.1 * MAP_PX


def test_what_grows_ends_large_and_what_shrinks_ends_small() -> None:
    grown = subject_cover(draw(replace(SCENE, motion="grows"))).sum((1, 2))
    shrunk = subject_cover(draw(replace(SCENE, motion="shrinks"))).sum((1, 2))
    assert grown[-1] > 4 * grown[0]
    assert shrunk[0] > 4 * shrunk[-1]


def test_what_bounces_touches_the_ground_three_times() -> None:
    low = middle(subject_cover(draw(replace(SCENE, motion="bounces", subject="ball"))), 1).diff().sign()
    turns = low[low != 0].diff().nonzero()
    assert len(turns) == 3  # up, down, up, down


def test_what_spins_comes_round_and_what_sways_tilts_both_ways() -> None:
    spun = subject_cover(draw(replace(SCENE, motion="spins", subject="house")))
    assert (spun[0] - spun[-1]).abs().mean() < 0.02 < (spun[0] - spun[12]).abs().mean()
    swayed = draw(replace(SCENE, motion="sways", subject="rocket"))
    quarter = middle(subject_cover(swayed)[:, :24], 2)  # its nose
    assert quarter.max() - quarter[0] > 1 < quarter[0] - quarter.min()


@pytest.mark.parametrize(("camera", "way"), [("pans right", -1), ("pans left", 1)])
def test_a_pan_moves_the_backdrop_and_leaves_the_subject(camera: str, way: int) -> None:
    scene = replace(SCENE, motion="sways", place="space", camera=camera)
    maps, still = draw(scene), draw(replace(scene, camera="still"))
    torch.testing.assert_close(subject_cover(maps), subject_cover(still), atol=1e-3, rtol=0)
    planet = middle(maps[:, ROLES.index("far")], 2)
    assert way * (planet[-1] - planet[0]) > 5


def test_the_camera_pushes_in_and_pulls_back() -> None:
    scene = replace(SCENE, motion="sways", place="mountains")
    for camera, first, last in (("pushes in", 0, -1), ("pulls back", -1, 0)):
        snow = draw(replace(scene, camera=camera))[:, ROLES.index("near")].sum((1, 2))
        assert snow[last] < 0.9 * snow[first], camera


def test_a_caption_says_what_is_drawn() -> None:
    rng = np.random.default_rng(3)
    words = vocabulary()
    seen = set()
    for _ in range(400):
        scene = random_scene(rng)
        text = caption(scene, rng)
        seen.add(text)
        for kind in ("subject", "hue", "motion", "place"):
            word = words[kind][getattr(scene, kind)]
            names = (word.canonical, word.phrase, *word.synonyms)
            assert any(name in text for name in names), (kind, text)
        if scene.camera != "still":
            word = words["camera"][scene.camera]
            assert any(name in text for name in (word.canonical, word.phrase, *word.synonyms)), text
    assert len(seen) > 390


def test_there_are_several_ways_to_say_one_scene() -> None:
    rng = np.random.default_rng(4)
    assert len({caption(SCENE, rng) for _ in range(100)}) > 30


def test_the_tokenizer_knows_every_word_of_every_caption() -> None:
    tokenizer = new_tokenizer()
    rng = np.random.default_rng(5)
    for _ in range(300):
        ids = tokenizer(caption(random_scene(rng), rng)).input_ids
        assert tokenizer.unk_token_id not in ids
        assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer("a red zebra").input_ids.count(tokenizer.unk_token_id) == 1
    assert len(tokenizer) == len(all_words()) + 3


def test_what_is_held_out_is_never_drawn_for_training() -> None:
    rng = np.random.default_rng(6)
    assert not any(training_scene(rng).held_out() for _ in range(1000))
    assert any(random_scene(rng).held_out() for _ in range(200))


def test_enough_combinations_are_held_out_and_always_the_same() -> None:
    scenes = held_out_scenes(250, seed=7)
    kept = {(scene.subject, scene.hue, scene.place, scene.motion) for scene in scenes}
    assert len(kept) == 250
    assert all(scene.held_out() for scene in scenes)
    assert scenes == held_out_scenes(250, seed=7)
    assert replace(SCENE, camera="pans left", x=0.04).held_out() == SCENE.held_out()


def test_a_shard_of_training_clips_repeats() -> None:
    codec = new_codec(8)
    codec.set_basis(torch.eye(len(codec.center), 8))
    first, captions = draw_shard(codec, index=3, num_clips=2)
    again, captions_again = draw_shard(codec, index=3, num_clips=2)
    other, _ = draw_shard(codec, index=4, num_clips=2)
    assert torch.equal(first["latents"], again["latents"])
    assert captions == captions_again
    assert not torch.equal(first["latents"], other["latents"])
