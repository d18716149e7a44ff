"""`manifest.json`: all that is needed to replay a film, and what it cost. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from actors.contract import Json
from cluster.assets import ReceiptFile

if TYPE_CHECKING:  # media libraries are slow to import
    from pipelines.conform import Conformed, Take

SCHEMA = "reelfarm.manifest/1"
HOW = (
    *("determinism", "accelerator", "processor", "threads", "dtype", "layout", "batch_mates", "resumed_at"),
    *("torch", "diffusers", "transformers", "numpy"),
)
"""Facts of a receipt that can change the bits of a take."""
_SECRET = re.compile(r"secret|password|passwd|token$|api_?key|credential|authorization", re.IGNORECASE)
_PATH = re.compile(r"(/[^/\s]+){2,}/?|[A-Za-z]:[\\/]\S+|file:\S+|~/\S+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A task that made no take: the script, the conform."""

    step: str
    held_s: float
    cost_usd: Decimal
    model: str | None = None
    revision: str | None = None


def manifest(
    *,
    brief: Mapping[str, Any],
    script: Mapping[str, Any],
    takes: Sequence[Take],
    conformed: Conformed,
    files: Sequence[ReceiptFile],
    work: Sequence[Work],
    versions: Mapping[str, str],
    made: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Json:
    """A JSON document; write it with `cluster.assets.canonical_json`.

    `brief` is what was asked (logline, shots, seconds, seed, quality, models), `script` the document itself, `files`
    what is delivered beside this, `versions` of reelfarm, Python and the libraries that draw and write. `made` has the
    facts of each shot's receipt: what can change the bits of its take is kept. Fields named like secrets are left out
    of `brief` and `versions`, and absolute paths are cut to their last name. Money is a decimal string in USD.
    """
    spent: list[Take | Work] = [*takes, *work]
    return {
        "schema": SCHEMA,
        "title": script["title"],
        "logline": script["logline"],
        "brief": _public(brief),
        "script": dict(script),
        "film": {
            "fps": str(conformed.fps),
            "num_frames": conformed.num_frames,
            "duration_s": conformed.duration_s,
            "title_frames": conformed.first_frames[0],
        },
        "shots": [
            _shot(take, first_frame) | {"made": _how(made.get(take.shot_id, {}))}
            for take, first_frame in zip(takes, conformed.first_frames, strict=True)
        ],
        "work": [
            {
                "step": each.step,
                "model": each.model,
                "revision": each.revision,
                "held_s": round(each.held_s, 6),
                "cost_usd": _usd(each.cost_usd),
            }
            for each in work
        ],
        "files": {
            file.name: {
                "sha256": file.sha256,
                "content_sha256": file.content_sha256,
                "size_bytes": file.size_bytes,
                "media_type": file.media_type,
            }
            for file in files
        },
        "versions": _public(versions),
        "totals": {
            "num_shots": len(takes),
            "held_s": round(sum(each.held_s for each in spent), 6),
            "cost_usd": _usd(sum((each.cost_usd for each in spent), Decimal(0))),
        },
    }


def _shot(take: Take, first_frame: int) -> Json:
    return {
        "id": take.shot_id,
        "take": take.number,
        "num_takes": take.num_takes,
        "prompt": take.spec.prompt,
        "seed": take.spec.seed,
        "model": _public(take.model),
        "revision": _public(take.revision),
        "spec": take.spec.to_json(),
        "sha256": take.sha256,
        "content_sha256": take.content_sha256,
        "first_frame": first_frame,
        "held_s": round(take.held_s, 6),
        "cost_usd": _usd(take.cost_usd),
    }


def _how(facts: Mapping[str, Any]) -> Json:
    """Of the facts of a receipt, those that can change bits."""
    return {name: _public(facts[name]) for name in HOW if name in facts}


def _usd(amount: Decimal) -> str:
    return f"{amount:f}"


def _public(value: Any) -> Any:
    """`value` without what is nobody's business: fields named like secrets, the folders of absolute paths."""
    if isinstance(value, Mapping):
        return {key: _public(each) for key, each in value.items() if not _SECRET.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [_public(each) for each in value]
    if isinstance(value, str) and _PATH.fullmatch(value):
        return (PureWindowsPath if "\\" in value else PurePosixPath)(value).name
    return value
