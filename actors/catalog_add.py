"""`farm models add`: from a model directory or a hub repository to an entry of the catalog in FARM_HOME/models.d.

What a model can deliver is read from the configurations of its components; what no configuration says (lengths, picture
rates, denoise steps) are the defaults of its family, and the entry is a YAML file that a person may edit.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from actors.catalog import Catalog, Model
from actors.contract import Json
from actors.weights import verify
from cluster.errors import DamagedWeights, InvalidInput, InvalidSettings, NotFound, Unavailable

FAMILIES = {"LTXPipeline": "ltx", "WanPipeline": "wan", "WanImageToVideoPipeline": "wan"}
"""Pipeline classes with a family of their own; every other one is run whole by `generic`, without checkpoints."""
PICKLES = frozenset([".bin", ".ckpt", ".h5", ".msgpack", ".pkl", ".pickle", ".pt", ".pth"])
DESCRIBES = ["model_index.json", "*/config.json", "*/scheduler_config.json", "README.md"]
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A model as it lies somewhere: `folder` holds its configurations at least, `files` are all of its files."""

    folder: Path
    files: Mapping[str, int]  # bytes by path below the model
    weights: Json  # as in an entry
    revision: str
    index: Json

    @property
    def components(self) -> list[str]:
        return [name for name, kind in self.index.items() if isinstance(kind, list) and kind[:1] not in ([None], [])]

    def config(self, component: str) -> Json:
        """A component's own configuration, {} if it has none."""
        path = self.folder / component / "config.json"
        return _read_json(path) if path.is_file() else {}

    @property
    def weights_bytes(self) -> int:
        """Of the components alone: repositories carry the same weights again as single files."""
        parts = [f"{component}/" for component in self.components]
        return sum(
            size for path, size in self.files.items() if path.endswith(".safetensors") and path.startswith(tuple(parts))
        )

    @property
    def licence(self) -> str:
        card = self.folder / "README.md"
        front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.S) if card.is_file() else None
        try:
            told = yaml.safe_load(front.group(1)) if front else {}
        except yaml.YAMLError:
            told = {}
        return str(told.get("license", "unknown")) if isinstance(told, dict) else "unknown"


def add_model(
    source: str, *, home: Path, name: str | None = None, revision: str = "main", endpoint: str | None = None
) -> Model:
    """Puts the model at `source`, a directory or a hub id, into the catalog of `home` and returns its entry.

    `revision` and `endpoint` are of the hub; only configurations are fetched from it here. Raises InvalidInput (no such
    source, pickled weights, a name that is taken), InvalidSettings (a pipeline that a shot cannot drive, a `home` that
    cannot be written), DamagedWeights, NotFound and Unavailable (the hub).
    """
    with _found(source, revision=revision, endpoint=endpoint) as found:
        _refuse_pickles(found)
        pipeline = found.index.get("_class_name")
        if not isinstance(pipeline, str):
            raise InvalidInput(f"{source} brings code of its own, which is not run", field="source")
        family = FAMILIES.get(pipeline, "generic")
        short = (
            name
            if name is not None
            else re.sub(r"[^a-z0-9._]+", "-", Path(source.rstrip("/")).expanduser().name.lower()).strip("-._")
        )
        if not NAME.fullmatch(short):
            raise InvalidInput(f"{short!r} is no name for a model", field="name", remedy="use letters, digits, - and .")
        if short in Catalog.load(home / "models.d").models:
            raise InvalidInput(f"there is a model {short} already", field="name", remedy="give another name")
        entry = {
            "name": short,
            "kind": "video",
            "family": family,
            "title": short,
            "summary": f"{pipeline} of {source}"
            + ("; runs whole, without checkpoints." if family == "generic" else "."),
            "weights": found.weights,
            "revision": found.revision,
            "license": found.licence,
            **_deliverable(found, family, pipeline),
            "needs": {"memory_mb": max(1, round(found.weights_bytes / 1e6))},
        }
    return _written(entry, home / "models.d")


@contextmanager
def _found(source: str, *, revision: str, endpoint: str | None) -> Iterator[Found]:
    folder = Path(source).expanduser()
    if folder.is_dir():
        yield _in_directory(folder.resolve())
        return
    if folder.exists() or not HUB_ID.fullmatch(source):
        raise InvalidInput(
            f"{source} is neither a directory nor a hub id", field="source", remedy="use PATH or OWNER/NAME"
        )
    with tempfile.TemporaryDirectory() as temporary:
        yield _on_hub(source, Path(temporary), revision=revision, endpoint=endpoint)


def _in_directory(folder: Path) -> Found:
    from actors.model_dir import ModelDir

    index = _index(folder)
    verify(folder)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    revision = ModelDir.open(folder, ()).revision[:12]
    return Found(folder=folder, files=files, weights={"path": str(folder)}, revision=revision, index=index)


def _on_hub(repo: str, folder: Path, *, revision: str, endpoint: str | None) -> Found:
    from huggingface_hub import HfApi, snapshot_download, utils
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    client: Any = utils  # it names the HTTP library that the hub's client is built on

    try:
        told = HfApi(endpoint=endpoint).model_info(repo, revision=revision, files_metadata=True)
        found_revision = told.sha or revision
        snapshot_download(repo, revision=found_revision, local_dir=folder, allow_patterns=DESCRIBES, endpoint=endpoint)
    except RepositoryNotFoundError as error:
        raise NotFound(
            f"neither a directory nor a hub repository {repo}", field="source", remedy="check its name and your token"
        ) from error
    except (OSError, client.httpx.HTTPError, LocalEntryNotFoundError) as error:
        raise Unavailable(
            f"{repo} at {revision} cannot be read: {' '.join(str(error).split())[:160]}",
            field="source",
            remedy="connect to the hub, or give the path of a local copy",
        ) from error
    files = {each.rfilename: each.size or 0 for each in told.siblings or ()}
    return Found(folder=folder, files=files, weights={"hub": repo}, revision=found_revision, index=_index(folder))


def _index(folder: Path) -> Json:
    if not (folder / "model_index.json").is_file():
        raise InvalidInput("it has no model_index.json", field="source", remedy="give a model as diffusers lays it out")
    return _read_json(folder / "model_index.json")


def _read_json(path: Path) -> Json:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedWeights(f"{path.parent.name}/{path.name} cannot be read: {error}", remedy="restore it") from error
    if not isinstance(told, dict):
        raise DamagedWeights(f"{path.parent.name}/{path.name} is no JSON object", remedy="restore it")
    return told


def _refuse_pickles(found: Found) -> None:
    """A pickle can run anything when it is read. One that lies beside safetensors is never read, and may stay."""
    for component in found.components:
        within = [Path(path) for path in found.files if path.startswith(f"{component}/")]
        if not within:
            raise InvalidInput(f"its component {component} is missing", field="source", remedy="get all of the model")
        pickles = [path.name for path in within if path.suffix in PICKLES]
        if pickles and not any(path.suffix == ".safetensors" for path in within):
            raise InvalidInput(
                f"its {component} has pickled weights only ({pickles[0]}), which can run code",
                field="source",
                remedy="convert them to safetensors",
            )


# ---- what it can deliver


def _deliverable(found: Found, family: str, pipeline: str) -> Json:
    vae = found.config("vae")
    if family == "generic":
        return _of_any_pipeline(found, vae, pipeline)
    transformer = found.config("transformer")
    if family == "wan":
        space, time = int(vae.get("scale_factor_spatial", 8)), int(vae.get("scale_factor_temporal", 4))
        patch_t, *patches = transformer.get("patch_size", (1, 2, 2))
        told: Json = {"fps": 16, "longest": 81, "sizes": ((832, 480), (480, 832)), "guidance": 5.0}
    else:
        space, time = _ratios(vae)
        patch_t, patches = transformer.get("patch_size_t", 1), [transformer.get("patch_size", 1)]
        told = {"fps": 24, "longest": 257, "sizes": ((704, 480), (768, 512), (1216, 704)), "guidance": 3.0}
    first_frame = "must" if pipeline == "WanImageToVideoPipeline" else "never"
    if family == "wan" and found.index.get("expand_timesteps"):
        first_frame = "may"
    if family == "wan" and transformer.get("image_dim"):
        raise InvalidSettings(
            f"{pipeline} sees its first frame through CLIP, which the family wan does not", remedy="use one of Wan 2.2"
        )
    multiple = space * max(int(patch) for patch in patches)
    frames = {"multiple_of": time * int(patch_t), "plus": time * (int(patch_t) - 1) + 1}
    return {
        "sizes": [[_fit(width, multiple), _fit(height, multiple)] for width, height in told["sizes"]],
        "size_multiple_of": multiple,
        "max_pixels": 1280 * 720,
        "frames": {**frames, "max": told["longest"]},
        "fps": told["fps"],
        "first_frame": first_frame,
        "defaults": {"guidance_scale": told["guidance"], "num_steps": {"draft": 20, "standard": 40, "final": 50}},
    }


def _of_any_pipeline(found: Found, vae: Json, pipeline: str) -> Json:
    """From the defaults of the pipeline's own call, as far as it has any."""
    from actors.families.generic import parameters

    asked = parameters(pipeline)

    def default(name: str, otherwise: Any) -> Any:
        value = asked[name].default if name in asked else None
        return value if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else otherwise

    space, time = _ratios(vae)
    denoiser = found.config("transformer") or found.config("unet")
    patch = denoiser.get("patch_size", 1)
    multiple = space * (
        max(2, int(patch[-1] if isinstance(patch, list) else patch)) if "transformer" in found.components else 1
    )
    sample = denoiser.get("sample_size")
    side = sample * space if isinstance(sample, int) else 512
    width, height = _fit(default("width", side), multiple), _fit(default("height", side), multiple)
    frames: Json = {"values": [1]}
    if "num_frames" in asked:
        longest = int(default("num_frames", 49))
        plus = 1 if time > 1 else 0
        frames = {"multiple_of": time, "plus": plus, "max": (longest - plus) // time * time + plus}
    steps = int(default("num_inference_steps", 40))
    return {
        "sizes": [[width, height]],
        "size_multiple_of": multiple,
        "max_pixels": width * height,
        "frames": frames,
        "fps": int(default("frame_rate", default("fps", 16))),
        "defaults": {
            "guidance_scale": float(default("guidance_scale", 1.0)),
            "num_steps": {"draft": max(1, steps // 2), "standard": steps, "final": steps * 5 // 4},
        },
    }


def _ratios(vae: Json) -> tuple[int, int]:
    """How many pixels, and how many frames, one point of the latent grid stands for; 8 and 1 if nothing says so."""
    blocks = len(vae.get("block_out_channels", ())) or 4
    space = vae.get("spatial_compression_ratio") or vae.get("scale_factor_spatial")
    time = vae.get("temporal_compression_ratio") or vae.get("scale_factor_temporal")
    if "spatio_temporal_scaling" in vae:  # LTX-Video; source: AutoencoderKLLTXVideo of diffusers 0.42
        doubled = 2 ** sum(map(bool, vae["spatio_temporal_scaling"]))
        space, time = space or vae.get("patch_size", 4) * doubled, time or vae.get("patch_size_t", 1) * doubled
    return int(space or 2 ** (blocks - 1)), int(time or 1)


def _fit(side: float, multiple: int) -> int:
    return max(multiple, int(side) // multiple * multiple)


# ---- the entry


def _written(entry: Json, place: Path) -> Model:
    """Checked by the catalog itself, then put into place at once."""
    told = "# Written by `farm models add`; edit it as you like.\n" + yaml.safe_dump(entry, sort_keys=False)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=".") as temporary:
            part = Path(temporary) / f"{entry['name']}.yaml"
            part.write_text(told, encoding="utf-8")
            model = Catalog.load(Path(temporary)).models[entry["name"]]
            os.replace(part, place / part.name)
    except OSError as error:
        raise InvalidSettings(f"{place} cannot be written: {error}", remedy="make room, or mend its rights") from error
    return model
