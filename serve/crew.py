"""Which workers a farm has: the fleets of its fleet file, and one for any work that none of those can do."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.accelerators import Fleet
from cluster.errors import InvalidSettings
from cluster.settings import Settings


class Entry(BaseModel):
    """One fleet of the file; `cluster.accelerators.Fleet` says what the fields mean."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")
    role: str = Field(pattern=r"^(render|writer|finish)$")
    model: str | None = None
    accelerator: str = "cpu"
    accelerators_per_worker: int = Field(0, ge=0)
    num_workers: int = Field(1, ge=1)
    price_class: str | None = None
    num_threads: int | None = Field(None, ge=1)
    engine: str | None = None


class File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    fleets: tuple[Entry, ...]


def fleets_of(settings: Settings) -> tuple[Fleet, ...]:
    """The fleets of FARM_FLEETS; none if there is no such file. Raises InvalidSettings with the field."""
    file = settings.fleets
    if file is None:
        return ()
    try:
        found = File.model_validate(yaml.safe_load(Path(file).read_text(encoding="utf-8"))).fleets
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidSettings(f"cannot read the fleets in {file}: {error}", field="FARM_FLEETS") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidSettings(f"{file}: {where}: {first['msg']}", field="FARM_FLEETS") from error
    names = [entry.name for entry in found]
    if len(set(names)) < len(names):
        raise InvalidSettings(f"{file}: two fleets have one name", field="FARM_FLEETS", remedy="name each once")
    return tuple(_fleet(entry, settings) for entry in found)


def fleet_of(role: str, model: str | None, *, gpus: int, settings: Settings) -> Fleet:
    """On a CPU one worker of each role; on `gpus` accelerators a render worker each, pinned."""
    return Fleet(
        name="-".join(part for part in (role, model) if part),
        role=role,
        model=model,
        price_class=settings.price_class,
        num_threads=_threads(role, settings),
        accelerator="GPU" if gpus and role == "render" else "cpu",
        accelerators_per_worker=1 if gpus and role == "render" else 0,
        num_workers=max(1, gpus) if role == "render" else 1,
    )


def _fleet(entry: Entry, settings: Settings) -> Fleet:
    given = entry.model_dump(exclude_none=True)
    return Fleet(**{"price_class": settings.price_class, "num_threads": _threads(entry.role, settings), **given})


def _threads(role: str, settings: Settings) -> int:
    """Of math libraries, on a CPU."""
    if role == "render":
        return settings.render_threads or os.cpu_count() or 1
    return settings.writer_threads if role == "writer" else 1
