"""What `cluster.why` looks at: a task, what it needs, who could run it, and who comes first, in one transaction."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, Select, func, or_, select

from cluster.budgets import Need, Reserves
from cluster.errors import NotFound
from cluster.fit import Asked, Place, last_trial
from cluster.ledger import budgets, history, moves, views
from cluster.ledger.outcomes import Sight
from cluster.ledger.schema import attempts, edges, jobs, tasks, workers
from cluster.schedule import TIER_RANK, Candidate, within_show
from cluster.states import DONE, AttemptState, State
from cluster.timing import Paces
from cluster.why import Here, Snapshot, Work

RUNNING: Select[Any] = (
    select(
        tasks.c.id,
        tasks.c.job_id,
        tasks.c.key,
        tasks.c.step,
        tasks.c.role,
        tasks.c.state,
        tasks.c.weight,
        tasks.c.reason,
        tasks.c.failures,
        attempts.c.worker_id,
        attempts.c.started_us,
    )
    .join(attempts, attempts.c.task_id == tasks.c.id)
    .where(attempts.c.state == AttemptState.RUNNING.value)
    .order_by(attempts.c.started_us)
)


def snapshot(
    connection: Connection,
    task_id: str,
    *,
    now_us: int,
    ratios: Mapping[str, float],
    farm_runs: bool | None,
    sight: Sight,
) -> Snapshot:
    """What `sight` does not cover is counted, and not named. Raises NotFound."""
    task = moves.read(connection, task_id)
    if task is None:
        raise NotFound(f"no task {task_id}")
    job = connection.execute(moves.JOB, {"job": task.job_id}).one()
    running: dict[str, Row[Any]] = {row.id: row for row in connection.execute(RUNNING)}
    own = running.get(task_id)
    tries = (
        select(func.count())
        .select_from(attempts)
        .where(attempts.c.task_id == task_id, attempts.c.generation == task.generation)
    )
    capped = budgets.above(connection, task.job_id)
    return Snapshot(
        budgets=tuple(capped),
        need=_need(connection, task) if capped else None,
        now_us=now_us,
        task=_work(task, own, now_us),
        asked=Asked(
            role=task.role,
            model=task.model,
            failures=task.failures or {},
            failed_on=views.failed_on(connection, task_id, task.generation),
        ),
        job_id=task.job_id,
        held=job.held,
        canceled=job.target != "run",
        num_attempts=connection.execute(tries).scalar_one(),
        backoff_s=(task.not_before_us - now_us) / 1e6 if task.not_before_us else None,
        needs=_needs(connection, task, running, now_us) if task.unmet > 0 else (),
        twin=_twin(connection, task, job, running, now_us, sight),
        here=_here(connection, task_id, list(running.values()), now_us),
        ahead=_ahead(connection, task, job, now_us) if task.state == State.READY.value else (),
        ratios=ratios,
        farm_runs=farm_runs,
    )


def _need(connection: Connection, task: Row[Any]) -> Need:
    """What it reserves on the cheapest worker that is here for it; nothing, if there is none."""
    cheapest = connection.execute(
        select(workers.c.nano_per_hour, workers.c.accelerator)
        .where(workers.c.role == task.role, workers.c.ended_us.is_(None))
        .order_by(workers.c.nano_per_hour)
        .limit(1)
    ).one_or_none()
    return Reserves(paces=Paces(history.samples(connection))).need(
        step=task.step,
        model=task.model,
        params=task.params,
        weight=task.weight,
        nano_per_hour=0 if cheapest is None else cheapest.nano_per_hour,
        accelerator=None if cheapest is None else cheapest.accelerator,
    )


def _work(task: Row[Any], attempt: Row[Any] | None, now_us: int, *, direct: bool = True) -> Work:
    """`task` has id, job_id, key, step, role, state, weight and reason; `attempt` is its running one."""
    return Work(
        name=f"{task.job_id}/{task.key}",
        key=task.key,
        step=task.step,
        role=task.role,
        state=State(task.state),
        predicted_s=task.weight,
        reason=task.reason,
        worker_id=attempt.worker_id if attempt else None,
        ran_s=max(0, now_us - attempt.started_us) / 1e6 if attempt else 0.0,
        direct=direct,
    )


def _needs(connection: Connection, task: Row[Any], running: Mapping[str, Row[Any]], now_us: int) -> tuple[Work, ...]:
    """Unmet inputs in the order of the graph, then what these need in turn; nothing that is done."""
    columns = ("id", "job_id", "key", "step", "role", "state", "weight", "reason")
    of_job = select(*(tasks.c[name] for name in columns)).where(tasks.c.job_id == task.job_id)
    rows = {row.id: row for row in connection.execute(of_job.order_by(tasks.c.ordinal))}
    below: dict[str, list[str]] = defaultdict(list)
    pairs = select(edges.c.task_id, edges.c.needs_id).join(tasks, tasks.c.id == edges.c.task_id)
    for task_id, needed in connection.execute(pairs.where(tasks.c.job_id == task.job_id)):
        below[task_id].append(needed)
    found: dict[str, bool] = {}
    ahead = [(needed, True) for needed in below[task.id]]
    while ahead:
        needed, direct = ahead.pop()
        if State(rows[needed].state) not in DONE and not found.get(needed, False):
            if needed not in found:
                ahead += [(further, False) for further in below[needed]]
            found[needed] = direct
    ordered = sorted((i for i in rows if i in found), key=lambda i: not found[i])
    return tuple(_work(rows[i], running.get(i), now_us, direct=found[i]) for i in ordered)


def _twin(
    connection: Connection,
    task: Row[Any],
    job: Row[Any],
    running: Mapping[str, Row[Any]],
    now_us: int,
    sight: Sight,
) -> Work | None:
    """The task that is answering the same question now: `questions.ANSWERED_ELSEWHERE` says that there is one."""
    if task.content_key is None or task.generation > 0 or task.state not in (State.READY.value, State.BACKOFF.value):
        return None
    same = (
        select(tasks.c.id, sight.covers().label("seen"))
        .join(jobs, jobs.c.id == tasks.c.job_id)
        .where(
            tasks.c.content_key == task.content_key,
            tasks.c.state == State.RUNNING.value,
            tasks.c.id != task.id,
            jobs.c.tenant == job.tenant,
        )
    )
    found = connection.execute(same.limit(1)).one_or_none()
    if found is None or found.id not in running:
        return None
    twin = _work(running[found.id], running[found.id], now_us)
    return twin if found.seen else replace(twin, name="a task of another show")


def _here(connection: Connection, task_id: str, running: list[Row[Any]], now_us: int) -> tuple[Here, ...]:
    """The workers that have not left, as the task sees them."""
    rows = connection.execute(
        select(workers).where(workers.c.ended_us.is_(None)).order_by(workers.c.spawned_us, workers.c.id)
    ).all()
    node_of = {row.id: row.node for row in rows}
    others = [run for run in running if run.id != task_id and run.worker_id in node_of]
    busy = Counter(node_of[run.worker_id] for run in others)
    taken = {node_of[run.worker_id] for run in others if last_trial(run.failures or {})}
    return tuple(
        Here(
            place=Place(
                worker_id=row.id,
                role=row.role,
                models=(row.model,) if row.model else (),
                node=row.node,
                draining=(row.drain_reason or "it is drained") if row.drain_us is not None else None,
                num_running_on_node=busy[row.node],
                node_is_taken=row.node in taken,
            ),
            running=tuple(_work(run, run, now_us) for run in others if run.worker_id == row.id),
        )
        for row in rows
    )


def _ahead(connection: Connection, task: Row[Any], job: Row[Any], now_us: int) -> tuple[Work, ...]:
    """Ready tasks that ask for the same kind of worker and come first: by tier, then as within one show.

    What shows are owed is in the memory of the dispatcher alone, so between shows of one tier this is a guess.
    """
    columns = ("id", "job_id", "key", "step", "role", "state", "weight", "reason", "epoch", "changed_us")
    same = or_(tasks.c.model.is_(None), tasks.c.model == (tasks.c.model if task.model is None else task.model))
    query: Select[Any] = (
        select(*(tasks.c[name] for name in columns), jobs.c.tier, jobs.c.priority, jobs.c.deadline_us, jobs.c.show)
        .join(jobs, jobs.c.id == tasks.c.job_id)
        .where(tasks.c.state == State.READY.value, tasks.c.role == task.role, jobs.c.held.is_(False), same)
    )
    own, own_rank = within_show(_candidate(task, job), now_us=now_us), TIER_RANK[job.tier]
    return tuple(
        _work(row, None, now_us)
        for row in connection.execute(query)
        if TIER_RANK[row.tier] < own_rank
        or (row.tier == job.tier and within_show(_candidate(row, row), now_us=now_us) < own)
    )


def _candidate(task: Row[Any], job: Row[Any]) -> Candidate:
    return Candidate(
        task_id=task.id,
        job_id=task.job_id,
        epoch=task.epoch,
        show=job.show,
        tier=job.tier,
        priority=job.priority,
        deadline_us=job.deadline_us,
        ready_us=task.changed_us,
        predicted_s=task.weight,
    )
