"""Settings: one frozen object, read once in a composition root and passed down as values."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cluster.errors import InvalidSettings

PREFIX = "FARM_"


class Settings(BaseSettings):
    """Each field is read from FARM_<NAME>; every default works on a laptop."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    home: Path = Field(default_factory=lambda: Path.home() / ".reelfarm", description="ledger, store, models, logs")
    ledger_url: str = Field("", description="sqlite:///FILE or postgresql+psycopg://...; empty: FARM_HOME/ledger.db")
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
    http_body_bytes: int = Field(1 << 20, gt=0, description="a longer body of a request is refused, unread")
    http_upload_bytes: int = Field(32 << 20, gt=0, description="the same for one with files")
    http_read_s: float = Field(30.0, gt=0, description="how long a client may take to send a body")
    image_wait_s: float = Field(120.0, gt=0, description="how long a call for images waits before it is to be repeated")

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

    @property
    def ledger(self) -> str:
        return self.ledger_url or f"sqlite:///{self.home / 'ledger.db'}"

    @property
    def store_dir(self) -> Path:
        return self.home / "store"

    @property
    def faults_dir(self) -> Path:
        """Shared by the processes of a farm under test: which faults have struck."""
        return self.home / "faults"


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
        raise InvalidSettings(f"{name}: {first['msg']}", field=name) from error
