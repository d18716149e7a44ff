"""The contract of every store: the same tests run on a directory in tests/unit, on S3 in tests/live.

Whoever imports it has the fixtures `store`, an empty one, and `damage`, which puts other bytes in the place of a key.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.assets import Blob, Receipt, ReceiptFile, blob_key, checkpoint_key, sha256_of_key
from cluster.errors import DamagedAsset, FarmError, InvalidInput, NotFound, WrittenOnce
from cluster.store.port import Store, find_receipt, put_receipt, verify_receipt

Damage = Callable[[str, bytes], None]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def receipt_of(blob: Blob) -> Receipt:
    file = ReceiptFile.of("clip.mp4", blob, content_sha256=sha256(b"frames"))
    return Receipt(attempt_id="a1", task_id="t1", epoch=3, files=(file,), facts={"seconds": 1.5, "where": "Köln"})


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
    if not store.capabilities().conditional_write:
        pytest.skip("this server refuses no second writer, and the store says so")
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


def test_damaged_bytes_are_never_handed_out_as_good(store: Store, damage: Damage, tmp_path: Path) -> None:
    blob = store.put_blob("acme", b"good bytes", media_type="video/mp4")
    damage(blob.key, b"evil bytes")
    with pytest.raises(DamagedAsset):
        store.get(blob.key)
    for reread in (False, True):
        with pytest.raises(DamagedAsset):
            store.verify(blob, reread=reread)
    with pytest.raises(DamagedAsset):
        store.fetch(blob.key, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


@pytest.mark.parametrize(("left", "rehash"), [(b"short", False), (b"evil bytes", True)], ids=["size", "rehashed"])
def test_putting_a_damaged_blob_again_mends_it(store: Store, damage: Damage, left: bytes, rehash: bool) -> None:
    blob = store.put_blob("acme", b"good bytes", media_type="video/mp4")
    damage(blob.key, left)
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


def test_a_receipt_whose_file_is_damaged_or_gone_does_not_verify(store: Store, damage: Damage) -> None:
    receipt = receipt_of(store.put_blob("acme", b"clip", media_type="video/mp4"))
    damage(receipt.files[0].key, b"clop")
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


def test_a_reader_finds_any_place_of_a_file(store: Store) -> None:
    data = os.urandom(3_000_000)
    blob = store.put_blob("acme", data, media_type="video/mp4")
    with store.open(blob.key) as reader:
        assert reader.seek(0, io.SEEK_END) == len(data)
        for first, count in ((2_900_000, 200_000), (0, 10), (1_500_000, 1_000_000), (len(data), 5)):
            reader.seek(first)
            assert reader.read(count) == data[first : first + count]


def test_an_empty_file_is_a_blob_too(store: Store, tmp_path: Path) -> None:
    blob = store.put_blob("acme", b"", media_type="text/plain")
    store.verify(blob)
    store.fetch(blob.key, tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == store.get(blob.key) == b""


def test_a_source_that_cannot_be_read_is_the_callers_mistake(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FarmError, match=r"nowhere\.mp4"):
        store.put_blob("acme", tmp_path / "nowhere.mp4", media_type="video/mp4")
