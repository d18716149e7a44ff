"""What lies in a store and how it is named: keys, blobs, receipts. Pure; `cluster.store` moves the bytes.

    <tenant>/assets/sha256/ab/cd/<sha256>            a blob: immutable, named by its content
    <tenant>/attempts/<attempt id>/receipt.json      what that attempt commits, written once
    <tenant>/attempts/<attempt id>/checkpoint-<n>    a saved denoise, written once
    <tenant>/derived/<sha256>/<name>                 which blob was made from that one, written once; may be made anew

Source: sections 4.3 and 8 of the design.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import DamagedAsset, InvalidInput

MAX_KEY_BYTES = 1024
MAX_SEGMENT_BYTES = 255  # what common file systems hold in one name
RESERVED = "farm"
"""No tenant's name: lines of cost that are nobody's are under it."""
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]*/[a-z0-9][a-z0-9.+-]*")
_BLOB_KEY = re.compile(
    r"(?P<tenant>[^/]+)/assets/sha256/(?P<ab>[0-9a-f]{2})/(?P<cd>[0-9a-f]{2})/(?P<sha256>[0-9a-f]{64})"
)


def canonical_json(data: Any) -> bytes:
    """The one spelling of a document: sorted keys, no spaces, UTF-8, no NaN. Equal documents have equal bytes."""
    try:
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as error:  # UnicodeEncodeError, a ValueError, is a lone surrogate
        raise InvalidInput(f"not a JSON document: {error}") from error


def check_tenant(tenant: str) -> str:
    if tenant == RESERVED:
        raise InvalidInput(
            f"tenant {tenant!r} is the farm itself, on its own bills", field="tenant", remedy="use another name"
        )
    if not _TENANT.fullmatch(tenant):
        raise InvalidInput(
            f"tenant {tenant!r} is not a name",
            field="tenant",
            remedy="use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit",
        )
    return tenant


def check_key(key: str) -> str:
    """`key`, if it is safe on a file system and in S3. Raises InvalidInput with the reason otherwise."""
    reason = _flaw_of_key(key)
    if reason:
        raise InvalidInput(f"key {key[:80]!r} {reason}", field="key")
    return key


def _flaw_of_key(key: str) -> str | None:
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate"
    if len(encoded) > MAX_KEY_BYTES:
        return f"is longer than {MAX_KEY_BYTES} bytes"
    if any(unicodedata.category(character) == "Cc" or character == "\\" for character in key):
        return "holds a control character or a backslash"
    segments = key.split("/")
    if not _TENANT.fullmatch(segments[0]):
        return "does not begin with the name of a tenant"
    if len(segments) < 2:
        return "names a tenant only"
    for segment in segments:
        if not segment or segment.startswith("."):
            return "has a segment that is empty or begins with a dot"
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            return f"has a segment longer than {MAX_SEGMENT_BYTES} bytes"
    return None


def blob_key(tenant: str, sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise InvalidInput(f"{sha256!r} is not a sha256 in lower-case hex", field="sha256")
    return f"{check_tenant(tenant)}/assets/sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def sha256_of_key(key: str) -> str | None:
    """The content address in `key`, None for a key that is not content addressed. A malformed address is refused."""
    match = _BLOB_KEY.fullmatch(key)
    if match and match["sha256"].startswith(match["ab"] + match["cd"]):
        return match["sha256"]
    if "/assets/" in key and key.split("/")[1] == "assets":
        raise InvalidInput(f"key {key[:120]!r} is not a content address", field="key")
    return None


def receipt_key(tenant: str, attempt_id: str) -> str:
    return check_key(f"{check_tenant(tenant)}/attempts/{_one_segment(attempt_id)}/receipt.json")


def checkpoint_key(tenant: str, attempt_id: str, denoise_step: int) -> str:
    if denoise_step < 0:
        raise InvalidInput(f"denoise_step must be 0 or more, got {denoise_step}", field="denoise_step")
    return check_key(f"{check_tenant(tenant)}/attempts/{_one_segment(attempt_id)}/checkpoint-{denoise_step}")


def derived_key(tenant: str, sha256: str, name: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise InvalidInput(f"{sha256!r} is not a sha256 in lower-case hex", field="sha256")
    return check_key(f"{check_tenant(tenant)}/derived/{sha256}/{name}")


def attempts_prefix(tenant: str, attempt_id: str) -> str:
    """Of the keys of one attempt: its checkpoints, its receipt."""
    return check_key(f"{check_tenant(tenant)}/attempts/{_one_segment(attempt_id)}") + "/"


def denoise_step_of(key: str) -> int | None:
    """The denoise step of a checkpoint's key, None for another key."""
    name, dash, step = key.rpartition("/")[2].partition("-")
    return int(step) if (name, dash) == ("checkpoint", "-") and step.isdecimal() else None


def attempt_of(key: str) -> str:
    """The attempt id in the key of a checkpoint or receipt."""
    return key.split("/")[2]


def _one_segment(attempt_id: str) -> str:
    if "/" in attempt_id:
        raise InvalidInput(f"attempt id {attempt_id!r} holds a slash", field="attempt_id")
    return attempt_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """An immutable asset: the key is the content address."""

    key: str
    sha256: str
    size_bytes: int
    media_type: str

    def __post_init__(self) -> None:
        if sha256_of_key(check_key(self.key)) != self.sha256:
            raise InvalidInput(f"blob {self.key!r} is not the address of {self.sha256!r}", field="key")
        check_media_type(self.media_type)


def check_media_type(media_type: str) -> str:
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise InvalidInput(f"{media_type!r} is not a media type such as video/mp4", field="media_type")
    return media_type


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceiptFile:
    """One committed file. `content_sha256` is of what it says (see `cluster.media`), `sha256` of its bytes."""

    name: str
    key: str
    sha256: str
    content_sha256: str
    size_bytes: int
    media_type: str

    @classmethod
    def of(cls, name: str, blob: Blob, *, content_sha256: str | None = None) -> ReceiptFile:
        """`content_sha256` None: the bytes are the content (JSON, text, a checkpoint)."""
        return cls(
            name=name,
            key=blob.key,
            sha256=blob.sha256,
            content_sha256=content_sha256 or blob.sha256,
            size_bytes=blob.size_bytes,
            media_type=blob.media_type,
        )

    @property
    def blob(self) -> Blob:
        return Blob(key=self.key, sha256=self.sha256, size_bytes=self.size_bytes, media_type=self.media_type)


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What one attempt commits. `facts` is a JSON document: how and where it ran (versions, seconds, device)."""

    attempt_id: str
    task_id: str
    epoch: int
    files: tuple[ReceiptFile, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise InvalidInput(f"a receipt names a file twice: {sorted(names)}", field="files")

    def file(self, name: str) -> ReceiptFile | None:
        return next((file for file in self.files if file.name == name), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "attempt_id": self.attempt_id,
            "task_id": self.task_id,
            "epoch": self.epoch,
            "files": [
                {
                    "name": file.name,
                    "key": file.key,
                    "sha256": file.sha256,
                    "content_sha256": file.content_sha256,
                    "size_bytes": file.size_bytes,
                    "media_type": file.media_type,
                }
                for file in self.files
            ],
            "facts": dict(self.facts),
        }

    def to_bytes(self) -> bytes:
        return canonical_json(self.to_json())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Receipt:
        files = tuple(ReceiptFile(**file) for file in data["files"])
        return cls(**{**data, "files": files})

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Raises DamagedAsset if the bytes are no receipt."""
        try:
            return cls.from_json(json.loads(data))
        except (ValueError, TypeError, KeyError, AttributeError, InvalidInput) as error:
            raise DamagedAsset(f"a receipt cannot be read: {error}") from error
