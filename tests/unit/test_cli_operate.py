"""The verbs of operating a farm, on a ledger that a farm has left: what they print, what they do, what they refuse."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cluster import farm_lock
from cluster.errors import FailureClass
from cluster.graph import TaskSpec
from cluster.ledger.jobs import TIERS
from cluster.states import JobState, Move, State
from serve.cli.main import run
from serve.cli.operate import Tier
from tests.farm import in_process_farm
from tests.ledger_desk import LedgerDesk, brief, task
from tests.left_farm import AGO_US, WORKER, left_farm
from tests.quick_engine import QuickEngine

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Farm:
    """A home with a ledger: `film` has a dead shot, `clip` is done; what a command printed, and how it ended."""

    home: Path
    desk: LedgerDesk
    film: str
    clip: str
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *argv: str) -> str:
        """What a command that ends well prints."""
        code = run(argv)
        out, err = self.capsys.readouterr()
        assert (code, err) == (0, "")
        return out

    def rows(self, *argv: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self(*argv, "--json").splitlines()]

    def refused(self, *argv: str) -> tuple[str, str]:
        """(what it printed, its one line on standard error) of a command that did nothing."""
        before = self.desk.ledger.events(self.film)
        code = run(argv)
        out, err = self.capsys.readouterr()
        assert (code, err.count("\n")) == (2, 1)
        assert self.desk.ledger.events(self.film) == before
        return out, err.removeprefix("farm: ").rstrip()


@pytest.fixture(scope="module")
def left(fast_folder: Path, empty_ledger: Path) -> tuple[Path, str, str]:
    """(the file of a ledger, its film, its clip), to be copied."""
    path = fast_folder / "left.db"
    film, clip = left_farm(path, empty_ledger)
    return path, film, clip


@pytest.fixture
def farm(
    left: tuple[Path, str, str],
    fast_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Farm]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    path, film, clip = left
    home = fast_folder / uuid4().hex
    home.mkdir()
    shutil.copyfile(path, home / "ledger.db")
    monkeypatch.setenv("FARM_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "80")
    desk = LedgerDesk(f"sqlite:///{home / 'ledger.db'}", start_us=time.time_ns() // 1000 - AGO_US + 135_000_000)
    yield Farm(home=home, desk=desk, film=film, clip=clip, capsys=capsys)
    desk.close()
    shutil.rmtree(home)
    for signum, handler in before.items():
        signal.signal(signum, handler)


# What it looks like


def test_ls_shows_the_newest_first_with_state_progress_and_cost(farm: Farm) -> None:
    lines = farm("ls").splitlines()
    assert lines[0].split() == ["JOB", "STATE", "DONE", "COST", "AGE", "SHOW", "TITLE"]
    age = re.compile(r"( |1)\d min ")
    assert age.sub("AGE ", lines[1]) == f"{farm.clip[-8:]}  succeeded   1/1  $0.0400  AGE  default   a white house"
    assert age.sub("AGE ", lines[2]).startswith(
        f"{farm.film[-8:]}  failed      2/4  $0.0800  AGE  lanterns  A red boat crosses"
    )
    assert lines[2].endswith("…")
    assert max(len(line) for line in lines) == 80


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["clip", "film"]),
        (["--state", "failed"], ["film"]),
        (["--state", "failed", "--state", "succeeded"], ["clip", "film"]),
        (["--state", "running"], []),
        (["--show", "lanterns"], ["film"]),
        (["--show", "nobody"], []),
        (["--limit", "1"], ["clip"]),
        (["--state", "failed", "--limit", "1"], ["film"]),
    ],
    ids=lambda value: " ".join(value) or "all",
)
def test_ls_takes_the_filters_that_people_expect(farm: Farm, options: list[str], found: list[str]) -> None:
    assert [row["job"] for row in farm.rows("ls", *options)] == [getattr(farm, name) for name in found]
    assert farm("ls", *options).startswith("JOB" if found else "no jobs")


def test_ls_in_json_has_whole_ids_and_exact_money(farm: Farm) -> None:
    row = farm.rows("ls", "--show", "lanterns")[0]
    assert row["counts"] == {"succeeded": 2, "dead": 1, "pending": 1}
    assert (row["cost_usd"], row["state"], row["tier"]) == ("0.080000000", "failed", "normal")
    assert row["created"].endswith("+00:00")


def test_tasks_show_attempts_worker_seconds_and_cost(farm: Farm) -> None:
    lines = farm("tasks", farm.film).splitlines()
    assert lines[0].split() == ["TASK", "STATE", "STEP", "TRIES", "TOOK", "COST", "WORKER,", "OR", "WHY"]
    assert lines[1].split() == ["script", "succeeded", "script", "1", "20", "s", "$0.0200", "w1"]
    assert lines[2].split() == ["sh010.t1", "succeeded", "draw", "1", "30", "s", "$0.0300", "render-house-video/9abcde"]
    assert lines[3].split() == ["sh020.t1", "dead", "draw", "3", "10", "s", "$0.0300", "it", "broke", "�[31mbadly"]
    assert lines[4].split() == ["conform", "pending", "draw"]


def test_tasks_of_one_state_alone(farm: Farm) -> None:
    assert [row["task"] for row in farm.rows("tasks", farm.film, "--state", "dead")] == ["sh020.t1"]
    assert farm("tasks", farm.film, "--state", "running") == "no tasks\n"
    dead = farm.rows("tasks", farm.film, "--state", "dead")[0]
    assert (dead["attempts"], dead["failures"], dead["worker"]) == (3, {"bug": 3}, "w1")


def test_info_says_all_about_a_job(farm: Farm) -> None:
    text = farm("info", farm.clip)
    assert text.startswith("a white house")
    assert f"job        {farm.clip}" in text
    assert "asked by   studio, show default, batch 50" in text
    assert "cost       $0.0400: busy $0.0400" in text
    assert "file       clip.mp4, 9 bytes" in text
    assert "ended" in text
    failed = " ".join(farm("info", farm.film).split())
    assert "state failed tasks 4: 1 pending, 2 succeeded, 1 dead" in failed
    assert "cost $0.0800: busy $0.0500, wasted $0.0300" in failed
    row = farm.rows("info", farm.clip)[0]
    assert [(f["task"], f["name"], f["size_bytes"]) for f in row["files"]] == [("clip", "clip.mp4", 9)]
    assert row["cost_by_kind_usd"]["busy"] == "0.040000000"


def test_no_line_that_is_printed_ends_in_spaces_or_is_wider_than_the_terminal(farm: Farm) -> None:
    for argv in (["ls"], ["info", farm.film], ["tasks", farm.film], ["why", farm.film], ["workers"]):
        lines = farm(*argv).splitlines()
        assert [line for line in lines if line != line.rstrip() or len(line) > 80] == []


def test_what_runs_costs_something_only_while_its_farm_is_at_work(farm: Farm) -> None:
    farm.desk.clock.advance(AGO_US / 1e6 - 135)
    job = farm.desk.submit(task("now"), title="now")
    farm.desk.lease(job, "now", worker="w2")
    assert farm.rows("info", job)[0]["cost_by_kind_usd"]["running"] == "0.000000000"
    with farm_lock.held(farm.home):
        row = farm.rows("info", job)[0]
        assert float(row["cost_by_kind_usd"]["running"]) > 0
        assert row["running"][0]["task"] == "now"
        assert "runs       now on w2" in farm("info", job)
        states = {w["worker"]: w["state"] for w in farm.rows("workers")}
        assert states == {"w1": "idle", "w2": "busy", WORKER: "idle"}


def test_log_tells_the_events_in_words_and_goes_on_after_a_number(farm: Farm) -> None:
    lines = farm("log", farm.clip).splitlines()
    assert farm.clip in lines[0]
    assert [line.split(maxsplit=2)[2] for line in lines[1:]] == [
        'submitted: "a white house", batch, show default',
        "clip: planned, ready",
        "clip: runs on w2, epoch 1",
        "clip: done",
        "over",
    ]
    assert [line.split()[0] for line in farm("log", farm.clip, "--after", "3").splitlines()[1:]] == ["4", "5"]
    rows = farm.rows("log", farm.film)
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    dead = next(row for row in rows if row["event"] == "task.die")
    assert (dead["task"], dead["from"], dead["state"], dead["failure"]) == ("sh020.t1", "running", "dead", "bug")
    assert farm("log", farm.film).count("sh020.t1: dead (bug): it broke �[31mbadly") == 1


def test_log_follows_a_job_until_it_is_over(farm: Farm) -> None:
    job = farm.desk.submit(task("a"))
    code = f"import sys; from serve.cli.main import run; sys.exit(run(['log', '{job}', '--follow', '--json']))"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        kinds = [json.loads(following.stdout.readline())["event"] for _ in range(2)]
        farm.desk.run(job, "a")
        kinds += [json.loads(line)["event"] for line in following.stdout]
    assert kinds == ["job.created", "task.created", "task.lease", "task.commit", "job.ended"]
    assert following.returncode == 0


def test_workers_say_what_they_hold_run_and_cost(farm: Farm) -> None:
    farm.desk.ledger.drain("w2", reason="three failures in a row")
    lines = farm("workers").splitlines()
    assert lines[0].split()[:5] == ["WORKER", "STATE", "HELD", "COST", "WITH"]
    short = next(line for line in lines if line.startswith("render-house-video/9abcde"))
    assert (short.split()[1], short.split()[-1]) == ("idle", "$0.0500")
    drained = next(line for line in lines if line.startswith("w2"))
    assert "draining" in drained
    assert drained.endswith("three failures in a row")
    assert any(line.startswith("  render, cpu on-demand, on n1, idle for $0.0200, since 20") for line in lines)
    assert lines[-1] == "no farm is at work here now: these were left behind by one that was killed"
    farm.desk.ledger.leave(farm.desk.term, "w1")
    assert {row["worker"] for row in farm.rows("workers")} == {WORKER, "w2"}
    assert {row["worker"]: row["state"] for row in farm.rows("workers", "--all")} == {
        WORKER: "idle", "w1": "gone", "w2": "draining"
    }  # fmt: skip


# Why


def test_why_names_all_that_holds_a_task_back_and_what_to_do(farm: Farm) -> None:
    farm.desk.ledger.set_held(farm.film, True)
    text = farm("why", f"{farm.film}/conform")
    short = farm.film[-8:]
    assert text.splitlines() == [
        "conform waits for its inputs",
        "  - its job is on hold",
        f"    farm release {short}",
        "  - it needs sh020.t1, which is dead: it broke �[31mbadly",
        f"    farm retry {short}/sh020.t1, or farm eat {short}/sh020.t1 to go on without",
        "    it",
        "  - no farm is at work on this ledger",
        "    give the command that submitted the job again",
        "  nothing happens until somebody acts",
    ]
    row = farm.rows("why", f"{farm.film}/conform")[0]
    assert [hold["what"] for hold in row["holds"]] == ["job_held", "input", "no_farm"]
    assert row["waits_for_somebody"]


def test_why_of_a_job_explains_what_is_broken_and_counts_the_rest(farm: Farm) -> None:
    text = farm("why", farm.film)
    assert text.startswith(f"{farm.film} is failed\nsh020.t1 is dead after 3 bug failures of 3: it broke")
    assert "2 more tasks are succeeded" in text
    assert "1 more task is pending" in text
    assert [row["task"] for row in farm.rows("why", farm.film)] == ["sh020.t1"]


def test_why_asks_what_the_dispatcher_asks(farm: Farm) -> None:
    """Twins, back-off, the queue, and workers, out of a real ledger."""
    desk = farm.desk
    same = {"spec": {"prompt": "same", "seed": 1}}
    one, two = desk.submit(task("one", params=same, weight=60.0)), desk.submit(task("two", params=same))
    later = desk.submit(task("later"))
    desk.lease(one, "one")
    tired = desk.lease(later, "later", worker="w2")
    desk.fail(tired, FailureClass.INFRA, message="the store is away")
    desk.clock.jump(time.time_ns() / 1e9 - desk.clock.now_us() / 1e6)
    with farm_lock.held(farm.home):
        twin = farm.rows("why", f"{two}/two")[0]
        assert [hold["what"] for hold in twin["holds"]] == ["same_question"]
        assert twin["holds"][0]["text"].startswith(f"{one}/one is answering the same question on w1")
        back = farm.rows("why", f"{later}/later")[0]
        assert "after 1 infra failure of 20: the store is away" in back["holds"][0]["text"]
        for name in ("w1", "w2", WORKER):
            desk.ledger.drain(name, reason="a person asked")
        drained = farm.rows("why", f"{later}/later")[0]
        assert [hold["what"] for hold in drained["holds"]] == ["backoff", "unfit", "unfit", "unfit"]
        running = farm.rows("why", f"{one}/one")[0]
        assert "attempt 1 runs on w1" in running["said"]


def test_why_counts_the_queue_by_tier_priority_and_age(farm: Farm) -> None:
    desk = farm.desk
    desk.ledger.leave(desk.term, "w2")
    desk.ledger.leave(desk.term, WORKER)
    busy = desk.submit(task("busy", weight=3600.0))
    desk.lease(busy, "busy")
    first = desk.submit(task("old"), task("old2"))
    desk.clock.advance(1)
    mine = desk.submit(task("mine"))
    desk.submit(task("batch"), tier="batch")
    held = desk.submit(task("held"), tier="interactive")
    desk.ledger.set_held(held, True)
    desk.submit(task("writes", role="writer"))
    with farm_lock.held(farm.home):

        def ahead() -> str:
            holds = farm.rows("why", f"{mine}/mine")[0]["holds"]
            return str(holds[0]["text"])

        assert ahead() == "the only worker that fits, w1, is busy; 2 tasks are ahead of it in the queue"
        desk.ledger.set_priority(first, priority=10)
        assert "0 tasks are ahead" in ahead()
        desk.ledger.set_priority(mine, tier="batch")
        assert "2 tasks are ahead" in ahead()


# What it does


def test_what_is_destructive_says_what_it_touches_and_does_nothing_without_yes(farm: Farm) -> None:
    film = farm.film
    out, err = farm.refused("cancel", film)
    assert out == f"cancel {film}: 1 task (1 pending); nothing was spent on it yet\n"
    assert err == "cancel: nothing was done; give --yes to do it"
    out, _ = farm.refused("requeue", film)
    assert out == (
        f"requeue {film}: 3 tasks (2 succeeded, 1 dead); $0.0800 was spent on them, and would be spent again\n"
    )
    out, _ = farm.refused("eat", film)
    assert out == f"eat {film}: 1 task (1 dead); $0.0300 was spent on it so far\n"
    out, _ = farm.refused("requeue", f"{film}/script", "--json")
    row = json.loads(out)
    assert (row["tasks"], row["spent_usd"], row["stale"], row["done"]) == (1, "0.020000000", 1, False)


def test_cancel_stops_what_has_not_ended(farm: Farm) -> None:
    assert farm("cancel", farm.film, "--yes") == f"{farm.film}: 1 task canceled\n"
    assert farm.desk.state(farm.film, "conform") is State.CANCELED
    assert farm("cancel", farm.clip, "--yes") == f"nothing to cancel: {farm.clip} has no such task\n"
    farm.desk.check()


def test_retry_of_one_dead_task_needs_no_yes_and_of_many_does(farm: Farm) -> None:
    assert farm("retry", farm.film).splitlines() == [
        f"{farm.film}: 1 task opened again",
        "no farm is at work here: what is ready waits until one is",
    ]
    assert farm.desk.state(farm.film, "sh020.t1") is State.READY
    assert farm.desk.ledger.job(farm.film).state is JobState.RUNNING
    many = farm.desk.submit(task("a"), task("b"))
    for key in "ab":
        farm.desk.fail(farm.desk.lease(many, key), FailureClass.INPUT)
    out, _ = farm.refused("retry", many)
    assert "2 tasks (2 dead)" in out
    assert farm.rows("retry", many, "--yes")[0]["tasks"] == 2
    assert farm.desk.states(many) == {"a": "ready", "b": "ready"}


def test_requeue_runs_again_what_was_named_and_what_is_built_on_it_is_stale(farm: Farm) -> None:
    assert farm("requeue", f"{farm.film}/script", "--yes").splitlines()[:2] == [
        f"{farm.film}/script: 1 task opened again",
        f"farm requeue {farm.film} --state stale makes again what is older than its inputs now",
    ]
    assert farm.desk.states(farm.film) == {
        "script": "ready", "sh010.t1": "stale", "sh020.t1": "dead", "conform": "pending"
    }  # fmt: skip
    assert farm.rows("requeue", farm.film, "--state", "stale", "--yes")[0]["tasks"] == 1
    assert farm.desk.state(farm.film, "sh010.t1") is State.PENDING
    farm.desk.check()


def test_what_an_expansion_was_made_from_is_never_opened_again(farm: Farm) -> None:
    desk = farm.desk
    job = desk.submit(task("write"), task("expand", "write", expands=True), task("after", "write"))
    desk.run(job, "write")
    desk.run(job, "expand", children=[task("shot", "write")])
    desk.run(job, "after")
    desk.run(job, "shot")
    for key in ("write", "expand"):
        out, err = farm.refused("requeue", f"{job}/{key}", "--yes")
        assert out == ""
        assert "cannot run again: tasks of its job were made from it, once; submit the job again" in err
    out, _ = farm.refused("requeue", job)
    assert out.startswith(f"requeue {job}: 2 tasks (2 succeeded)")
    assert "write, expand stay as they are" in out
    farm("requeue", job, "--yes")
    assert desk.states(job) == {"write": "succeeded", "expand": "succeeded", "after": "ready", "shot": "ready"}
    desk.check()


def test_eat_accepts_a_dead_task_and_what_needs_it_goes_on(farm: Farm) -> None:
    farm("eat", f"{farm.film}/sh020.t1", "--yes")
    assert farm.desk.states(farm.film) == {
        "script": "succeeded", "sh010.t1": "succeeded", "sh020.t1": "eaten", "conform": "ready"
    }  # fmt: skip


def test_hold_and_release_of_a_job_and_of_a_task(farm: Farm) -> None:
    job = farm.desk.submit(task("a"), task("b"))
    assert "on hold: it gets no new work, what runs goes on" in farm("hold", job)
    assert farm.desk.try_lease(job, "a") is None
    assert farm("release", job) == f"{job} is released\n"
    running = farm.desk.lease(job, "a")
    out, _ = farm.refused("hold", f"{job}/a")
    assert "1 task (1 running)" in out
    farm("hold", f"{job}/b")
    assert farm("hold", f"{job}/a", "--yes") == f"{job}/a: 1 task put on hold\n"
    assert [a["state"] for a in farm.desk.ledger.attempts_of(running.task_id)] == ["canceled"]
    assert farm.desk.states(job) == {"a": "suspended", "b": "suspended"}
    farm("release", f"{job}/b")
    assert farm.desk.states(job) == {"a": "suspended", "b": "ready"}
    farm("release", job, "--tasks")
    assert farm.desk.states(job) == {"a": "ready", "b": "ready"}


def test_pri_sets_priority_and_tier(farm: Farm) -> None:
    assert farm("pri", farm.film, "--priority", "70") == f"{farm.film} has tier normal, priority 70\n"
    row = farm.rows("pri", farm.film, "--tier", "interactive")[0]
    assert (row["tier"], row["priority"]) == ("interactive", 70)


def test_drain_takes_a_worker_out_of_service(farm: Farm) -> None:
    farm.desk.lease(farm.desk.submit(task("a")), "a", worker=WORKER)
    out, _ = farm.refused("drain", "9abcde")
    assert out.startswith("drain render-house-video/9abcde: 1 worker; what it runs (job_")
    assert farm("drain", "render-house-video/9abcde", "--yes") == "render-house-video/9abcde: 1 worker drained\n"
    assert farm.desk.ledger.draining() == {WORKER: "a person asked"}
    assert farm("drain", WORKER, "--yes", "--reason", "again") == "render-house-video/9abcde: 0 workers drained\n"
    farm.desk.ledger.leave(farm.desk.term, "w1")
    assert "w1 has left already" in farm.refused("drain", "w1", "--yes")[1]


def test_a_farm_at_work_sees_a_verb_by_its_next_look_and_its_worker_goes_on(farm: Farm, tmp_path: Path) -> None:
    for left_behind in ("w1", "w2", WORKER):
        farm.desk.ledger.leave(farm.desk.term, left_behind)
    with in_process_farm(farm.home) as running, farm_lock.held(farm.home):
        slow = TaskSpec(key="slow", step="take", role="render", entry="x:y", params={"gate": f"{tmp_path}/gate"})
        quick = TaskSpec(key="quick", step="take", role="render", entry="x:y")
        first = running.ledger.submit(brief(title="first"), [slow])[0]
        second = running.ledger.submit(brief(title="second"), [quick])[0]
        working = threading.Thread(target=running.work_until_over, args=(second, running.worker(QuickEngine())))
        working.start()
        running.wait_for((tmp_path / "pid").exists)
        reason = farm.rows("why", f"{first}/slow")[0]
        assert reason["state"] == "running"
        held = farm.rows("why", f"{second}/quick")[0]["holds"]
        assert [hold["what"] for hold in held] == ["busy"]
        assert farm("cancel", first, "--yes") == f"{first}: 1 task canceled\n"
        working.join()
        assert running.ledger.job(second).state is JobState.SUCCEEDED
        assert [a["state"] for a in running.ledger.attempts(first)] == ["canceled"]


CONFIRMS = """
import sys
from serve.cli.main import run
from serve.cli.operate import Tier
sys.exit(run(["cancel", sys.argv[1]]))
"""


@pytest.mark.parametrize(("answer", "code", "said"), [("y", 0, "1 task canceled"), ("", 2, "nothing was done")])
def test_on_a_terminal_it_asks(farm: Farm, answer: str, code: int, said: str) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", CONFIRMS, farm.film], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs
    ) as asking:
        os.close(theirs)
        drawn = b""
        while b"[y/N]" not in drawn:
            drawn += os.read(ours, 4096)
        os.write(ours, f"{answer}\n".encode())
        with contextlib.suppress(OSError):  # the last process on it has ended
            while chunk := os.read(ours, 4096):
                drawn += chunk
    os.close(ours)
    assert asking.returncode == code
    assert said in drawn.decode()
    assert farm.desk.state(farm.film, "conform") is (State.PENDING if code else State.CANCELED)


# How people name things


def test_a_job_is_named_by_its_id_or_a_part_that_fits_one_alone(farm: Farm) -> None:
    whole = farm.film
    middle = next(n for n in range(8, len(whole)) if not farm.clip.startswith(whole[:n]))
    for part in (
        whole,
        whole.upper(),
        whole[-8:],
        whole[-4:],
        whole[:middle],
        whole.removeprefix("job_")[: middle - 4],
    ):
        assert farm.rows("info", part)[0]["job"] == whole
    task_id = farm.desk.task(whole, "conform")["id"]
    for name in (f"{whole}/conform", f"{whole[-8:]}/conform", task_id, task_id[-10:]):
        assert farm.rows("why", name)[0]["task"] == "conform"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["info", "nobody"], "no job nobody; `farm ls` lists them"),
        (["why", "nobody"], "no job or task nobody; `farm ls` lists them"),
        (["why", "task_nobody"], "no job or task task_nobody"),
        (["drain", "nobody", "--yes"], "no worker nobody; `farm workers` lists them"),
        (["info", "z"], "'z' is too little of an id; give 4 characters of it"),
        (["info", "%%%%"], "no job %%%%"),
        (["info", "job_"], "job_ fits several: job_"),
        (["cancel", "FILM/sh010", "--yes"], "no task 'sh010' in job_"),
        (["cancel", "FILM/sh010", "--yes"], "use sh010.t1 or sh020.t1"),
        (["retry", "FILM/script"], "is succeeded, which a person cannot retry; possible now: requeue"),
        (["eat", "FILM/script", "--yes"], "is succeeded, which a person cannot eat; possible now: requeue"),
        (["cancel", "FILM/script", "--yes"], "is succeeded, which a person cannot cancel"),
        (["release", "FILM/script"], "is succeeded, which a person cannot release"),
        (["release", "FILM/sh020.t1"], "cannot release; possible now: cancel, eat, requeue, retry"),
        (["requeue", "FILM", "--state", "running"], "a task that is running has not ended; use canceled, dead"),
        (["requeue", "FILM", "--state", "done"], "--state: 'done' is not one of"),
        (["pri", "FILM", "--priority", "101"], "priority must be from 0 to 100, got 101"),
        (["pri", "FILM", "--priority", "-1"], "priority must be from 0 to 100, got -1"),
        (["pri", "FILM", "--priority", "high"], "--priority must be a valid integer"),
        (["pri", "FILM", "--tier", "urgent"], "'urgent' is not one of 'interactive', 'normal', 'batch'"),
        (["pri", "FILM"], "nothing to set; give --priority N, --tier NAME, or both"),
        (["pri", "FILM/script", "--priority", "1"], "a task has the priority of its job"),
        (["ls", "--state", "sleeping"], "'sleeping' is not one of"),
        (["ls", "--limit", "0"], "--limit must be greater than or equal to 1"),
        (["log", "FILM", "--after", "-1"], "--after must be greater than or equal to 0"),
        (["cancel"], "Missing argument 'JOB[/TASK]'"),
        (["info", "a\udcffbcd"], "the ID is not UTF-8 text"),
        (["ls", "--show", "a\udcff"], "the show is not UTF-8 text"),
        (["why", "FILM/a\udcff"], "the ID is not UTF-8 text"),
        (["drain", "w1", "--reason", "a\udcff"], "the reason is not UTF-8 text"),
    ],
    ids=lambda value: ascii(" ".join(value)) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line_that_says_what_to_do(farm: Farm, argv: list[str], said: str) -> None:
    _, err = farm.refused(*(part.replace("FILM", farm.film) for part in argv))
    assert said in err


def test_where_no_farm_has_worked_that_is_said_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "nowhere"))
    assert run(["ls"]) == 2
    assert capsys.readouterr().err == (
        f"farm: FARM_HOME: no farm has worked in {tmp_path}/nowhere yet; render something, or set FARM_HOME to where "
        "that was done\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_looking_at_the_farm_imports_neither_ray_nor_torch(farm: Farm) -> None:
    code = (
        "import sys\nfrom serve.cli.main import run\n"
        f"codes = [run(['ls']), run(['why', '{farm.film}']), run(['workers']), run(['tasks', '{farm.film}'])]\n"
        "print(codes, {'torch', 'ray', 'vllm', 'numpy', 'av', 'diffusers', 'pipelines', 'boto3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0] set()"


def test_every_move_of_a_person_has_a_verb_or_is_a_review() -> None:
    from cluster.states import OF_PEOPLE

    verbs = {Move.HOLD, Move.RELEASE, Move.CANCEL, Move.EAT, Move.REOPEN}
    assert OF_PEOPLE - verbs == {Move.APPROVE, Move.REJECT}  # `farm approve`, `farm reject`


def test_the_tiers_of_the_command_line_are_those_of_the_ledger() -> None:
    assert tuple(tier.value for tier in Tier) == TIERS
