"""Which store the settings mean, opened: every composition root asks here and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import InvalidSettings
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from cluster.store.port import Store

if TYPE_CHECKING:
    from cluster.store.s3_place import Place

S3 = "s3://"
LOCAL = "s3"
"""Below FARM_HOME: the S3 server of this farm, if it has one (`serve.local_s3`)."""
SERVER, KEYS, BUCKET = "server.json", "credentials", "renders"


def open_store(settings: Settings) -> Store:
    """FARM_STORE; if that is empty, the S3 server that this FARM_HOME has, else its directory.

    One on S3 is not asked anything yet. Raises StoreUnavailable, StoreRefused, InvalidSettings.
    """
    place = place_of(settings)
    if place is None:
        return DirectoryStore(settings.store_dir)
    from cluster.store.s3 import S3Store  # boto3 takes a while to import

    return S3Store(place)


def place_of(settings: Settings) -> Place | None:
    """Where on S3 the store of these settings lies; None for a directory. Raises InvalidSettings."""
    server = settings.home / LOCAL / SERVER
    on_s3 = settings.store.startswith(S3)
    if settings.store and not on_s3:
        return None
    if not on_s3 and not server.exists():
        return None
    from cluster.store.s3_place import Place

    if not on_s3:
        return Place(
            bucket=BUCKET,
            endpoint=f"http://127.0.0.1:{_port(server)}",
            public=settings.s3_public_endpoint,
            keys=settings.home / LOCAL / KEYS,
        )
    bucket, _, prefix = settings.store.removeprefix(S3).strip("/").partition("/")
    return Place(
        bucket=bucket,
        prefix=f"{prefix}/" if prefix else "",
        endpoint=settings.s3_endpoint,
        public=settings.s3_public_endpoint,
        region=settings.s3_region,
        checksums=settings.s3_checksums,
    )


def _port(server: Path) -> int:
    try:
        return int(json.loads(server.read_text())["port"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidSettings(
            f"{server} cannot be read: {error}", field="FARM_HOME", remedy="`farm up --s3` writes it anew"
        ) from error
