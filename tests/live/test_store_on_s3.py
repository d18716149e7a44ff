"""The store on a real S3 server: the contract of every store, plainly and as on a server that knows neither conditions
nor checksums; and what only S3 can suffer."""

from __future__ import annotations

import copy
import datetime as dt
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import botocore.auth
import pytest

from cluster.errors import DamagedAsset, StoreRefused, StoreUnavailable
from cluster.store.port import Capabilities, Store
from cluster.store.s3 import S3Store
from cluster.store.s3_place import Place
from cluster.store.s3_upload import PART_BYTES
from tests.contracts.store import *  # noqa: F403
from tests.contracts.store import Damage
from tests.s3_proxy import Trouble, proxied
from tests.seaweedfs import BUCKET, SeaweedFS, keys_of

pytestmark = pytest.mark.live


def as_(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for key, value in {**keys_of(name), "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(scope="module")
def broken(s3_server: SeaweedFS) -> Iterator[tuple[SeaweedFS, Trouble]]:
    with proxied(s3_server) as found:
        yield found


@pytest.fixture
def trouble(broken: tuple[SeaweedFS, Trouble]) -> Iterator[Trouble]:
    """What the proxy breaks in this test."""
    trouble, well = broken[1], Trouble()
    yield trouble
    for name in Trouble.__slots__:
        setattr(trouble, name, getattr(well, name))


@pytest.fixture
def place(s3_server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Place:
    as_(monkeypatch, "farm")
    return Place(bucket=BUCKET, prefix=f"{uuid4().hex}/", endpoint=s3_server.endpoint)


@pytest.fixture
def shaky(place: Place, broken: tuple[SeaweedFS, Trouble]) -> Place:
    """The same place through the proxy."""
    return replace(place, endpoint=broken[0].endpoint)


@pytest.fixture(scope="module")
def probed() -> dict[str, S3Store]:
    """Stores that have found out what their server can: that takes longer than most tests."""
    return {}


@pytest.fixture(params=["plain", "deaf"])
def store(
    request: pytest.FixtureRequest, probed: dict[str, S3Store], place: Place, shaky: Place, trouble: Trouble
) -> Store:
    trouble.deaf = request.param == "deaf"
    here = shaky if trouble.deaf else place
    if request.param not in probed:
        first = S3Store(here)
        first.capabilities()
        probed[request.param] = first
    store = copy.copy(probed[request.param])
    store._place = here
    return store


@pytest.fixture
def damage(place: Place, s3_server: SeaweedFS) -> Damage:
    def write(key: str, data: bytes) -> None:
        s3_server.client().put_object(Bucket=BUCKET, Key=place.prefix + key, Body=data)

    return write


def keys_in(server: SeaweedFS, place: Place) -> list[str]:
    return [
        one["Key"] for one in server.client().list_objects_v2(Bucket=BUCKET, Prefix=place.prefix).get("Contents", [])
    ]


def uploads_in(server: SeaweedFS, place: Place) -> int:
    return len(server.client().list_multipart_uploads(Bucket=BUCKET, Prefix=place.prefix).get("Uploads", []))


# What servers can


def test_what_a_server_can_is_found_out_and_leaves_nothing(place: Place, s3_server: SeaweedFS) -> None:
    assert S3Store(place).capabilities() == Capabilities(
        conditional_write=True, server_checksum=True, lifecycle=True, presigned_urls=True
    )
    assert keys_in(s3_server, place) == []


def test_what_a_server_cannot_is_found_out_too(shaky: Place, trouble: Trouble) -> None:
    trouble.deaf = True
    can = S3Store(shaky).capabilities()
    assert (can.conditional_write, can.server_checksum) == (False, False)
    trouble.deaf = False
    quiet = S3Store(replace(shaky, checksums="when_required")).capabilities()
    assert (quiet.conditional_write, quiet.server_checksum) == (True, False)


# Whom a server refuses


@pytest.mark.parametrize(
    ("who", "bucket", "said"),
    [
        ("nobody", BUCKET, "does not know these keys"),
        ("farm", "not-there", "no bucket not-there"),
        ("stranger", BUCKET, "may not do this: looking"),
        ("reader", BUCKET, "may not do this: writing"),
    ],
    ids=["wrong keys", "no bucket", "another's bucket", "no right to write"],
)
def test_a_server_that_refuses_is_named_with_the_remedy(
    place: Place, monkeypatch: pytest.MonkeyPatch, who: str, bucket: str, said: str
) -> None:
    as_(monkeypatch, who)
    with pytest.raises(StoreRefused, match=said) as refused:
        S3Store(replace(place, bucket=bucket)).put_blob("acme", b"bytes", media_type="text/plain")
    assert refused.value.remedy
    assert refused.value.field in ("FARM_STORE", "AWS_ACCESS_KEY_ID")
    assert who * 3 not in repr(refused.value)


def test_a_wrong_secret_is_refused_like_a_wrong_key(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-another-farm")
    with pytest.raises(StoreRefused, match="does not know these keys") as refused:
        S3Store(place).get("acme/attempts/a1/receipt.json")
    assert "of-another-farm" not in f"{refused.value!r} {refused.value.__cause__!r}"


def test_no_keys_at_all_say_where_they_belong(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreRefused, match="no keys") as refused:
        S3Store(place)
    assert "AWS_ACCESS_KEY_ID" in (refused.value.remedy or "")


def test_a_clock_that_is_wrong_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    now = botocore.auth.get_current_datetime
    hour = dt.timedelta(hours=1)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *a, **k: now(*a, **k) - hour)
    with pytest.raises(StoreRefused, match="clock"):
        S3Store(place).capabilities()


def test_a_bucket_that_has_gone_is_not_an_empty_one(place: Place, s3_server: SeaweedFS) -> None:
    client, bucket = s3_server.client(), f"gone-{uuid4().hex}"
    client.create_bucket(Bucket=bucket)
    store = S3Store(replace(place, bucket=bucket))
    blob = store.put_blob("acme", b"bytes", media_type="text/plain")
    store.delete(blob.key)
    client.delete_bucket(Bucket=bucket)
    acts: list[Callable[[], object]] = [
        lambda: store.get(blob.key),
        lambda: store.exists(blob.key),
        lambda: list(store.list("acme/")),
        lambda: store.verify(blob),
        lambda: store.put_blob("acme", b"more", media_type="text/plain"),
    ]
    for act in acts:
        with pytest.raises(StoreRefused, match="no bucket"):
            act()


# What goes wrong on the way


def test_a_server_that_is_away_is_unavailable(shaky: Place, trouble: Trouble) -> None:
    store = S3Store(shaky)
    blob = store.put_blob("acme", b"bytes", media_type="text/plain")
    trouble.down = True
    with pytest.raises(StoreUnavailable, match="does not answer while reading"):
        store.get(blob.key)
    trouble.down = False
    assert store.get(blob.key) == b"bytes"


def test_a_lost_acknowledgement_of_a_write_is_no_second_write(shaky: Place, trouble: Trouble) -> None:
    store, heard = S3Store(shaky), []
    store.capabilities()

    def first(method: str, path: str) -> bool:
        heard.append(method)
        return method == "PUT" and heard.count("PUT") == 1

    trouble.lost = first
    store.put_once("acme/attempts/a1/receipt.json", b"{}")
    heard.clear()
    blob = store.put_blob("acme", b"bytes", media_type="text/plain")
    assert trouble.count["lost"] == 2
    trouble.lost = lambda method, path: False
    assert store.get("acme/attempts/a1/receipt.json") == b"{}"
    store.verify(blob, reread=True)


@pytest.mark.parametrize("refusal", [b"409 ConditionalRequestConflict", b"412 PreconditionFailed"])
def test_a_key_that_is_said_to_be_taken_and_is_not_there_is_written_again(
    shaky: Place, trouble: Trouble, refusal: bytes
) -> None:
    store = S3Store(shaky)
    store.capabilities()
    trouble.refused = lambda method, path: refusal if method == "PUT" else None
    with pytest.raises(StoreUnavailable):
        store.put_blob("acme", b"bytes", media_type="text/plain")
    with pytest.raises(StoreUnavailable):
        store.put_once("acme/attempts/a1/receipt.json", b"{}")
    trouble.refused = lambda method, path: None
    store.verify(store.put_blob("acme", b"bytes", media_type="text/plain"), reread=True)
    store.put_once("acme/attempts/a1/receipt.json", b"{}")


@pytest.mark.parametrize("num_bytes", [100_000, PART_BYTES + 3], ids=["whole", "in parts"])
def test_bytes_that_are_damaged_on_their_way_are_refused_by_the_server(
    shaky: Place, trouble: Trouble, s3_server: SeaweedFS, num_bytes: int
) -> None:
    store, data = S3Store(shaky), os.urandom(num_bytes)
    store.capabilities()
    trouble.damaged = lambda method, path: method == "PUT"
    with pytest.raises(StoreUnavailable, match="damaged on their way"):
        store.put_blob("acme", data, media_type="video/mp4")
    assert keys_in(s3_server, shaky) == []
    assert uploads_in(s3_server, shaky) == 0
    trouble.damaged = lambda method, path: False
    store.verify(store.put_blob("acme", data, media_type="video/mp4"), reread=True)


def test_a_server_that_does_not_check_is_found_out_when_the_blob_is_verified(shaky: Place, trouble: Trouble) -> None:
    trouble.deaf = True
    store = S3Store(shaky)
    store.capabilities()
    trouble.damaged = lambda method, path: method == "PUT"
    blob = store.put_blob("acme", b"some bytes", media_type="video/mp4")
    with pytest.raises(DamagedAsset):
        store.verify(blob)
    trouble.damaged = lambda method, path: False
    store.verify(store.put_blob("acme", b"some bytes", media_type="video/mp4", rehash=True))


def test_a_large_file_goes_in_parts_and_is_vouched_for_by_the_server(
    place: Place, s3_server: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(2 * PART_BYTES + 12_345)
    (tmp_path / "film.mp4").write_bytes(data)
    store = S3Store(place)
    blob = store.put_blob("acme", tmp_path / "film.mp4", media_type="video/mp4")
    assert store.put_blob("acme", data, media_type="video/mp4") == blob
    head = s3_server.client().head_object(Bucket=BUCKET, Key=place.prefix + blob.key, ChecksumMode="ENABLED")
    assert head["Metadata"]["sha256"] == blob.sha256
    assert head["ChecksumCRC32"].endswith("-3")
    with monkeypatch.context() as patch:
        patch.setattr(store, "open", None)  # it has no need to read it back
        store.verify(blob)
    store.verify(blob, reread=True)
    store.fetch(blob.key, tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == data


def test_an_upload_that_breaks_is_given_up_and_one_that_could_not_be_is_swept(
    shaky: Place, trouble: Trouble, s3_server: SeaweedFS
) -> None:
    store, data = S3Store(shaky), os.urandom(PART_BYTES + 1)
    store.capabilities()

    def breaks(method: str, path: str) -> bool:
        trouble.down = trouble.down or "partNumber=2" in path
        return False

    trouble.lost = breaks
    with pytest.raises(StoreUnavailable):
        store.put_blob("acme", data, media_type="video/mp4")
    trouble.down, trouble.lost = False, lambda method, path: False
    assert uploads_in(s3_server, shaky) == 1
    assert store.sweep(older_than_s=3600.0) == 0
    assert store.sweep(older_than_s=-60.0) == 1
    assert uploads_in(s3_server, shaky) == 0
    assert keys_in(s3_server, shaky) == []


def test_a_reader_goes_on_where_a_connection_broke(shaky: Place, trouble: Trouble) -> None:
    store, data = S3Store(shaky), os.urandom(3 << 20)
    blob = store.put_blob("acme", data, media_type="video/mp4")
    with store.open(blob.key) as reader:
        assert reader.read(1 << 20) == data[: 1 << 20]
        reader.raw._body._raw_stream.close()  # type: ignore[attr-defined]  # as the network does
        assert reader.read() == data[1 << 20 :]


# URLs


def test_a_signed_url_gives_the_bytes_for_a_while_and_no_others(place: Place) -> None:
    store = S3Store(place)
    blob = store.put_blob("acme", b"a film", media_type="video/mp4")
    url = store.presigned(blob.key, name="film.mp4", media_type="video/mp4", seconds=900)
    assert url is not None
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"a film"
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["content-disposition"] == 'inline; filename="film.mp4"'
    assert keys_of("farm")["AWS_SECRET_ACCESS_KEY"] not in url
    for other in (url.replace(blob.sha256[-4:], "0000"), url.replace("Expires=900", "Expires=90000")):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(other)


def test_a_signed_url_has_the_address_that_clients_reach(place: Place) -> None:
    store = S3Store(replace(place, public="https://clips.example.org"))
    url = store.presigned("acme/x", name="x", media_type="video/mp4", seconds=900)
    assert url is not None
    assert url.startswith(f"https://clips.example.org/{BUCKET}/{place.prefix}acme/x?")


def test_keys_are_nowhere_to_be_read(place: Place) -> None:
    store = S3Store(place)
    assert keys_of("farm")["AWS_SECRET_ACCESS_KEY"] not in f"{store!r} {store.name} {place!r}"
