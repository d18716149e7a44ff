"""The farm's books, opened without a farm: the ledger of FARM_HOME, and which job, task or worker a person means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from cluster import farm_lock
from cluster import settings as settings_module
from cluster.errors import InvalidInput, NotFound
from cluster.ledger import names
from cluster.ledger.ledger import Ledger
from cluster.ledger.upkeep import file_of
from cluster.settings import Settings
from serve.cli.wording import utf8

SHORTEST = 4
"""Characters of an id that a person has to give."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Office:
    """An open ledger. `farm_runs` None: another machine may have a farm on it, which is not to be seen from here."""

    ledger: Ledger
    settings: Settings
    farm_runs: bool | None

    @property
    def live_us(self) -> int | None:
        """The instant up to which running attempts cost something."""
        return None if self.farm_runs is False else self.ledger.clock.now_us()


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """A job, or one task of it."""

    job_id: str
    key: str | None = None
    task_id: str | None = None

    @property
    def name(self) -> str:
        return self.job_id if self.key is None else f"{self.job_id}/{self.key}"


@contextmanager
def opened() -> Iterator[Office]:
    """The ledger of the settings. Raises NotFound where no farm has worked yet, and what `Ledger` raises."""
    settings = settings_module.load()
    file = file_of(settings.ledger)
    if file is not None and not file.exists():
        raise NotFound(
            f"no farm has worked in {settings.home} yet", field="FARM_HOME",
            remedy="render something, or set FARM_HOME to where that was done",
        )  # fmt: skip
    ledger = Ledger(settings.ledger)
    try:
        yield Office(ledger=ledger, settings=settings, farm_runs=farm_runs(settings))
    finally:
        ledger.close()


def farm_runs(settings: Settings) -> bool | None:
    """A farm of this FARM_HOME is seen by its lock. One of another home is not, if the ledger is somewhere else."""
    inside = file_of(settings.ledger) == Path(settings.home) / "ledger.db"
    return True if farm_lock.is_held(settings.home) else False if inside else None


def job_named(office: Office, text: str) -> str:
    """Raises NotFound, InvalidInput for what fits several."""
    ids = office.ledger.view(lambda c: names.job_ids(c, _part(text)))
    return one(ids, text, "job", "farm ls")


def named(office: Office, text: str) -> Named:
    """JOB, JOB/KEY, or the id of a task, each as a part that fits one alone. Raises NotFound, InvalidInput."""
    job, slash, key = text.partition("/")
    if slash:
        return _task_of(office, job_named(office, job), key)
    part = _part(text)
    jobs = [] if part.startswith("task_") else office.ledger.view(lambda c: names.job_ids(c, part))
    found = [] if jobs else office.ledger.view(lambda c: names.task_ids(c, part))
    if not found:
        return Named(job_id=one(jobs, text, "job or task", "farm ls"))
    task = office.ledger.task(one(found, text, "task", "farm tasks JOB"))
    return Named(job_id=task["job_id"], key=task["key"], task_id=task["id"])


def worker_named(office: Office, text: str) -> str:
    return one(office.ledger.view(lambda c: names.worker_ids(c, _part(text))), text, "worker", "farm workers")


def _task_of(office: Office, job_id: str, key: str) -> Named:
    known = {row["key"]: row["id"] for row in office.ledger.view(lambda c: names.keys_of(c, job_id))}
    if key not in known:
        near = get_close_matches(key, known, n=3, cutoff=0.3)
        raise NotFound(
            f"no task {key!r} in {job_id}", field="TASK",
            remedy=f"use {' or '.join(near)}" if near else "`farm tasks JOB` lists them",
        )  # fmt: skip
    return Named(job_id=job_id, key=key, task_id=known[key])


def _part(text: str) -> str:
    return utf8(text, "ID").strip().lower()


def one(ids: list[str], text: str, what: str, lister: str) -> str:
    if len(text) < SHORTEST and text not in ids:
        raise InvalidInput(f"{text!r} is too little of an id", field="ID", remedy=f"give {SHORTEST} characters of it")
    if not ids:
        raise NotFound(f"no {what} {text}", remedy=f"`{lister}` lists them")
    if len(ids) > 1:
        more = " and more" if len(ids) > 5 else ""
        raise InvalidInput(f"{text} fits several: {', '.join(ids[:5])}{more}", field="ID", remedy="give more of it")
    return ids[0]
