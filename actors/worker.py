"""The worker, as a plain class: it pulls orders, runs them on its engine, and reports until it is answered.

Two threads: one renders, one keeps the leases alive. A report that could not be delivered stays in the journal.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeVar

from ulid import ULID

from actors.bench import WorkBench
from actors.contract import PUT_AGAIN, SICK, Desk, Engine, Json, Made, MadeFile, Order, Outcome, Report, WorkerFacts
from actors.reach import Reach
from cluster import disk, faults
from cluster.assets import Blob, Receipt, ReceiptFile
from cluster.errors import (
    Canceled,
    EngineFailed,
    FarmError,
    Interrupted,
    OutOfMemory,
    StaleEpoch,
    StoreFull,
    Unavailable,
    WorkerLost,
)
from cluster.logs import about, say
from cluster.metrics import Labels, Meters
from cluster.store.port import Store, put_receipt

T = TypeVar("T")
log = logging.getLogger(__name__)
RETRY_AFTER_S = 1.0


class Worker:
    """Runs orders one after the other. `execute` is replaced by the actor shell so that Ray shows each order."""

    def __init__(
        self,
        facts: WorkerFacts,
        *,
        engine: Engine,
        desk: Desk,
        store: Store,
        scratch: Path,
        heartbeat_s: float,
        execute: Callable[[Order], None] | None = None,
        meters: Meters | None = None,
    ) -> None:
        self.facts = facts
        self._engine, self._desk, self._store = engine, Reach(desk), store
        self._scratch = scratch / facts.id
        self._journal = self._scratch / "journal"
        self._heartbeat_s = heartbeat_s
        self._execute = execute or self.execute
        self._stopping = threading.Event()
        self._beat_now = threading.Event()
        self._bench: WorkBench | None = None
        self._made: tuple[MadeFile, ...] = ()  # what the newest attempt has put into the store
        self._sick: str | None = None
        self._interrupted: str | None = None
        self._meters = meters or Meters()
        self._meters.watch("farm_checkpoint_age_seconds", self._at_stake)

    def start(self) -> Json:
        """Loads the engine. Returns its facts. Raises what the engine raises."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._journal.mkdir(parents=True)
        began_s = time.monotonic()
        facts = self._engine.start()
        self._meters.count("farm_stage_seconds_total", time.monotonic() - began_s, model=self._model, stage="load")
        return facts

    def run(self, facts: WorkerFacts | None = None) -> None:
        """Joins, then pulls until it is told to stop. Blocks. The heart beats in a thread of its own.

        Raises WorkerLost if it was taken out of service because it is sick: it is replaced, not missed.
        """
        self.facts = facts or self.facts
        heart = threading.Thread(target=self._beat_until_stopped, name="heart", daemon=True)
        with about(worker=self.facts.id):
            self._insist(lambda: self._desk.join(self.facts))
            heart.start()
            while not self._stopping.is_set():
                order = self._next_order()
                if order is not None:
                    self._execute(order)
                else:
                    self._beat_now.set()  # a drained worker gets nothing, at once: its heart is told to leave
            self._beat_now.set()
            heart.join()
            self._insist(lambda: self._desk.leave(self.facts.id), tries=3)
        if self._sick is not None:
            raise WorkerLost(f"worker {self.facts.id} was taken out of service: {self._sick}")

    def stop(self) -> None:
        """Finish what runs, then leave."""
        self._stopping.set()
        self._insist(lambda: self._desk.dismiss(self.facts.id), tries=1)

    def interrupt(self, why: str = "drained") -> None:
        """Stop what runs at its next denoise step, then leave; it uses no retry."""
        self._interrupted = why
        self._stopping.set()
        bench = self._bench
        if bench is not None:
            bench.stop(why)
        self.stop()

    def break_off(self, why: str) -> None:
        """Its engine has died: it leaves, and is replaced."""
        self._out_of_service(f"{SICK}{why}")
        self.stop()

    def close(self) -> None:
        self._engine.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def execute(self, order: Order) -> None:
        """One order: run, upload, receipt, report. Never raises for a failure of the order itself."""
        scratch = self._scratch / order.attempt_id
        scratch.mkdir(parents=True, exist_ok=True)
        bench = WorkBench(order, store=self._store, scratch=scratch, tell=self._beat_now.set, meters=self._meters)
        self._bench = bench
        if self._interrupted is not None:  # between the lease and now
            bench.stop(self._interrupted)
        with about(job=order.job_id, task=order.task_id, attempt=order.attempt_id, worker=self.facts.id):
            try:
                report = self._attempt(order, bench)
                while self._deliver(report) == PUT_AGAIN:
                    say(log, "The files of a take are put again.", action="upload.again")
                    time.sleep(RETRY_AFTER_S)
                    for put in self._puts(order):
                        self._insist(put)
            finally:
                self._bench = None
                shutil.rmtree(scratch, ignore_errors=True)

    def _attempt(self, order: Order, bench: WorkBench) -> Report:
        try:
            made = self._engine.run(bench)
            bench.progress("upload", 0, max(1, len(made.files)))
            key = self._upload(order, bench, made)
            return self._report(order, Outcome.SUCCEEDED, receipt_key=key)
        except Interrupted as error:
            return self._report(order, Outcome.INTERRUPTED, message=error.line(), facts=bench.finish())
        except (Canceled, StaleEpoch) as error:
            return self._report(order, Outcome.CANCELED, message=error.line(), facts=bench.finish())
        except FarmError as error:
            return self._failed(order, error, bench)
        except MemoryError as error:
            return self._failed(order, OutOfMemory(f"the worker ran out of memory: {error}"), bench)
        except Exception as error:  # an engine may raise anything: it becomes ours here, with its traceback in the log
            log.exception("An engine raised something unforeseen.")
            if type(error).__name__ == "OutOfMemoryError":
                return self._failed(order, OutOfMemory(f"the accelerator ran out of memory: {error}"), bench)
            return self._failed(order, EngineFailed(f"{type(error).__name__}: {error}"), bench)

    def _upload(self, order: Order, bench: WorkBench, made: Made) -> str:
        self._made = made.files
        blobs = [bench.insist(put) for put in self._puts(order)]
        files = [
            ReceiptFile.of(m.name, b, content_sha256=m.content_sha256) for m, b in zip(made.files, blobs, strict=True)
        ]
        receipt = Receipt(
            attempt_id=order.attempt_id,
            task_id=order.task_id,
            epoch=order.epoch,
            files=tuple(files),
            facts={
                **made.facts,
                **bench.finish(),
                "result": made.result,
                "children": [child.to_json() for child in made.children],
            },
        )
        key = bench.insist(lambda: put_receipt(self._store, order.tenant, receipt))
        self._count_frames(order)
        return key

    def _put(self, tenant: str, made: MadeFile) -> Blob:
        try:
            blob = self._store.put_blob(tenant, made.path, media_type=made.media_type)
        except FarmError:
            self._meters.count("farm_upload_failures_total")
            raise
        self._meters.count("farm_upload_bytes_total", blob.size_bytes)
        return blob

    def _count_frames(self, order: Order) -> None:
        """Of takes: what was joined from them was counted when they were drawn."""
        spec = order.params.get("spec")
        if isinstance(spec, dict) and "num_frames" in spec:
            num_frames = spec["num_frames"]
            self._meters.count("farm_frames_total", num_frames, model=order.model)
            seconds = float(num_frames / Fraction(spec["fps"])) if num_frames > 1 else 0.0
            self._meters.count("farm_content_seconds_total", seconds, model=order.model)

    def _at_stake(self) -> dict[Labels, float]:
        bench = self._bench
        return {(self._model or "none",): bench.at_stake_s if bench is not None else 0.0}

    @property
    def _model(self) -> str | None:
        return self.facts.models[0] if self.facts.models else None

    def _puts(self, order: Order) -> list[Callable[[], Blob]]:
        """Each puts one file of what the attempt made into the store; again is free."""
        return [partial(self._put, order.tenant, made) for made in self._made]

    def _failed(self, order: Order, error: FarmError, bench: WorkBench) -> Report:
        say(log, "An attempt failed.", action="attempt.failed", code=error.code, error=error.line())
        return self._report(
            order,
            Outcome.FAILED,
            failure=error.failure.value,
            code=error.code,
            message=error.line(),
            facts=bench.finish(),
        )

    def _report(self, order: Order, outcome: Outcome, **details: object) -> Report:
        return Report(
            task_id=order.task_id,
            attempt_id=order.attempt_id,
            epoch=order.epoch,
            worker_id=self.facts.id,
            tenant=order.tenant,
            outcome=outcome,
            **details,  # type: ignore[arg-type]  # each is a field of Report
        )

    def _deliver(self, report: Report) -> str:
        """First to the journal, then to the dispatcher until it answers; oldest first. Returns what it answers.

        A journal that cannot be written, on a disk that is full, costs no report: it goes to the dispatcher at once.
        """
        path = self._journal / f"{ULID()}.json"
        answer = ""
        try:
            with faults.point("worker.journal"), disk.errors(self._journal):
                path.write_text(json.dumps(report.to_json()), encoding="utf-8")
        except (Unavailable, StoreFull) as error:
            path.unlink(missing_ok=True)
            say(log, "A report could not be kept in the journal.", action="journal.failed", error=error.line())
            answer = self._insist(lambda: self._desk.report(report)) or ""
        for entry in sorted(self._journal.glob("*.json")):
            kept = Report.from_json(json.loads(entry.read_text(encoding="utf-8")))
            said = self._insist(partial(self._desk.report, kept)) or ""
            answer = said if kept.attempt_id == report.attempt_id else answer
            entry.unlink()
        return answer

    def _next_order(self) -> Order | None:
        request_id = str(ULID())
        while not self._stopping.is_set():
            try:
                return self._desk.lease(self.facts.id, request_id)
            except Unavailable as error:
                say(log, "The dispatcher does not answer.", action="lease.retry", error=error.line())
                if not self._stopping.wait(RETRY_AFTER_S):
                    self._insist(lambda: self._desk.join(self.facts), tries=1)
        return None

    def _insist(self, call: Callable[[], T], *, tries: int | None = None) -> T | None:
        """Repeats a call while who is asked is away: for ever, or `tries` times."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return call()
            except (Unavailable, StoreFull) as error:
                say(log, "A call is repeated.", action="call.retry", error=error.line())
                if tries is not None and attempt >= tries:
                    return None
                time.sleep(RETRY_AFTER_S)

    def _beat_until_stopped(self) -> None:
        with about(worker=self.facts.id):
            while not (self._stopping.is_set() and self._bench is None):
                self._beat_now.wait(self._heartbeat_s if not self._stopping.is_set() else 0.2)
                self._beat_now.clear()
                bench = self._bench
                try:
                    stops = self._desk.beat(self.facts.id, [bench.beat()] if bench else [])
                except FarmError as error:  # the lease may run out meanwhile, and then we are told
                    say(log, "A heartbeat was not taken.", action="beat.retry", error=error.line())
                    continue
                if bench is not None and bench.order.attempt_id in stops:
                    bench.stop(stops[bench.order.attempt_id])
                if self.facts.id in stops:
                    self._out_of_service(stops[self.facts.id])

    def _out_of_service(self, why: str) -> None:
        if why.startswith(SICK):
            self._sick = why
        self._stopping.set()
