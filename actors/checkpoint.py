"""Checkpoints of a denoise as bytes: safetensors whose metadata holds facts, a fingerprint and a sha256 over all."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from actors.contract import Json
from cluster.errors import DamagedCheckpoint

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = "1"
_AGAIN = "the denoise starts over"
_SIZE = struct.Struct("<Q")  # of the header, which safetensors puts first


def fingerprint_of(*, family: str, weights: str, device: str, dtype: object, num_threads: int) -> Json:
    """What can change the bits of a denoise, beside its spec."""
    return {
        "family": family,
        "weights": weights,
        "diffusers": version("diffusers"),
        "torch": version("torch"),
        "device": device.split(":")[0],
        "dtype": str(dtype),
        "threads": num_threads,
    }


def write_checkpoint(tensors: Mapping[str, Tensor], facts: Json, fingerprint: Json) -> bytes:
    """`facts` is what is not a tensor; `fingerprint` is all that must be equal where it is read."""
    from safetensors.torch import save

    metadata = {
        "version": _VERSION,
        "facts": json.dumps(facts, sort_keys=True),
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
    }
    header, payload = _parts(save({name: _plain(tensor) for name, tensor in tensors.items()}, metadata=metadata))
    header["__metadata__"]["sha256"] = _digest(header, payload)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return _SIZE.pack(len(text)) + text + payload


def read_checkpoint(data: bytes, fingerprint: Json) -> tuple[dict[str, Tensor], Json]:
    """(tensors, facts). Raises DamagedCheckpoint if the bytes do not verify or the fingerprint is another one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        header, payload = _parts(data)
        digest = header["__metadata__"].pop("sha256")
        if header["__metadata__"]["version"] != _VERSION or digest != _digest(header, payload):
            raise DamagedCheckpoint("the checkpoint does not verify", remedy=_AGAIN)
        facts: Json = json.loads(header["__metadata__"]["facts"])
        found: Json = json.loads(header["__metadata__"]["fingerprint"])
        tensors: dict[str, Tensor] = load(data)
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"the checkpoint cannot be read: {error}", remedy=_AGAIN) from error
    wanted: Json = json.loads(json.dumps(fingerprint))
    if found != wanted:
        other = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        raise DamagedCheckpoint(f"the checkpoint is of another {', '.join(other)}", remedy=_AGAIN)
    return tensors, facts


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the bytes of the tensors."""
    (size,) = _SIZE.unpack_from(data)
    header: dict[str, Any] = json.loads(data[_SIZE.size : _SIZE.size + size])
    return header, data[_SIZE.size + size :]


def _digest(header: Mapping[str, Any], payload: bytes) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(payload)
    return digest.hexdigest()
