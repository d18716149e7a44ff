"""First frames: a picture that somebody sends, or has somewhere, becomes an asset of the tenant."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from cluster.assets import blob_key
from cluster.errors import InvalidInput
from cluster.frames import fitted
from serve.auth import Caller
from serve.bodies import FilePart
from serve.service import Service, off_the_loop

FIELD = "input_reference"
URL_FIELD = f"{FIELD}[image_url]"
FETCH_S = 20.0
UNSEEN = "0" * 64
"""Stands for a picture in what is only planned."""
_DATA = re.compile(r"data:(image/[a-z0-9.+-]+)?(;[a-z0-9=._+-]+)*;base64,", re.IGNORECASE)

Reference = FilePart | str
"""A file of a form, or the URL of a picture."""


def reference_of(value: Any) -> Reference | None:
    """What `input_reference` means, in any of the ways that clients write it. Raises InvalidInput."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidInput("it is no JSON object", field=FIELD, remedy='write {"image_url": URL}') from error
    if value in (None, ""):
        return None
    if isinstance(value, FilePart):
        return value
    if isinstance(value, Mapping) and set(value) == {"image_url"} and isinstance(value["image_url"], str):
        return value["image_url"]
    raise InvalidInput("it is no picture", field=FIELD, remedy='send one file, or {"image_url": URL}')


async def kept(service: Service, caller: Caller, reference: Reference, size: tuple[int, int]) -> str:
    """The sha256 of the picture as an asset of the caller's show: a PNG of this (width_px, height_px).

    Raises InvalidInput, Unavailable, StoreFull.
    """
    width_px, height_px = size
    async with service.pictures:
        data, field = await _bytes(service, reference)

        def keep() -> str:
            png = fitted(data, width_px=width_px, height_px=height_px, field=field)
            sha256 = hashlib.sha256(png).hexdigest()
            file = {
                "sha256": sha256,
                "key": blob_key(caller.tenant, sha256),
                "size_bytes": len(png),
                "media_type": "image/png",
            }
            service.ledger.name_asset(caller.tenant, {**file, "show": caller.show})
            return service.store.put_blob(caller.tenant, png, media_type="image/png").sha256

        return await off_the_loop(keep)


async def _bytes(service: Service, reference: Reference) -> tuple[bytes, str]:
    if isinstance(reference, FilePart):
        return await off_the_loop(reference.read), FIELD
    if reference[:5].lower() != "data:":
        most_bytes = service.settings.http_upload_bytes
        fetched = await service.guard.get(reference, field=URL_FIELD, most_bytes=most_bytes, wait_s=FETCH_S)
        return fetched.content, URL_FIELD
    head = _DATA.match(reference)
    if head is None:
        raise InvalidInput("the data: URL holds no picture in base64", field=URL_FIELD, remedy="write it in base64")
    try:
        return base64.b64decode(reference[head.end() :], validate=True), URL_FIELD
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("the data: URL is no base64", field=URL_FIELD, remedy="write it in base64") from error
