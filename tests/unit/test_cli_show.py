"""What people see while a job runs, rendered to a recorded terminal and compared on content."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from cluster.clock import ManualClock
from cluster.errors import InvalidInput
from cluster.ledger.events import Event
from cluster.ledger.jobs import Job
from cluster.states import JobState, State
from serve.cli import wording
from serve.cli.board import Board
from serve.cli.lines import JsonShow, LineShow
from serve.cli.show import FINE, PLAIN, LiveShow, Picture, fitting, glyphs_for
from serve.cli.summary import summary
from serve.finished import Finished
from serve.watch import TaskView, Update

T0 = 1_790_000_000_000_000
LOGLINE = "A red boat crosses the sea at night"
PROMPTS = (
    "a red boat drifts right over the sea at night, the camera holds still",
    "a yellow star rises over the sea at night, the camera pushes in",
    "a white moon sways over the sea at night, the camera pans left",
)


def job(*, over: bool = False) -> Job:
    return Job(
        id="job_1", tenant="studio", show="default", recipe="pipelines.recipes.film", version=1, title=LOGLINE, spec={},
        tier="interactive", priority=50, deadline_us=None, held=False, seq=9, num_tasks=6, created_us=T0,
        ended_us=T0 + 60_000_000 if over else None,
    )  # fmt: skip


def view(key: str, state: State, **facts: object) -> TaskView:
    step = "render" if ".t" in key else key
    role = {"script": "writer", "render": "render"}.get(step, "finish")
    return replace(
        TaskView(id=f"task_{key}", key=key, step=step, role=role, state=state, since_us=T0),
        **facts,  # type: ignore[arg-type]
    )


def event(seq: int, kind: str, key: str | None, at_s: float, **data: object) -> Event:
    return Event(
        job_id="job_1", seq=seq, at_us=T0 + round(at_s * 1e6), kind=kind, task_id=f"task_{key}" if key else None,
        attempt_id=None, epoch=1, from_state=None, to_state=None, data=data,
    )  # fmt: skip


def update(*tasks: TaskView, events: tuple[Event, ...] = (), over: bool = False, title: str | None = None) -> Update:
    return Update(
        job=job(over=over), state=JobState.RUNNING, events=events, tasks=tasks, cost_usd=Decimal("0.000312"),
        eta_s=44.0, title=title,
    )  # fmt: skip


def film_underway() -> Update:
    """A script that is written, one shot drawn, one half drawn, one to come."""
    return update(
        view("script", State.SUCCEEDED),
        view("sh010.t1", State.SUCCEEDED, about=PROMPTS[0]),
        view("sh020.t1", State.RUNNING, about=PROMPTS[1], stage="denoise", done=8, total=16),
        view("sh030.t1", State.READY, about=PROMPTS[2]),
        view("conform", State.PENDING),
        view("publish", State.PENDING),
        title="The Lantern Boat",
        events=(
            event(1, "job.created", None, 0),
            event(2, "task.lease", "script", 10),
            event(3, "task.commit", "script", 22),
            event(4, "task.lease", "sh010.t1", 22),
            event(5, "task.commit", "sh010.t1", 28.5),
            event(6, "task.lease", "sh020.t1", 29),
        ),
    )


def board(*updates: Update) -> Board:
    made = Board(headline=LOGLINE, facts="3 shots of 2 s, standard, seed 7, house-video", began_us=T0)
    for each in updates:
        made.take(each)
    return made


def seen(board: Board, *, at_s: float = 32.0, width: int = 80, height: int = 24, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(Picture(board, T0 + round(at_s * 1e6)))
    return capture.get()


def finished(tmp_path: Path) -> Finished:
    files = tuple(tmp_path / name for name in ("contact-sheet.png", "film.mp4", "film.vtt", "manifest.json"))
    return Finished(
        job_id="job_1", out=tmp_path, path=tmp_path / "film.mp4", files=files, title="The Lantern Boat",
        cost_usd=Decimal("0.001312"), seconds=48.2,
        marks_s={"ray": 3.0, "engines": 12.0, "script": 24.0, "first_denoise": 25.5, "last_clip": 45.0, "film": 47.9},
    )  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 140])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = seen(board(film_underway()), width=width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert sum("sh020" in line for line in lines) == 1


def test_a_film_underway_shows_title_steps_seconds_eta_and_cost() -> None:
    text = seen(board(film_underway()))
    rows = {line.split()[1]: line for line in text.splitlines() if line[1:2] in tuple("✓○·" + FINE.spin)}
    assert "The Lantern Boat" in text
    assert LOGLINE in text
    assert rows["script"].rstrip().endswith("12 s")
    sh010, sh020, sh030 = (line for line in text.splitlines() if "shot sh0" in line)
    assert sh010.startswith(" ✓ shot sh010 take 1 a red boat drifts")
    assert sh010.rstrip().endswith("6.5 s")
    assert sh010.count("━") == 12
    assert "8/16" in sh020
    assert sh020.count("━") == 6
    assert sh020.rstrip().endswith("3.0 s")
    assert "next" in sh030
    assert "━" not in sh030
    assert "0:32 so far · about 45 s left · cost $0.0003" in text


def test_before_the_script_the_logline_stands_as_the_headline() -> None:
    text = seen(board(update(view("script", State.READY))), at_s=12)
    assert text.splitlines()[1].strip() == LOGLINE
    assert "the writer is loading, 12 s" in text


def test_before_there_is_a_job_the_farm_is_starting() -> None:
    assert "the farm is starting, 3.5 s" in seen(board(), at_s=3.5)


def test_a_loading_line_vanishes_once_something_runs() -> None:
    assert "loading" not in seen(board(film_underway()))


def test_a_worker_that_was_lost_is_not_called_loading() -> None:
    first = film_underway()
    then = update(view("script", State.SUCCEEDED), view("sh020.t1", State.READY, since_us=T0 + 30_000_000))
    assert "shot sh020 take 1 waits for a worker, 2.0 s" in seen(board(first, then))


def test_a_failed_attempt_says_why_it_is_tried_again() -> None:
    text = seen(board(update(view("sh010.t1", State.BACKOFF, reason="the clip shows nothing but one colour"))))
    assert "shot sh010 take 1 will be tried again: the clip shows nothing but one colour" in " ".join(text.split())


def test_what_an_earlier_run_made_is_called_kept() -> None:
    cached = update(view("sh010.t1", State.SUCCEEDED), events=(event(1, "task.cache_hit", "sh010.t1", 1),))
    assert "kept" in seen(board(cached))


def test_a_stopping_farm_says_that_work_is_kept() -> None:
    made = board(film_underway())
    made.stopping = True
    text = seen(made)
    assert "stopping, what is finished is kept" in text
    assert "left" not in text


def test_forty_shots_fit_on_a_small_terminal_and_running_ones_are_seen() -> None:
    shots = [view(f"sh{n:03}.t1", State.SUCCEEDED if n < 20 else State.PENDING) for n in range(40)]
    shots[30] = view("sh030.t1", State.RUNNING, stage="denoise", done=1, total=16)
    text = seen(board(update(*shots)), height=16)
    assert len(text.splitlines()) <= 16
    assert "sh030" in text
    assert "and 34 more tasks: 20 done, 14 waiting" in text


def test_hidden_and_shown_tasks_are_all_there_is() -> None:
    tasks = [view(f"sh{n:03}.t1", State.PENDING) for n in range(10)]
    shown, line = fitting(tasks, 4)
    assert [task.key for task in shown] == ["sh000.t1", "sh001.t1", "sh002.t1"]
    assert line == "and 7 more tasks: 7 waiting"
    assert fitting(tasks, 10) == (tasks, "")


def test_a_terminal_without_unicode_gets_ascii() -> None:
    assert glyphs_for("ascii") is PLAIN
    text = seen(board(film_underway()), encoding="ascii")
    assert text.isascii() or set(text) - {chr(n) for n in range(128)} <= {"…", "·"}
    assert "======------" in text


def test_text_of_users_cannot_steer_the_terminal() -> None:
    assert (
        wording.clean("a\x1b[2J \u202eboat\n\tand\x9b31m ü 🎈 שלום") == "a\ufffd[2J \ufffdboat and\ufffd31m ü 🎈 שלום"
    )
    assert wording.clean("abcdef", 4) == "abc…"
    evil = replace(film_underway(), title="The \x1b]0;owned\x07 Boat")
    assert "\x1b" not in seen(board(evil))


@pytest.mark.parametrize(
    ("value", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99.6, "1:39"), (3725.0, "1:02:05")]
)
def test_seconds_read_naturally(value: float, text: str) -> None:
    assert wording.seconds(value) == text


@pytest.mark.parametrize(
    ("amount", "text"), [("0", "$0"), ("0.00001", "under $0.0001"), ("0.00314", "$0.0031"), ("1234.5", "$1,234.50")]
)
def test_dollars_read_naturally(amount: str, text: str) -> None:
    assert wording.dollars(Decimal(amount)) == text


@pytest.mark.parametrize(
    ("eta_s", "text"),
    [(None, "working out how long it takes"), (3.0, "a few seconds left"), (43.0, "about 45 s left"),
     (170.0, "about 3 min left"), (9000.0, "about 2.5 h left")],
)  # fmt: skip
def test_what_is_left_is_no_finer_than_it_is_known(eta_s: float | None, text: str) -> None:
    assert wording.left(eta_s) == text


def test_the_summary_says_where_what_and_how_to_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    player = tmp_path / "mpv"
    player.write_text("#!/bin/sh\n")
    player.chmod(0o755)
    console = Console(width=200, file=io.StringIO())
    with console.capture() as capture:
        console.print(summary(finished(tmp_path), board(film_underway()), "━"))
    text = capture.get()
    assert "The Lantern Boat" in text
    assert f"mpv {tmp_path}/film.mp4" in text
    assert "contact-sheet.png, film.vtt, manifest.json" in text
    assert "$0.0013" in text
    lines = [line.strip() for line in text.splitlines()]
    rows = [line for line in lines if "+" in line]
    assert [row.split("+")[0].strip() for row in rows] == [
        "Ray is up", "engines are ready", "the script is written", "first denoise step", "last shot is drawn",
        "all is joined",
    ]  # fmt: skip
    assert "+9.0 s" in rows[1]
    assert sum(row.count("━") for row in rows) == 24


def test_the_live_display_ends_with_every_row_and_the_summary(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80, height=12, force_terminal=True, color_system=None)
    show = LiveShow(console, board(), ManualClock(T0))
    show.start()
    show.update(update(*[view(f"sh{n:03}.t1", State.SUCCEEDED) for n in range(30)], over=True))
    show.finished(finished(tmp_path))
    show.close()
    last = stream.getvalue().rpartition("shot sh000 take 1")[2]
    assert all(f"shot sh{n:03} take 1" in last for n in range(1, 30))
    assert last.index("sh029") < last.index("The Lantern Boat")
    assert stream.getvalue().endswith("\n")
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


def test_without_a_terminal_each_event_is_one_short_sentence(tmp_path: Path) -> None:
    out = io.StringIO()
    show = LineShow(out, board(), ManualClock(T0 + 48_000_000))
    show.start()
    first = film_underway()
    show.update(first)
    show.finished(finished(tmp_path))
    lines = out.getvalue().splitlines()
    assert lines[:5] == [
        "0:00  the farm is starting",
        "0:00  the job is in the ledger",
        "0:10  script: writing",
        '0:22  script: done in 12 s, "The Lantern Boat", $0.0003 so far',
        "0:22  shot sh010 take 1: drawing",
    ]
    assert len(lines) == 2 + len(first.events)
    assert lines[-1] == f'0:48  {tmp_path}/film.mp4 is "The Lantern Boat": 48 s, $0.0013'


def test_an_event_of_a_kind_nobody_knew_still_makes_a_sentence() -> None:
    out = io.StringIO()
    show = LineShow(out, board(), ManualClock(T0))
    show.update(update(view("script", State.RUNNING), events=(event(1, "task.free", "script", 1),)))
    assert out.getvalue() == "0:01  script: free\n"


def test_json_lines_parse_and_the_last_one_is_the_result(tmp_path: Path) -> None:
    out = io.StringIO()
    show = JsonShow(out, board(), ManualClock(T0))
    show.start()
    show.update(film_underway())
    show.finished(finished(tmp_path))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines[:3]] == ["farm.starting", "job.created", "task.lease"]
    assert lines[2]["task"] == "script"
    assert lines[-1]["event"] == "result"
    assert lines[-1]["path"] == str(tmp_path / "film.mp4")
    assert lines[-1]["cost_usd"] == "0.001312"
    assert lines[-1]["seconds"] == 48.2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidInput("no", field="--out", remedy="yes"), "invalid_input", "--out: no; yes"),
        (
            KeyboardInterrupt(),
            "stopped",
            "stopped; 1 of 3 shots are drawn and kept, the same command goes on from there",
        ),
        (ZeroDivisionError("by zero"), "internal", "ZeroDivisionError: by zero"),
    ],
    ids=["mistake", "ctrl-c", "unforeseen"],
)
def test_json_says_how_it_failed(error: BaseException, code: str, message: str) -> None:
    out = io.StringIO()
    JsonShow(out, board(film_underway()), ManualClock(T0)).failed(error)
    line = json.loads(out.getvalue())
    assert (line["event"], line["code"], line["message"]) == ("error", code, message)


def test_who_stops_is_told_what_is_kept() -> None:
    assert board().what_is_kept().startswith("stopped before anything was finished")
    assert "the script is kept" in board(update(view("script", State.SUCCEEDED))).what_is_kept()
    assert "1 of 3 shots" in board(film_underway()).what_is_kept()


def test_a_farm_that_waits_for_another_one_says_so_until_it_goes_on() -> None:
    board = Board(headline=LOGLINE, facts="", began_us=T0)
    console = Console(file=io.StringIO(), width=100, height=24, force_terminal=True)
    show = LiveShow(console, board, ManualClock(T0))
    show.waits("another film is being rendered on this farm (pid 7): waiting for it to end", 7)
    assert board.phase(T0) == "another film is being rendered on this farm (pid 7): waiting for it to end"
    show.goes_on()
    assert board.phase(T0) == "the farm is starting, 0.0 s"


def test_who_waits_for_a_person_is_told_what_to_type() -> None:
    board = Board(headline=LOGLINE, facts="", began_us=T0)
    takes = (view("sh010.t1", State.IN_REVIEW), view("sh020.t1", State.IN_REVIEW), view("conform", State.PENDING))
    out = io.StringIO()
    LineShow(out, board, ManualClock(T0)).update(update(*takes, events=(event(1, "task.gate", "sh010.t1", 2.0),)))
    assert "waits for a person: farm approve job_1/sh010.t1, or farm reject" in out.getvalue()
    said = board.phase(T0)
    assert said is not None
    assert said.endswith("and 1 more wait for a person: farm approve job_1/sh010.t1, or farm reject, elsewhere")
