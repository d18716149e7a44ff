"""Seeded defects: each is planted alone in a copy of the tree, and the tests that should notice it are run.

    python -m tests.chaos.mutants [--only REGEX]

They stand in `mutants.yaml`, each as a replacement of text. One whose text is no longer there is an error, so that the
list stays true to the code. `make mutants` runs all; at least 95 in 100 must be caught.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LIMIT_S = 120
GOAL = 0.95

LIST = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """`old` becomes `new` in the file `path`; `tests` should notice."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutants() -> list[Mutant]:
    document = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    return [
        Mutant(
            name=d["name"],
            path=d["in"],
            old=d["old"],
            new=d["new"],
            tests=tuple(test for suite in d["caught_by"] for test in document["tests"][suite]),
        )
        for d in document["defects"]
    ]


def plant(mutant: Mutant, tree: Path) -> str:
    """Plants it; returns the text that was there. Raises ValueError if its text is not there once."""
    path = tree / mutant.path
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: its text stands {text.count(mutant.old)} times in {mutant.path}")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return text


def noticed_by(tree: Path, tests: Sequence[str]) -> str | None:
    """The first test that fails, None if all pass. One that takes too long has noticed too."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"none in {LIMIT_S} s: the tests hang"
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return found.group(1).rpartition("/")[2] if found else f"pytest ended with {done.returncode}"


def copy_of_the_tree(to: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def run(chosen: Sequence[Mutant], tree: Path) -> int:
    began_s = time.monotonic()
    all_tests = sorted({test for mutant in chosen for test in mutant.tests})
    broken = [f"{test} by {found}" for test in all_tests if (found := noticed_by(tree, [test])) is not None]
    if broken:
        print(f"Without any defect these fail already: {', '.join(broken)}")
        return 1
    caught = 0
    for mutant in chosen:
        since_s = time.monotonic()
        text = plant(mutant, tree)
        found = noticed_by(tree, mutant.tests)
        (tree / mutant.path).write_text(text, encoding="utf-8")
        caught += found is not None
        took = f"{time.monotonic() - since_s:4.0f} s"
        print(
            f"{'caught' if found else 'MISSED'} {took}  {mutant.name}: {found or ', '.join(mutant.tests)}", flush=True
        )
    print(f"{caught} of {len(chosen)} seeded defects caught, {time.monotonic() - began_s:.0f} s in all")
    return 0 if caught >= GOAL * len(chosen) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="defects whose name this regular expression finds")
    asked = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="farm-mutants-", dir=memory) as folder:
        copy_of_the_tree(Path(folder))
        return run([m for m in mutants() if re.search(asked.only, m.name)], Path(folder))


if __name__ == "__main__":
    sys.exit(main())
