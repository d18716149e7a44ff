"""How a film and its takes are shown: the rows of the ledger, in the words of the surface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from actors.contract import Json
from cluster.ledger.films import Film as FilmRow
from cluster.ledger.money import Spend
from cluster.rates import usd
from cluster.states import DONE, ENDED, JobState, State
from pipelines.recipes import film as recipe
from pipelines.script import Script
from serve.farm.schemas import Film, FilmScene, FilmShot, Revision, Take
from serve.finished import files_of
from serve.foresight import estimated
from serve.openai.schemas import Cost, Failure, Usage, assets_of
from serve.revision import DRAWN, Task, brief_of, circled, script_of, take_id, takes_of
from serve.rows import Estimated
from serve.service import Service, off_the_loop
from serve.standing import Standing, fraction, standing

VARIANTS: dict[str, tuple[str, str]] = {
    "film": ("conform", "film.mp4"),
    "poster": ("conform", "poster.png"),
    "contact_sheet": ("conform", "contact-sheet.png"),
    "captions": ("conform", "film.vtt"),
    "timeline": ("conform", "film.otio"),
    "script": ("conform", "script.json"),
    "manifest": ("publish", "manifest.json"),
}
CLIPS = {"video": "clip.mp4", "thumbnail": "poster.png"}


def file_of(film: FilmRow, variant: str) -> Json | None:
    """A file of a film that is published."""
    if film.now.file("publish", "manifest.json") is None:
        return None
    return film.now.file(*VARIANTS[variant])


def clip_of(task: Task, variant: str) -> Json | None:
    """A file of a take that is drawn, whatever anybody thinks of it."""
    files = task["files"] if State(task["state"]) in DRAWN else None
    return next((dict(file) for file in files or () if file["name"] == CLIPS[variant]), None)


async def shown(
    service: Service, found: Sequence[FilmRow], moving: Mapping[str, Sequence[Json]] | None = None
) -> list[tuple[Film, Standing]]:
    """Films with how they stand. `moving` is what the dispatcher says, by job, if that is known already."""
    if moving is None:
        moving = await service.moving([film.now.job.id for film in found if film.now.job.counts.get(State.RUNNING)])
    waits = any(not film.now.job.over for film in found)
    queue = await off_the_loop(service.queue_now) if waits else None
    seen = await off_the_loop(service.foresight_now) if waits else None
    now_us = service.ledger.clock.now_us()
    made = []
    for film in found:
        outcome, heard = film.now, moving.get(film.now.job.id, [])
        expands = any(task["expands"] and State(task["state"]) not in ENDED for task in outcome.tasks)
        now = standing(
            outcome,
            heard,
            backlog=queue,
            place=service.queue.place(outcome.job.id),
            ratios=service.queue.ratios,
            now_us=now_us,
            ahead_s=sum(one.predicted_s for one in recipe.expected(brief_of(film))) if expands else 0.0,
        )
        if outcome.job.over and file_of(film, "film") is not None:  # what is lost then is a take that is not in it
            now = Standing(status="completed", progress=100, eta_s=0.0)
        estimate = estimated(seen, outcome, heard)
        made.append((_film(film, now, {one["task_id"]: one for one in heard}, estimate), now))
    return made


def take(film: FilmRow, task: Task, heard: Json | None = None) -> Take:
    brief, script, key = brief_of(film), script_of(film), task["key"]
    spec, state = task["params"]["spec"], State(task["state"])
    seed = brief.seed if brief.seed is not None else script.seed if script is not None else recipe.DEFAULT_SEED
    own = take_id(film.id, key)
    return Take(
        id=own,
        film=film.id,
        shot=recipe.shot_of(key),
        number=recipe.take_of(key),
        state=state.value,
        reason=task["reason"],
        progress=round(100 * fraction(task, heard)),
        circled=circled(film, recipe.shot_of(key)) == key,
        approved=None if task["gate"] is None else state in DONE,
        rejected=recipe.redraws(seed, key, spec["seed"]),
        prompt=spec["prompt"],
        seed=spec["seed"],
        cost=_cost(film.spend_by_key.get(key, Spend(nano=0, held_s=0.0)), estimated=state not in ENDED),
        url=f"/v1/takes/{own}/content" if clip_of(task, "video") else None,
    )


def _film(film: FilmRow, now: Standing, heard: Mapping[str, Json], estimate: Estimated | None) -> Film:
    job, brief, script = film.now.job, brief_of(film), script_of(film)
    completed = now.status == "completed"
    seed = brief.seed if brief.seed is not None else script.seed if script is not None else None
    waiting = [task["key"] for task in takes_of(film).values() if task["state"] == State.IN_REVIEW.value]
    return Film(
        id=film.id,
        title=script.title if script is not None else None,
        logline=brief.logline or (script.logline if script is not None else ""),
        status=now.status,  # type: ignore[arg-type]  # a value of standing.STATUS
        state=JobState.SUCCEEDED.value if completed else job.state.value,
        progress=now.progress,
        created_at=film.created_us // 1_000_000,
        completed_at=job.ended_us // 1_000_000 if completed and job.ended_us is not None else None,
        deadline=None if job.deadline_us is None else job.deadline_us // 1_000_000,
        show=job.show,
        tier=job.tier,  # type: ignore[arg-type]  # one of jobs.TIERS
        model=brief.model,
        writer=brief.writer,
        seed=seed,
        seconds=f"{brief.seconds:g}",
        quality=brief.quality.value,
        takes=brief.num_takes,
        review=brief.review,
        metadata=job.request.get("metadata"),
        error=_failure(film) if now.status == "failed" else None,
        queue_position=now.queue_position,
        eta_seconds=None if now.eta_s is None else round(now.eta_s, 1),
        usage=_usage(film) if completed else None,
        cost=_cost(film.spend, estimated=not now.over),
        estimate=estimate,
        scenes=[] if script is None else list(_scenes(film, script, heard)),
        waits_for=[take_id(film.id, key) for key in waiting],
        revisions=[
            Revision(
                number=one.number,
                reason=one.reason,
                job=one.job.id,
                state=one.job.state.value,
                created_at=one.job.created_us // 1_000_000,
            )
            for one in film.revisions
        ],
        assets=assets_of(files_of(job.recipe, film.now.tasks)),
        urls={
            name: f"/v1/films/{film.id}/content?variant={name}" for name in VARIANTS if file_of(film, name) is not None
        },
    )


def _scenes(film: FilmRow, script: Script, heard: Mapping[str, Json]) -> Iterator[FilmScene]:
    by_shot: dict[str, list[Task]] = {}
    for key, task in takes_of(film).items():
        by_shot.setdefault(recipe.shot_of(key), []).append(task)
    for scene in script.scenes:
        shots = [
            FilmShot(
                id=shot.id,
                prompt=shot.prompt,
                narration=shot.narration,
                takes=[
                    take(film, task, heard.get(task["id"]))
                    for task in sorted(by_shot.get(shot.id, ()), key=lambda task: recipe.take_of(task["key"]))
                ],
            )
            for shot in scene.shots
        ]
        yield FilmScene(heading=scene.heading, place=scene.place, shots=shots)


def _cost(spend: Spend, *, estimated: bool) -> Cost:
    return Cost(amount=f"{usd(spend.nano):.9f}", estimated=estimated)


def _failure(film: FilmRow) -> Failure:
    broken = film.now.broken
    dead = next((task for task in film.now.tasks if task["state"] == State.DEAD.value), None)
    why = f"{dead['key']}: {dead['reason']}" if dead is not None else "the film could not be made"
    return Failure(code=broken.code if broken else "job_failed", message=why)


def _usage(film: FilmRow) -> Usage:
    cut: Any = next((task["result"] for task in film.now.tasks if task["key"] == "conform"), None) or {}
    frames = int(cut.get("num_frames", 0))
    return Usage(
        duration_seconds=round(float(frames / Fraction(cut.get("fps", 1))), 6),
        frames=frames,
        accelerator_seconds=round(film.spend.held_s, 6),
    )
