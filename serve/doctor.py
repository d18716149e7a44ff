"""`farm doctor`: what a farm of these settings stands on, looked at piece by piece, each with what to do about it.

A check is a function of the settings that yields findings; what it raises is one. It leaves nothing behind.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import Field
from ulid import ULID

from actors.catalog import Catalog
from cluster import farm_lock
from cluster.budgets import CURRENCY, Scope
from cluster.clock import to_datetime
from cluster.errors import FarmError
from cluster.ledger import budgets, chores, outcomes
from cluster.ledger.ledger import Ledger
from cluster.ledger.upkeep import file_of
from cluster.rates import load_rate_card
from cluster.settings import Settings
from cluster.store.opening import open_store, place_of
from cluster.store.port import Store
from serve.crew import fleets_of
from serve.remote import Remote
from serve.rows import Row
from serve.upkeep import AGAIN_S

LITTLE_BYTES = 2 << 30
WITHOUT = {
    "conditional_write": "of two writers of one key both may win: each reads back what it wrote",
    "server_checksum": "what was put is read back to verify it",
    "lifecycle": "the farm itself sweeps what is old",
    "presigned_urls": "downloads pass through the farm",
}
"""What follows where a store lacks something."""


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Finding(Row):
    check: str
    verdict: Verdict
    said: str
    remedy: str | None = None
    facts: dict[str, Any] = Field(default_factory=dict)


Check = Callable[[Settings], Iterable[Finding]]


def examine(settings: Settings, checks: Mapping[str, Check] | None = None) -> Iterator[Finding]:
    """One finding after the other, as they are made."""
    if checks is None:
        checks = ELSEWHERE if settings.url else HERE
    for name, check in checks.items():
        try:
            yield from check(settings)
        except FarmError as error:
            said = str(error.args[0]) if error.args else error.code
            facts = {"code": error.code, **({"field": error.field} if error.field else {})}
            yield Finding(check=name, verdict=Verdict.FAILED, said=said, remedy=error.remedy, facts=facts)


def _home(settings: Settings) -> Iterator[Finding]:
    home = settings.home
    if not home.exists():
        yield Finding(check="home", verdict=Verdict.OK, said=f"{home} is not there yet: the first farm makes it")
        return
    free = shutil.disk_usage(home).free
    holder = farm_lock.holder(home) if farm_lock.is_held(home) else None
    facts = {"path": str(home), "free_bytes": free, "farm_pid": holder}
    said = f"{home}, {free / 1e9:.1f} GB free, " + (f"a farm (pid {holder}) is at work" if holder else "no farm is up")
    if free < LITTLE_BYTES:
        yield Finding(
            check="home", verdict=Verdict.WARNING, said=said, remedy="make room: models and clips need it", facts=facts
        )
    else:
        yield Finding(check="home", verdict=Verdict.OK, said=said, facts=facts)


def _ledger(settings: Settings) -> Iterator[Finding]:
    file = file_of(settings.ledger)
    if file is not None and not file.exists():
        yield Finding(check="ledger", verdict=Verdict.OK, said=f"{file} is not there yet: the first job makes it")
        return
    ledger = Ledger(settings.ledger)
    try:
        kind = "SQLite, for one host" if file else "PostgreSQL, for many hosts"
        term = ledger.view(outcomes.newest_term)
        yield Finding(check="ledger", verdict=Verdict.OK, said=f"{kind}, dispatcher term {term}", facts={"term": term})
        yield from _chores(ledger, up=farm_lock.is_held(settings.home))
        yield from _budgets(ledger, settings.tenant)
    finally:
        ledger.close()


def _chores(ledger: Ledger, *, up: bool) -> Iterator[Finding]:
    now_us = ledger.clock.now_us()
    for told in ledger.view(chores.read):
        age_s = (now_us - told.done_us) / 1e6 if told.done_us is not None else None
        done = f"last done at {to_datetime(told.done_us):%Y-%m-%d %H:%M} UTC" if told.done_us else "never done"
        facts = {"age_s": age_s, "error": told.error}
        if told.error and up:
            yield Finding(
                check=f"chore {told.name}", verdict=Verdict.WARNING, said=f"{done}; the last try: {told.error}",
                remedy=f"it is tried again every {AGAIN_S:.0f} s", facts=facts,
            )  # fmt: skip
        else:
            yield Finding(check=f"chore {told.name}", verdict=Verdict.OK, said=done, facts=facts)


def _budgets(ledger: Ledger, tenant: str) -> Iterator[Finding]:
    """A budget is in the currency of the rate card, or it would have been refused; and it caps something."""
    capped, astray = ledger.budgets(), ledger.view(budgets.astray)
    if capped:
        said = f"{len(capped)}, in {CURRENCY} as the rate card is"
        yield Finding(check="budgets", verdict=Verdict.OK, said=said)
    for one in astray:
        name = f"{one.spec.scope} {one.spec.subject}"
        is_show = one.spec.scope is Scope.SHOW
        said = "has no work yet, or none of its name" if is_show else "was deleted"
        whose = "" if one.spec.tenant == tenant else f"FARM_TENANT={one.spec.tenant} "
        remedy = f"{whose}farm budget rm {name} --yes"
        yield Finding(
            check=f"budget of {name}", verdict=Verdict.WARNING, said=f"the {name} {said}",
            remedy=f"`farm shows` names those that are there; {remedy}" if is_show else remedy,
            facts={"budget": one.id, "tenant": one.spec.tenant},
        )  # fmt: skip


def _rate_card(settings: Settings) -> Iterator[Finding]:
    """All that this farm would have to price has a price today."""
    card = load_rate_card(settings.rate_card)
    held = {("cpu", settings.price_class), *((fleet.accelerator, fleet.price_class) for fleet in fleets_of(settings))}
    models = Catalog.load(settings.home / "models.d").models.values()
    writers = [model.id for model in models if model.role == "writer"]
    gaps = card.gaps(datetime.now(UTC), held=sorted(held), models=writers)
    for gap in gaps:
        yield Finding(
            check="rate card", verdict=Verdict.FAILED, said=str(gap.args[0]), remedy=gap.remedy,
            facts={"code": gap.code, "field": gap.field},
        )  # fmt: skip
    if not gaps:
        where = settings.rate_card or "the project's own"
        yield Finding(check="rate card", verdict=Verdict.OK, said=f"version {card.version}, {where}, without a gap")


def _store(settings: Settings) -> Iterator[Finding]:
    if not settings.store and place_of(settings) is None and not settings.store_dir.exists():
        yield Finding(check="store", verdict=Verdict.OK, said=f"{settings.store_dir} is not there yet: it will be made")
        return
    store = open_store(settings)
    yield _can(store)
    key, data = f"{settings.tenant}/doctor/{ULID()}".lower(), b"written by farm doctor"
    store.put_once(key, data)
    try:
        if store.get(key) != data or key not in store.list(f"{settings.tenant}/doctor/"):
            yield Finding(
                check="store round trip", verdict=Verdict.FAILED, said="what was written is not what is read",
                remedy="look at the logs of the server; do not use it until then",
            )  # fmt: skip
            return
    finally:
        store.delete(key)
    yield Finding(check="store round trip", verdict=Verdict.OK, said="written, read, listed and deleted")
    store.sweep(older_than_s=math.inf)  # removes nothing: whether it may look for what was never finished


def _can(store: Store) -> Finding:
    can = asdict(store.capabilities())
    has = ", ".join(name.replace("_", " ") for name, there in can.items() if there) or "nothing special"
    lacks = "; ".join(f"no {name.replace('_', ' ')}: {WITHOUT[name]}" for name, there in can.items() if not there)
    said = f"{store.name}: {has}" + (f"; {lacks}" if lacks else "")
    if can["conditional_write"]:
        return Finding(check="store", verdict=Verdict.OK, said=said, facts=can)
    remedy = "use a server that honours If-None-Match where more than one farm may write there"
    return Finding(check="store", verdict=Verdict.WARNING, said=said, remedy=remedy, facts=can)


def _farm(settings: Settings) -> Iterator[Finding]:
    """Of a farm that is elsewhere: does it answer, is it ready, and does it know the key."""
    with Remote.of(settings) as remote:
        term = remote.get("/readyz")["dispatcher_term"]
        yield Finding(check="farm", verdict=Verdict.OK, said=f"{settings.url} is ready, dispatcher term {term}")
        models = [model["id"] for model in remote.get("/v1/models")["data"]]
        yield Finding(check="key", verdict=Verdict.OK, said=f"it is known; models: {', '.join(models) or 'none'}")


HERE: Mapping[str, Check] = {"home": _home, "ledger": _ledger, "store": _store, "rate card": _rate_card}
"""What is looked at where the farm is, in this order."""
ELSEWHERE: Mapping[str, Check] = {"farm": _farm}
