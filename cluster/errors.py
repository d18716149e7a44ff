"""The one tree of errors. Message first, details as optional keywords, so that every error survives a process.

FarmError                       ours; BUG unless a subclass says otherwise
|- UserMistake                  INPUT: the person who asked can mend it (exit code 2, HTTP 4xx)
|  |- InvalidSpec               a shot that its model cannot draw
|  |- InvalidInput              any other field of a request
|  |  |- TooLong                more than the model's context holds
|  |- InvalidSettings           an environment variable or a file of settings
|  |- InvalidGraph              cycles, unknown steps, too many tasks
|  |- UnknownModel              not in the catalog
|  |- NotFound                  no such job, task, asset
|  |- IllegalMove               the state table has no such move
|  |- Unauthenticated           no key, or none that is known
|  |- Forbidden                 the key may not do this
|  |- Unreadable                a body that is not what it says it is
|  |- OverBudget                a budget has no room for what it is estimated to cost
|  |- Unsupported               well said, but this model or farm cannot do it
|  |- TooLarge                  a body with more bytes than anybody needs
|  |- TooSlow                   a body, or a result, that did not come in time
|  |- NotReady                  the job has not got that far, or ended without it
|  |- Expired                   it was there, and is kept no longer
|- StaleEpoch                   a write of an attempt that is no longer the task's own
|- StaleTerm                    a write of a dispatcher that has been replaced
|- Unavailable                  INFRA: worker, store or database; the same call may succeed later
|  |- StoreUnavailable
|  |  |- StoreRefused            the server is there and refuses us: work waits until a person has mended it
|  |- LedgerUnavailable
|  |- WorkerLost
|  |- NoWriter                  no worker that writes with this model is up
|- StoreFull                    INFRA: no space left; a person must make room
|- WrittenOnce                  BUG: a write-once key of the store already has other bytes
|- OutOfMemory                  RESOURCE
|- RateLimited                  LIMIT
|- QualityCheckFailed           QUALITY: the output is readable, but not good enough
|- Damaged                      bytes that do not verify
|  |- DamagedAsset              INFRA: fetch or make it again
|  |- DamagedCheckpoint         INFRA: ignored, the denoise starts over
|  |- DamagedWeights            INPUT: mend the model directory
|  |- DamagedLedger             INPUT: restore a backup
|- JobFailed                    a job ended without its result; its dead task says why
|- EngineFailed                 BUG: an engine raised something that nobody foresaw
|- Interrupted                  drained or preempted; no failure at all
`- Canceled                     somebody asked for it
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class FailureClass(StrEnum):
    """Why an attempt failed; each class has a retry budget of its own (section 4 of the design)."""

    INFRA = "infra"
    RESOURCE = "resource"
    LIMIT = "limit"
    QUALITY = "quality"
    INPUT = "input"
    BUG = "bug"
    POISON = "poison"


class FarmError(Exception):
    """Root of the tree. `field` is the path of the input at fault, `remedy` what to do next, `retry_after_s` when."""

    code: ClassVar[str] = "internal"
    failure: ClassVar[FailureClass] = FailureClass.BUG
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str = "",
        *,
        field: str | None = None,
        remedy: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.remedy = remedy
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        message = str(self.args[0]) if self.args else ""
        return (_rebuild, (type(self), message, self.field, self.remedy, self.retry_after_s))

    def line(self) -> str:
        """One line for a person: what is wrong and what to do."""
        said = str(self.args[0]) if self.args else ""  # from a Ray actor args[0] is an error
        text = " ".join((said or self.code).split())
        if self.field and self.field not in text:
            text = f"{self.field}: {text}"
        return f"{text}; {self.remedy}" if self.remedy else text


def _rebuild(
    kind: type[FarmError], message: str, field: str | None, remedy: str | None, retry_after_s: float | None = None
) -> FarmError:
    return kind(message, field=field, remedy=remedy, retry_after_s=retry_after_s)


class UserMistake(FarmError):
    code = "invalid_request"
    failure = FailureClass.INPUT
    exit_code = 2


class InvalidSpec(UserMistake):
    code = "invalid_spec"


class InvalidInput(UserMistake):
    code = "invalid_input"


class TooLong(InvalidInput):
    code = "context_length_exceeded"


class InvalidSettings(UserMistake):
    code = "invalid_settings"


class InvalidGraph(UserMistake):
    code = "invalid_graph"


class UnknownModel(UserMistake):
    code = "unknown_model"


class NotFound(UserMistake):
    code = "not_found"


class IllegalMove(UserMistake):
    code = "illegal_move"


class Unauthenticated(UserMistake):
    code = "invalid_api_key"


class Forbidden(UserMistake):
    code = "insufficient_scope"


class Unreadable(UserMistake):
    code = "invalid_body"


class OverBudget(UserMistake):
    code = "budget_exceeded"


class Unsupported(UserMistake):
    code = "unsupported_input"


class TooLarge(UserMistake):
    code = "request_too_large"


class TooSlow(UserMistake):
    code = "request_timeout"


class NotReady(UserMistake):
    code = "not_ready"


class Expired(UserMistake):
    code = "expired"


class StaleEpoch(FarmError):
    code = "stale_epoch"
    failure = FailureClass.INFRA


class StaleTerm(FarmError):
    code = "stale_term"
    failure = FailureClass.INFRA


class Unavailable(FarmError):
    code = "unavailable"
    failure = FailureClass.INFRA


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class StoreRefused(StoreUnavailable):
    code = "store_refused"


class LedgerUnavailable(Unavailable):
    code = "ledger_unavailable"


class WorkerLost(Unavailable):
    code = "worker_lost"


class NoWriter(Unavailable):
    code = "no_writer"


class StoreFull(FarmError):
    code = "store_full"
    failure = FailureClass.INFRA


class WrittenOnce(FarmError):
    code = "written_once"


class OutOfMemory(FarmError):
    code = "out_of_memory"
    failure = FailureClass.RESOURCE


class RateLimited(FarmError):
    code = "rate_limited"
    failure = FailureClass.LIMIT


class QualityCheckFailed(FarmError):
    code = "quality_check_failed"
    failure = FailureClass.QUALITY


class Damaged(FarmError):
    code = "damaged"
    failure = FailureClass.INFRA


class DamagedAsset(Damaged):
    code = "damaged_asset"


class DamagedCheckpoint(Damaged):
    code = "damaged_checkpoint"


class DamagedWeights(Damaged):
    code = "damaged_weights"
    failure = FailureClass.INPUT


class DamagedLedger(Damaged):
    code = "damaged_ledger"
    failure = FailureClass.INPUT


class JobFailed(FarmError):
    code = "job_failed"


class EngineFailed(FarmError):
    code = "engine_failed"


class Interrupted(FarmError):
    code = "interrupted"
    failure = FailureClass.INFRA


class Canceled(FarmError):
    code = "canceled"
