"""Seeds of takes: derived, so that one number on the command line makes a whole film reproducible."""

from __future__ import annotations

import hashlib


def take_seed(seed: int, shot_id: str, *, take: int) -> int:
    """The seed of one take, 0 to 2^31-1. It depends on the shot's name alone, not on its neighbours, so that adding
    or editing another shot leaves this one as it was."""
    digest = hashlib.sha256(f"{seed}/{shot_id}/{take}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF
