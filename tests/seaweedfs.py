"""A real S3 server for tests: SeaweedFS on loopback, with the keys of several people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from serve.local_s3 import program, running

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "renders"
PEOPLE = {
    "farm": ["Admin"],
    "reader": [f"Read:{BUCKET}", f"List:{BUCKET}"],
    "stranger": ["Admin:elsewhere"],
}
"""Who may do what; the secret of each is the name, three times."""


def keys_of(name: str) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": name * 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class SeaweedFS:
    endpoint: str

    def client(self, name: str = "farm") -> S3Client:
        """Plain boto3."""
        keys: dict[str, Any] = {key.lower(): value for key, value in keys_of(name).items()}
        config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
        client: S3Client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", config=config, **keys
        )
        return client


@contextmanager
def seaweedfs(folder: Path) -> Iterator[SeaweedFS]:
    """Its bytes and its log lie in `folder`."""
    config = folder / "people.json"
    identities = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": name * 3}], "actions": actions}
        for name, actions in PEOPLE.items()
    ]
    config.write_text(json.dumps({"identities": identities}))
    keys = folder / "credentials"
    keys.write_text("[default]\naws_access_key_id = farm\naws_secret_access_key = farmfarmfarm\n")
    more = (f"-s3.config={config}",)
    with running(program(), folder / "data", keys=keys, environment={}, log=folder, more=more) as port:
        yield SeaweedFS(endpoint=f"http://127.0.0.1:{port}")
