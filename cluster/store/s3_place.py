"""Where on S3 a store lies, its client, and the errors of S3 as ours, each with what to do about it.

Keys come from the environment (AWS_*) or from shared files, as boto3 finds them; only its client has them.
"""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from urllib3.exceptions import HTTPError

from cluster.errors import FarmError, InvalidSettings, NotFound, StoreFull, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

AT_ONCE = 8
"""Parts of one file that are under way at the same time."""
KEYS = "AWS_ACCESS_KEY_ID"
NAME_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with ~/.aws/credentials"
UNKNOWN_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "UnrecognizedClientException"}
OLD_KEYS = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException"}
ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
FULL = {"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "NoSpaceLeft", "507"}
DAMAGED_ON_ITS_WAY = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"}
TAKEN = {"PreconditionFailed", "412"}
"""Of a conditional write. A 409 is none of them: another write of the key is under way, and may come to nothing."""
NO_KEY = {"NoSuchKey", "404", "NoSuchUpload"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """`prefix` is empty or ends in a slash. `endpoint` empty: AWS. `public` is the endpoint as clients reach it, if
    that is another one. `keys` is a file with the keys, where the environment has nothing to say."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    public: str = ""
    region: str = ""
    checksums: Literal["auto", "when_required"] = "auto"
    keys: Path | None = None

    @property
    def name(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/") + (f" at {self.endpoint}" if self.endpoint else "")

    def client(self, endpoint: str = "") -> S3Client:
        """Path-style addresses, signature 4, four tries with back-off; `endpoint`: not the place's own.

        Raises StoreRefused without keys, InvalidSettings for what boto3 does not take.
        """
        wanted: Any = "when_supported" if self.checksums == "auto" else "when_required"
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "total_max_attempts": 4},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=4 * AT_ONCE,
            request_checksum_calculation=wanted,
            response_checksum_validation=wanted,
            user_agent_extra="reelfarm",
        )
        try:
            session = boto3.session.Session(**read_keys(self.keys))
            if session.get_credentials() is None:
                raise StoreRefused(f"no keys for {self.name} were found", field=KEYS, remedy=NAME_KEYS)
            region = self.region or session.region_name or "us-east-1"
            url = endpoint or self.endpoint or None
            client: S3Client = session.client("s3", endpoint_url=url, region_name=region, config=config)
            return client
        except (PartialCredentialsError, ProfileNotFound) as error:
            raise StoreRefused(f"no keys for {self.name}: {error}", field=KEYS, remedy=NAME_KEYS) from error
        except (BotoCoreError, ValueError) as error:
            raise InvalidSettings(
                f"{self.name}: {error}", field="FARM_S3_ENDPOINT", remedy="give it as http://HOST:PORT"
            ) from error


def read_keys(keys: Path | None) -> dict[str, Any]:
    if keys is None:
        return {}
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with keys.open() as file:
            parser.read_file(file)
        found = parser["default"]
        return {name: found[name] for name in ("aws_access_key_id", "aws_secret_access_key")}
    except (OSError, configparser.Error, KeyError) as error:
        raise StoreRefused(
            f"{keys} holds no keys ({type(error).__name__})", field="FARM_HOME", remedy="`farm up --s3` makes them"
        ) from error


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def errors(place: Place, doing: str, *, missing: str | None = None) -> Iterator[None]:
    """What S3 raises becomes ours. A key that is not there is NotFound with the words of `missing`.

    A server that refuses is no mistake of who rendered: it is StoreRefused, work waits until somebody has mended it.
    """
    try:
        yield
    except ClientError as error:
        raise _ours(error, place, doing, missing) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StoreRefused(f"no keys for {place.name} were found", field=KEYS, remedy=NAME_KEYS) from error
    except FlexibleChecksumError as error:
        raise StoreUnavailable(f"{place.name}: bytes were damaged on their way while {doing}") from error
    except (BotoCoreError, HTTPError, ConnectionError, TimeoutError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise StoreUnavailable(
            f"{place.name} does not answer while {doing}: {said}", remedy="look whether it is up, and FARM_S3_ENDPOINT"
        ) from error


def _ours(error: ClientError, place: Place, doing: str, missing: str | None) -> FarmError:
    code, said = code_of(error), str(error.response.get("Error", {}).get("Message", ""))[:200]
    refused, remedy, field = "", "", "FARM_STORE"
    if code in NO_KEY and missing is not None:
        return NotFound(missing)
    if code == "NoSuchBucket":
        refused, remedy = f"there is no bucket {place.bucket}", "make it (aws s3 mb), or mend FARM_STORE"
    elif code in UNKNOWN_KEYS:
        refused, remedy, field = "the server does not know these keys", NAME_KEYS, KEYS
    elif code in OLD_KEYS:
        refused, remedy, field = "the keys have expired", "get new ones", KEYS
    elif code == "RequestTimeTooSkewed":
        refused, remedy = "the clock of this machine is wrong, or the server's", "set it (timedatectl, chrony)"
    elif code in ELSEWHERE:
        refused, remedy, field = "the bucket is in another region", "set FARM_S3_REGION to it", "FARM_S3_REGION"
    elif code in ("AccessDenied", "403", "AllAccessDisabled", "AccountProblem"):
        refused = f"the keys may not do this: {doing}"
        remedy = "the bucket may be another's; the keys need s3:ListBucket, GetObject, PutObject, DeleteObject, "
        remedy += "AbortMultipartUpload and ListBucketMultipartUploads on it"
    if refused:
        return StoreRefused(f"{place.name}: {refused}", field=field, remedy=remedy)
    if code in FULL:
        return StoreFull(f"no space left in {place.name}", remedy="make room there, then try again")
    if code in DAMAGED_ON_ITS_WAY:
        return StoreUnavailable(f"{place.name}: bytes were damaged on their way while {doing}")
    return StoreUnavailable(f"{place.name} answered {code or 'nothing'} while {doing}: {said}".rstrip(": "))
