"""What the ledger remembers of how long things took."""

from __future__ import annotations

from sqlalchemy import Connection, exists, or_, select

from cluster.ledger.schema import attempts, tasks, workers
from cluster.states import AttemptState
from cluster.timing import Sample, shape_of

EARLIER = attempts.alias("earlier")
FIRST = ~exists().where(
    EARLIER.c.task_id == attempts.c.task_id,
    EARLIER.c.generation == attempts.c.generation,
    EARLIER.c.epoch < attempts.c.epoch,
)
"""There was nobody whose checkpoint an attempt could go on from."""


def durations(connection: Connection, limit: int = 200) -> list[tuple[str, float, float]]:
    """(step, predicted seconds, actual seconds) of the newest attempts that succeeded."""
    rows = connection.execute(
        select(tasks.c.step, tasks.c.weight, attempts.c.started_us, attempts.c.ended_us)
        .join(tasks, tasks.c.id == attempts.c.task_id)
        .where(attempts.c.state == AttemptState.SUCCEEDED.value)
        .order_by(attempts.c.started_us.desc())
        .limit(limit)
    )
    return [(step, weight, (ended - started) / 1e6) for step, weight, started, ended in rows]


def gaps(connection: Connection, limit: int = 500) -> list[tuple[str, str | None, dict[str, float]]]:
    """(step, model, longest seconds without progress by stage) of the newest attempts that succeeded."""
    rows = connection.execute(
        select(tasks.c.step, tasks.c.model, attempts.c.facts)
        .join(tasks, tasks.c.id == attempts.c.task_id)
        .where(attempts.c.state == AttemptState.SUCCEEDED.value)
        .order_by(attempts.c.started_us.desc())
        .limit(limit)
    )
    return [(step, model, (facts or {}).get("gap_s", {})) for step, model, facts in rows]


def samples(connection: Connection, limit: int = 500) -> list[Sample]:
    """The newest attempts that succeeded. Who went on from a checkpoint did a part of its task, and teaches nothing;
    nor does who may have, once its facts are gone."""
    rows = connection.execute(
        select(
            tasks.c.step,
            tasks.c.model,
            tasks.c.weight,
            tasks.c.params["spec"].label("spec"),
            tasks.c.params["num_shots"].label("num_shots"),
            attempts.c.facts["resumed_from"].label("resumed_from"),
            attempts.c.started_us,
            attempts.c.ended_us,
            workers.c.accelerator,
        )
        .join(tasks, tasks.c.id == attempts.c.task_id)
        .join(workers, workers.c.id == attempts.c.worker_id)
        .where(attempts.c.state == AttemptState.SUCCEEDED.value, or_(attempts.c.facts.is_not(None), FIRST))
        .order_by(attempts.c.started_us.desc())
        .limit(limit)
    )
    return [
        Sample(
            step=row.step,
            model=row.model,
            shape=shape_of({**(row.spec or {}), "num_shots": row.num_shots}),
            predicted_s=row.weight,
            actual_s=(row.ended_us - row.started_us) / 1e6,
            accelerator=row.accelerator,
        )
        for row in rows
        if row.resumed_from is None
    ]
