"""What must hold in a ledger after every step, each with its name: first the log alone, then the tables by it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select

from cluster.ledger.events import Event
from cluster.ledger.ledger import Ledger
from cluster.ledger.schema import attempts, cost_lines, edges, events, jobs, tasks, workers
from cluster.rates import cost_until
from cluster.states import DONE, MOVES, OVER, Move, State, job_state

LOG = select(events).order_by(events.c.job_id, events.c.seq)
TASKS, JOBS, EDGES, ATTEMPTS, LINES, WORKERS = map(select, (tasks, jobs, edges, attempts, cost_lines, workers))
ANSWERS = (Move.COMMIT, Move.CACHE_HIT)


def violations(log: Iterable[Event]) -> list[str]:
    """Of a log of events, in the order of their numbers within each job."""
    broken = []
    last: Counter[str] = Counter()
    state: dict[str, State] = {}
    epoch: dict[str, int] = {}
    answers: Counter[tuple[str, int]] = Counter()
    keys: Counter[tuple[str, str]] = Counter()
    canceled: set[str] = set()
    for e in log:
        last[e.job_id] += 1
        if e.seq != last[e.job_id]:
            broken.append(f"events are numbered without gaps: {e.job_id} has {e.seq} for {last[e.job_id]}")
        if e.kind == "job.cancel":
            canceled.add(e.job_id)
        if e.task_id is None or not e.kind.startswith("task.") or e.kind == "task.free":
            continue
        task, word = e.task_id, e.kind.removeprefix("task.")
        assert e.epoch is not None
        assert e.to_state is not None
        if word == "created":
            keys[e.job_id, e.data["key"]] += 1
            state[task], epoch[task] = State(e.to_state), e.epoch
            continue
        old, new, how = State(str(e.from_state)), State(e.to_state), Move(word)
        if MOVES.get((old, how)) is not new or state.get(task) is not old:
            broken.append(f"allowed moves only: {task} was {state.get(task)} and made {e.kind} from {old} to {new}")
        if e.epoch < epoch[task] or (how is Move.LEASE and e.epoch <= epoch[task]):
            broken.append(f"epochs grow: {task} had {epoch[task]}, now {e.epoch}")
        if how in ANSWERS:
            answers[task, e.data["generation"]] += 1
        if how in (Move.REOPEN, Move.REOPEN_PENDING):
            canceled.discard(e.job_id)
        if how is Move.LEASE and e.job_id in canceled:
            broken.append(f"cancel is monotonic: {task} was leased after its job was canceled")
        state[task], epoch[task] = new, e.epoch
    broken += [f"one committed receipt per task generation: {t}" for t, n in answers.items() if n > 1]
    broken += [f"expansion once: {k} was created {n} times" for k, n in keys.items() if n > 1]
    return broken


@dataclass(frozen=True, slots=True)
class Books:
    """All that a ledger holds, as one transaction saw it."""

    log: list[Event]
    tasks: dict[str, Row[Any]]
    jobs: list[Row[Any]]
    edges: list[Row[Any]]
    attempts: list[Row[Any]]
    lines: list[Row[Any]]
    workers: list[Row[Any]]


def books_of(ledger: Ledger) -> Books:
    return ledger.database.transaction(
        lambda c: Books(
            log=[Event(**row._mapping) for row in c.execute(LOG)],
            tasks={row.id: row for row in c.execute(TASKS)},
            jobs=list(c.execute(JOBS)),
            edges=list(c.execute(EDGES)),
            attempts=list(c.execute(ATTEMPTS)),
            lines=list(c.execute(LINES)),
            workers=list(c.execute(WORKERS)),
        )
    )


def audit(ledger: Ledger) -> list[str]:
    """Of a whole ledger: its log, its tables, its money. Empty when all is well."""
    return flaws_of(books_of(ledger))


def flaws_of(books: Books) -> list[str]:
    return [*violations(books.log), *_tables(books), *_money(books)]


def _tables(books: Books) -> list[str]:
    broken = []
    replayed = {e.task_id: e.to_state for e in books.log if e.to_state is not None}
    newest = {e.job_id: e.seq for e in books.log}
    all_tasks = books.tasks
    needs: dict[str, list[str]] = defaultdict(list)
    for edge in books.edges:
        needs[edge.task_id].append(edge.needs_id)
    running: dict[str, list[Any]] = defaultdict(list)
    for a in books.attempts:
        if a.state == "running":
            running[a.task_id].append(a)
    recount: dict[str, Counter[str]] = defaultdict(Counter)
    for t in all_tasks.values():
        recount[t.job_id][t.state] += 1
        if replayed.get(t.id) != t.state:
            broken.append(f"the log replays to the tables: {t.key} is {t.state}, was {replayed.get(t.id)}")
        live = [a.epoch for a in running[t.id]]
        if live != ([t.epoch] if t.state == "running" else []):
            broken.append(f"one live lease per task: {t.key} is {t.state} {t.epoch}, live {live}")
        unmet = sum(State(all_tasks[i].state) not in DONE for i in needs[t.id])
        if t.unmet != unmet:
            broken.append(f"unmet inputs equal a recount: {t.key} says {t.unmet}, is {unmet}")
        if t.state in ("ready", "backoff", "running", "succeeded") and unmet:
            broken.append(f"no dependant before its inputs: {t.key} is {t.state}")
        if t.state == "pending" and not unmet:
            broken.append(f"what waits, waits for something: {t.key}")
        if t.state == "backoff" and t.not_before_us is None:
            broken.append(f"a back-off has an end: {t.key}")
        if (t.state == "succeeded") > (t.receipt_key is not None):
            broken.append(f"success has a receipt: {t.key}")
    for j in books.jobs:
        counted = {s.value: j._mapping[f"n_{s.value}"] for s in State if j._mapping[f"n_{s.value}"]}
        if counted != dict(recount[j.id]) or j.num_tasks != recount[j.id].total():
            broken.append(f"counters equal a recount: {counted}, {dict(recount[j.id])}")
        if j.seq != newest[j.id]:
            broken.append(f"a job knows its newest event: {j.seq}, {newest[j.id]}")
        over = job_state({State(s): n for s, n in recount[j.id].items()}) in OVER
        if over != (j.ended_us is not None):
            broken.append(f"a job that is over has ended: {over}, {j.ended_us}")
    return broken


def _money(books: Books) -> list[str]:
    broken = []
    nano: Counter[str] = Counter()
    held_us: Counter[str] = Counter()
    by_attempt: dict[str, Counter[str]] = defaultdict(Counter)
    for line in books.lines:
        nano[line.worker_id] += line.nano
        held_us[line.worker_id] += line.held_us
        if line.attempt_id:
            by_attempt[line.attempt_id][line.kind] += line.nano
        if (line.attempt_id is None) != (line.tenant == "farm"):
            broken.append("lines of no task are the farm's own")
    for w in books.workers:
        chain_us = w.since_us - w.spawned_us
        if nano[w.id] != cost_until(w.nano_per_hour, chain_us):
            broken.append(f"ledger balanced: {w.id} {nano[w.id]} {cost_until(w.nano_per_hour, chain_us)}")
        if held_us[w.id] != chain_us * max(1, w.num_accelerators):
            broken.append(f"held time balanced: {w.id}")
    for a in books.attempts:
        booked = by_attempt[a.id]
        good = a.receipt_key is not None or a.state == "running" or (a.facts or {}).get("checkpoint")
        if booked["wasted" if good else "busy"]:
            broken.append(f"only lost work is waste: {a.state} {dict(booked)}")
        if min(booked.values(), default=0) < 0:
            broken.append(f"no kind of cost below zero: {a.state} {dict(booked)}")
    return broken
