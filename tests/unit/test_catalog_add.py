"""`farm models add`: a model directory or a hub repository becomes an entry of the catalog."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from actors.catalog import Catalog
from actors.catalog_add import add_model
from actors.contract import Quality
from actors.renderer import load_family
from actors.weights import weights_dir
from cluster.errors import DamagedWeights, FarmError, InvalidInput, InvalidSettings, InvalidSpec, NotFound, Unavailable
from tests.tiny_models import tiny_ltx, tiny_stable_diffusion, tiny_wan

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def wan_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan(tmp_path_factory.mktemp("models") / "My Wan 1.3B")


@pytest.fixture(scope="module")
def stills_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("models") / "stills")


def test_a_wan_directory_becomes_a_model_of_the_catalog(tmp_path: Path, wan_dir: Path):
    added = add_model(str(wan_dir), home=tmp_path)
    model = Catalog.load(tmp_path / "models.d").model("my-wan-1.3b", role="render")
    assert model == added
    assert (model.family, model.weights) == ("wan", {"path": str(wan_dir)})
    assert model.availability(tmp_path).ready
    limits = model.limits
    assert limits is not None
    assert (limits.multiple_of, limits.plus, limits.fps) == (4, 1, Fraction(16))
    assert (limits.size_multiple_of, limits.sizes[0]) == (16, (832, 480))
    assert model.spec(prompt="a red ball", seconds=2, seed=1).num_frames == 33
    with pytest.raises(InvalidSpec, match="1000 x 480"):
        model.spec(prompt="a red ball", seconds=2, seed=1, size=(1000, 480))


def test_what_the_entry_allows_the_family_draws(tmp_path: Path, wan_dir: Path):
    model = add_model(str(wan_dir), home=tmp_path, name="w")
    family = load_family(model.family, weights_dir(model, tmp_path), device="cpu", dtype="float32", num_threads=1)
    spec = model.spec(prompt="a red ball", seconds=0.3125, seed=1, size=(48, 32))
    state = family.start(spec, family.encode([spec])[0])
    assert sum(len(chunk) for chunk in family.decode(state)) == spec.num_frames == 5


def test_ltx_has_the_compression_of_its_codec(tmp_path: Path):
    model = add_model(str(tiny_ltx(tmp_path / "ltx")), home=tmp_path / "home")
    assert model.family == "ltx"
    assert model.limits is not None
    assert (model.limits.multiple_of, model.limits.plus, model.limits.size_multiple_of) == (4, 1, 4)


def test_a_pipeline_of_stills_is_run_whole_with_its_own_defaults(tmp_path: Path, stills_dir: Path):
    model = add_model(str(stills_dir), home=tmp_path)
    assert model.family == "generic"
    assert "without checkpoints" in model.description
    assert model.limits is not None
    assert (model.limits.frames, model.limits.sizes, model.limits.size_multiple_of) == ((1,), ((64, 64),), 8)
    preset = model.defaults[Quality.STANDARD]
    assert (preset.steps, preset.guidance) == (50, 7.5)
    assert model.spec(prompt="a red ball", seconds=1, seed=1, still=True).num_frames == 1


def test_the_licence_is_the_one_of_the_card(tmp_path: Path, stills_dir: Path):
    place = shutil.copytree(stills_dir, tmp_path / "carded")
    (place / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert add_model(str(place), home=tmp_path).licence == "apache-2.0"
    assert add_model(str(stills_dir), home=tmp_path).licence == "unknown"


def pickled(place: Path) -> None:
    weights = place / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()


def pipeline_of_pictures(place: Path) -> None:
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionUpscalePipeline"}))


def cut(place: Path) -> None:
    weights = place / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])


BREAKS: dict[str, tuple[Any, type[FarmError], str]] = {
    "pickled": (pickled, InvalidInput, "vae has pickled weights only"),
    "no index": (lambda place: (place / "model_index.json").unlink(), InvalidInput, "no model_index.json"),
    "index is not JSON": (
        lambda place: (place / "model_index.json").write_text("{"),
        DamagedWeights,
        "model_index.json cannot be read",
    ),
    "a part is missing": (lambda place: shutil.rmtree(place / "unet"), InvalidInput, "component unet is missing"),
    "cut short": (cut, DamagedWeights, "bytes instead of"),
    "wants more than a shot": (pipeline_of_pictures, InvalidSettings, "StableDiffusionUpscalePipeline"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_what_cannot_be_a_model_is_refused_and_nothing_is_written(tmp_path: Path, stills_dir: Path, case: str):
    broken, error, said = BREAKS[case]
    place = shutil.copytree(stills_dir, tmp_path / "broken")
    broken(place)
    with pytest.raises(error, match=said):
        add_model(str(place), home=tmp_path)
    assert list(tmp_path.glob("models.d/*")) == []


def test_pickles_beside_safetensors_may_stay(tmp_path: Path, stills_dir: Path):
    place = shutil.copytree(stills_dir, tmp_path / "both")
    torch.save({}, place / "vae" / "diffusion_pytorch_model.bin")
    assert add_model(str(place), home=tmp_path).id == "both"


@pytest.mark.parametrize(
    ("source", "name", "field"),
    [("no/such/place/here", None, "source"), ("", None, "source"), ("STILLS", "../x", "name"), ("STILLS", "", "name")],
    ids=["no directory", "empty", "a name that is a path", "an empty name"],
)
def test_a_mistake_is_named(tmp_path: Path, stills_dir: Path, source: str, name: str | None, field: str):
    with pytest.raises(InvalidInput) as refused:
        add_model(source.replace("STILLS", str(stills_dir)), home=tmp_path, name=name)
    assert refused.value.field == field


@pytest.mark.parametrize("name", ["house-video", "mine"], ids=["a model of the house", "an added one"])
def test_a_name_that_is_taken_is_refused(tmp_path: Path, stills_dir: Path, name: str):
    add_model(str(stills_dir), home=tmp_path, name="mine")
    with pytest.raises(InvalidInput, match="already"):
        add_model(str(stills_dir), home=tmp_path, name=name)


def test_a_home_that_cannot_be_written_is_said(tmp_path: Path, stills_dir: Path):
    (tmp_path / "models.d").write_text("a file in its way")
    with pytest.raises(InvalidSettings, match="cannot be written"):
        add_model(str(stills_dir), home=tmp_path)


@contextmanager
def hub(place: Path) -> Iterator[str]:
    """What a hub answers for one repository `tiny/stills`, over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/tiny/stills/revision/"):
                files = [each for each in sorted(place.rglob("*")) if each.is_file()]
                siblings = [
                    {"rfilename": each.relative_to(place).as_posix(), "size": each.stat().st_size} for each in files
                ]
                self.send(json.dumps({"id": "tiny/stills", "sha": COMMIT, "siblings": siblings}).encode(), with_body)
            elif path.startswith(f"/api/models/tiny/stills/tree/{COMMIT}"):
                tree = [
                    {
                        "type": "file",
                        "path": each.relative_to(place).as_posix(),
                        "size": each.stat().st_size,
                        "oid": "0" * 40,
                    }
                    for each in sorted(place.rglob("*"))
                    if each.is_file()
                ]
                self.send(json.dumps(tree).encode(), with_body)
            elif path.startswith(f"/tiny/stills/resolve/{COMMIT}/"):
                asked.append(path.rpartition(f"{COMMIT}/")[2])
                self.send((place / asked[-1]).read_bytes(), with_body)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def send(self, body: bytes, with_body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{len(body)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
        assert asked
        assert not any(name.endswith(".safetensors") for name in asked), "weights were fetched"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_hub_repository_becomes_an_entry_at_its_commit_without_its_weights(tmp_path: Path, stills_dir: Path):
    with hub(stills_dir) as endpoint:
        model = add_model("tiny/stills", home=tmp_path, endpoint=endpoint)
    assert (model.id, model.weights, model.revision) == ("stills", {"hub": "tiny/stills"}, COMMIT)
    assert model.memory_mb >= 1
    assert not model.availability(tmp_path).ready


def test_a_repository_that_the_hub_does_not_know_is_said(tmp_path: Path, stills_dir: Path):
    with hub(stills_dir) as endpoint:
        with pytest.raises(NotFound, match="tiny/other"):
            add_model("tiny/other", home=tmp_path, endpoint=endpoint)
        add_model("tiny/stills", home=tmp_path, endpoint=endpoint)


def test_a_hub_out_of_reach_is_said(tmp_path: Path):
    with pytest.raises(Unavailable, match="tiny/stills at main cannot be read"):
        add_model("tiny/stills", home=tmp_path, endpoint="http://127.0.0.1:1")
