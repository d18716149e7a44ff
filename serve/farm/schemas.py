"""The bodies of the farm's own surface, as they are read and as they are written."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from pipelines.recipes.film import MAX_SHOTS, MAX_TAKES
from pipelines.script import MAX_LOGLINE_CHARS
from serve.openai.schemas import (
    AssetOf,
    Body,
    Cost,
    Deadline,
    Failure,
    Metadata,
    Quality,
    Seconds,
    Seed,
    Tier,
    Usage,
    number,
)
from serve.rows import Estimated

Count = BeforeValidator(number)


class FilmRequest(Body):
    """A brief, or a ready script."""

    logline: Annotated[str, Field(max_length=MAX_LOGLINE_CHARS, description="The film in a sentence")] = ""
    shots: Annotated[int, Count, Field(ge=1, le=MAX_SHOTS, description="Of a film that is to be written")] = 4
    seconds: Annotated[Seconds, Field(description="Of each shot")] = 2.0
    seed: Seed | None = None
    quality: Quality = "standard"
    model: str = "house-video"
    writer: str = "house-writer"
    script: dict[str, Any] | None = Field(default=None, description="Filmed as it stands; `GET .../script` shows one")
    takes: Annotated[int, Count, Field(ge=1, le=MAX_TAKES, description="Of each shot; the first is circled")] = 1
    review: bool = Field(default=False, description="A person approves a take of each shot before the film is cut")
    seeds: dict[str, Seed] = Field(
        default_factory=dict, max_length=MAX_SHOTS * MAX_TAKES,
        description="Of takes of a script, by their keys (sh010.t1), where not drawn from the film's own",
    )  # fmt: skip
    fresh: bool = Field(default=False, description="All of it is made anew: nothing is taken from an earlier answer")
    tier: Tier = "normal"
    deadline: Deadline | None = None
    metadata: Metadata | None = None


class Take(BaseModel):
    id: str
    object: Literal["take"] = "take"
    film: str
    shot: str
    number: int = Field(description="From 1")
    state: str = Field(description="ready, running, in_review, succeeded, dead, ...: the farm's own word")
    reason: str | None
    progress: int = Field(ge=0, le=100)
    circled: bool = Field(description="It goes into the film")
    approved: bool | None = Field(description="null: nobody has to, or need any more")
    rejected: int = Field(description="How often it was drawn again because somebody rejected it")
    prompt: str
    seed: int
    cost: Cost
    url: str | None = Field(description="Its clip, once it is drawn; `?variant=thumbnail` is a picture of it")


class FilmShot(BaseModel):
    id: str
    prompt: str
    narration: str
    takes: list[Take]


class FilmScene(BaseModel):
    heading: str
    place: str
    shots: list[FilmShot]


class Revision(BaseModel):
    number: int
    reason: str = Field(description="created, script, circled sh010.t2, again")
    job: str
    state: str
    created_at: int


class Film(BaseModel):
    id: str
    object: Literal["film"] = "film"
    title: str | None = Field(description="null until it is written")
    logline: str
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    state: str = Field(description="in_review: it waits for a person; queued, running, ...: the farm's own word")
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    deadline: int | None
    show: str
    tier: Tier
    model: str
    writer: str
    seed: int | None = Field(description="null: that of its script")
    seconds: str
    quality: Quality
    takes: int = Field(description="Of each shot")
    review: bool
    metadata: dict[str, str] | None
    error: Failure | None
    queue_position: int | None = Field(description="Jobs that are likely to begin first")
    eta_seconds: float | None = Field(description="Until it is done; null: not known, or it waits for a person")
    usage: Usage | None
    cost: Cost = Field(description="Of all its revisions")
    estimate: Estimated | None = Field(description="Of what its newest revision costs in all; null: nothing was said")
    scenes: list[FilmScene] = Field(description="Empty until it is written")
    waits_for: list[str] = Field(description="Takes that somebody has to approve or reject")
    revisions: list[Revision]
    assets: list[AssetOf] = Field(description="Its files, once they are there")
    urls: dict[str, str] = Field(description="What can be downloaded now, by variant")


class FilmPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[Film]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FilmDeleted(BaseModel):
    id: str
    object: Literal["film.deleted"] = "film.deleted"
    deleted: Literal[True] = True
