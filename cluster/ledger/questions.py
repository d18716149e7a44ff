"""Content keys in the ledger: what a task asks, who has answered it already, and who is answering it now.

Equal questions of one tenant are answered once. A task that becomes READY takes an answer that is there. While another
task runs with its key it cannot be leased; when that one commits it takes the answer, and when that one gives up, an
event of its job says that it is free. A task that was opened again asks for a new answer: it takes none and waits for
none, and what it commits replaces the older answer. What expands is never taken from an answer, which has no children.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, exists, insert, select, update

from cluster.graph import answer_hashes, content_key
from cluster.ledger.schema import assets, jobs, takes, tasks
from cluster.states import State


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


def keep(
    connection: Connection,
    tenant: str,
    task: Row[Any],
    *,
    attempt_id: str,
    receipt_key: str,
    files: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    now_us: int,
) -> None:
    """Names the committed files, and makes them the answer to the question of `task`, if it has one."""
    for file in files:
        known = select(assets.c.sha256).where(assets.c.tenant == tenant, assets.c.sha256 == file["sha256"])
        if connection.execute(known).one_or_none() is None:
            connection.execute(
                insert(assets).values(
                    tenant=tenant,
                    sha256=file["sha256"],
                    key=file["key"],
                    size=file["size_bytes"],
                    media_type=file["media_type"],
                    created_us=now_us,
                )
            )
    if task.content_key is None:
        return
    where = and_(takes.c.tenant == tenant, takes.c.content_key == task.content_key)
    answer = {
        "task_id": task.id,
        "attempt_id": attempt_id,
        "receipt_key": receipt_key,
        "files": files,
        "result": result,
        "created_us": now_us,
    }
    if connection.execute(select(takes.c.task_id).where(where)).one_or_none() is None:
        connection.execute(insert(takes).values(tenant=tenant, content_key=task.content_key, **answer))
    elif task.generation > 0:
        connection.execute(update(takes).where(where).values(**answer))


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

WAITING_TWINS = (
    select(tasks)
    .join(jobs, jobs.c.id == tasks.c.job_id)
    .where(
        tasks.c.content_key == bindparam("key"),
        tasks.c.state.in_((State.READY.value, State.BACKOFF.value)),
        tasks.c.generation == 0,
        tasks.c.id != bindparam("task"),
        jobs.c.tenant == select(jobs.c.tenant).where(jobs.c.id == bindparam("job")).scalar_subquery(),
    )
    .order_by(tasks.c.id)
)


def waiting_twins(connection: Connection, task: Row[Any]) -> list[Row[Any]]:
    """Tasks of the same tenant that ask the same and would take the answer: READY or in BACKOFF."""
    if task.content_key is None:
        return []
    return list(connection.execute(WAITING_TWINS, {"key": task.content_key, "task": task.id, "job": task.job_id}))
