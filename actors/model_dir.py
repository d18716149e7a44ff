"""A model as a directory that diffusers lays out: what is in it, whether it is whole, how it departs from the usual.

`model_index.json` names the components, one folder each; `farm.json`, if there is one, says how the model differs from
what diffusers' pipeline for it assumes, and which sha256 its files have.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import DamagedWeights

CODECS = ("diffusers", "actors.families.codecs.")  # where the class of a vae may come from
_RESTORE = "restore the model directory"
_END_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Departures:
    """How a model differs from what diffusers' pipeline assumes; the defaults are no difference."""

    prediction: str = "velocity"  # or "sample": the denoiser's output is the clean latent
    masked_text: bool = False  # the text encoder sees the attention mask
    positions: bool = False  # the codec's `position_features` are appended to the tokens
    still_frame: int = 0  # which of the decoded frames is a still
    sha256: tuple[tuple[str, str], ...] = ()  # (file, digest), verified when the model is opened


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDir:
    path: Path
    index: dict[str, Any]
    departures: Departures
    revision: str  # a hash that tells two models apart

    @classmethod
    def open(cls, path: Path, components: Sequence[str]) -> ModelDir:
        """Raises DamagedWeights if a component is missing or a file has not the sha256 it should have."""
        try:
            index: dict[str, Any] = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DamagedWeights(f"{path} is no model directory: {error}", remedy=_RESTORE) from error
        for name in components:
            if name not in index or not (path / name).is_dir():
                raise DamagedWeights(f"{path} has no {name}", remedy=_RESTORE)
        departures = _departures(path / "farm.json")
        for name, digest in departures.sha256:
            _verify(path / name, digest)
        return cls(path=path, index=index, departures=departures, revision=_revision(path))

    @contextmanager
    def component(self, name: str) -> Iterator[Path]:
        """The folder of a component. Whatever its loader raises means that the directory is not what it should be."""
        try:
            yield self.path / name
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise DamagedWeights(f"{self.path / name} cannot be loaded: {reason}", remedy=_RESTORE) from error

    def codec_class(self) -> Any:
        """The class of the vae, from modules that are trusted only."""
        module, name = self.index["vae"]
        if not module.startswith(CODECS):
            raise ValueError(f"a codec of {module} is not trusted")
        return getattr(importlib.import_module(module), name)


def _departures(path: Path) -> Departures:
    if not path.exists():
        return Departures()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Departures(**{**data, "sha256": tuple(sorted(data.get("sha256", {}).items()))})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DamagedWeights(f"{path} cannot be read: {error}", remedy=_RESTORE) from error


def _verify(path: Path, digest: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedWeights(f"{path} cannot be read: {error}", remedy=_RESTORE) from error
    if found != digest:
        raise DamagedWeights(f"{path} is damaged: its sha256 differs", remedy=_RESTORE)


def _revision(path: Path) -> str:
    """Names, sizes and both ends of every file: enough to tell models apart without reading gigabytes."""
    digest = hashlib.sha256()
    for file_path in sorted(each for each in path.rglob("*") if each.suffix in {".safetensors", ".json"}):
        size = file_path.stat().st_size
        digest.update(f"{file_path.relative_to(path)}|{size}|".encode())
        with file_path.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            file.seek(max(0, size - _END_BYTES))
            digest.update(file.read(_END_BYTES))
    return digest.hexdigest()
