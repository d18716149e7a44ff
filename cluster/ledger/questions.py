"""Content keys in the ledger: what a task asks, who has answered it already, and who is answering it now.

Equal questions of one tenant are answered once. A task that becomes READY takes an answer that is there. While another
task runs with its key it cannot be leased; when that one commits it takes the answer, and when that one gives up, an
event of its job says that it is free. A task that was opened again asks for a new answer: it takes none and waits for
none, and what it commits replaces the older answer. What expands is never taken from an answer, which has no children.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    insert,
    literal,
    or_,
    select,
    update,
)

from cluster.graph import answer_hashes, content_key
from cluster.ledger.database import padded
from cluster.ledger.schema import attempts, jobs, takes, tasks
from cluster.states import AttemptState, State

KNOWN_TAKES = select(takes.c.tenant, takes.c.content_key).where(
    takes.c.tenant.in_(bindparam("tenants", expanding=True)),
    takes.c.content_key.in_(bindparam("names", expanding=True)),
)


def takes_answers(task: Mapping[str, Any]) -> bool:
    """Whether a task, or the row that will be one, may take an answer from the cache."""
    return bool(task["cacheable"]) and not task["expands"] and task["generation"] == 0


def key_of(task: Mapping[str, Any], inputs: Iterable[Row[Any]], version: int) -> str:
    """`version` is of the recipe, as the major version of what answers. Raises InvalidInput for params not JSON."""
    return content_key(
        entry=task["entry"],
        params=task["params"],
        inputs={i.key: answer_hashes(i.files, i.result) for i in inputs},
        engine=str(version),
        model=task["model"],
    )


def answers(connection: Connection, tenant: str, keys: Iterable[str]) -> dict[str, Row[Any]]:
    """The committed takes to these content keys."""
    found: dict[str, Row[Any]] = {}
    asked = list(dict.fromkeys(keys))
    for first in range(0, len(asked), 5_000):  # databases bound the parameters of a statement
        query = select(takes).where(takes.c.tenant == tenant, takes.c.content_key.in_(asked[first : first + 5_000]))
        found |= {row.content_key: row for row in connection.execute(query)}
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """A task with what it answered."""

    tenant: str
    task: Row[Any]
    attempt_id: str
    receipt_key: str
    files: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]


def keep(connection: Connection, committed: Sequence[Committed], *, now_us: int) -> None:
    """What was committed is the answer to the question of each task, if it has one."""
    asked = [c for c in committed if c.task.content_key is not None]
    known = _known(connection, [(c.tenant, c.task.content_key) for c in asked])
    new: dict[tuple[str, str], dict[str, Any]] = {}
    for c in asked:
        name = (c.tenant, c.task.content_key)
        answer = {
            "task_id": c.task.id,
            "attempt_id": c.attempt_id,
            "receipt_key": c.receipt_key,
            "files": c.files,
            "result": c.result,
            "created_us": now_us,
            "approved_us": None,
        }
        if name not in known:
            if name not in new or c.task.generation > 0:
                new[name] = {"tenant": c.tenant, "content_key": c.task.content_key, **answer}
        elif c.task.generation > 0:
            where = and_(takes.c.tenant == c.tenant, takes.c.content_key == c.task.content_key)
            connection.execute(update(takes).where(where).values(**answer))
    if new:
        connection.execute(insert(takes), list(new.values()))


def approve(connection: Connection, tenant: str, task: Row[Any], *, now_us: int) -> None:
    """A person has approved what `task` answered: wherever it is the answer, no gate holds it again."""
    same = and_(takes.c.content_key == task.content_key, takes.c.attempt_id == task.attempt_id)
    connection.execute(update(takes).where(takes.c.tenant == tenant, same).values(approved_us=now_us))


def forget(connection: Connection, tenant: str, sha256: str) -> int:
    """The store has lost these bytes: takes that name them answer nothing any more. Returns how many."""
    names = or_(cast(takes.c.files, Text).contains(sha256), cast(takes.c.result, Text).contains(sha256))
    return int(connection.execute(delete(takes).where(takes.c.tenant == tenant, names)).rowcount)


def _known(connection: Connection, pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Which of these (tenant, content key) have been answered."""
    found: set[tuple[str, str]] = set()
    asked = sorted(pairs)
    for first in range(0, len(asked), 5_000):  # databases bound the parameters of a statement
        part = asked[first : first + 5_000]
        names = {"tenants": padded({t for t, _ in part}), "names": padded(n for _, n in part)}
        found |= {(t, n) for t, n in connection.execute(KNOWN_TAKES, names)}
    return found


def _answered_elsewhere() -> ColumnElement[bool]:
    other, its_job, own_job = tasks.alias("other"), jobs.alias("other_job"), jobs.alias("own_job")
    return and_(
        tasks.c.generation == 0,
        tasks.c.content_key.is_not(None),
        exists(
            select(other.c.id)
            .join(its_job, its_job.c.id == other.c.job_id)
            .join(own_job, own_job.c.tenant == its_job.c.tenant)
            .where(
                other.c.content_key == tasks.c.content_key,
                other.c.state == State.RUNNING.value,
                other.c.id != tasks.c.id,
                own_job.c.id == tasks.c.job_id,
            )
        ),
    )


ANSWERED_ELSEWHERE = _answered_elsewhere()
"""Of a row of `tasks` in its first generation: another task of its tenant runs with the same content key."""


def _being_answered() -> Select[Any]:
    other, its_job = tasks.alias("asked"), jobs.alias("asking_job")
    return (
        select(its_job.c.tenant, other.c.content_key)
        .join(other, other.c.id == attempts.c.task_id)
        .join(its_job, its_job.c.id == other.c.job_id)
        .where(
            attempts.c.state == literal(AttemptState.RUNNING.value, literal_execute=True),  # finds its index
            other.c.state == State.RUNNING.value,
            other.c.content_key.is_not(None),
        )
    )


BEING_ANSWERED = _being_answered()
"""(tenant, content key) of all that runs: for many tasks this is looked up once, the other for each of them."""

WAITING_TWINS = (
    select(tasks, jobs.c.tenant)
    .join(jobs, jobs.c.id == tasks.c.job_id)
    .where(
        tasks.c.content_key.in_(bindparam("keys", expanding=True)),
        tasks.c.state.in_((State.READY.value, State.BACKOFF.value)),
        tasks.c.generation == 0,
    )
    .order_by(tasks.c.id)
)


def waiting_twins(connection: Connection, asked: Collection[tuple[str, str]]) -> list[Row[Any]]:
    """Tasks that ask one of these (tenant, content key) and would take the answer: READY or in BACKOFF."""
    rows = connection.execute(WAITING_TWINS, {"keys": padded({key for _, key in asked})}) if asked else ()
    return [row for row in rows if (row.tenant, row.content_key) in asked]
