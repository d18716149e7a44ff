"""Bytes on their way into S3: one request for small ones, parts beside one another for large ones.

They are hashed before they go, as a whole and part by part, and the server is told what must arrive: it refuses
anything else, where it can. Limits of parts: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from base64 import b64encode
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from botocore.exceptions import BotoCoreError, ClientError

from cluster.store.s3_place import AT_ONCE

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 16 << 20
"""More than this goes in parts, of this size where 10,000 of them are enough."""
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Digest:
    """Of bytes that lie still. `parts` are the CRC-32 of each part of `part_bytes`, where there are more than one."""

    sha256: bytes
    size_bytes: int
    part_bytes: int
    parts: tuple[bytes, ...]

    @property
    def composite(self) -> str:
        """What a server says of an object that came in these parts."""
        return f"{_base64(_crc32(b''.join(self.parts)))}-{len(self.parts)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """`checks`: the server is told the checksums. `once`: it must refuse if the key is taken."""

    client: S3Client
    bucket: str
    key: str
    content: Mapping[str, Any]  # ContentType, Metadata
    checks: bool
    once: bool

    def put(self, reader: BinaryIO, digest: Digest) -> None:
        """`reader` is at its beginning. Raises what boto3 raises; parts that were sent are given up then."""
        if digest.parts:
            self._put_parts(reader, digest)
        else:
            checksum: dict[str, Any] = {"ChecksumSHA256": _base64(digest.sha256)} if self.checks else {}
            self.client.put_object(
                Bucket=self.bucket, Key=self.key, Body=reader, **self.content, **checksum, **self._condition()
            )

    def _condition(self) -> dict[str, Any]:
        return {"IfNoneMatch": "*"} if self.once else {}

    def _put_parts(self, reader: BinaryIO, digest: Digest) -> None:
        where: dict[str, Any] = {"Bucket": self.bucket, "Key": self.key}
        kind: dict[str, Any] = {"ChecksumAlgorithm": "CRC32"} if self.checks else {}
        where["UploadId"] = self.client.create_multipart_upload(**where, **self.content, **kind)["UploadId"]

        def send(number: int) -> CompletedPartTypeDef:
            data = _part(reader, number * digest.part_bytes, digest.part_bytes)
            checksum: dict[str, Any] = {"ChecksumCRC32": _base64(digest.parts[number])} if self.checks else {}
            sent = self.client.upload_part(**where, PartNumber=number + 1, Body=data, **checksum)
            part: Any = {"PartNumber": number + 1, "ETag": sent["ETag"], **checksum}
            return cast("CompletedPartTypeDef", part)

        try:
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="upload") as pool:
                sending = [pool.submit(send, number) for number in range(len(digest.parts))]
                try:
                    parts = [one.result() for one in sending]
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            self.client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts}, **self._condition())
        except BaseException:
            with suppress(ClientError, BotoCoreError):  # the sweeper finds what cannot be given up now
                self.client.abort_multipart_upload(**where)
            raise


def digest_of(reader: BinaryIO, size_bytes: int) -> Digest:
    """Reads all of `reader`, which is at its beginning; `size_bytes` is how much that is.

    The parts are summed on a thread beside: hashlib and zlib hold no lock.
    """
    part_bytes = max(PART_BYTES, -(-size_bytes // 10_000))
    whole, size = hashlib.sha256(), 0
    with ThreadPoolExecutor(1, thread_name_prefix="crc32") as beside:
        offsets = range(0, size_bytes, part_bytes) if size_bytes > part_bytes else ()
        parts = [beside.submit(_crc32_at, reader, offset, part_bytes) for offset in offsets]
        while chunk := reader.read(CHUNK_BYTES):
            whole.update(chunk)
            size += len(chunk)
    return Digest(
        sha256=whole.digest(), size_bytes=size, part_bytes=part_bytes, parts=tuple(part.result() for part in parts)
    )


def _crc32_at(reader: BinaryIO, offset: int, num_bytes: int) -> bytes:
    crc, ends = 0, offset + num_bytes
    while chunk := _part(reader, offset, min(CHUNK_BYTES, ends - offset)):
        crc, offset = zlib.crc32(chunk, crc), offset + len(chunk)
    return crc.to_bytes(4, "big")


def _part(reader: BinaryIO, offset: int, num_bytes: int) -> bytes:
    """Any thread may ask."""
    if isinstance(reader, io.BytesIO):
        return reader.getbuffer()[offset : offset + num_bytes].tobytes()
    return os.pread(reader.fileno(), num_bytes, offset)


def _crc32(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


def _base64(data: bytes) -> str:
    return b64encode(data).decode()
