"""What a person orders: what cannot be undone says first what it touches, and wants --yes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from decimal import Decimal

from cluster.errors import InvalidInput
from serve.cli import rows
from serve.cli.tables import summed
from serve.cli.wording import dollars, plural, short_worker
from serve.office import DONE, Office, Order, Verb
from serve.rows import Deed

NO_FARM = "no farm is at work here: what is ready waits until one is"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How a person wants it: confirmed beforehand, and answered in JSON."""

    yes: bool
    as_json: bool


def give(office: Office, order: Order, manner: Manner) -> None:
    """To a job or a task. Raises InvalidInput if it is not confirmed."""
    if not manner.yes and order.verb is not Verb.RELEASE:
        seen = office.perform(replace(order, dry_run=True))
        if _asks(order.verb, seen):
            what = summed(seen.tasks or 0, "task", seen.states or {})
            _confirm(order.verb, f"{order.verb} {order.where.name}: {what}; {_costs(seen)}", seen, manner)
    deed = office.perform(order)
    if manner.as_json:
        rows.write([deed])
    else:
        _tell(order, deed)


def drain(office: Office, worker_id: str, manner: Manner, *, reason: str) -> None:
    """A worker gets no more work, and ends or checkpoints what it runs."""
    target = short_worker(worker_id)
    if not manner.yes:
        seen = office.drain(worker_id, reason=reason, dry_run=True)
        others = [f"{seen.others} of others"] if seen.others else []
        runs = ", ".join([*(seen.running or ()), *others])
        costs = f"what it runs ({runs}) is ended or checkpointed" if runs else "it runs nothing now"
        _confirm("drain", f"drain {target}: 1 worker; {costs}", seen, manner)
    deed = office.drain(worker_id, reason=reason, dry_run=False)
    if manner.as_json:
        rows.write([deed])
    else:
        print(f"{target}: {plural(deed.workers or 0, 'worker')} drained")


def set_priority(office: Office, text: str, *, priority: int | None, tier: str | None, as_json: bool) -> None:
    where = office.named(text)
    if where.task is not None:
        raise InvalidInput("a task has the priority of its job", field="JOB", remedy=f"farm pri {where.job} ...")
    if priority is None and tier is None:
        raise InvalidInput("nothing to set", field="--priority", remedy="give --priority N, --tier NAME, or both")
    deed = office.set_priority(where.job, priority=priority, tier=tier)
    if as_json:
        rows.write([deed])
    else:
        print(f"{deed.job} has tier {deed.tier}, priority {deed.priority}")


def _asks(verb: Verb, seen: Deed) -> bool:
    """Whether it may cost something, or is more than a person may have meant."""
    if verb is Verb.HOLD:
        return "running" in (seen.states or {})
    return (seen.tasks or 0) > (1 if verb is Verb.RETRY else 0)


def _tell(order: Order, deed: Deed) -> None:
    verb, target = order.verb, order.where.name
    if order.where.task is None and verb is Verb.HOLD:
        print(f"{target} is on hold: it gets no new work, what runs goes on")
        return
    if order.where.task is None and verb is Verb.RELEASE:
        print(f"{target} is released")
    if deed.tasks is None:
        return
    if not deed.states:
        print(f"nothing to {verb}: {target} has no such task")
        return
    print(f"{target}: {plural(deed.tasks, 'task')} {DONE[verb]}")
    if deed.stale:
        print(f"farm requeue {deed.job} --state stale makes again what is older than its inputs now")
    if deed.farm_runs is False and verb in (Verb.RETRY, Verb.REQUEUE, Verb.RELEASE, Verb.EAT):
        print(NO_FARM)


def _costs(seen: Deed) -> str:
    spent, them = Decimal(seen.spent_usd or 0), "it" if seen.tasks == 1 else "them"
    if not spent:
        said = f"nothing was spent on {them} yet"
    elif seen.verb in (Verb.RETRY, Verb.REQUEUE):
        said = f"{dollars(spent)} was spent on {them}, and would be spent again"
    else:
        said = f"{dollars(spent)} was spent on {them} so far"
    if seen.stale:
        said += f"; {plural(seen.stale, 'task')} built on {them} would be stale"
    if seen.left_out:
        more = " and others" if len(seen.left_out) > 5 else ""
        said += f"; {', '.join(seen.left_out[:5])}{more} stay as they are: tasks of the job were made from them, once"
    return said


def _confirm(verb: str, said: str, seen: Deed, manner: Manner) -> None:
    """Says what would be done, and asks where there is somebody to ask. Raises InvalidInput."""
    if manner.as_json:
        rows.write([seen])
    else:
        print(said, flush=True)
    if manner.as_json or not agreed():
        raise InvalidInput("nothing was done", field=verb, remedy="give --yes to do it")


def agreed() -> bool:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
