"""The tables of a ledger held against its log: what is kept for speed equals what a recount finds."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from cluster.ledger import meters
from cluster.ledger.audit import Log, read_log, violations
from cluster.ledger.replay import SUMMARY
from cluster.ledger.schema import attempts, edges, jobs, tasks, workers
from cluster.rates import cost_of, cost_until
from cluster.states import DONE, OVER, State, job_state


@dataclass(frozen=True, slots=True)
class Books:
    """All that a ledger holds, as one transaction saw it."""

    log: Log
    tasks: dict[str, Row[Any]]
    jobs: list[Row[Any]]
    edges: list[Row[Any]]
    attempts: list[Row[Any]]
    workers: list[Row[Any]]
    meters: dict[meters.Metered, tuple[int, int]]


def read_books(connection: Connection) -> Books:
    return Books(
        log=read_log(connection),
        tasks={row.id: row for row in connection.execute(select(tasks))},
        jobs=list(connection.execute(select(jobs))),
        edges=list(connection.execute(select(edges))),
        attempts=list(connection.execute(select(attempts))),
        workers=list(connection.execute(select(workers))),
        meters=meters.read(connection),
    )


def flaws(books: Books) -> list[str]:
    """Of the log, and of the tables by it. Empty when all is well."""
    found = [*violations(books.log), *_flaws_of_tasks(books), *_flaws_of_jobs(books), *_flaws_of_workers(books)]
    return [*found, *_flaws_of_meters(books)]


def _flaws_of_tasks(books: Books) -> list[str]:
    broken = []
    replayed, ends = dict[str | None, str](), dict[str | None, str]()
    for e in books.log.events:
        if e.kind == SUMMARY:
            replayed |= {task_id: task["state"] for task_id, task in e.data["tasks"].items()}
            ends |= {attempt_id: attempt["state"] for attempt_id, attempt in e.data["attempts"].items()}
        elif e.to_state is not None:
            replayed[e.task_id] = e.to_state
            if "attempt" in e.data:
                ends[e.attempt_id] = e.data["attempt"]
    needs: dict[str, list[str]] = defaultdict(list)
    for edge in books.edges:
        needs[edge.task_id].append(edge.needs_id)
    running: dict[str, list[int]] = defaultdict(list)
    for a in books.attempts:
        if a.state == "running":
            running[a.task_id].append(a.epoch)
        if ends.get(a.id, "running") != a.state:
            broken.append(f"the log replays to the tables: attempt {a.id} is {a.state}, was {ends.get(a.id)}")
    for t in books.tasks.values():
        if replayed.get(t.id) != t.state:
            broken.append(f"the log replays to the tables: {t.key} is {t.state}, was {replayed.get(t.id)}")
        if running[t.id] != ([t.epoch] if t.state == "running" else []):
            broken.append(f"one live lease per task: {t.key} is {t.state} {t.epoch}, live {running[t.id]}")
        unmet = sum(State(books.tasks[i].state) not in DONE for i in needs[t.id])
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
    return broken


def _flaws_of_jobs(books: Books) -> list[str]:
    broken = []
    newest = dict[str, int]()
    for e in books.log.events:
        newest[e.job_id] = e.data["upto"] if e.kind == SUMMARY else max(e.seq, newest.get(e.job_id, 0))
    recount: dict[str, Counter[str]] = defaultdict(Counter)
    for t in books.tasks.values():
        recount[t.job_id][t.state] += 1
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


def _flaws_of_workers(books: Books) -> list[str]:
    broken = []
    nano: Counter[str] = Counter()
    held_us: Counter[str] = Counter()
    for line in books.log.lines:
        if line.worker_id is None:
            continue
        nano[line.worker_id] += line.nano
        held_us[line.worker_id] += line.held_us
    here: dict[str, bool] = {}
    for e in books.log.workers:
        if e.kind in ("worker.join", "worker.leave"):
            here[e.worker_id] = e.kind == "worker.join"
    for w in books.workers:
        chain_us = w.since_us - w.spawned_us
        if nano[w.id] != cost_until(w.nano_per_hour, chain_us):
            broken.append(f"ledger balanced: {w.id} {nano[w.id]} {cost_until(w.nano_per_hour, chain_us)}")
        if held_us[w.id] != chain_us * max(1, w.num_accelerators):
            broken.append(f"held time balanced: {w.id}")
        if here.get(w.id) != (w.ended_us is None):
            broken.append(f"the log replays to the tables: {w.id} is {'gone' if w.ended_us else 'here'}")
    return broken


def _flaws_of_meters(books: Books) -> list[str]:
    """There are lines for just what a meter says that it has been billed for, which is no more than it has counted."""
    broken = []
    booked: Counter[meters.Metered] = Counter()
    for line in books.log.lines:
        if line.quantity is None or line.price_nano is None:
            if line.worker_id is None:
                broken.append(f"meters balance: a line of {line.kind} for {line.tenant}/{line.show} counts nothing")
            continue
        item = line.item or line.kind
        price_class = line.price_class if line.kind == "tokens" else None
        what = meters.Metered(line.tenant, line.show, item, line.model, price_class)
        booked[what] += line.quantity
        if line.nano != cost_of(item, line.price_nano, line.quantity):
            broken.append(f"meters balance: {line.quantity} at {line.price_nano} were priced {line.nano} for {what}")
    for what in booked.keys() | books.meters.keys():
        counted, billed = books.meters.get(what, (0, 0))
        if booked[what] != billed:
            broken.append(f"meters balance: {what} was billed {booked[what]}, its meter says {billed}")
        if billed > counted:
            broken.append(f"meters balance: {what} was billed {billed} of {counted} that were counted")
    return broken
