"""The store on S3 against plain boto3 with the same settings, on the same server, by turns; and what hashing costs."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from uuid import uuid4

import pytest
from boto3.s3.transfer import TransferConfig

from cluster.store.s3 import S3Store
from cluster.store.s3_place import AT_ONCE, Place
from cluster.store.s3_upload import PART_BYTES, digest_of
from tests.seaweedfs import BUCKET, SeaweedFS, keys_of

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
BYTES = int(os.environ.get("REELFARM_BENCH_MIB", "1024")) << 20
CLIP_BYTES = 2 << 20
PAIRS = 5


def seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def test_a_gigabyte_goes_and_comes_as_with_plain_boto3(
    s3_server: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in keys_of("farm").items():
        monkeypatch.setenv(key, value)
    place = Place(bucket=BUCKET, prefix=f"{uuid4().hex}/", endpoint=s3_server.endpoint)
    store, plain = S3Store(place), place.client()
    store.capabilities()
    config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=AT_ONCE)
    film, out = tmp_path / "film.mp4", tmp_path / "out.mp4"
    ratios: dict[str, list[float]] = {"upload": [], "download": []}
    for pair in range(PAIRS):
        with film.open("wb") as file:
            for _ in range(BYTES >> 20):
                file.write(os.urandom(1 << 20))
        other = f"{place.prefix}plain"

        def put() -> None:
            store.put_blob("acme", film, media_type="video/mp4")

        def put_plainly(other: str = other) -> None:
            plain.upload_file(str(film), BUCKET, other, Config=config)

        with film.open("rb") as reader:
            sha256 = hashlib.file_digest(reader, "sha256").hexdigest()
        key = f"acme/assets/sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"

        def get(key: str = key) -> None:
            store.fetch(key, out)

        def get_plainly(other: str = other) -> None:
            plain.download_file(BUCKET, other, str(out), Config=config)

        for name, ours, theirs in (("upload", put, put_plainly), ("download", get, get_plainly)):
            turns = {ours: 0.0, theirs: 0.0}
            for turn in (ours, theirs) if pair % 2 else (theirs, ours):
                turns[turn] = seconds(turn)
            ratios[name].append(turns[theirs] / turns[ours])
            rate = BYTES / 1e6 / turns[ours]
            print(f"{name}: {turns[ours]:.2f} s ({rate:.0f} MB/s), boto3 {turns[theirs]:.2f} s", flush=True)
        store.delete(key)
        plain.delete_object(Bucket=BUCKET, Key=other)
    for name, values in ratios.items():
        print(f"{name} of {BYTES >> 20} MiB: {median(values):.2f} of the speed of boto3", [f"{v:.2f}" for v in values])
    clip = tmp_path / "clip.mp4"
    in_memory = io.BytesIO(os.urandom(CLIP_BYTES))
    hashing = median(seconds(lambda: in_memory.seek(0) or digest_of(in_memory, CLIP_BYTES)) for _ in range(50))
    took = []
    for _ in range(20):
        clip.write_bytes(os.urandom(CLIP_BYTES))
        took.append(seconds(lambda: store.put_blob("acme", clip, media_type="video/mp4")))
    print(f"a clip of {CLIP_BYTES >> 20} MiB: hashing {1e3 * hashing:.1f} ms of {1e3 * median(took):.1f} ms to put it")
