"""The spritesheet of a clip: made when somebody asks for it first, then a blob like any other."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.assets import Blob, canonical_json, derived_key
from cluster.errors import Expired, NotFound, WrittenOnce
from cluster.store.port import Store

NUM_COLUMNS, NUM_ROWS, WIDTH_PX = 4, 4, 240
NAME = "spritesheet-1.json"
"""Which blob it is; the number is of the way it is made."""


def spritesheet(store: Store, tenant: str, clip: Mapping[str, Any]) -> dict[str, Any]:
    """The blob, as a file of a receipt. `clip` is one. Raises Expired if the clip is not in the store any more."""
    pointer = derived_key(tenant, clip["sha256"], NAME)
    with contextlib.suppress(NotFound):
        known: dict[str, Any] = json.loads(store.get(pointer))
        if store.exists(known["key"]):
            return known
    made = _described(store.put_blob(tenant, _drawn(store, clip), media_type="image/png"))
    with contextlib.suppress(WrittenOnce):  # another replica, with other codecs, was first: both are right
        store.put_once(pointer, canonical_json(made))
    return made


def _drawn(store: Store, clip: Mapping[str, Any]) -> bytes:
    from cluster import media, sheet  # the codecs are not loaded by a replica that nobody asks for pictures

    with tempfile.TemporaryDirectory(prefix="farm-sprites-") as folder:
        path = Path(folder) / "clip.mp4"
        try:
            store.fetch(clip["key"], path)
        except NotFound as error:
            raise Expired("the clip is kept no longer", remedy="ask for it again") from error
        num_frames, most = media.probe(path).num_frames, NUM_COLUMNS * NUM_ROWS
        count = min(num_frames, most)
        chosen = {round(at * (num_frames - 1) / max(1, count - 1)) for at in range(count)}
        frames = [frame for at, frame in enumerate(media.read_frames(path)) if at in chosen]
    return sheet.spritesheet(frames, num_columns=NUM_COLUMNS, width_px=WIDTH_PX)


def _described(blob: Blob) -> dict[str, Any]:
    return {
        "name": "spritesheet.png",
        "key": blob.key,
        "sha256": blob.sha256,
        "size_bytes": blob.size_bytes,
        "media_type": blob.media_type,
    }
