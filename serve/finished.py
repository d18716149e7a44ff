"""How a job ends for whoever asked for it: with files in their directory, or with the reason why not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import FailureClass, FarmError, JobFailed, UserMistake
from cluster.ledger import views
from cluster.ledger.ledger import Ledger
from cluster.states import State
from serve.watch import Update

if TYPE_CHECKING:
    from pipelines.replay import Verdict

RESULTS = {
    "pipelines.recipes.film": ("publish", "film.mp4"),
    "pipelines.recipes.clip": ("clip", "clip.mp4"),
    "pipelines.recipes.image": ("image", "still.png"),
}
"""By recipe: the key of the task that has the files of a job, and the one to open first."""
AGAIN = "run the same command again: what is done is kept and not rendered twice"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A job that succeeded, and its files in the caller's directory."""

    job_id: str
    out: Path
    path: Path  # the file to open first
    files: tuple[Path, ...]
    title: str
    cost_usd: Decimal
    seconds: float
    marks_s: Mapping[str, float]  # seconds from the call to: ray, engines, script, first_denoise, last_clip, film
    verdict: Verdict | None = None  # of a film that was made again, beside the one that was


def files_of(recipe: str, tasks: Iterable[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """What a job of this recipe is for, as in receipts; nothing until that is committed."""
    key, _ = RESULTS.get(recipe, ("", ""))
    task = next((t for t in tasks if t["key"] == key and t["state"] == State.SUCCEEDED.value), None)
    return [] if task is None else [*(task["result"] or {}).get("files", []), *(task["files"] or [])]


def why_not(last: Update, failures: Mapping[str, Collection[str | None]]) -> FarmError:
    """What ended the job without its result: the user's mistake, if its dead task says so.

    `failures` are the classes of what went wrong, by the id of the task.
    """
    broken = next((t for t in last.tasks if t.state in (State.DEAD, State.NOT_COMPATIBLE)), None)
    if broken is None:
        return JobFailed(f"the job ended {last.state}")
    classes = failures.get(broken.id, ())
    if FailureClass.INPUT in classes:
        return UserMistake(f"{broken.key}: {broken.reason}")
    return JobFailed(
        f"task {broken.key} failed: {broken.reason}", remedy=None if FailureClass.BUG in classes else AGAIN
    )


def marks(ledger: Ledger, job_id: str, since_us: int) -> dict[str, float]:
    """Seconds from `since_us` to the marks that people ask about."""
    step_of = {t["id"]: t["step"] for t in ledger.tasks(job_id)}
    attempts = [a for a in ledger.attempts(job_id) if a["state"] == "succeeded"]
    ended_us = [(step_of[a["task_id"]], a["ended_us"]) for a in attempts]
    denoise = [a["facts"].get("began_us", {}).get("denoise") for a in attempts if step_of[a["task_id"]] == "render"]
    workers = {a["worker_id"]: step_of[a["task_id"]] for a in attempts if step_of[a["task_id"]] in ("script", "render")}
    at = {
        "engines": max(_engines_up(ledger, workers), default=0),
        "script": max((us for step, us in ended_us if step == "script"), default=0),
        "first_denoise": min((d for d in denoise if d), default=0),
        "last_clip": max((us for step, us in ended_us if step == "render"), default=0),
        "film": max((us for _, us in ended_us), default=0),
    }
    return {name: max(0, us - since_us) / 1e6 for name, us in at.items() if us}


def _engines_up(ledger: Ledger, worker_steps: Mapping[str, str]) -> list[int]:
    """When the first worker of each of these steps had joined."""
    joined = ledger.view(lambda c: views.up_since(c, worker_steps))
    return [
        min((us for worker, us in joined.items() if worker_steps[worker] == step), default=0)
        for step in set(worker_steps.values())
    ]
