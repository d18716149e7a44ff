"""What an S3 server was seen to do, tried once when a store is opened: servers that call themselves compatible differ.

Source: cases that differ are in the table of servers of the tests (`tests/unit/test_store_s3.py`).
"""

from __future__ import annotations

import hashlib
import logging
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import urllib3
from botocore.exceptions import ClientError

from cluster.errors import StoreUnavailable
from cluster.logs import say
from cluster.store.port import Capabilities
from cluster.store.s3_place import TAKEN, Place, code_of, errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)
FOLDER = ".probe/"
"""Below the prefix; no tenant has a name like it."""
DOES_NOT_KNOW = {"NotImplemented", "InvalidArgument", "InvalidRequest", "501", "400", "MethodNotAllowed", "405"}


def sha256_header(data: bytes) -> str:
    return b64encode(hashlib.sha256(data).digest()).decode()


def probe(client: S3Client, place: Place) -> Capabilities:
    """Raises StoreRefused and StoreUnavailable with the first thing that a store cannot do without."""
    with errors(place, "listing it"):
        client.list_objects_v2(Bucket=place.bucket, Prefix=place.prefix, MaxKeys=1)
    key = f"{place.prefix}{FOLDER}{uuid4().hex}"
    first, checks = b"first", place.checksums == "auto"

    def put(data: bytes, **more: Any) -> bool:
        """Whether it was taken. Raises StoreUnavailable for anything but a clear no."""
        with errors(place, "writing to it"):
            try:
                client.put_object(Bucket=place.bucket, Key=key, Body=data, **more)
            except ClientError as error:
                if code_of(error) in TAKEN | DOES_NOT_KNOW | {"BadDigest", "XAmzContentChecksumMismatch"}:
                    return False
                raise
            return True

    checks = checks and put(first, ChecksumSHA256=sha256_header(first))
    if not checks and not put(first):
        raise StoreUnavailable(f"{place.name} takes no bytes", remedy="look at the logs of the server")
    conditional = not put(b"second", IfNoneMatch="*") and _keeps(client, place, key, first)
    checks = checks and not put(first, ChecksumSHA256=sha256_header(b"other"))
    can = Capabilities(
        conditional_write=conditional,
        server_checksum=checks and _tells_checksum(client, place, key, first),
        lifecycle=_answers(lambda: client.get_bucket_lifecycle_configuration(Bucket=place.bucket)),
        presigned_urls=_presigns(client, place, key),
    )
    with errors(place, "deleting from it"):
        client.delete_object(Bucket=place.bucket, Key=key)
    return can


def _keeps(client: S3Client, place: Place, key: str, data: bytes) -> bool:
    """Whether `key` still holds `data`: a server that refused a second writer has not written either."""
    with errors(place, "reading from it"):
        return client.get_object(Bucket=place.bucket, Key=key)["Body"].read() == data


def _tells_checksum(client: S3Client, place: Place, key: str, data: bytes) -> bool:
    with errors(place, "looking at what it holds"):
        client.put_object(Bucket=place.bucket, Key=key, Body=data, ChecksumSHA256=sha256_header(data))
        head = client.head_object(Bucket=place.bucket, Key=key, ChecksumMode="ENABLED")
    return head.get("ChecksumSHA256") == sha256_header(data)


def _answers(ask: Callable[[], object]) -> bool:
    """Whether the server knows the question: that there are no rules is an answer."""
    try:
        ask()
    except ClientError as error:
        return code_of(error) == "NoSuchLifecycleConfiguration"
    except Exception as error:  # what it lacks it may lack in any way
        say(log, "A question to S3 failed.", action="store.probe", error=type(error).__name__)
        return False
    return True


def _presigns(client: S3Client, place: Place, key: str) -> bool:
    url = client.generate_presigned_url("get_object", Params={"Bucket": place.bucket, "Key": key}, ExpiresIn=60)
    with suppress(urllib3.exceptions.HTTPError), urllib3.PoolManager(retries=False, timeout=10.0) as pool:
        return pool.request("GET", url).status == 200
    return False
