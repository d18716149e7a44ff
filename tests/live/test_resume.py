"""SIGKILL in the middle of a denoise: the take that comes out is the one that would have come out."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from actors.contract import Quality, ShotSpec
from actors.orders import checkpoints
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from cluster.states import JobState, Move, State
from cluster.store.directory import DirectoryStore
from pipelines.recipes import clip
from serve.crew import fleet_of
from serve.local import Farm
from tests import dying_renderer
from tests.tiny_models import tiny_ltx, tiny_wan

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
BUILDERS = {"wan": tiny_wan, "ltx": tiny_ltx}
SPEC = ShotSpec(
    prompt="a red ball drifts over the sea", negative_prompt="blurry", num_frames=5, fps=Fraction(16), width_px=32,
    height_px=32, num_steps=6, guidance_scale=5.0, seed=7,
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.dying_renderer"])
    return context


@pytest.mark.parametrize("scheduler", ["flow-match-euler", "unipc", "dpm++-2m"])
@pytest.mark.parametrize("family", BUILDERS)
def test_a_killed_denoise_goes_on_from_its_last_step_to_the_same_take(
    server: Any, tmp_path: Path, family: str, scheduler: str
) -> None:
    place = BUILDERS[family](tmp_path / "model", scheduler=scheduler)

    def run(*attempts: str, die_at: int = 0, resume_from: Sequence[str] = ()) -> int | None:
        child = server.Process(
            target=dying_renderer.render, args=(family, place, tmp_path, SPEC, attempts, resume_from, die_at)
        )
        child.start()
        child.join(200)
        return int(child.exitcode)

    assert run("undisturbed", "killed", die_at=4) == -signal.SIGKILL
    saved = checkpoints(DirectoryStore(tmp_path / "store"), "studio", ["killed"])
    assert run("resumed", resume_from=saved) == 0
    undisturbed, resumed = (json.loads((tmp_path / f"{a}.json").read_text()) for a in ("undisturbed", "resumed"))
    assert resumed["at"] in (2, 3)  # the fourth step was not saved yet, the third was or was being saved
    assert resumed["content"] == undisturbed["content"]


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FARM_CHECKPOINT_S", "0.01")  # after each step
        patch.setenv("FARM_PREEMPT_PAYS_S", "0.1")
        with Farm(home=tmp_path_factory.mktemp("home"), gpus=0) as running:
            running.fleets.want(fleet_of("render", "house-video", gpus=0, settings=running.settings))
            yield running


def submit(farm: Farm, prompt: str, tier: str) -> str:
    brief = clip.Brief(prompt=prompt, seconds=2.0, seed=7, quality=Quality.FINAL)  # steps enough to come in between
    graph: list[TaskSpec] = clip.plan(brief, farm.catalog)
    job, _ = farm.ledger.submit(
        JobSpec(recipe="pipelines.recipes.clip", title="test", spec=brief.to_json(), tier=tier), graph
    )
    farm.fleets.desk.poke()
    return job


def until(farm: Farm, job_id: str, *, done: int) -> dict[str, Any]:
    """The running attempt of a job, once it has made `done` denoise steps."""
    while True:
        for at in farm.fleets.desk.progress(job_id):
            if at["stage"] == "denoise" and at["done"] >= done:
                return at
        assert not farm.ledger.job(job_id).over
        threading.Event().wait(0.05)


def over(farm: Farm, job_id: str) -> Any:
    farm.fleets.desk.poke()
    while not farm.ledger.job(job_id).over:
        threading.Event().wait(0.1)
    (row,) = farm.ledger.tasks(job_id)
    return row


def test_a_house_take_whose_worker_is_killed_equals_one_that_was_left_alone(farm: Farm) -> None:
    job_id = submit(farm, "a red boat drifts right over the sea at night", "normal")
    at = until(farm, job_id, done=5)
    (attempt,) = farm.ledger.attempts(job_id)
    (worker,) = (w for w in farm.ledger.workers() if w["id"] == attempt["worker_id"])
    os.kill(worker["facts"]["pid"], signal.SIGKILL)
    row = over(farm, job_id)
    killed, resumed = farm.ledger.attempts(job_id)
    assert (killed["state"], resumed["state"]) == ("lost", "succeeded")
    assert resumed["facts"]["resumed_at"] >= at["done"] - 2  # what was being saved, and what was not yet
    farm.ledger.move_task(row["id"], Move.REOPEN, reason="once more, undisturbed")
    again = over(farm, job_id)
    assert "resumed_at" not in farm.ledger.attempts(job_id)[-1]["facts"]
    assert again["result"]["content_sha256"] == row["result"]["content_sha256"]


def test_an_interactive_take_preempts_a_batch_take_which_ends_bit_equal(farm: Farm) -> None:
    batch = submit(farm, "a blue fish swims left in the city at dusk", "batch")
    until(farm, batch, done=3)
    now = submit(farm, "a yellow star rises over the mountains in winter", "interactive")
    assert over(farm, now)["state"] == State.SUCCEEDED
    row = over(farm, batch)
    assert [a["state"] for a in farm.ledger.attempts(batch)] == ["interrupted", "succeeded"]
    (clip_attempt,) = farm.ledger.attempts(now)
    assert clip_attempt["ended_us"] < farm.ledger.attempts(batch)[-1]["ended_us"]
    farm.ledger.move_task(row["id"], Move.REOPEN, reason="once more, undisturbed")
    assert over(farm, batch)["result"]["content_sha256"] == row["result"]["content_sha256"]
    assert farm.ledger.job(batch).state is JobState.SUCCEEDED
