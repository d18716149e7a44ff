"""Moving a task, and what follows from it: counters, the event, dependants. Every change of a state passes here.

What follows is worked off a queue, not by recursion, so that a chain of thousands of tasks is as good as a short one.

Opening a committed task again leaves nothing behind that is older than what it was made from. It raises the epoch of
every dependant, in whatever state, so that an attempt which answered the old question can neither commit nor, if it
was lost, be adopted later. A dependant that had committed, or waits for a review, becomes STALE, and with it what was
built on it; one that waits to run waits again; one that runs is stopped, its attempt SUPERSEDED and its cost booked as
wasted, rather than left to commit what would be STALE at once. So a task that runs or commits has all its inputs done.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

from sqlalchemy import Connection, Row, Update, bindparam, insert, select, update

from cluster.errors import InvalidGraph, StaleEpoch
from cluster.graph import TaskSpec, checked
from cluster.ledger import attempts, events, hooks, money, questions
from cluster.ledger.database import padded
from cluster.ledger.events import News
from cluster.ledger.schema import edges, jobs, takes, tasks
from cluster.states import DONE, OVER, REOPENING, AttemptState, JobState, Move, State, job_state, moved

READ = select(tasks).where(tasks.c.id == bindparam("task"))
READ_ALL = select(tasks).where(tasks.c.id.in_(bindparam("tasks", expanding=True)))
JOB = select(jobs).where(jobs.c.id == bindparam("job"))
INPUTS = (
    select(tasks, edges.c.task_id)
    .join(edges, edges.c.needs_id == tasks.c.id)
    .where(edges.c.task_id.in_(bindparam("tasks", expanding=True)))
    .order_by(edges.c.task_id, tasks.c.ordinal)
)
DEPENDANTS = (
    select(tasks)
    .join(edges, edges.c.task_id == tasks.c.id)
    .where(edges.c.needs_id.in_(bindparam("tasks", expanding=True)))
    .order_by(tasks.c.job_id, tasks.c.ordinal)
)
MET = update(tasks).where(tasks.c.id == bindparam("task")).values(unmet=tasks.c.unmet - bindparam("num"))
FENCE = (
    update(tasks)
    .where(tasks.c.id == bindparam("task"))
    .values(unmet=tasks.c.unmet + 1, epoch=tasks.c.epoch + 1)
    .returning(*tasks.c)
)
KEY = update(tasks).where(tasks.c.id == bindparam("task")).values(content_key=bindparam("asked"))
GATED = select(tasks).where(
    tasks.c.job_id == bindparam("job"), tasks.c.gate == bindparam("gate"), tasks.c.id != bindparam("but")
)
UNGATE = update(tasks).where(tasks.c.id.in_(bindparam("tasks", expanding=True))).values(gate=None)
TAKE = select(takes).where(takes.c.tenant == bindparam("tenant"), takes.c.content_key == bindparam("key"))


class Batch:
    """Moves of one transaction. What follows from a move is done at once; events and counters are written by `close`.

    A job is told to be over, or open again, after everything that happened to it.
    """

    def __init__(self, connection: Connection, *, now_us: int) -> None:
        self._connection, self._now_us = connection, now_us
        self._queue: deque[Callable[[], None]] = deque()
        self._done: list[Row[Any]] = []
        self._news: dict[str, list[News]] = {}

    def apply(self, task: Row[Any], how: Move, **more: Any) -> State:
        """Moves `task` as the row was read, and all that follows. Raises IllegalMove, or StaleEpoch for an old row.

        `more` are the attempt's id, the reason, data of the event, and columns of the task.
        """
        return self.apply_all(how, [(task, more)])[0]

    def apply_all(self, how: Move, moving: Sequence[tuple[Row[Any], dict[str, Any]]]) -> list[State]:
        """The same move of many tasks, in one statement. All of them set the same columns."""
        new = self._move_all(how, moving)
        self._follow()
        return new

    def answer(self, task: Row[Any], take: Row[Any]) -> None:
        """`task` takes an answer that is there; what that saved is told as `task.cached`."""
        self._answer(task, take)
        self._follow()

    def _follow(self) -> None:
        while self._done or self._queue:
            if self._done:
                done, self._done = self._done, []
                self._inputs_committed(done)
            else:
                self._queue.popleft()()

    def close(self) -> None:
        if self._news:
            news, self._news = self._news, {}
            changed: list[tuple[Row[Any], JobState]] = []
            for job in events.append_all(self._connection, news, at_us=self._now_us):
                before, after = _before(job, news[job.id]), job_state(counts_of(job))
                if before is not after:
                    changed.append((job, after))
                _settle(self._connection, job, over=after in OVER, now_us=self._now_us)
            hooks.tell(self._connection, changed, now_us=self._now_us)

    def _move(self, task: Row[Any], how: Move, **more: Any) -> None:
        self._move_all(how, [(task, more)])

    def _move_all(self, how: Move, moving: Sequence[tuple[Row[Any], dict[str, Any]]]) -> list[State]:
        """Moves of tasks; what follows from them is put into the queue."""
        rows = [self._row(task, how, **more) for task, more in moving]
        names = tuple(name for name in rows[0] if not name.startswith("old_"))
        if self._connection.execute(_update_guarded(names), rows).rowcount != len(rows):
            read = ", ".join(f"{task.id} as {task.state}, epoch {task.epoch}" for task, _ in moving[:5])
            raise StaleEpoch(f"a task has moved on since it was read: {read}")
        return [State(row["state"]) for row in rows]

    def _row(
        self,
        task: Row[Any],
        how: Move,
        *,
        attempt_id: str | None = None,
        reason: str | None = None,
        data: dict[str, Any] | None = None,
        **columns: Any,
    ) -> dict[str, Any]:
        """What a move writes. Its event is told, and what follows from it is put into the queue."""
        old = State(task.state)
        new = moved(old, how)
        if attempt_id is not None:
            columns["attempt_id"] = attempt_id
        if how in REOPENING:
            columns |= {"generation": task.generation + 1, "failures": {}, "content_key": None, "not_before_us": None}
        columns |= {"state": new.value, "reason": reason, "changed_us": self._now_us}
        self._tell(
            task,
            News(
                kind=f"task.{how.value}",
                task_id=task.id,
                attempt_id=attempt_id or (task.attempt_id if old is State.RUNNING else None),
                epoch=columns.get("epoch", task.epoch),
                from_state=old,
                to_state=new,
                data={
                    "key": task.key,
                    "generation": columns.get("generation", task.generation),
                    **({"reason": reason} if reason else {}),
                    **(data or {}),
                },
            ),
        )
        if new in DONE and old not in DONE:
            self._done.append(task)
        elif old in DONE and new not in DONE:
            self._queue.append(partial(self._inputs_reopened, task))
        if old is State.RUNNING and how not in (Move.COMMIT, Move.GATE):
            self._queue.append(partial(self._free_twins, task))
        if how in (Move.APPROVE, Move.CACHE_HIT) and task.gate is not None:
            self._queue.append(partial(self._open_gate, task))
        if new is State.READY:
            self._queue.append(partial(self._ask, task.id))
        return {"old_id": task.id, "old_state": old.value, "old_epoch": task.epoch, **columns}

    def _tell(self, task: Row[Any], news: News) -> None:
        self._news.setdefault(task.job_id, []).append(news)

    def _inputs_committed(self, done: Sequence[Row[Any]]) -> None:
        children, num_met = dict[str, Row[Any]](), Counter[str]()
        for child in self._dependants(done):
            children[child.id] = child
            num_met[child.id] += 1
        if children:
            self._connection.execute(MET, [{"task": child, "num": num} for child, num in num_met.items()])
        for child in children.values():
            if child.unmet == num_met[child.id] and child.state == State.PENDING.value:
                self._move(child, Move.DEPS_MET)

    def _inputs_reopened(self, task: Row[Any]) -> None:
        """What was built on `task` is older than its input now; see the top of this module."""
        reason = f"its input {task.key} was opened again"
        for child in self._dependants([task]):
            fenced = self._connection.execute(FENCE, {"task": child.id}).one()
            state = State(fenced.state)
            if state in DONE or state is State.IN_REVIEW:
                self._move(fenced, Move.INPUTS_CHANGED, reason=reason)
            elif state in (State.READY, State.BACKOFF, State.RUNNING):
                if state is State.RUNNING:
                    note = "inputs reopened"
                    attempts.stop(self._connection, fenced, AttemptState.SUPERSEDED, now_us=self._now_us, note=note)
                data = {"attempt": AttemptState.SUPERSEDED.value} if state is State.RUNNING else None
                self._move(fenced, Move.DEPS_REOPENED, reason=reason, data=data, content_key=None, not_before_us=None)

    def _dependants(self, of: Sequence[Row[Any]]) -> list[Row[Any]]:
        return list(self._connection.execute(DEPENDANTS, {"tasks": padded(task.id for task in of)}))

    def _ask(self, task_id: str) -> None:
        """A task that became READY gets its content key; if the tenant has a committed answer to it, that is taken."""
        task = read(self._connection, task_id)
        assert task is not None
        if not task.cacheable or task.expands or task.state != State.READY.value:
            return
        job = self._connection.execute(JOB, {"job": task.job_id}).one()
        key = questions.key_of(task._asdict(), inputs_of(self._connection, task_id), job.version)
        if key != task.content_key:
            self._connection.execute(KEY, {"task": task_id, "asked": key})
        if not questions.takes_answers(task._asdict()):
            return
        take = self._connection.execute(TAKE, {"tenant": job.tenant, "key": key}).one_or_none()
        if take is not None:
            self._answer(task, take)

    def _answer(self, task: Row[Any], take: Row[Any]) -> None:
        """The question has been answered: no work, no cost."""
        how = Move.CACHE_HIT if task.gate is None or take.approved_us is not None else Move.CACHE_GATE
        answer = {name: getattr(take, name) for name in ("attempt_id", "receipt_key", "files", "result")}
        self._move(task, how, **answer, data={"from_task": take.task_id})
        saved = money.spent_for(self._connection, take.attempt_id)
        data = {"key": task.key, "from_task": take.task_id, "saved_nano": saved.nano, "saved_s": saved.held_s}
        who = {"task_id": task.id, "attempt_id": take.attempt_id, "epoch": task.epoch}
        self._tell(task, News(kind="task.cached", **who, data=data))

    def _open_gate(self, task: Row[Any]) -> None:
        """`task` is approved: the others of its gate need nobody's approval any more."""
        others = self._connection.execute(GATED, {"job": task.job_id, "gate": task.gate, "but": task.id}).all()
        self._connection.execute(UNGATE, {"tasks": padded(other.id for other in others)})
        waiting = [other for other in others if other.state == State.IN_REVIEW.value]
        if waiting:
            self._move_all(Move.WAIVE, [(other, {"reason": f"{task.key} is approved"}) for other in waiting])

    def _free_twins(self, task: Row[Any]) -> None:
        """`task` ran and gave no answer: who waited for it may be leased, which an event of their jobs tells."""
        if task.content_key is None:
            return
        tenant = self._connection.execute(JOB, {"job": task.job_id}).one().tenant
        for twin in questions.waiting_twins(self._connection, {(tenant, task.content_key)}):
            if twin.state == State.READY.value and twin.id != task.id:
                data = {"key": twin.key, "waited_for": task.id}
                self._tell(twin, News(kind="task.free", task_id=twin.id, epoch=twin.epoch, data=data))


def apply(connection: Connection, task: Row[Any], how: Move, *, now_us: int, **more: Any) -> State:
    """One move with all that follows from it; arguments and errors as of `Batch.apply`."""
    batch = Batch(connection, now_us=now_us)
    new = batch.apply(task, how, **more)
    batch.close()
    return new


def read(connection: Connection, task_id: str) -> Row[Any] | None:
    return connection.execute(READ, {"task": task_id}).one_or_none()


def read_all(connection: Connection, task_ids: Sequence[str]) -> dict[str, Row[Any]]:
    return {row.id: row for row in connection.execute(READ_ALL, {"tasks": padded(task_ids)})}


def insert_tasks(
    connection: Connection,
    job_id: str,
    specs: Iterable[TaskSpec],
    *,
    ids: Iterable[str],
    now_us: int,
    by: str | None = None,
) -> list[str]:
    """Adds tasks to a job with their edges; `by` is the attempt that brings them. Returns the new ids in order.

    Raises InvalidGraph.
    """
    existing = dict(connection.execute(select(tasks.c.key, tasks.c.id).where(tasks.c.job_id == job_id)).all())
    ordered = checked(list(specs), existing=frozenset(existing))
    if not ordered:
        raise InvalidGraph("a graph needs at least one task", field="tasks")
    job = connection.execute(select(jobs.c.tenant, jobs.c.version).where(jobs.c.id == job_id)).one()
    new_ids = dict(zip((spec.key for spec in ordered), ids, strict=False))
    id_of = existing | new_ids
    needed = {id_of[n] for spec in ordered for n in spec.needs if n in existing}
    inputs = {
        row.id: row for row in connection.execute(select(tasks).where(tasks.c.job_id == job_id)) if row.id in needed
    }
    done = {i for i, row in inputs.items() if State(row.state) in DONE}
    rows = []
    for n, spec in enumerate(ordered):
        needs = [id_of[need] for need in spec.needs]
        unmet = sum(need not in done for need in needs)
        row: dict[str, Any] = {
            "id": new_ids[spec.key],
            "job_id": job_id,
            "ordinal": len(existing) + n,
            "key": spec.key,
            "step": spec.step,
            "role": spec.role,
            "entry": spec.entry,
            "params": spec.params,
            "model": spec.model,
            "weight": spec.weight,
            "expands": spec.expands,
            "cacheable": spec.cacheable,
            "gate": spec.gate,
            "state": (State.PENDING if unmet else State.READY).value,
            "epoch": 0,
            "generation": 0,
            "unmet": unmet,
            "failures": {},
            "content_key": None,
            "changed_us": now_us,
        }
        if not unmet and questions.takes_answers(row):
            row["content_key"] = questions.key_of(row, [inputs[i] for i in needs], job.version)
        rows.append(row)
    connection.execute(insert(tasks), rows)
    pairs = [{"task_id": id_of[spec.key], "needs_id": id_of[need]} for spec in ordered for need in spec.needs]
    if pairs:
        connection.execute(insert(edges), pairs)
    created = [
        News(
            kind="task.created",
            task_id=row["id"],
            epoch=0,
            to_state=State(row["state"]),
            data={
                **{name: row[name] for name in ("key", "step", "weight", "model")},
                **({"needs": list(spec.needs)} if spec.needs else {}),
                **({"gate": spec.gate} if spec.gate else {}),
                **({"by": by} if by else {}),
            },
        )
        for row, spec in zip(rows, ordered, strict=True)
    ]
    events.append_all(connection, {job_id: created}, at_us=now_us)
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(num_tasks=jobs.c.num_tasks + len(rows)))
    answers = questions.answers(connection, job.tenant, (row["content_key"] for row in rows if row["content_key"]))
    batch = Batch(connection, now_us=now_us)
    for row in rows:
        if row["content_key"] in answers:
            fresh = read(connection, row["id"])
            assert fresh is not None
            batch.answer(fresh, answers[row["content_key"]])
    batch.close()
    return [row["id"] for row in rows]


def inputs_of(connection: Connection, task_id: str) -> list[Row[Any]]:
    """The tasks that this one needs, in the order of their ordinals."""
    return inputs_of_all(connection, [task_id]).get(task_id, [])


def inputs_of_all(connection: Connection, task_ids: Sequence[str]) -> dict[str, list[Row[Any]]]:
    """The same of many tasks, by their ids; those that need nothing are not in it."""
    found: dict[str, list[Row[Any]]] = {}
    for row in connection.execute(INPUTS, {"tasks": padded(task_ids)}):
        found.setdefault(row.task_id, []).append(row)
    return found


def counts_of(job: Row[Any]) -> dict[State, int]:
    return {s: job._mapping[f"n_{s.value}"] for s in State}


def _before(job: Row[Any], news: Sequence[News]) -> JobState:
    """The state of a job before these events, of which its row tells already."""
    counts = Counter(counts_of(job))
    counts.update(one.from_state for one in news if one.from_state is not None)
    counts.subtract(one.to_state for one in news if one.to_state is not None)
    return job_state(counts)


def _settle(connection: Connection, job: Row[Any], *, over: bool, now_us: int) -> None:
    if over != (job.ended_us is not None):
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(ended_us=now_us if over else None))
        events.append(connection, job.id, at_us=now_us, kind="job.ended" if over else "job.reopened")


@cache
def _update_guarded(names: tuple[str, ...]) -> Update:
    """Sets these columns of a task that is as it was read: built once for each set, for every move needs it."""
    return (
        update(tasks)
        .where(
            tasks.c.id == bindparam("old_id"),
            tasks.c.state == bindparam("old_state"),
            tasks.c.epoch == bindparam("old_epoch"),
        )
        .values({name: bindparam(name, type_=tasks.c[name].type) for name in names})
    )
