"""The store on S3, and on servers that speak it.

Blobs lie at their content addresses, immutable. A server that was seen to refuse a second writer of a key is asked to;
with any other one a key is looked at before and after it is written, which is enough as long as an attempt has one
worker: of two that race for a key, both may believe that they won. Our own sha256 is in the metadata of each object.
Sources: section 8 of the design; boto3's own guide to checksums.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from base64 import b64decode
from binascii import Error as NoBase64
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from botocore.exceptions import ClientError

from cluster import disk, faults
from cluster.assets import Blob, blob_key, check_key, check_media_type, check_tenant, sha256_of_key
from cluster.errors import DamagedAsset, InvalidInput, NotFound, StoreRefused, StoreUnavailable, WrittenOnce
from cluster.store.port import Capabilities
from cluster.store.s3_place import AT_ONCE, TAKEN, Place, code_of, errors
from cluster.store.s3_probe import FOLDER, probe
from cluster.store.s3_reader import BUFFER_BYTES, RangeReader
from cluster.store.s3_upload import PART_BYTES, Digest, Target, digest_of

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

T = TypeVar("T")
TRIES = 3
"""Of reading a whole answer: boto3 repeats requests, but not answers that broke off."""


class S3Store:
    """Any thread may call it. It asks nobody until it is used: `capabilities` tries the server out, once."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._client = place.client()
        self._signer = place.client(place.public) if place.public else self._client
        self._can: Capabilities | None = None
        self._probing = threading.Lock()

    def __repr__(self) -> str:
        return f"S3Store({self.name})"

    @property
    def name(self) -> str:
        return self._place.name

    def capabilities(self) -> Capabilities:
        """Raises StoreRefused for wrong keys, a bucket that is not there, rights that are missing, a wrong clock."""
        with self._probing:
            if self._can is None:
                self._can = probe(self._client, self._place)
        return self._can

    @faults.at("store.put_blob")
    def put_blob(self, tenant: str, source: Path | bytes, *, media_type: str, rehash: bool = False) -> Blob:
        check_tenant(tenant)
        check_media_type(media_type)
        with disk.opened(source) as reader:
            size_bytes = len(source) if isinstance(source, bytes) else os.fstat(reader.fileno()).st_size
            digest = digest_of(reader, size_bytes)
            sha256 = digest.sha256.hex()
            blob = Blob(
                key=blob_key(tenant, sha256), sha256=sha256, size_bytes=digest.size_bytes, media_type=media_type
            )
            there = self._is_sound(blob, rehash=rehash)
            if there is None and not self._publish(blob.key, reader, digest, media_type, once=True):
                there = self._is_sound(blob, rehash=rehash)  # by another writer, or by a try that nobody heard of
                if there is None:
                    raise StoreUnavailable(f"{blob.key} was taken, and is not there")
            if there is False:  # damaged at rest: the bytes in hand are what the key names
                self._publish(blob.key, reader, digest, media_type, once=False)
        return blob

    @faults.at("store.put_once")
    def put_once(self, key: str, data: bytes) -> None:
        check_key(key)
        if sha256_of_key(key):
            raise InvalidInput(f"{key} is a content address", field="key", remedy="use put_blob")
        conditional = self.capabilities().conditional_write
        taken = not conditional and self.exists(key)
        if not taken:
            digest = digest_of(io.BytesIO(data), len(data))
            taken = not self._publish(key, io.BytesIO(data), digest, "application/octet-stream", once=True)
        try:
            differs = (taken or not conditional) and self.get(key) != data
        except NotFound as error:
            raise StoreUnavailable(f"{key} was taken, and is not there") from error
        if differs:
            raise WrittenOnce(f"{key} has been written with other bytes")

    @faults.at("store.get")
    def get(self, key: str) -> bytes:
        def read() -> bytes:
            body = self._client.get_object(Bucket=self._place.bucket, Key=self._at(key))["Body"]
            with body:
                return body.read()

        data = self._whole(read, f"reading {key}", missing=f"no such asset: {key}")
        sha256 = sha256_of_key(key)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise DamagedAsset(f"{key} does not match its address")
        return data

    def open(self, key: str) -> BinaryIO:
        doing, missing = f"reading {key}", f"no such asset: {key}"
        with errors(self._place, doing, missing=missing):
            size_bytes = self._client.head_object(Bucket=self._place.bucket, Key=self._at(key))["ContentLength"]

        def body_from(offset: int) -> Any:
            with errors(self._place, doing, missing=missing):
                return self._client.get_object(
                    Bucket=self._place.bucket, Key=self._at(key), Range=f"bytes={offset}-{size_bytes - 1}"
                )["Body"]

        def read(body: Any, num_bytes: int) -> bytes:
            with errors(self._place, doing):
                data: bytes = body.read(num_bytes)
                return data

        return io.BufferedReader(RangeReader(size_bytes, body_from, read), BUFFER_BYTES)

    @faults.at("store.fetch")
    def fetch(self, key: str, to: Path) -> None:
        head = self._head(key)
        if head is None:
            raise NotFound(f"no such asset: {key}")
        digest = hashlib.sha256()
        with disk.errors(to.parent), disk.whole_file(to) as temporary:
            with temporary.open("wb") as writer:
                for data in self._parts(key, head["ContentLength"]):
                    digest.update(data)
                    writer.write(data)
            if sha256_of_key(key) not in (None, digest.hexdigest()):
                raise DamagedAsset(f"{key} does not match its address")

    def _parts(self, key: str, size_bytes: int) -> Iterator[bytes]:
        """All of the object, part by part; those that follow are under way meanwhile."""
        doing, missing = f"reading {key}", f"no such asset: {key}"

        def part(first: int) -> bytes:
            last = min(first + PART_BYTES, size_bytes) - 1
            asked: dict[str, Any] = {
                "Bucket": self._place.bucket,
                "Key": self._at(key),
                "Range": f"bytes={first}-{last}",
            }

            def read() -> bytes:
                with self._client.get_object(**asked)["Body"] as body:
                    data: bytes = body.read()
                return data

            data = self._whole(read, doing, missing=missing)
            if len(data) != last - first + 1:
                raise DamagedAsset(f"{key} does not have its {size_bytes} bytes")
            return data

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download") as pool:
            under_way: deque[Future[bytes]] = deque()
            try:
                for first in range(0, size_bytes, PART_BYTES):
                    under_way.append(pool.submit(part, first))
                    if len(under_way) == AT_ONCE:
                        yield under_way.popleft().result()
                while under_way:
                    yield under_way.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def exists(self, key: str) -> bool:
        return self._head(key) is not None

    def list(self, prefix: str) -> Iterator[str]:
        tenant, slash, rest = prefix.partition("/")
        check_tenant(tenant)
        if not slash:
            raise InvalidInput(f"prefix {prefix!r} has no slash after the tenant", field="prefix")
        if rest:
            check_key(prefix.removesuffix("/"))
        return iter(sorted(self._keys(self._place.prefix + prefix), key=str.encode))  # not every server sorts by bytes

    def delete(self, key: str) -> None:
        with errors(self._place, f"deleting {key}"):
            self._client.delete_object(Bucket=self._place.bucket, Key=self._at(key))

    @faults.at("store.verify")
    def verify(self, blob: Blob, *, reread: bool = False) -> None:
        head = self._head(blob.key)
        if head is None:
            raise NotFound(f"no such asset: {blob.key}")
        if head["ContentLength"] != blob.size_bytes:
            raise DamagedAsset(f"{blob.key} holds {head['ContentLength']} bytes, expected {blob.size_bytes} bytes")
        vouched = None if reread or not self.capabilities().server_checksum else _vouched(head, blob.sha256)
        if not (self._reads_as(blob) if vouched is None else vouched):
            raise DamagedAsset(f"{blob.key} does not hold the bytes of its address")

    def presigned(self, key: str, *, name: str, media_type: str, seconds: int) -> str | None:
        if not self.capabilities().presigned_urls:
            return None
        asked = {
            "Bucket": self._place.bucket,
            "Key": self._at(key),
            "ResponseContentType": media_type,
            "ResponseContentDisposition": f'inline; filename="{name}"',
            "ResponseCacheControl": "private, max-age=31536000, immutable",
        }
        with errors(self._place, f"signing for {key}"):
            return self._signer.generate_presigned_url("get_object", Params=asked, ExpiresIn=seconds)

    def sweep(self, *, older_than_s: float) -> int:
        """By the clock of the server, which also dated them."""
        num_removed, bucket = 0, self._place.bucket
        with errors(self._place, "looking for what was never finished"):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket, Prefix=self._place.prefix
            ):
                for upload in page.get("Uploads", []):
                    if _age_s(page, upload["Initiated"]) > older_than_s:
                        self._client.abort_multipart_upload(
                            Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        num_removed += 1
            for found in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=self._place.prefix + FOLDER
            ):
                for one in found.get("Contents", []):
                    if _age_s(found, one["LastModified"]) > older_than_s:
                        self._client.delete_object(Bucket=bucket, Key=one["Key"])
                        num_removed += 1
        return num_removed

    def _at(self, key: str) -> str:
        return self._place.prefix + check_key(key)

    def _keys(self, prefix: str) -> Iterator[str]:
        with errors(self._place, "listing it"):
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._place.bucket, Prefix=prefix
            ):
                for one in page.get("Contents", []):
                    yield one["Key"].removeprefix(self._place.prefix)

    def _publish(self, key: str, reader: BinaryIO, digest: Digest, media_type: str, *, once: bool) -> bool:
        """Write `key`; False if `once` and the key is taken."""
        can = self.capabilities()
        sums = {"sha256": digest.sha256.hex(), **({"crc32": digest.composite} if digest.parts else {})}
        target = Target(
            client=self._client,
            bucket=self._place.bucket,
            key=self._at(key),
            content={"ContentType": media_type, "Metadata": sums},
            checks=can.server_checksum,
            once=once and can.conditional_write,
        )
        reader.seek(0)
        with errors(self._place, f"writing {key}"), faults.point("store.publish"):
            try:
                target.put(reader, digest)
            except ClientError as error:
                if target.once and code_of(error) in TAKEN:
                    return False
                raise
        return True

    def _head(self, key: str) -> HeadObjectOutputTypeDef | None:
        """None if it is not there, but its bucket is: a bucket that has gone is not an empty one."""
        bucket, doing = self._place.bucket, f"looking for {key}"
        try:
            with errors(self._place, doing, missing=key):
                return self._client.head_object(Bucket=bucket, Key=self._at(key), ChecksumMode="ENABLED")
        except (NotFound, StoreRefused) as error:
            with errors(self._place, doing):  # a HEAD says that something is wrong, but not what
                self._client.list_objects_v2(Bucket=bucket, Prefix=self._at(key), MaxKeys=1)
            if isinstance(error, NotFound):
                return None
            raise

    def _is_sound(self, blob: Blob, *, rehash: bool) -> bool | None:
        """Whether its bytes are as many and as they should be; None if there are none."""
        head = self._head(blob.key)
        if head is None:
            return None
        if head["ContentLength"] != blob.size_bytes or head["Metadata"].get("sha256") != blob.sha256:
            return False
        return not rehash or self._reads_as(blob)

    def _reads_as(self, blob: Blob) -> bool:
        with self.open(blob.key) as reader:
            return disk.copy(reader, None) == (blob.sha256, blob.size_bytes)

    def _whole(self, read: Callable[[], T], doing: str, *, missing: str) -> T:
        for tries_left in reversed(range(TRIES)):
            try:
                with errors(self._place, doing, missing=missing):
                    return read()
            except StoreUnavailable:
                if not tries_left:
                    raise
        raise AssertionError("unreachable")


def _vouched(head: Mapping[str, Any], sha256: str) -> bool | None:
    """Whether the checksum that the server made of what it holds is that of `sha256`; None if it says too little."""
    whole, composite = head.get("ChecksumSHA256"), head.get("ChecksumCRC32")
    if whole and "-" not in whole:
        try:
            return b64decode(whole, validate=True).hex() == sha256
        except NoBase64:
            return False
    kept = head.get("Metadata", {})
    if composite and "crc32" in kept and kept.get("sha256") == sha256:
        return bool(composite == kept["crc32"])
    return None


def _age_s(answer: Mapping[str, Any], then: Any) -> float:
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return float((now - then) / timedelta(seconds=1))
