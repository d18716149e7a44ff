"""The bodies of the OpenAI surface, as they are read and as they are written; farm extras stand beside OpenAI's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cluster.errors import InvalidInput
from serve.envelope import mistake
from serve.rows import Estimated

Request = TypeVar("Request", bound=BaseModel)
_SIZE = re.compile(r"(\d{1,5})[xX×](\d{1,5})")


def _sides(size: str) -> str:
    if not _SIZE.fullmatch(size):
        raise ValueError(f"{size[:40]!r} is no size; write it as in 512x512")
    return size


def number(value: Any) -> Any:
    """Forms carry text: "2" is 2. A boolean is no number."""
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def _length(value: Any) -> Any:
    return number(value.strip().removesuffix("s") if isinstance(value, str) else value)


def _object(value: Any) -> Any:
    """Forms carry text: an object may be written as JSON."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    return found


def _pairs(value: dict[str, str]) -> dict[str, str]:
    if len(value) > 16 or any(len(key) > 64 or len(text) > 512 for key, text in value.items()):
        raise ValueError("at most 16 pairs of a key of 64 and a value of 512 characters")
    return value


Size = Annotated[str, AfterValidator(_sides), Field(description="WIDTHxHEIGHT in pixels", examples=["512x512"])]
Seed = Annotated[
    int,
    BeforeValidator(number),
    Field(ge=0, lt=2**63, description="The same seed draws the same picture; drawn by lot and told if it is not given"),
]
Seconds = Annotated[float, BeforeValidator(_length), Field(gt=0, allow_inf_nan=False, le=86_400)]
Quality = Literal["draft", "standard", "final"]
Tier = Literal["interactive", "normal", "batch"]
Deadline = Annotated[
    AwareDatetime, Field(description="When it should be done: of what its show waits for, its work goes first")
]
Prompt = Annotated[str, Field(description="What the model shall draw")]
Metadata = Annotated[dict[str, str], BeforeValidator(_object), AfterValidator(_pairs)]
Side = Annotated[int, BeforeValidator(number), Field(ge=1, le=99_999, description="As other servers write `size`")]
NumFrames = Annotated[
    int, BeforeValidator(number), Field(ge=1, le=1_000_000, description="Of a clip, in place of `seconds`")
]
Fps = Annotated[float, BeforeValidator(number), Field(gt=0, le=1000, description="That of the model, and no other")]
NOT_TAKEN = {
    "num_inference_steps": "`quality` sets it",
    "guidance_scale": "`quality` sets it",
    "guidance_scale_2": "`quality` sets it",
    "flow_shift": "`quality` sets it",
    "negative_prompt": "say in the prompt what shall be there",
    "lora": "leave it out",
    "extra_params": "leave it out",
    "video_reference": "leave it out",
    "audio_reference": "leave it out",
}
"""What other servers take of a video, and what to do instead."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class VideoRequest(Body):
    prompt: Prompt
    model: str = "house-video"
    seconds: Seconds = 2.0
    size: Size | None = None
    input_reference: Any = Field(
        default=None,
        description="A first frame, for models that take one: a file in a form, or an object with `image_url` (https: "
        "or data:). PNG, JPEG or WebP, scaled and cut to the size of the video",
    )
    image_reference: Any = Field(default=None, description="`input_reference`, as other servers call it")
    width: Side | None = None
    height: Side | None = None
    num_frames: NumFrames | None = None
    fps: Fps | None = None
    seed: Seed | None = None
    quality: Quality = "standard"
    tier: Tier = "normal"
    deadline: Deadline | None = None
    metadata: Metadata | None = None
    user: str | None = Field(default=None, max_length=256, description="Taken, and kept with the job")


class RemixRequest(Body):
    prompt: Prompt
    seed: Seed | None = None


class ImageRequest(Body):
    prompt: Prompt
    model: str = "house-video"
    n: Annotated[int, BeforeValidator(number), Field(ge=1, le=10)] = 1
    size: Size | Literal["auto"] | None = None
    quality: Literal["draft", "standard", "final", "low", "medium", "high", "hd", "auto"] = "standard"
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png"] = "png"
    background: Literal["auto", "opaque"] = "auto"
    seed: Seed | None = None
    tier: Tier = "interactive"
    user: str | None = Field(default=None, max_length=256, description="Taken, and kept with the job")


class Failure(BaseModel):
    code: str
    message: str


class Usage(BaseModel):
    duration_seconds: float
    frames: int
    accelerator_seconds: float


class Cost(BaseModel):
    amount: str = Field(description="Exact, in decimal")
    currency: Literal["USD"] = "USD"
    estimated: bool = Field(description="True until the job is over: what is booked so far")


class AssetOf(BaseModel):
    """A file that came out: by `sha256` it is an asset, by `content_sha256` it is compared, whoever signed it since."""

    name: str
    sha256: str
    content_sha256: str
    size_bytes: int
    media_type: str


class Video(BaseModel):
    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    expires_at: int | None = Field(description="null: it is kept")
    seconds: str
    size: str
    prompt: str | None
    remixed_from_video_id: str | None
    error: Failure | None
    seed: int
    quality: Quality
    metadata: dict[str, str] | None
    deadline: int | None
    queue_position: int | None = Field(description="Jobs that are likely to begin first")
    eta_seconds: float | None = Field(description="Until it is done; null: not known")
    usage: Usage | None
    cost: Cost
    assets: list[AssetOf] = Field(description="Its files, once they are there")
    estimate: Estimated | None = Field(description="Of what it costs in all; null: nothing was said at its submit")


class VideoPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Image(BaseModel):
    b64_json: str | None = None
    url: str | None = Field(default=None, description="To be read with a key of the same tenant")
    revised_prompt: str = Field(description="What the model was asked, word for word")


class Images(BaseModel):
    created: int
    data: list[Image]
    output_format: Literal["png"] = "png"
    size: str
    quality: Quality
    reelfarm: dict[str, Any] = Field(description="id, seed, cost")


class ModelEntry(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="0: the catalog keeps no date")
    owned_by: str
    reelfarm: dict[str, Any] = Field(description="What it draws, what it needs, whether it is ready here")


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelEntry]


def assets_of(files: Iterable[Mapping[str, Any]]) -> list[AssetOf]:
    """Of files as in their receipts."""
    return [AssetOf(**{name: file[name] for name in AssetOf.model_fields}) for file in files]


def checked(kind: type[Request], fields: dict[str, Any]) -> Request:
    """`fields` as a request of this kind. Raises InvalidInput with the path of the first field at fault."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise mistake(error, tuple(kind.model_fields)) from error


def due_us(deadline: datetime | None) -> int | None:
    """Microseconds UTC."""
    return None if deadline is None else round(deadline.timestamp() * 1e6)


def sides(size: str | None) -> tuple[int, int] | None:
    """ "512x384" -> (512, 384)."""
    match = _SIZE.fullmatch(size) if size else None
    return (int(match[1]), int(match[2])) if match else None


def path_id(text: str, prefix: str) -> str:
    """The id of the job behind a name on this surface. What is no name becomes the id of nothing: it is looked for
    all the same, so that nobody learns anything from how long it takes."""
    match = re.fullmatch(rf"{prefix}_([0-9a-hjkmnp-tv-z]{{26}})", text)
    return f"job_{match[1]}" if match else "job_none"


def named(job_id: str, prefix: str) -> str:
    return f"{prefix}_{job_id.removeprefix('job_')}"


def as_input(error: InvalidInput, field: str) -> InvalidInput:
    """The same error, about the field as it is called here."""
    return InvalidInput(str(error), field=field, remedy=error.remedy)
