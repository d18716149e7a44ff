"""Settings: one frozen object, read once in a composition root and passed down as values."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cluster.assets import RESERVED
from cluster.errors import InvalidSettings

PREFIX = "FARM_"


class Settings(BaseSettings):
    """Each field is read from FARM_<NAME>; every default works on a laptop."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    home: Path = Field(default_factory=lambda: Path.home() / ".reelfarm", description="ledger, store, models, logs")
    ledger_url: str = Field("", description="sqlite:///FILE or postgresql+psycopg://...; empty: FARM_HOME/ledger.db")
    store: str = Field("", description="a directory or s3://BUCKET/PREFIX; empty: what FARM_HOME has")
    s3_endpoint: str = Field("", description="http(s)://HOST:PORT of an S3 server; empty: AWS. Its keys are AWS_*")
    s3_public_endpoint: str = Field("", description="the same as clients reach it, if they do by another address")
    s3_region: str = Field("", description="empty: AWS_REGION, else us-east-1")
    s3_checksums: Literal["auto", "when_required"] = Field(
        "auto", description="when_required: for servers that choke on checksums; what they hold is read back"
    )
    downloads: Literal["redirect", "proxy"] = Field(
        "redirect", description="whether a store that signs URLs gives out its bytes itself"
    )
    rate_card: Path | None = Field(None, description="YAML with prices; empty: the one that comes with Reelfarm")
    price_class: str = Field("on-demand", description="on-demand, spot, ...: how this machine's time is bought")
    tenant: str = Field("studio", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    show: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    heartbeat_s: float = Field(10.0, gt=0)
    lease_s: float = Field(30.0, gt=0)
    lease_wait_s: float = Field(20.0, gt=0, description="how long a worker's call for work waits")
    ready_timeout_s: float = Field(900.0, gt=0, description="how long a worker may load its model")
    checkpoint_s: float = Field(30.0, gt=0, description="work between two checkpoints of a denoise")
    stuck_s: float = Field(900.0, gt=0, description="no progress for so long is stuck, until a stage is known better")
    stuck_least_s: float = Field(60.0, gt=0, description="no progress for less than this is never stuck")
    preempt_pays_s: float = Field(5.0, ge=0, description="batch work that ends sooner is waited for, not preempted")
    render_threads: int = Field(0, ge=0, description="threads of a render worker on a CPU; 0: all cores of the machine")
    writer_threads: int = Field(1, ge=1, description="threads of the writer on a CPU: more is slower on busy cores")
    http_host: str = Field(
        "127.0.0.1", description="where HTTP is served; keys cross it in the clear, TLS stands before it"
    )
    http_port: int = Field(8000, ge=0, le=65535, description="0: any that is free")
    http_replicas: int = Field(2, ge=1, description="processes that answer HTTP")
    dashboard_port: int = Field(
        8265, ge=0, le=65535, description="of Ray's dashboard, on loopback; 0: any that is free"
    )
    prometheus_port: int = Field(9090, ge=0, le=65535, description="of `farm up --metrics`; 0: any that is free")
    scrape_s: float = Field(15.0, ge=0.1, description="between two looks of that Prometheus")
    warm: str = Field("house-video,house-writer", description="models whose workers `farm up` starts at once")
    fleets: Path | None = Field(None, description="YAML with the fleets of `farm up`, instead of FARM_WARM")
    http_body_bytes: int = Field(1 << 20, gt=0, description="a longer body of a request is refused, unread")
    http_upload_bytes: int = Field(32 << 20, gt=0, description="the same for one with files")
    http_read_s: float = Field(30.0, gt=0, description="how long a client may take to send a body")
    chat_s: float = Field(600.0, gt=0, description="how long the answer to a chat may take")
    chat_keepalive_s: float = Field(
        15.0, gt=0, description="a stream in which nothing comes says so often that it lives"
    )
    chats_per_key: int = Field(16, ge=1, description="chats of one key that a process answers at once")
    image_wait_s: float = Field(120.0, gt=0, description="how long a call for images waits before it is to be repeated")
    private_urls: bool = Field(False, description="webhooks and pictures may be of one's own network, by plain http")
    url_ports: tuple[int, ...] = Field((80, 443), description="as JSON: ports that webhooks and pictures may have")

    bill_s: float = Field(3600.0, gt=0, description="tokens, storage and egress are billed for so long at a time")
    sweep_s: float = Field(3600.0, gt=0, description="between two looks for what nobody will ever ask the store for")
    uploads_kept_s: float = Field(86400.0, gt=0, description="an upload that is not finished by then is abandoned")
    checkpoints_kept_s: float = Field(
        7 * 86400.0, gt=0, description="what an attempt saved and did not commit is kept so long after its end"
    )
    assets_kept_s: float = Field(
        0.0, ge=0, description="files of failed, canceled and deleted jobs are kept so long; 0: for ever"
    )
    assets_grace_s: float = Field(86400.0, ge=0, description="what nobody needs is marked for so long before it goes")
    events_kept_s: float = Field(
        0.0, ge=0, description="the events of a job become one summary so long after its end; 0: never"
    )
    attempts_kept_s: float = Field(
        0.0, ge=0, description="what attempts said (facts, messages) is kept so long after their job; 0: for ever"
    )
    service_provider: str = Field("Reelfarm", min_length=1, description="whose service it is, in exports of costs")
    invoice_issuer: str = Field("", description="who invoices, in exports of costs; empty: the service provider")
    host_provider: str = Field("", description="who owns the machines, in exports of costs")

    url: str = Field("", description="of a farm that is elsewhere: commands ask it, and not the ledger of FARM_HOME")
    api_key: SecretStr | None = Field(None, description="what opens it; never printed, logged or passed as an argument")
    api_key_file: Path | None = Field(None, description="a file with that key, for where an environment can be read")

    faults: str = Field("", description="a plan of faults for tests (cluster/faults.py); empty: nothing is broken")

    @model_validator(mode="after")
    def _beats_before_the_lease_ends(self) -> Settings:
        """One heartbeat that is lost, or late, must not cost a worker its lease."""
        if self.heartbeat_s >= self.lease_s / 2:
            raise InvalidSettings(
                f"a heartbeat every {self.heartbeat_s:g} s is too seldom for leases of {self.lease_s:g} s",
                field=f"{PREFIX}HEARTBEAT_S",
                remedy=f"set it below {self.lease_s / 2:g}, or {PREFIX}LEASE_S above {2 * self.heartbeat_s:g}",
            )
        return self

    @field_validator("tenant")
    @classmethod
    def _is_somebody(cls, value: str) -> str:
        if value == RESERVED:
            raise ValueError("should be another name: this is the farm itself, on its own bills")
        return value

    @field_validator("store")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        """An s3:// names a bucket and, below it, segments that are safe in a key."""
        if "://" in value and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w-][\w.-]*)*/?", value):
            raise ValueError("should be a directory, or like s3://my-bucket/films")
        return value

    @field_validator("s3_endpoint", "s3_public_endpoint")
    @classmethod
    def _is_an_endpoint(cls, value: str) -> str:
        """Without a slash at the end."""
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/")):
            raise ValueError("should be like http://127.0.0.1:8333")
        if parts.username is not None or parts.password is not None:
            raise ValueError("should hold no keys; they are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return value.rstrip("/")

    @field_validator("url")
    @classmethod
    def _is_of_http(cls, value: str) -> str:
        """Without a slash at the end, and without the /v1 that clients of OpenAI want in theirs."""
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("should be like https://farm.example.org")
        if parts.username is not None or parts.password is not None:
            raise ValueError(f"should hold no password; the key is {PREFIX}API_KEY")
        return value.rstrip("/").removesuffix("/v1").rstrip("/")

    def secret(self) -> str:
        """The key for `url`: the one that is set, else what stands in the file. Raises InvalidSettings."""
        if self.api_key is not None:
            name, text = f"{PREFIX}API_KEY", self.api_key.get_secret_value()
        elif self.api_key_file is not None:
            name, text = f"{PREFIX}API_KEY_FILE", _read(self.api_key_file)
        else:
            raise InvalidSettings(
                f"a farm at {self.url} wants a key", field=f"{PREFIX}API_KEY", remedy="`farm keys add` there makes one"
            )
        if not re.fullmatch(r"[\x21-\x7e]+", text.strip()):
            raise InvalidSettings(f"{name} holds no key", field=name, remedy="`farm keys add` prints one")
        return text.strip()

    @property
    def ledger(self) -> str:
        return self.ledger_url or f"sqlite:///{self.home / 'ledger.db'}"

    @property
    def store_dir(self) -> Path:
        """Of a store that is a directory."""
        return Path(self.store).expanduser() if self.store else self.home / "store"

    @property
    def faults_dir(self) -> Path:
        """Shared by the processes of a farm under test: which faults have struck."""
        return self.home / "faults"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        name = f"{PREFIX}API_KEY_FILE"
        raise InvalidSettings(
            f"{name}: {path} cannot be read: {error.strerror}", field=name, remedy="name a file with a key of the farm"
        ) from error


def load() -> Settings:
    """Reads the environment. Raises InvalidSettings for a bad value, and for a FARM_* name that is none of ours."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise InvalidSettings(
                f"no setting is called {name}", field=name, remedy=f"use one of {', '.join(sorted(known))}"
            )
    try:
        return Settings()  # type: ignore[call-arg]  # every field has a default
    except ValidationError as error:
        first = error.errors()[0]
        name = f"{PREFIX}{'.'.join(str(p) for p in first['loc'])}".upper()
        raise InvalidSettings(f"{name}: {first['msg'].removeprefix('Value error, ')}", field=name) from error
