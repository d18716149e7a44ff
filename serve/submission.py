"""From a request to one job, whatever is sent again: by its Idempotency-Key, or by the retries of OpenAI's clients.

Those clients repeat a request whose answer they lost without naming it, but they count: `x-stainless-retry-count`. So
an equal request of the same key within ten minutes that calls itself a retry is the same request. Nothing after the
commit of a job can make its answer an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from cluster.assets import canonical_json
from cluster.errors import Expired, NotFound, Unavailable, Unreadable
from cluster.graph import TaskSpec
from cluster.ledger import jobs, outcomes
from cluster.ledger.jobs import Job, JobSpec, Terms
from cluster.ledger.money import Spend
from cluster.ledger.outcomes import Outcome
from cluster.states import State
from serve.auth import Caller
from serve.bodies import FilePart
from serve.service import Service, off_the_loop

RETRY_WINDOW_US = 600_000_000
NAME = "Idempotency-Key"
_BARE = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request for work, as it came: all that makes two of them equal, and whether it says that it is a repetition."""

    name: str | None  # its Idempotency-Key, made unique over tenants, shows and routes
    fingerprint: str
    retry: bool
    arrived_us: int


def asked(request: Request, caller: Caller, service: Service, fields: Mapping[str, Any]) -> Asked:
    """Raises Unreadable for a name that is none. `fields` are the checked ones, so that spelling does not matter."""
    place = [request.scope["path"], caller.tenant, caller.show]
    name = request.headers.get(NAME)
    if name is not None:
        name = _digest([*place, _bare(name)])
    count = request.headers.get("x-stainless-retry-count", "0")
    return Asked(
        name=name,
        fingerprint=_digest([*place, _plain(fields)]),
        retry=count.isascii() and count.isdigit() and count.strip("0") != "",
        arrived_us=service.ledger.clock.now_us(),
    )


async def before(service: Service, caller: Caller, asked: Asked, job: JobSpec) -> Outcome | None:
    """The job that an equal request has made already, as it stands: nothing has to be fetched for it again.

    Raises InvalidInput for a name that another request has used and for a deadline that is over, Expired, Unavailable.
    """
    spec, terms = accepted(caller, asked, job, {})
    job_id = await off_the_loop(lambda: service.ledger.view(lambda c: jobs.made_before(c, spec, terms)))
    if job_id is None:
        spec.check_in_time(asked.arrived_us)
        return None
    return await _found(service, caller, spec, job_id)


async def submit(
    service: Service, caller: Caller, asked: Asked, job: JobSpec, graph: Sequence[TaskSpec]
) -> tuple[Outcome, bool]:
    """(the job as it stands, whether it is new). Raises as `Ledger.submit` does, and nothing once it has committed.

    Expired: the job of this key was deleted since.
    """
    estimate = await off_the_loop(lambda: service.foretold(graph, tier=job.tier))
    spec, terms = accepted(caller, asked, job, estimate)
    job_id, created = await off_the_loop(lambda: service.ledger.submit(spec, graph, terms))
    try:
        return await _found(service, caller, spec, job_id), created
    except Unavailable:
        if not created:
            raise  # nothing was committed for this request: it may be sent again
        return just_submitted(job_id, spec, len(graph), asked.arrived_us), True


async def _found(service: Service, caller: Caller, spec: JobSpec, job_id: str) -> Outcome:
    sight = caller.sight(spec.recipe)
    try:
        return await off_the_loop(lambda: service.ledger.view(lambda c: outcomes.find(c, sight, job_id)))
    except NotFound as error:
        raise deleted_since() from error


def deleted_since() -> Expired:
    return Expired(
        f"this {NAME} was answered before, and what it named was deleted since",
        field=NAME,
        remedy="send another one to have it made again",
    )


def accepted(caller: Caller, asked: Asked, job: JobSpec, estimate: Mapping[str, Any]) -> tuple[JobSpec, Terms]:
    """`job` as the work of this caller, and the terms on which the ledger takes it."""
    spec = dataclasses.replace(
        job,
        tenant=caller.tenant,
        show=caller.show,
        idempotency_key=asked.name,
        asked=asked.fingerprint,
        request={**job.request, "key": caller.key.id, **({"retry": True} if asked.retry else {})},
    )
    return spec, Terms(
        most_in_flight_s=caller.key.in_flight_s,
        only_show=caller.key.show,
        same_since_us=asked.arrived_us - (RETRY_WINDOW_US if asked.retry else 0),
        estimate=estimate,
        key=caller.key.id,
    )


def just_submitted(job_id: str, spec: JobSpec, num_tasks: int, now_us: int) -> Outcome:
    """A job that was committed a moment ago, by a ledger that has stopped answering since."""
    names = ("tenant", "show", "recipe", "version", "title", "spec", "tier", "priority", "deadline_us", "request")
    job = Job(
        **{name: getattr(spec, name) for name in names},
        id=job_id,
        held=False,
        seq=1,
        num_tasks=num_tasks,
        counts={State.READY: num_tasks},
        created_us=now_us,
    )
    return Outcome(job=job, tasks=(), spend=Spend(nano=0, held_s=0.0))


def _bare(value: str) -> str:
    """The draft says a quoted string, clients send it bare: both are the same name."""
    inner = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    if not _BARE.fullmatch(inner):
        raise Unreadable(f"{NAME} has to be 1 to 255 visible characters of ASCII", field=NAME)
    return inner


def _plain(value: Any) -> Any:
    if isinstance(value, FilePart):
        return {"sha256": value.sha256, "media_type": value.media_type}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _digest(document: Any) -> str:
    return hashlib.sha256(canonical_json(document)).hexdigest()
