"""What crosses between processes: plain frozen values, JSON on the wire, no torch, no Ray."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cluster.errors import FarmError, InvalidSpec
from cluster.graph import TaskSpec

if TYPE_CHECKING:
    import numpy as np  # a tenth of a second that a command line need not wait for

Json = dict[str, Any]
SICK = "sick: "
"""How the reason begins for which a worker is taken out of service although nobody asked for it."""
LOST_INPUT = "lost_input"
"""Among the facts of an attempt that failed: the key of its input whose bytes the store has lost."""
STORE_AWAY = "store:"
"""How the name of a stage begins while it waits for the store; its `done` counts the tries."""

PUT_AGAIN = "marked"
"""The answer to a report that names a file which was about to be removed: put the files again, then report again."""


class Quality(StrEnum):
    """What a take may save on."""

    DRAFT = "draft"
    STANDARD = "standard"
    FINAL = "final"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShotSpec:
    """All that a family reads to draw one take. Sizes are of the delivered picture."""

    prompt: str
    num_frames: int
    fps: Fraction  # for playback; models count frames, never seconds
    width_px: int
    height_px: int
    num_steps: int  # denoise steps
    guidance_scale: float
    seed: int
    negative_prompt: str = ""
    quality: Quality = Quality.STANDARD
    first_frame: str | None = None  # sha256 of a picture of the tenant, a PNG of just this size

    def __post_init__(self) -> None:
        for name in ("num_frames", "width_px", "height_px", "num_steps"):
            if getattr(self, name) < 1:
                raise InvalidSpec(f"{name} must be 1 or more, got {getattr(self, name)}", field=name)
        if self.fps <= 0:
            raise InvalidSpec(f"fps must be above 0, got {self.fps}", field="fps")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise InvalidSpec(f"guidance_scale must be 0 or more, got {self.guidance_scale}", field="guidance_scale")
        if not 0 <= self.seed < 2**63:
            raise InvalidSpec(f"seed must be from 0 to 2^63-1, got {self.seed}", field="seed")
        if self.first_frame is not None and not re.fullmatch("[0-9a-f]{64}", self.first_frame):
            raise InvalidSpec("first_frame is no sha256 in lower-case hex", field="first_frame")

    @property
    def duration_s(self) -> float:
        return float(self.num_frames / self.fps)

    def to_json(self) -> Json:
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "num_frames": self.num_frames,
            "fps": str(self.fps),
            "width_px": self.width_px,
            "height_px": self.height_px,
            "num_steps": self.num_steps,
            "guidance_scale": self.guidance_scale,
            "seed": self.seed,
            "quality": self.quality.value,
            **({"first_frame": self.first_frame} if self.first_frame else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ShotSpec:
        return cls(**{**data, "fps": Fraction(data["fps"]), "quality": Quality(data["quality"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One finished answer of a writer."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


class Complete(Protocol):
    """How a caller asks a writer; it blocks, and many threads may ask at once."""

    def __call__(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Json | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        timeout_s: float,
        top_p: float = 1.0,
    ) -> Completion: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """A question to a language model, and how it shall be answered."""

    id: str
    model: str
    messages: tuple[Mapping[str, str], ...]  # role and content
    timeout_s: float  # for the whole answer
    max_tokens: int | None = None  # None: as many as the model's context has room for
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None  # None: another answer each time
    stop: tuple[str, ...] = ()  # texts that end the answer and are not part of it
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    schema: Json | None = None  # the answer is JSON after it


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What a writer adds to its answer; the counts are of all so far. The first adds nothing: the question is taken."""

    text: str = ""
    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, that were known from an earlier question
    finish_reason: str | None = None  # of the last one: stop or length
    price_class: str = ""  # of the worker


class Family(Protocol):
    """The adapter for one model architecture: it can stop, save, resume and batch between denoise steps.

    A family is loaded once per worker by its module's `load(model_dir, *, device, dtype, num_threads)`.
    `Conditioning` and `State` are the family's own types; nobody else looks inside. Each state owns its scheduler.
    """

    def encode(self, specs: Sequence[ShotSpec]) -> list[Any]: ...

    def start(self, spec: ShotSpec, conditioning: Any) -> Any: ...

    def step(self, states: Sequence[Any]) -> None:
        """One denoise step for each of `states`, which share one shape; each moves its own `index` by one."""

    def progress(self, state: Any) -> tuple[int, int]:
        """(denoise steps done, denoise steps in all)."""

    def save(self, state: Any) -> bytes | None:
        """All that the next step reads; None if this take cannot be resumed (a pipeline that is run whole)."""

    def load(self, data: bytes, spec: ShotSpec) -> Any:
        """The state that `save` wrote. Raises DamagedCheckpoint if it is damaged, or of another spec or fingerprint."""

    def decode(self, state: Any) -> Iterator[np.ndarray]:
        """Chunks of frames, each uint8 (frames, height_px, width_px, 3), in order."""


@runtime_checkable
class FromFrame(Protocol):
    """What a family has besides if its takes can begin with a given picture."""

    def encode_from(self, spec: ShotSpec, frame: np.ndarray) -> Any:
        """As `encode` of one spec; `frame` is uint8 (height_px, width_px, 3). Raises InvalidSpec."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A committed task that an order builds on, with what it cost."""

    key: str
    step: str
    model: str | None
    params: Json
    files: tuple[Json, ...]  # as in its receipt: name, key, sha256, content_sha256, size_bytes, media_type
    result: Json
    held_s: float  # accelerator-seconds over all its attempts
    cost_nano: int
    receipt_key: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The right to run one task, until its lease runs out: what a worker gets."""

    task_id: str
    attempt_id: str
    epoch: int
    generation: int
    job_id: str
    tenant: str
    show: str
    title: str  # of the job
    spec: Json  # of the job: the brief
    key: str
    step: str
    entry: str  # import string of the step function, or of the engine's own work
    params: Json
    model: str | None
    inputs: tuple[Input, ...]
    resume_from: tuple[str, ...] = ()  # store keys of checkpoints of this task, the furthest first


class Outcome(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELED = "canceled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """How an attempt ended. For a success the receipt in the store says the rest, children included."""

    task_id: str
    attempt_id: str
    epoch: int
    worker_id: str
    tenant: str
    outcome: Outcome
    receipt_key: str | None = None
    failure: str | None = None  # cluster.errors.FailureClass
    code: str | None = None
    message: str | None = None
    facts: Json = field(default_factory=dict)

    def to_json(self) -> Json:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        return cls(**{**data, "outcome": Outcome(data["outcome"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """Where a running attempt is. `done` of `total` counts denoise steps, tokens or files of the stage."""

    task_id: str
    attempt_id: str
    epoch: int
    stage: str
    done: int
    total: int
    kept_s: float = 0.0  # seconds of the attempt that its newest checkpoint keeps
    resumed_from: str | None = None  # the checkpoint that it went on from


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFacts:
    """Who asks for work: one incarnation of one worker."""

    id: str
    fleet: str
    role: str
    models: tuple[str, ...]  # held warm; a task without a model fits every worker of its role
    node: str
    accelerator: str
    num_accelerators: int
    price_class: str
    spawned_us: int
    facts: Json = field(default_factory=dict)  # versions, load seconds, device names


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeFile:
    """A file in the scratch directory that the receipt will name. `content_sha256` None: its bytes are its content."""

    name: str
    path: Path
    media_type: str
    content_sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a step or an engine made of an order."""

    files: tuple[MadeFile, ...] = ()
    result: Json = field(default_factory=dict)
    children: tuple[TaskSpec, ...] = ()
    facts: Json = field(default_factory=dict)  # how it ran: goes into the receipt, never into a content key


class Bench(Protocol):
    """What an engine has in hand while it works on an order."""

    order: Order
    scratch: Path

    def fetch(self, input_key: str, name: str) -> Path:
        """A file of an input, verified, on the local disk. Raises NotFound, DamagedAsset, StoreUnavailable."""

    def facts(self, input_key: str) -> Json:
        """How and where an input was made, by its receipt; nothing if that is kept no longer."""

    def asset(self, sha256: str) -> Path:
        """The same of an asset of the tenant that no task has made."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Says where the work is. Raises Canceled or Interrupted if it shall stop here."""

    def checkpoint(self, data: bytes, index: int) -> None:
        """Saves a denoise after step `index`, in the background; one that is still being written is waited for."""

    def resume(self) -> Iterator[bytes]:
        """Checkpoints of this task that earlier attempts left, the furthest first. What cannot be read is left out."""

    def refuse(self, error: FarmError) -> None:
        """A checkpoint of `resume` was not usable: said in the log, counted in the receipt."""


class Engine(Protocol):
    """What runs orders inside a worker. Synchronous; one order at a time."""

    def start(self) -> Json:
        """Loads models; returns facts (versions, seconds). Raises DamagedWeights, OutOfMemory, ..."""

    def run(self, bench: Bench) -> Made: ...

    def close(self) -> None: ...


class Desk(Protocol):
    """The dispatcher, as a worker sees it. Every call may be repeated; Unavailable means: later again."""

    def join(self, worker: WorkerFacts) -> None: ...

    def lease(self, worker_id: str, request_id: str) -> Order | None:
        """Waits for an order. The same `request_id` again returns the same lease again."""

    def dismiss(self, worker_id: str) -> None:
        """The worker stops: its waiting call for work returns at once."""

    def beat(self, worker_id: str, beats: Sequence[Beat]) -> dict[str, str]:
        """Renews leases. Returns why an attempt shall stop, by attempt id (canceled, superseded, preempted, or the
        reason of a drain), and why the worker itself shall, by its id."""

    def report(self, report: Report) -> str:
        """accepted, duplicate, superseded or PUT_AGAIN (see cluster.ledger.leases.Answer)."""

    def leave(self, worker_id: str, *, died: bool = False) -> None:
        """The worker is gone. `died`: by itself in the middle of its work, neither told to nor with its node."""
