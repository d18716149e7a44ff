"""Which job, task, worker or key a person means by a part of its id; of what may be seen, and of nothing else."""

from __future__ import annotations

from difflib import get_close_matches

from cluster.errors import InvalidInput, NotFound
from cluster.graph import flaw_of_text
from cluster.ledger import names
from cluster.ledger.ledger import Ledger
from cluster.ledger.outcomes import Sight
from serve.rows import Named

SHORTEST = 4
"""Characters of an id that a person has to give."""
LONGEST = 300


def job(ledger: Ledger, sight: Sight, text: str) -> str:
    """Raises NotFound, and InvalidInput for what fits several; so do the others."""
    part = _part(text)
    return _one(ledger.view(lambda c: names.job_ids(c, part, sight)), text, "job", "farm ls")


def job_or_task(ledger: Ledger, sight: Sight, text: str) -> Named:
    """JOB, JOB/KEY, or the id of a task, each as a part that fits one alone."""
    head, slash, key = text.partition("/")
    if slash:
        return _task_of(ledger, job(ledger, sight, head), key)
    part = _part(text)
    jobs = [] if part.startswith("task_") else ledger.view(lambda c: names.job_ids(c, part, sight))
    found = [] if jobs else ledger.view(lambda c: names.task_ids(c, part, sight))
    if not found:
        return Named(job=_one(jobs, text, "job or task", "farm ls"))
    return task(ledger, sight, _one(found, text, "task", "farm tasks JOB"))


def task(ledger: Ledger, sight: Sight, task_id: str) -> Named:
    """By its whole id."""
    row = ledger.view(lambda c: names.task(c, task_id, sight))
    return Named(job=row["job_id"], task=row["key"], id=row["id"])


def worker(ledger: Ledger, text: str) -> str:
    part = _part(text)
    return _one(ledger.view(lambda c: names.worker_ids(c, part)), text, "worker", "farm workers")


def key(ledger: Ledger, text: str, *, tenant: str | None, show: str | None) -> str:
    part = _part(text)
    ids = ledger.view(lambda c: names.api_key_ids(c, part, tenant=tenant, show=show))
    return _one(ids, text, "key", "farm keys ls")


def _task_of(ledger: Ledger, job_id: str, key: str) -> Named:
    known = {row["key"]: row["id"] for row in ledger.view(lambda c: names.keys_of(c, job_id))}
    if key not in known:
        near = get_close_matches(key, known, n=3, cutoff=0.3)
        raise NotFound(
            f"no task {key!r} in {job_id}", field="task",
            remedy=f"use {' or '.join(near)}" if near else "`farm tasks JOB` lists them",
        )  # fmt: skip
    return Named(job=job_id, task=key, id=known[key])


def _part(text: str) -> str:
    flaw = flaw_of_text(text, LONGEST)
    if flaw:
        raise InvalidInput(f"the id {flaw}", field="id", remedy="`farm ls` prints ids")
    return text.strip().lower()


def _one(ids: list[str], text: str, what: str, lister: str) -> str:
    if len(text) < SHORTEST and text not in ids:
        raise InvalidInput(f"{text!r} is too little of an id", field="id", remedy=f"give {SHORTEST} characters of it")
    if not ids:
        raise NotFound(f"no {what} {text}", remedy=f"`{lister}` lists them")
    if len(ids) > 1:
        more = " and more" if len(ids) > 5 else ""
        raise InvalidInput(f"{text} fits several: {', '.join(ids[:5])}{more}", field="id", remedy="give more of it")
    return ids[0]
