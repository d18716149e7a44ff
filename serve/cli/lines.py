"""One line for each event, for pipes, logs and scripts: short sentences, or JSON."""

from __future__ import annotations

import json
from typing import Any, TextIO

from cluster.clock import Clock, to_datetime
from cluster.errors import FarmError
from cluster.ledger.events import Event
from serve.cli import replayed, wording
from serve.cli.board import Board
from serve.finished import Finished
from serve.watch import Update, as_json

SENTENCES = {
    "job.created": "the job is in the ledger",
    "job.ended": "the job has ended",
    "task.created": "planned",
    "task.deps_met": "is next",
    "task.cache_hit": "kept from an earlier run",
    "task.retry_later": "will be tried again",
    "task.backoff_over": "is tried again",
    "task.expire": "lost its worker, is next again",
    "task.interrupt": "was interrupted, is next again",
    "task.die": "failed",
    "task.cancel": "stopped",
    "task.hold": "on hold",
    "task.release": "is next again",
    "task.approve": "approved",
    "task.waive": "needs no approval any more",
    "task.reject": "rejected, is drawn again with another seed",
    "job.superseded": "there is a newer revision of the film",
}


class LineShow:
    """Sentences as "0:12  shot sh010 take 1: drawing, a red boat drifts right". Every line is flushed."""

    def __init__(self, out: TextIO, board: Board, clock: Clock) -> None:
        self._out, self._board, self._clock = out, board, clock

    def start(self) -> None:
        self._say(self._board.opening, self._board.began_us)

    def waits(self, line: str, pid: int | None) -> None:
        self._say(line, self._clock.now_us())

    def goes_on(self) -> None:
        self._say(self._board.opening, self._clock.now_us())

    def close(self) -> None:
        """Nothing moves here."""

    def update(self, update: Update) -> None:
        self._board.take(update)
        for event in update.events:
            self._say(sentence(event, update, self._board), event.at_us)

    def finished(self, finished: Finished) -> None:
        cost, took = wording.dollars(finished.cost_usd), wording.seconds(finished.seconds)
        title = wording.clean(finished.title, 200)
        self._say(f'{finished.path} is "{title}": {took}, {cost}', self._clock.now_us())
        if finished.verdict is not None:
            for line in replayed.lines(finished.verdict):
                self._say(line, self._clock.now_us())

    def failed(self, error: BaseException) -> None:
        """The line on standard error says it all."""

    def _say(self, text: str, at_us: int) -> None:
        print(f"{wording.watch((at_us - self._board.began_us) / 1e6)}  {text}", file=self._out, flush=True)


class JsonShow:
    """One JSON object on each line; the last one is the result, or the error."""

    def __init__(self, out: TextIO, board: Board, clock: Clock) -> None:
        self._out, self._board, self._clock = out, board, clock

    def start(self) -> None:
        farm = {"event": "farm.asked", "farm": self._board.asks} if self._board.asks else {"event": "farm.starting"}
        self._write(farm)

    def waits(self, line: str, pid: int | None) -> None:
        self._write({"event": "farm.waiting", "pid": pid, "message": line})

    def goes_on(self) -> None:
        self.start()

    def close(self) -> None:
        """Nothing moves here."""

    def update(self, update: Update) -> None:
        self._board.take(update)
        for line in as_json(update):
            print(json.dumps(line, ensure_ascii=False), file=self._out, flush=True)

    def finished(self, finished: Finished) -> None:
        self._write(
            {
                "event": "result",
                "job": finished.job_id,
                "title": finished.title,
                "path": str(finished.path),
                "out": str(finished.out),
                "files": [str(file) for file in finished.files],
                "seconds": round(finished.seconds, 3),
                "cost_usd": f"{finished.cost_usd:f}",
                "marks_s": dict(finished.marks_s),
                **({} if finished.verdict is None else {"replay": finished.verdict.to_json()}),
            }
        )

    def failed(self, error: BaseException) -> None:
        if isinstance(error, FarmError):
            what = {"code": error.code, "message": error.line()}
        elif isinstance(error, KeyboardInterrupt):
            what = {"code": "stopped", "message": self._board.what_is_kept()}
        else:
            what = {"code": FarmError.code, "message": f"{type(error).__name__}: {error}"}
        self._write({"event": "error", **what})

    def _write(self, line: dict[str, Any]) -> None:
        line = {"at": to_datetime(self._clock.now_us()).isoformat(), **line}
        print(json.dumps(line, ensure_ascii=False), file=self._out, flush=True)


def sentence(event: Event, update: Update, board: Board) -> str:
    """What happened, in a few words."""
    task = update.task(event.task_id)
    said = SENTENCES.get(event.kind, event.kind.partition(".")[2].replace("_", " "))
    if task is None:
        return said
    if event.kind == "task.created":
        purpose = wording.purpose_of(task)
        said = f"{said}, {purpose}" if purpose else said
    elif event.kind in ("task.gate", "task.cache_gate"):
        said = f"waits for a person: farm approve {event.job_id}/{task.key}, or farm reject"
    elif event.kind == "task.lease":
        said = {"render": "drawing", "writer": "writing"}.get(task.role, "working")
    elif event.kind == "task.commit":
        took_s = board.took_s.get(task.id)
        said = f"done in {wording.seconds(took_s)}" if took_s is not None else "done"
        if task.step == "script" and update.title:
            said += f', "{wording.clean(update.title, 200)}"'
        said += f", {wording.dollars(update.cost_usd)} so far"
    if reason := event.data.get("reason"):
        said += f": {wording.clean(str(reason), 300)}"
    return f"{wording.name_of(task)}: {said}"
