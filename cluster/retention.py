"""What a farm keeps no longer, by its settings: the events and attempts of jobs long over, files nobody needs; and a
tenant who goes. Source: section 8 of the design."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cluster.collector import Collector, Found, Rules
from cluster.errors import DamagedLedger
from cluster.ledger import erasure, retention
from cluster.ledger.erasure import Holding
from cluster.ledger.ledger import Ledger
from cluster.logs import say
from cluster.settings import Settings
from cluster.store.port import Store

log = logging.getLogger(__name__)
DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgotten:
    """Jobs whose events, and jobs whose attempts, were cut down."""

    events_of: int
    attempts_of: int


def rules_of(settings: Settings) -> Rules:
    kept_s = settings.assets_kept_s or None
    return Rules(kept_s=kept_s, grace_s=settings.assets_grace_s)


def collect(ledger: Ledger, store: Store, settings: Settings) -> Found:
    """By the settings of the farm; nothing if they say that all is kept."""
    rules = rules_of(settings)
    return Found() if rules.kept_s is None else Collector(ledger, store).run(rules)


def forget(ledger: Ledger, settings: Settings) -> Forgotten:
    """Job by job. What was done stays done."""
    now_us, events_of, attempts_of = ledger.clock.now_us(), 0, 0
    if settings.events_kept_s:
        before_us = now_us - round(settings.events_kept_s * 1e6)
        tried = set[str]()
        while some := set(ledger.view(lambda c: retention.unsummed(c, before_us))) - tried:
            tried |= some
            events_of += sum(_summed(ledger, job_id, before_us) for job_id in some)
    if settings.attempts_kept_s:
        before_us = now_us - round(settings.attempts_kept_s * 1e6)
        while num := ledger.forget_attempts(before_us):
            attempts_of += num
    return Forgotten(events_of=events_of, attempts_of=attempts_of)


def _summed(ledger: Ledger, job_id: str, before_us: int) -> bool:
    try:
        return ledger.sum_up(job_id, before_us=before_us)
    except DamagedLedger as error:  # kept, as evidence
        say(log, "The events of a job stay.", action="events.kept", level=logging.ERROR, job=job_id, why=error.line())
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaving:
    """What there is, or was, of a tenant; `num_keys` in the store, whatever the ledger knows of them."""

    ledger: Holding
    num_keys: int


def look_at(ledger: Ledger, store: Store, tenant: str) -> Leaving:
    """Raises StoreUnavailable."""
    return Leaving(
        ledger=ledger.view(lambda c: erasure.holding(c, tenant)), num_keys=sum(1 for _ in store.list(f"{tenant}/"))
    )


def erase(ledger: Ledger, store: Store, tenant: str) -> Leaving:
    """Their work is stopped, their bytes and all that they wrote are gone; their bill stays. Again is fine: then what a
    worker put meanwhile goes too. Returns what there was. Raises StoreUnavailable, LedgerUnavailable; DamagedLedger,
    once all else is gone, for a job whose events convict the farm: its rows are kept, as evidence."""
    was = look_at(ledger, store, tenant)
    kept = list[str]()
    for job_id in ledger.close_tenant(tenant):
        try:
            ledger.erase_job(job_id)
        except DamagedLedger as error:
            ledger.delete_job(job_id)
            kept.append(error.line())
    for key in list(store.list(f"{tenant}/")):
        store.delete(key)
    ledger.forget_tenant(tenant)
    if kept:
        raise DamagedLedger(f"all of {tenant} is gone but {len(kept)} of their jobs: {kept[0]}")
    say(log, "A tenant was erased.", action="tenant.erased", tenant=tenant, jobs=was.ledger.jobs)
    return was
