"""One contract for every store, then what only a directory can suffer: crashes, full disks, lost roots."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.assets import Blob, Receipt, ReceiptFile, blob_key, check_key, checkpoint_key, sha256_of_key
from cluster.errors import DamagedAsset, FarmError, InvalidInput, NotFound, StoreUnavailable, WrittenOnce
from cluster.store.directory import DirectoryStore
from cluster.store.port import Store, find_receipt, put_receipt, verify_receipt

REPOSITORY = Path(__file__).parents[2]


def directory_store(folder: Path) -> Store:
    return DirectoryStore(folder / "store")


def damage_on_disk(store: Store, key: str, data: bytes) -> None:
    assert isinstance(store, DirectoryStore)
    store._path(key).write_bytes(data)


@pytest.fixture(params=[directory_store], ids=["directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    make: Callable[[Path], Store] = request.param
    return make(tmp_path)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def receipt_of(blob: Blob) -> Receipt:
    file = ReceiptFile.of("clip.mp4", blob, content_sha256=sha256(b"frames"))
    return Receipt(attempt_id="a1", task_id="t1", epoch=3, files=(file,), facts={"seconds": 1.5, "where": "Köln"})


# The contract


def test_a_blob_lies_at_its_content_address(store: Store) -> None:
    blob = store.put_blob("acme", b"bytes", media_type="video/mp4")
    digest = sha256(b"bytes")
    assert blob == Blob(
        key=f"acme/assets/sha256/{digest[:2]}/{digest[2:4]}/{digest}",
        sha256=digest,
        size_bytes=5,
        media_type="video/mp4",
    )
    assert store.get(blob.key) == b"bytes"
    assert list(store.list("acme/")) == [blob.key]


def test_a_file_and_its_bytes_are_the_same_blob(store: Store, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "clip.mp4").write_bytes(data)
    from_file = store.put_blob("acme", tmp_path / "clip.mp4", media_type="video/mp4")
    assert store.put_blob("acme", data, media_type="video/mp4") == from_file
    assert list(store.list("acme/")) == [from_file.key]


def test_tenants_share_nothing(store: Store) -> None:
    ours = store.put_blob("acme", b"bytes", media_type="video/mp4")
    theirs = store.put_blob("acme2", b"bytes", media_type="video/mp4")
    store.delete(ours.key)
    assert store.get(theirs.key) == b"bytes"
    assert list(store.list("acme/")) == []


def test_a_write_once_key_takes_the_same_bytes_again_and_no_others(store: Store) -> None:
    key = checkpoint_key("acme", "a1", 4)
    store.put_once(key, b"first")
    store.put_once(key, b"first")
    with pytest.raises(WrittenOnce):
        store.put_once(key, b"second")
    assert store.get(key) == b"first"


def test_of_many_racing_writers_of_one_key_one_wins(store: Store) -> None:
    key, gate = "acme/attempts/a1/receipt.json", threading.Barrier(8)
    outcomes: list[int | None] = []

    def write(number: int) -> None:
        gate.wait(timeout=30)
        try:
            store.put_once(key, b"%d" % number)
            outcomes.append(number)
        except WrittenOnce:
            outcomes.append(None)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    winners = [number for number in outcomes if number is not None]
    assert len(outcomes) == 8
    assert len(winners) == 1
    assert store.get(key) == b"%d" % winners[0]


def test_many_writers_of_one_blob_all_succeed(store: Store) -> None:
    blobs: list[Blob] = []
    data = os.urandom(200_000)
    threads = [
        threading.Thread(target=lambda: blobs.append(store.put_blob("acme", data, media_type="video/mp4")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(blobs) == 8
    assert len(set(blobs)) == 1
    store.verify(blobs[0])


def test_what_is_not_there_is_not_found(store: Store, tmp_path: Path) -> None:
    key = blob_key("acme", sha256(b"never"))
    for read in (store.get, store.open, lambda key: store.fetch(key, tmp_path / "out")):
        with pytest.raises(NotFound):
            read(key)
    assert not store.exists(key)
    store.delete(key)
    assert list(store.list("acme/assets/")) == []


def test_a_folder_of_keys_is_no_asset(store: Store) -> None:
    store.put_once("acme/attempts/a1/receipt.json", b"{}")
    assert not store.exists("acme/attempts/a1")
    with pytest.raises(NotFound):
        store.get("acme/attempts/a1")


def test_fetch_leaves_a_whole_verified_file(store: Store, tmp_path: Path) -> None:
    data = os.urandom(2_500_000)
    blob = store.put_blob("acme", data, media_type="video/mp4")
    store.fetch(blob.key, tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == data


def test_damaged_bytes_are_never_handed_out_as_good(store: Store, tmp_path: Path) -> None:
    blob = store.put_blob("acme", b"good bytes", media_type="video/mp4")
    damage_on_disk(store, blob.key, b"evil bytes")
    with pytest.raises(DamagedAsset):
        store.get(blob.key)
    with pytest.raises(DamagedAsset):
        store.verify(blob)
    with pytest.raises(DamagedAsset):
        store.fetch(blob.key, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


@pytest.mark.parametrize(("left", "rehash"), [(b"short", False), (b"evil bytes", True)], ids=["size", "rehashed"])
def test_putting_a_damaged_blob_again_mends_it(store: Store, left: bytes, rehash: bool) -> None:
    blob = store.put_blob("acme", b"good bytes", media_type="video/mp4")
    damage_on_disk(store, blob.key, left)
    store.put_blob("acme", b"good bytes", media_type="video/mp4", rehash=rehash)
    assert store.get(blob.key) == b"good bytes"


def test_a_prefix_lists_its_keys_in_byte_order(store: Store) -> None:
    keys = [checkpoint_key("acme", attempt, number) for attempt in ("a1", "a10", "b") for number in (2, 10)]
    for key in keys:
        store.put_once(key, b"")
    assert list(store.list("acme/attempts/a1/")) == sorted(keys[:2])
    assert list(store.list("acme/attempts/a1")) == sorted(keys[:4])
    assert list(store.list("acme/attempts/b/checkpoint-1")) == [keys[5]]
    with pytest.raises(InvalidInput):
        store.list("acme")


BAD_KEYS = {
    "empty": "",
    "a tenant only": "acme",
    "absolute": "/acme/x",
    "dots": "acme/../other/x",
    "dot": "acme/./x",
    "hidden": "acme/.incoming/x",
    "empty segment": "acme//x",
    "slash at the end": "acme/x/",
    "NUL": "acme/a\0b",
    "newline": "acme/a\nb",
    "C1 control": "acme/a\x85b",
    "backslash": "acme\\..\\x",
    "surrogate": "acme/\ud800",
    "tenant in capitals": "ACME/x",
    "too long": "acme/" + "/".join("x" * 200 for _ in range(6)),
    "long segment": "acme/" + "ü" * 128,
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_a_key_that_could_leave_the_store_is_refused(store: Store, key: str, tmp_path: Path) -> None:
    for act in (lambda: store.put_once(key, b"x"), lambda: store.get(key), lambda: store.delete(key)):
        with pytest.raises(InvalidInput):
            act()


@given(st.text(max_size=40))
def test_every_accepted_key_stays_below_its_root(text: str) -> None:
    try:
        key = check_key("acme/" + text)
    except InvalidInput:
        return
    assert Path(os.path.normpath(Path("/root", key))) == Path("/root", key)


@pytest.mark.parametrize("tenant", ["", "Acme", "-a", "a" * 64, "a/b", "..", "a\n"])
def test_a_tenant_has_a_plain_name(store: Store, tenant: str) -> None:
    with pytest.raises(InvalidInput):
        store.put_blob(tenant, b"", media_type="text/plain")


def test_a_content_address_is_not_written_by_hand(store: Store) -> None:
    with pytest.raises(InvalidInput):
        store.put_once(blob_key("acme", sha256(b"a")), b"b")
    with pytest.raises(InvalidInput):
        sha256_of_key("acme/assets/sha256/00/00/" + sha256(b"a"))


def test_a_receipt_comes_back_as_it_was_written(store: Store) -> None:
    receipt = receipt_of(store.put_blob("acme", b"clip", media_type="video/mp4"))
    assert find_receipt(store, "acme", "a1") is None
    key = put_receipt(store, "acme", receipt)
    assert key == "acme/attempts/a1/receipt.json"
    assert find_receipt(store, "acme", "a1") == receipt
    assert put_receipt(store, "acme", receipt) == key
    verify_receipt(store, receipt)


def test_a_second_receipt_of_one_attempt_is_refused(store: Store) -> None:
    receipt = receipt_of(store.put_blob("acme", b"clip", media_type="video/mp4"))
    put_receipt(store, "acme", receipt)
    with pytest.raises(WrittenOnce):
        put_receipt(store, "acme", Receipt(attempt_id="a1", task_id="t1", epoch=4, files=()))


def test_a_receipt_whose_file_is_damaged_or_gone_does_not_verify(store: Store) -> None:
    receipt = receipt_of(store.put_blob("acme", b"clip", media_type="video/mp4"))
    damage_on_disk(store, receipt.files[0].key, b"clop")
    with pytest.raises(DamagedAsset, match=r"clip\.mp4 of attempt a1"):
        verify_receipt(store, receipt)
    store.delete(receipt.files[0].key)
    with pytest.raises(NotFound, match=r"clip\.mp4 of attempt a1"):
        verify_receipt(store, receipt)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"files": 3}', b"\xff", b"null"])
def test_bytes_that_are_no_receipt_are_damaged(store: Store, data: bytes) -> None:
    store.put_once("acme/attempts/a1/receipt.json", data)
    with pytest.raises(DamagedAsset):
        find_receipt(store, "acme", "a1")


def test_a_receipt_of_another_attempt_is_damaged(store: Store) -> None:
    receipt = Receipt(attempt_id="a2", task_id="t1", epoch=1, files=())
    store.put_once("acme/attempts/a1/receipt.json", receipt.to_bytes())
    with pytest.raises(DamagedAsset):
        find_receipt(store, "acme", "a1")


def test_a_store_says_that_it_refuses_a_second_writer(store: Store) -> None:
    assert store.capabilities().conditional_write


# A directory alone


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


def test_a_source_that_cannot_be_read_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(FarmError, match=r"nowhere\.mp4"):
        DirectoryStore(tmp_path / "store").put_blob("acme", tmp_path / "nowhere.mp4", media_type="video/mp4")
