"""A handful of the crash sweep's cases; `make chaos-sweep` runs all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live
SOME = (
    "^(ledger.transaction kill 12|ledger.expand kill 1|ledger.commit (before|twice) 1|store.publish kill 2"
    "|worker.report kill 1|dispatcher.adopt kill_after 1|dispatcher.tick kill 1|ledger.lease after 1)$"
)


def test_the_golden_job_ends_the_same_whatever_breaks() -> None:
    command = [sys.executable, "-m", "tests.chaos.sweep", "--only", SOME]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 faulty cases" in done.stdout
    assert "10 ended with the same content and no violation" in done.stdout


def test_a_pattern_that_names_no_case_is_refused() -> None:
    command = [sys.executable, "-m", "tests.chaos.sweep", "--only", "no such case"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
