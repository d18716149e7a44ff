"""A farm on an S3 server in trouble: no work is lost, nothing is done before its bytes are there, no rubbish stays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.states import JobState
from tests.s3_proxy import Trouble
from tests.s3_storm import Weathered, weathered
from tests.seaweedfs import SeaweedFS, keys_of

pytestmark = pytest.mark.live


def away_in_the_middle(trouble: Trouble) -> None:
    def middle(method: str, path: str) -> bool:
        if method == "PUT" and "/assets/" in path and "down" not in trouble.count:
            trouble.down = True
        return False

    def back() -> None:
        while trouble.count.get("down", 0) < 12:  # each worker was turned away, with all that boto3 tries by itself
            threading.Event().wait(0.05)
        trouble.down = False

    trouble.lost = middle
    threading.Thread(target=back, daemon=True).start()


def errs(trouble: Trouble) -> None:
    trouble.error_rate = 0.1


def loses_acknowledgements(trouble: Trouble) -> None:
    heard: set[str] = set()

    def lost(method: str, path: str) -> bool:
        key = path.partition("?")[0]
        wanted = method in ("PUT", "POST") and ("receipt" in key or "/assets/" in key) and path not in heard
        heard.add(path)
        return wanted

    trouble.lost = lost


def is_slow(trouble: Trouble) -> None:
    trouble.slow_s = 0.15


def damages(trouble: Trouble) -> None:
    """A quarter of all that is written, and the first of it."""

    def damaged(method: str, path: str) -> bool:
        return "damaged" not in trouble.count or trouble.dice.random() < 0.25

    trouble.damaged = damaged


def expect(done: Weathered, trouble: str) -> None:
    assert set(done.jobs) == {JobState.SUCCEEDED}
    assert done.early == []
    assert (done.left, done.uploads) == ([], 0)
    assert done.troubles.get(trouble, 0) > 0 or trouble == ""


@pytest.mark.parametrize(
    ("makes", "trouble"),
    [
        (away_in_the_middle, "down"),
        (errs, "error"),
        (loses_acknowledgements, "lost"),
        (is_slow, ""),
        (damages, "damaged"),
    ],
    ids=["away in the middle", "a tenth of it errors", "lost acknowledgements", "slow", "damaged on the way"],
)
def test_no_trouble_of_the_server_costs_a_take_or_leaves_rubbish(
    s3_server: SeaweedFS,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    makes: Callable[[Trouble], None],
    trouble: str,
) -> None:
    for key, value in keys_of("farm").items():
        monkeypatch.setenv(key, value)
    parts = makes in (away_in_the_middle, loses_acknowledgements, damages)
    more = {} if parts else {"num_bytes": 1 << 18}
    done = weathered(s3_server, tmp_path, makes, num_jobs=2 if parts else 4, **more)
    expect(done, trouble)
    assert done.num_drawn == (4 if parts else 8), "a take was drawn twice"
