"""Ready tasks in the dispatcher's memory: the first ones of each job, and who gets the next.

`read` asks the ledger in a thread and returns what it saw; everything else happens on the dispatcher's event loop. A
job is read again when it changed: at once if it has another number of READY tasks than expected, or few are left of
those in memory; else within RECHECK_S, so that the queue's own leases do not make it read all jobs all the time. What
is offered here may be gone in the ledger: a lease that fails says so, and the job is read again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.contract import WorkerFacts
from cluster.ledger.leases import Held
from cluster.ledger.ledger import Ledger
from cluster.schedule import Balance, Candidate, Charge, ranked, within_show

WINDOW = 64  # ready tasks of one (job, requirement) that are read at once
FEW = 16  # so many left of them: time to read more
RECHECK_S = 10.0
BARRED_S = 5.0
"""Work that a budget had no room for is offered again after this, or when something of the tenant has ended."""
RESORT_US = 60_000_000
"""A line is sorted anew so often, for tasks become due as time goes by."""

ORDER = slice(3, 8)
"""Of a row of a job, the columns that order it: tenant to deadline."""

Requirement = tuple[str, str | None]  # role, model
Key = tuple[float, float, int, str]


@dataclass(frozen=True, slots=True)
class Look:
    """What the ledger said: all jobs with READY tasks, and the first tasks of those that were read."""

    jobs: dict[str, Any]
    read: frozenset[str]
    tasks: list[Any]


@dataclass(slots=True)
class _Job:
    row: Any
    read_s: float
    num_expected: int  # READY tasks, by what was read and what was leased since
    ready: dict[Requirement, deque[Any]] = field(default_factory=dict)
    full: set[Requirement] = field(default_factory=set)  # the ledger has more of these
    heads: dict[Requirement, Key] = field(default_factory=dict)

    @property
    def show(self) -> str:
        return f"{self.row.tenant}/{self.row.show}"


@dataclass(slots=True)
class _Line:
    """The heads of all jobs of one show, tier and requirement, in their order."""

    sorted_us: int
    heads: list[tuple[Key, Candidate]] = field(default_factory=list)


class Queue:
    """Owned by one dispatcher."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._jobs: dict[str, _Job] = {}
        self._lines: dict[Requirement, dict[tuple[str, str], _Line]] = {}
        self._to_read: set[str] = set()  # jobs of which little is left, or of which something was not true
        self._shares: dict[str, float] = {}
        self._balances: dict[str, Balance] = {}
        self._charges: dict[str, tuple[Balance, Charge, float]] = {}  # by task
        self._taken: set[tuple[str, int]] = set()  # since a look began: it may not have seen that
        self._taken_before: set[tuple[str, int]] = set()
        self._barred: dict[tuple[str, str], tuple[float, float]] = {}  # by (tenant, of whom): from which weight, until
        self._offers_more = False

    def read(self, now_s: float) -> Look:
        """Blocks on the ledger: call it in a thread, one at a time."""
        self._taken_before, self._taken = self._taken, set()
        rows = {row.id: row for row in self._ledger.jobs_with_ready_tasks()}
        read = [i for i, row in rows.items() if self._is_old(self._jobs.get(i), row, now_s)]
        return Look(rows, frozenset(read), self._ledger.ready_tasks(read, WINDOW) if read else [])

    def take_in(self, look: Look, *, now_s: float, now_us: int) -> bool:
        """Puts what was read in the place of what was known. Whether there is anything new, or free again."""
        self._let_in({k: v for k, v in self._barred.items() if v[1] > now_s})
        for job_id in self._jobs.keys() - look.jobs.keys():
            self._forget(job_id)
        self._shares = {f"{row.tenant}/{row.show}": row.share for row in look.jobs.values()}
        gone = self._taken | self._taken_before
        found: dict[str, dict[Requirement, deque[Any]]] = {job_id: {} for job_id in look.read}
        full: dict[str, set[Requirement]] = {job_id: set() for job_id in look.read}
        num_gone = dict.fromkeys(look.read, 0)
        for task in look.tasks:
            requirement = (task.role, task.model)
            if task.place == WINDOW:
                full[task.job_id].add(requirement)
            if (task.id, task.epoch) in gone:
                num_gone[task.job_id] += 1
            else:
                found[task.job_id].setdefault(requirement, deque()).append(task)
        self._to_read -= look.read
        for job_id in look.read:
            self._forget(job_id)
            row = look.jobs[job_id]
            job = _Job(row, now_s, row.n_ready - num_gone[job_id], found[job_id], full[job_id])
            self._jobs[job_id] = job
            for requirement in job.ready:
                self._line_up(job, requirement, now_us)
        is_new, self._offers_more = bool(look.tasks) or self._offers_more, False
        return is_new

    @property
    def is_low(self) -> bool:
        """Whether a look is due: few tasks are left of a job that has more, or what was known was not true."""
        return bool(self._to_read)

    def bar(self, held: Held, *, now_s: float) -> None:
        """A budget has no room for a task of this weight: none under it that weighs as much is offered for a while."""
        of = {"tenant": "", "show": held.subject}.get(held.scope, held.job_id)
        weight, _ = self._barred.get((held.tenant, of), (held.weight, 0.0))
        self._barred[held.tenant, of] = (min(weight, held.weight), now_s + BARRED_S)

    def unbar(self, tenant: str | None = None) -> None:
        """There may be room again, in budgets of the tenant or in any."""
        self._let_in({} if tenant is None else {k: v for k, v in self._barred.items() if k[0] != tenant})

    def _let_in(self, still: dict[tuple[str, str], tuple[float, float]]) -> None:
        self._offers_more = self._offers_more or len(still) < len(self._barred)
        self._barred = still

    def best(self, worker: WorkerFacts, *, fits: Callable[[Any], bool], now_us: int) -> Sequence[Candidate]:
        """What the worker may run, best first: one for each show, tier and requirement. `fits` looks at a row."""
        found = []
        for (role, model), lines in self._lines.items():
            if role == worker.role and (model is None or model in worker.models):
                for line in lines.values():
                    best = self._first(line, (role, model), fits, now_us)
                    if best is not None:
                        found.append(best)
        balance = self._balances.setdefault(worker.fleet, Balance())
        return ranked(found, standing=balance.standing(found, shares=self._shares), now_us=now_us)

    def waiting(self, tier: str) -> list[Any]:
        """The ready tasks of a tier, as rows, that are in memory."""
        mine = [job for job in self._jobs.values() if job.row.tier == tier]
        return [t for job in mine for line in job.ready.values() for t in line if not self._is_barred(job, t)]

    def take(self, candidate: Candidate, *, fleet: str, now_s: float, now_us: int) -> Any:
        """It is about to be leased to a worker of the fleet: nobody else is offered it, and its show is charged what it
        is predicted to take. Returns its row."""
        self._taken.add((candidate.task_id, candidate.epoch))
        balance = self._balances.setdefault(fleet, Balance())
        self._charges[candidate.task_id] = (balance, balance.charge(candidate, now_s=now_s), now_s)
        job = self._jobs[candidate.job_id]
        requirement, place = next(
            (of, n) for of, tasks in job.ready.items() for n, t in enumerate(tasks) if t.id == candidate.task_id
        )
        tasks = job.ready[requirement]
        task = tasks[place]
        self._leave_line(job, requirement)
        del tasks[place]
        self._line_up(job, requirement, now_us)
        job.num_expected -= 1
        if requirement in job.full and len(tasks) < FEW:
            self._to_read.add(candidate.job_id)
        return task

    def missed(self, candidate: Candidate) -> None:
        """The ledger did not lease it: what is known of its job is not true any more."""
        self._taken.discard((candidate.task_id, candidate.epoch))
        self._taken_before.discard((candidate.task_id, candidate.epoch))
        self._to_read.add(candidate.job_id)
        if candidate.task_id in self._charges:
            balance, charge, _ = self._charges.pop(candidate.task_id)
            balance.settle(charge, 0.0)

    def settled(self, task_id: str, *, now_s: float) -> None:
        """Its lease is over, however it ended: its show is charged what it held, not what was predicted."""
        if task_id in self._charges:
            balance, charge, since_s = self._charges.pop(task_id)
            balance.settle(charge, now_s - since_s)

    def _is_old(self, job: _Job | None, row: Any, now_s: float) -> bool:
        if job is None or row.id in self._to_read or row[ORDER] != job.row[ORDER]:
            return True
        return bool(row.seq != job.row.seq) and (row.n_ready != job.num_expected or now_s - job.read_s > RECHECK_S)

    def _first(
        self, line: _Line, requirement: Requirement, fits: Callable[[Any], bool], now_us: int
    ) -> Candidate | None:
        if now_us - line.sorted_us > RESORT_US:
            line.sorted_us = now_us
            line.heads = [(within_show(c, now_us=now_us), c) for _, c in line.heads]
            line.heads.sort(key=_key)
            for key, c in line.heads:
                self._jobs[c.job_id].heads[requirement] = key
        for _, head in line.heads:
            job = self._jobs[head.job_id]
            tasks = job.ready[requirement]
            if fits(tasks[0]) and not self._is_barred(job, tasks[0]):
                return head
            other = next((t for t in tasks if fits(t) and not self._is_barred(job, t)), None)
            if other is not None:
                return _candidate(job.row, other)
        return None

    def _is_barred(self, job: _Job, task: Any) -> bool:
        if not self._barred:
            return False
        found = (self._barred.get((job.row.tenant, of)) for of in ("", job.row.show, job.row.id))
        return any(one is not None and task.weight >= one[0] for one in found)

    def _line_up(self, job: _Job, requirement: Requirement, now_us: int) -> None:
        tasks = job.ready[requirement]
        if tasks:
            lines = self._lines.setdefault(requirement, {})
            line = lines.setdefault((job.row.tier, job.show), _Line(now_us))
            head = _candidate(job.row, tasks[0])
            key = job.heads[requirement] = within_show(head, now_us=now_us)
            insort(line.heads, (key, head), key=_key)

    def _leave_line(self, job: _Job, requirement: Requirement) -> None:
        key = job.heads.pop(requirement, None)
        if key is not None:
            lines, name = self._lines[requirement], (job.row.tier, job.show)
            heads = lines[name].heads
            del heads[bisect_left(heads, key, key=_key)]
            if not heads:
                del lines[name]

    def _forget(self, job_id: str) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None:
            for requirement in list(job.heads):
                self._leave_line(job, requirement)


def _key(head: tuple[Key, Candidate]) -> Key:
    return head[0]


def _candidate(row: Any, task: Any) -> Candidate:
    return Candidate(
        task_id=task.id,
        job_id=row.id,
        epoch=task.epoch,
        show=f"{row.tenant}/{row.show}",
        tier=row.tier,
        priority=row.priority,
        deadline_us=row.deadline_us,
        ready_us=task.changed_us,
        predicted_s=task.weight,
        resident=task.model is not None,  # it is offered to nobody else
    )
