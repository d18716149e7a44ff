from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from cluster.clock import ManualClock, SystemClock, to_datetime
from cluster.logs import about, say, set_up

OURS = ("cluster", "actors", "pipelines", "serve")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    before = {n: (logging.getLogger(n).handlers[:], logging.getLogger(n).level) for n in OURS}
    stream = io.StringIO()
    set_up(stream=stream)
    yield stream
    for name, (handlers, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = handlers, True
        logger.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_time_goes_on_and_a_jump_moves_only_the_wall() -> None:
    clock = ManualClock(start_us=0)
    clock.advance(1.5)
    assert (clock.now_us(), clock.monotonic_s()) == (1_500_000, 1.5)
    clock.jump(-3600)
    assert (clock.now_us(), clock.monotonic_s()) == (-3_598_500_000, 1.5)
    with pytest.raises(ValueError, match="jump"):
        clock.advance(-1)


def test_the_clock_of_the_system_is_the_clock_of_python() -> None:
    before = datetime.now(UTC)
    now = to_datetime(SystemClock().now_us())
    assert before.timestamp() - 0.001 <= now.timestamp() <= datetime.now(UTC).timestamp()
    assert SystemClock().monotonic_s() <= SystemClock().monotonic_s()


def test_microseconds_become_aware_datetimes_exactly() -> None:
    assert to_datetime(1_790_000_000_123_457) == datetime(2026, 9, 21, 14, 13, 20, 123457, tzinfo=UTC)


def test_a_line_says_whose_it_is(stream: io.StringIO) -> None:
    log = logging.getLogger("cluster.x")
    with about(job="j", task="t"):
        with about(attempt="a"):
            say(log, "A task was leased.", action="lease", seconds=1.5)
        say(log, "A report came in.", action="report")
    say(log, "Nothing.", action="none")
    first, second, third = lines(stream)
    assert first["message"] == "A task was leased."
    assert {k: first[k] for k in ("level", "action", "job", "task", "attempt", "seconds")} == {
        "level": "info",
        "action": "lease",
        "job": "j",
        "task": "t",
        "attempt": "a",
        "seconds": 1.5,
    }
    assert "attempt" not in second
    assert "job" not in third


def test_threads_do_not_mix_their_lines(stream: io.StringIO) -> None:
    both = threading.Barrier(2, timeout=30)

    def work(name: str) -> None:
        with about(job=name):
            both.wait()
            say(logging.getLogger("actors"), "Hello.", action=name)

    threads = [threading.Thread(target=work, args=(n,)) for n in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((str(x["job"]), str(x["action"])) for x in lines(stream)) == [("a", "a"), ("b", "b")]


def test_an_error_is_one_line_and_any_value_is_written(stream: io.StringIO) -> None:
    log = logging.getLogger("serve")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("It broke.", extra={"facts": {"action": "x", "path": {1, 2} - {2}}})
    (line,) = lines(stream)
    assert "ValueError: two\nlines" in str(line["error"])
    assert line["path"] == "{1}"
