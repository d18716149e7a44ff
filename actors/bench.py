"""One attempt's hands: inputs from the store, progress to the dispatcher, orders to stop from it, checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from actors.contract import LOST_INPUT, STORE_AWAY, Beat, Json, Order
from actors.patience import patiently
from cluster.assets import Receipt, blob_key, checkpoint_key
from cluster.errors import (
    Canceled,
    DamagedAsset,
    FarmError,
    Interrupted,
    NotFound,
    StaleEpoch,
)
from cluster.logs import say
from cluster.metrics import Meters
from cluster.store.port import Store

T = TypeVar("T")
log = logging.getLogger(__name__)
PROGRESS_EVERY_S = 0.5


class WorkBench:
    """One attempt's hands: inputs from the store, progress to the dispatcher, orders to stop from it."""

    def __init__(
        self,
        order: Order,
        *,
        store: Store,
        scratch: Path,
        tell: Callable[[], None],
        meters: Meters | None = None,
    ) -> None:
        self.order, self.scratch = order, scratch
        self._meters = meters or Meters()
        self._store, self._tell = store, tell
        self._stage, self._done, self._total = "starting", 0, 0
        self._stop: str | None = None
        self._told_s = 0.0
        self.seconds: dict[str, float] = {}
        self.began_us: dict[str, int] = {}  # when each stage first began, for people who wait
        self.gap_s: dict[str, float] = {}  # the longest time between two signs of progress, by stage
        self._began_s = self._stage_since_s = self._moved_s = time.monotonic()
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self.last_checkpoint: str | None = None
        self.kept_s = 0.0
        self.resumed_from: str | None = None
        self.refused: list[str] = []
        self._lost_input: str | None = None

    def fetch(self, input_key: str, name: str) -> Path:
        for given in self.order.inputs:
            for file in given.files:
                if given.key == input_key and file["name"] == name:
                    path = self.scratch / "inputs" / input_key / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        self.insist(partial(self._store.fetch, file["key"], path))
                    except (NotFound, DamagedAsset) as error:
                        self._lost_input = input_key
                        raise DamagedAsset(f"{name} of {input_key}, which has to be made again: {error}") from error
                    return path
        raise NotFound(f"input {input_key!r} has no file {name!r}", field=f"inputs.{input_key}")

    def facts(self, input_key: str) -> Json:
        key = next((given.receipt_key for given in self.order.inputs if given.key == input_key), None)
        if key is None:
            return {}
        try:
            return dict(Receipt.from_bytes(self.insist(partial(self._store.get, key))).facts)
        except (NotFound, DamagedAsset):
            return {}

    def asset(self, sha256: str) -> Path:
        path = self.scratch / "assets" / sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        self.insist(partial(self._store.fetch, blob_key(self.order.tenant, sha256), path))
        return path

    def insist(self, call: Callable[[], T]) -> T:
        """`call()` of the store, repeated for as long as the store is away. Raises what `check` raises."""
        before = self._stage, self._done, self._total
        waited = False

        def on_wait(tried: int) -> None:
            nonlocal waited
            waited = True
            self.progress(f"{STORE_AWAY}{before[0]}", tried, 0)  # each try is a sign of life

        made = patiently(call, on_wait=on_wait, check=self.check)
        if waited:
            self.progress(*before)
        return made

    def progress(self, stage: str, done: int, total: int) -> None:
        self._moved()
        if stage != self._stage:
            self._close_stage()
            self._stage = stage
            self.began_us.setdefault(stage, time.time_ns() // 1000)
        elif stage == "denoise":
            self._meters.count("farm_denoise_steps_total", done - self._done, model=self.order.model)
        self._done, self._total = done, total
        now_s = time.monotonic()
        if now_s - self._told_s >= PROGRESS_EVERY_S:
            self._told_s = now_s
            self._tell()
        self.check()

    def check(self) -> None:
        """Raises what the dispatcher asked for: Canceled, Interrupted, or StaleEpoch for a lost race."""
        if self._stop == "superseded":
            raise StaleEpoch("the task belongs to a newer attempt")
        if self._stop == "canceled":
            raise Canceled("the task was canceled")
        if self._stop is not None:
            raise Interrupted(f"the attempt shall stop: {self._stop}")

    def checkpoint(self, data: bytes, index: int) -> None:
        """A store that does not take it costs what it would have kept, not the attempt."""
        self._wait_for_saver()
        kept_s = time.monotonic() - self._began_s
        self._saving = self._saver.submit(self._save, data, index, kept_s)

    def _save(self, data: bytes, index: int, kept_s: float) -> None:
        key = checkpoint_key(self.order.tenant, self.order.attempt_id, index)
        try:
            self._store.put_once(key, data)
        except FarmError as error:
            say(log, "A checkpoint could not be saved.", action="checkpoint.failed", error=error.line())
            self._meters.count("farm_checkpoints_total", outcome="failed")
            return
        self._meters.count("farm_checkpoints_total", outcome="saved")
        self.last_checkpoint, self.kept_s = key, kept_s

    @property
    def at_stake_s(self) -> float:
        """Work since the newest checkpoint, while it denoises."""
        return time.monotonic() - self._began_s - self.kept_s if self._stage == "denoise" else 0.0

    def _wait_for_saver(self) -> None:
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def resume(self) -> Iterator[bytes]:
        for key in self.order.resume_from:
            try:
                data = self.insist(partial(self._store.get, key))
            except (NotFound, DamagedAsset) as error:
                self.refuse(error)
                continue
            self.resumed_from = key
            yield data
        self.resumed_from = None

    def refuse(self, error: FarmError) -> None:
        self.refused.append(error.line())
        say(log, "A checkpoint was not usable.", action="checkpoint.refused", error=error.line())

    def stop(self, why: str) -> None:
        self._stop = self._stop or why

    def beat(self) -> Beat:
        return Beat(
            task_id=self.order.task_id,
            attempt_id=self.order.attempt_id,
            epoch=self.order.epoch,
            stage=self._stage,
            done=self._done,
            total=self._total,
            kept_s=self.kept_s,
            resumed_from=self.resumed_from,
        )

    def finish(self) -> Json:
        """The attempt is over, however it ended: what is known of how it ran."""
        self._close_stage()
        self._wait_for_saver()
        self._saver.shutdown()
        facts: Json = {
            "seconds": {stage: round(s, 3) for stage, s in self.seconds.items()},
            "gap_s": {stage: round(s, 3) for stage, s in self.gap_s.items()},
            "began_us": self.began_us,
            "stage": self._stage,
        }
        if self.last_checkpoint:
            facts |= {"checkpoint": self.last_checkpoint, "kept_s": round(self.kept_s, 3)}
        if self.resumed_from:
            facts["resumed_from"] = self.resumed_from
        if self.refused:
            facts["refused_checkpoints"] = self.refused
        if self._lost_input:
            facts[LOST_INPUT] = self._lost_input
        return facts

    def _moved(self) -> None:
        now_s = time.monotonic()
        self.gap_s[self._stage] = max(self.gap_s.get(self._stage, 0.0), now_s - self._moved_s)
        self._moved_s = now_s

    def _close_stage(self) -> None:
        self._moved()
        now_s = time.monotonic()
        took_s = now_s - self._stage_since_s
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + took_s
        self._meters.count("farm_stage_seconds_total", took_s, model=self.order.model, stage=self._stage)
        self._stage_since_s = now_s
