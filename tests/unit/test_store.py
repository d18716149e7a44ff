"""The store on a directory: the contract of every store, and what only a directory can suffer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.assets import check_key
from cluster.errors import InvalidInput, StoreUnavailable
from cluster.store.directory import DirectoryStore
from cluster.store.port import Store
from tests.contracts.store import *  # noqa: F403
from tests.contracts.store import Damage

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def damage(tmp_path: Path) -> Damage:
    return lambda key, data: (tmp_path / "store" / key).write_bytes(data) and None


@given(st.text(max_size=40))
def test_every_accepted_key_stays_below_its_root(text: str) -> None:
    try:
        key = check_key("acme/" + text)
    except InvalidInput:
        return
    assert Path(os.path.normpath(Path("/root", key))) == Path("/root", key)


def test_a_store_says_that_it_refuses_a_second_writer(store: Store) -> None:
    assert store.capabilities().conditional_write


def test_a_writer_killed_in_the_middle_leaves_nothing_under_a_final_key(tmp_path: Path) -> None:
    store, pipe = DirectoryStore(tmp_path / "store"), tmp_path / "pipe"
    os.mkfifo(pipe)
    script = (
        "import sys; from pathlib import Path; from cluster.store.directory import DirectoryStore\n"
        "DirectoryStore(Path(sys.argv[1])).put_blob('acme', Path(sys.argv[2]), media_type='video/mp4')"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "store"), str(pipe)], cwd=REPOSITORY)
    try:
        with pipe.open("wb", buffering=0) as writer:
            for _ in range(4):  # each write ends when the child has taken it: it is in the middle of its copy
                writer.write(os.urandom(1 << 20))
            child.send_signal(signal.SIGKILL)
            assert child.wait(timeout=30) == -signal.SIGKILL
    finally:
        child.kill()
    leftovers = list((tmp_path / "store/.incoming").iterdir())
    assert list(store.list("acme/")) == []
    assert len(leftovers) == 1
    assert store.sweep(older_than_s=3600) == 0  # it may still be at work, for all that this store knows
    os.utime(leftovers[0], (1, 1))
    assert store.sweep(older_than_s=3600) == 1
    assert list((tmp_path / "store/.incoming").iterdir()) == []


FULL_DISK_SCRIPT = """
import json, os, sys
from pathlib import Path
from cluster.errors import StoreFull
from cluster.store.directory import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]) / "store")
small = store.put_blob("acme", b"s" * 50_000, media_type="video/mp4")
errors = []
for put in (
    lambda: store.put_blob("acme", os.urandom(2_000_000), media_type="video/mp4"),
    lambda: store.put_once("acme/attempts/a1/checkpoint-1", os.urandom(2_000_000)),
):
    try:
        put()
    except StoreFull as error:
        errors.append(error.line())
store.put_blob("acme", b"t" * 50_000, media_type="video/mp4")
left = len(list((Path(sys.argv[1]) / "store/.incoming").iterdir()))
print(json.dumps({"errors": errors, "keys": list(store.list("acme/")), "small": small.key, "left": left}))
"""


@pytest.mark.parametrize("limit", ["file-size", "small-disk"])
def test_a_full_disk_is_said_so_and_leaves_no_half_file(tmp_path: Path, limit: str) -> None:
    python = [sys.executable, "-c", FULL_DISK_SCRIPT, str(tmp_path)]
    if limit == "file-size":
        command = [shutil.which("prlimit") or "prlimit", "--fsize=500000", *python]
    else:
        mount = f'mount -t tmpfs -o size=512k none "{tmp_path}" && exec "$@"'
        become_root = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
        command = ["unshare", "--mount", *become_root, "sh", "-c", mount, "sh"]
        if subprocess.run([*command, "true"], capture_output=True).returncode:
            pytest.skip("this machine lets nobody mount a small disk; the case file-size covers the same code")
        command += python
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert len(outcome["errors"]) == 2
    assert all("make room" in line for line in outcome["errors"])
    assert outcome["small"] in outcome["keys"]
    assert len(outcome["keys"]) == 2
    assert outcome["left"] == 0


def test_a_root_that_has_gone_is_unavailable_and_not_empty(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    blob = store.put_blob("acme", b"bytes", media_type="video/mp4")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    acts: list[Callable[[], object]] = [
        lambda: store.get(blob.key),
        lambda: store.exists(blob.key),
        lambda: store.list("acme/"),
        lambda: store.delete(blob.key),
        lambda: store.put_blob("acme", b"more", media_type="video/mp4"),
    ]
    for act in acts:
        with pytest.raises(StoreUnavailable):
            act()
    assert not (tmp_path / "store").exists()


def test_a_root_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable) as caught:
        DirectoryStore(tmp_path / "file" / "store")
    assert caught.value.remedy
