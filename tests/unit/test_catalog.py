"""The catalog: what a model can draw, and how people are told that it cannot."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from actors.catalog import Catalog, Model
from actors.contract import Quality
from actors.weights import CHECKSUMS, gguf_path, verify, weights_dir
from cluster.errors import DamagedWeights, InvalidSettings, InvalidSpec, Unavailable, UnknownModel


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load()


@pytest.fixture(scope="module")
def house(catalog: Catalog) -> Model:
    return catalog.model("house-video")


def test_every_entry_of_the_house_loads_and_says_whether_it_is_ready(catalog: Catalog) -> None:
    assert {"house-video", "house-writer", "ltx-video", "wan2.1-t2v-1.3b", "qwen2.5-7b-instruct"} <= set(catalog.models)
    for model in catalog.models.values():
        availability = model.availability()
        assert availability.reason
        assert (
            availability.ready
            or "hub" in model.weights
            or "family" in availability.reason
            or "weights" in str(availability.reason)
        )


def test_the_catalog_imports_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, actors.catalog as c; c.Catalog.load(); sys.exit(bool({'torch', 'vllm', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_survives_a_process(catalog: Catalog) -> None:
    for model in catalog.models.values():
        assert pickle.loads(pickle.dumps(model)) == model  # noqa: S301


def test_an_unknown_model_is_refused_with_the_near_ones(catalog: Catalog) -> None:
    with pytest.raises(UnknownModel) as caught:
        catalog.model("house-vidoe")
    assert "house-video" in caught.value.line()
    with pytest.raises(UnknownModel):
        catalog.model("house-video", role="writer")


def test_models_that_people_add_stand_beside_those_of_the_house(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nkind: language\nfamily: vllm\ntitle: Mine\nsummary: s\nweights: {path: /nowhere}\n"
        "revision: '1'\nlicense: MIT\n"
    )
    catalog = Catalog.load(tmp_path)
    assert catalog.model("mine").availability().ready is False
    assert "house-video" in catalog.models


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("name: x", id="fields missing"),
        pytest.param("[1, 2", id="no yaml"),
        pytest.param("just text", id="no mapping"),
        pytest.param(
            "name: x\nkind: language\nfamily: v\ntitle: t\nsummary: s\nweights: p\nrevision: 1\nlicense: l\nx: 3",
            id="misspelt key",
        ),
    ],
)
def test_a_broken_entry_is_refused_by_its_file_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(InvalidSettings, match=r"broken\.yaml"):
        Catalog.load(tmp_path)


def test_every_caption_is_read_back_as_the_fields_it_was_made_of(house: Model) -> None:
    vocabulary = house.vocabulary
    assert vocabulary is not None
    combinations = list(itertools.product(*(vocabulary.words(kind) for kind in vocabulary.kinds)))
    for words in combinations[::11]:
        fields = dict(zip(vocabulary.kinds, words, strict=True))
        assert house.parse(house.caption(fields)) == fields


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A red ship rocks on the ocean", {"hue": "red", "subject": "boat", "motion": "sways", "place": "sea"}),
        ("Two kittens", {"subject": "cat"}),
        ("THE ROCKETS ROSE!", {"subject": "rocket", "motion": "rises"}),
        ("a rose balloon", {"hue": "pink", "subject": "balloon"}),
        ("kicking a beach ball in the woods", {"subject": "ball", "place": "forest"}),
        ("The waves are high", {"place": "sea"}),
    ],
)
def test_a_free_sentence_names_what_can_be_drawn(house: Model, text: str, named: dict[str, str]) -> None:
    assert house.parse(text) == named


@pytest.mark.parametrize(
    "text", ["scarcely a category", "boating", "an education", "🚀", "قارب أحمر", "is it still there"]
)
def test_parts_of_other_words_name_nothing(house: Model, text: str) -> None:
    assert house.parse(text) is None


def test_what_a_prompt_leaves_open_is_chosen_by_the_seed(house: Model) -> None:
    specs = {house.spec(prompt="a red ship", seconds=2, seed=seed).prompt for seed in range(12)}
    assert len(specs) > 3
    assert all(house.parse(prompt) and "red boat" in prompt for prompt in specs)
    one, same = (house.spec(prompt="a red ship", seconds=2, seed=5) for _ in range(2))
    assert one == same
    assert house.spec(prompt=one.prompt, seconds=2, seed=99).prompt == one.prompt


def test_defaults_come_with_the_quality(house: Model) -> None:
    draft, final = (house.spec(prompt="a cat", seconds=2, seed=1, quality=q) for q in (Quality.DRAFT, Quality.FINAL))
    assert draft.num_steps < final.num_steps
    assert draft.duration_s == 2
    assert house.spec(prompt="a cat", seconds=2, seed=1, still=True).num_frames == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"seconds": -1}, "seconds", id="negative"),
        pytest.param({"seconds": 0}, "seconds", id="zero"),
        pytest.param({"seconds": math.nan}, "seconds", id="nan"),
        pytest.param({"seconds": math.inf}, "seconds", id="infinite"),
        pytest.param({"seconds": 3600}, "seconds", id="an hour"),
        pytest.param({"size": (500, 512)}, "size", id="size"),
        pytest.param({"size": (0, 0)}, "size", id="no size"),
        pytest.param({"seed": -1}, "seed", id="seed"),
        pytest.param({"prompt": " "}, "prompt", id="empty"),
        pytest.param({"prompt": "a cat " * 2000}, "prompt", id="long"),
        pytest.param({"prompt": "a cat\0"}, "prompt", id="nul"),
        pytest.param({"prompt": "quarterly results"}, "prompt", id="nothing drawable"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_field(house: Model, changes: dict[str, object], field: str) -> None:
    asked: dict[str, object] = {"prompt": "a red cat", "seconds": 2, "seed": 1, **changes}
    with pytest.raises(InvalidSpec) as caught:
        house.spec(**asked)  # type: ignore[arg-type]
    assert caught.value.field == field
    if field == "prompt" and changes["prompt"] == "quarterly results":
        assert "rocket" in str(caught.value.remedy)


def test_a_spec_that_was_made_elsewhere_is_checked(house: Model) -> None:
    spec = house.spec(prompt="a red cat", seconds=2, seed=1)
    for bad in (replace(spec, num_frames=7), replace(spec, width_px=100), replace(spec, num_steps=10_000)):
        with pytest.raises(InvalidSpec):
            house.check(bad)


def test_a_model_of_free_text_takes_its_prompt_as_it_is(catalog: Catalog) -> None:
    wan = catalog.model("wan2.1-t2v-1.3b")
    spec = wan.spec(prompt="A quarterly report dances.", seconds=5, seed=1)
    assert (spec.prompt, spec.num_frames) == ("A quarterly report dances.", 81)
    assert wan.prompt_schema()["properties"]["prompt"]["pattern"]
    with pytest.raises(InvalidSpec):
        wan.spec(prompt="A report.", seconds=60, seed=1)
    with pytest.raises(InvalidSpec):
        wan.spec(prompt="A report.", seconds=5, seed=1, size=(831, 480))


def test_the_schema_holds_exactly_what_the_model_can_draw(house: Model) -> None:
    schema = house.prompt_schema()
    assert schema["required"] == ["subject", "hue", "motion", "place", "camera"]
    fields = {kind: facts["enum"][0] for kind, facts in schema["properties"].items()}
    assert house.caption(fields)
    for broken in ({**fields, "subject": "cactus"}, {**fields, "mood": "sad"}, {"subject": fields["subject"]}):
        with pytest.raises(InvalidSpec):
            house.caption(broken)


def _safetensors(path: Path) -> Path:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    return path


@pytest.mark.parametrize("damage", ["truncated", "longer", "no header", "empty", "checksum"])
def test_damaged_weights_are_named(tmp_path: Path, damage: str) -> None:
    path = _safetensors(tmp_path / "model.safetensors")
    verify(tmp_path)
    good = path.read_bytes()
    damaged = {
        "truncated": good[:-3],
        "longer": good + b"x",
        "no header": b"\xff" * 40,
        "empty": b"",
        "checksum": good[:-1] + b"x",
    }[damage]
    if damage == "checksum":
        (tmp_path / CHECKSUMS).write_text(json.dumps({"model.safetensors": "0" * 64}))
    path.write_bytes(damaged)
    with pytest.raises(DamagedWeights, match=r"model\.safetensors") as caught:
        verify(tmp_path)
    assert caught.value.remedy


def test_a_directory_without_weights_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(DamagedWeights):
        verify(tmp_path)


def test_a_hub_that_is_out_of_reach_is_said_with_a_way_out(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(os.environ, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Unavailable) as caught:
        weights_dir(catalog.model("ltx-video"), tmp_path)
    assert "Lightricks/LTX-Video" in caught.value.line()


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(InvalidSettings, match="no-such-weights"):
        gguf_path("no-such-weights", "model.gguf")
