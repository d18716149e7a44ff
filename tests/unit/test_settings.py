from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.errors import InvalidInput, InvalidSettings
from cluster.ledger.keys import KeySpec
from cluster.settings import Settings, load


@pytest.fixture(autouse=True)
def no_farm_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("FARM_"):
            monkeypatch.delenv(name)


def test_every_default_works_without_any_variable() -> None:
    settings = load()
    assert settings.home == Path.home() / ".reelfarm"
    assert settings.ledger == f"sqlite:///{settings.home / 'ledger.db'}"
    assert settings.heartbeat_s < settings.lease_s


def test_a_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    monkeypatch.setenv("FARM_LEASE_S", "22.5")
    settings = load()
    assert (settings.home, settings.lease_s, settings.store_dir) == (tmp_path, 22.5, tmp_path / "store")


def test_another_ledger_is_taken_as_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_LEDGER_URL", "postgresql+psycopg://farm@db/farm")
    assert load().ledger == "postgresql+psycopg://farm@db/farm"


@pytest.mark.parametrize("name", ["FARM_HOEM", "FARM_LEASE", "farm_lease_seconds"])
def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(InvalidSettings, match=name) as refused:
        load()
    assert "FARM_LEASE_S" in str(refused.value.remedy)


@pytest.mark.parametrize(
    ("name", "value"),
    [("FARM_LEASE_S", "0"), ("FARM_LEASE_S", "nan"), ("FARM_LEASE_S", ""), ("FARM_TENANT", "../x"), ("FARM_SHOW", "")],
)
def test_a_bad_value_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings) as refused:
        load()
    assert refused.value.field == name


@pytest.mark.parametrize(("lease_s", "heartbeat_s"), [("20", "10"), ("2", "30"), ("0.5", "0.25")])
def test_a_heartbeat_that_one_lost_beat_makes_too_late_is_refused(
    monkeypatch: pytest.MonkeyPatch, lease_s: str, heartbeat_s: str
) -> None:
    monkeypatch.setenv("FARM_LEASE_S", lease_s)
    monkeypatch.setenv("FARM_HEARTBEAT_S", heartbeat_s)
    with pytest.raises(InvalidSettings, match="too seldom") as refused:
        load()
    assert refused.value.field == "FARM_HEARTBEAT_S"
    assert f"set it below {float(lease_s) / 2:g}, or FARM_LEASE_S above" in str(refused.value.remedy)


def test_nobody_is_called_as_the_farm_calls_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_TENANT", "farm")
    with pytest.raises(InvalidSettings, match="the farm itself") as refused:
        load()
    assert refused.value.field == "FARM_TENANT"
    with pytest.raises(InvalidInput, match="the farm itself"):
        KeySpec(tenant="farm", name="x")


def test_the_shortest_heartbeat_that_is_safe_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_LEASE_S", "20")
    monkeypatch.setenv("FARM_HEARTBEAT_S", "9.9")
    assert load().heartbeat_s == 9.9


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load().lease_s = 1.0


def test_every_duration_says_its_unit() -> None:
    durations = [n for n, f in Settings.model_fields.items() if f.annotation is float]
    assert durations
    assert all(n.endswith(("_s", "_px", "_bytes", "_usd")) for n in durations)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ""),
        ("https://farm.example.org/", "https://farm.example.org"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_the_address_of_a_farm_is_taken_as_clients_write_it(
    monkeypatch: pytest.MonkeyPatch, given: str, kept: str
) -> None:
    monkeypatch.setenv("FARM_URL", given)
    assert load().url == kept


@pytest.mark.parametrize(
    "url", ["farm:8000", "ftp://farm", "http://", "http://me:secret@farm", "http://farm?key=secret"]
)
def test_what_is_no_address_is_refused_without_repeating_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("FARM_URL", url)
    with pytest.raises(InvalidSettings) as refused:
        load()
    assert refused.value.field == "FARM_URL"
    assert "secret" not in refused.value.line()


def test_a_key_comes_from_the_environment_or_a_file_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSettings, match="wants a key"):
        load().secret()
    file = tmp_path / "key"
    monkeypatch.setenv("FARM_API_KEY_FILE", str(file))
    with pytest.raises(InvalidSettings, match="cannot be read") as refused:
        load().secret()
    assert refused.value.field == "FARM_API_KEY_FILE"
    file.write_text("two words\n")
    with pytest.raises(InvalidSettings, match="FARM_API_KEY_FILE holds no key"):
        load().secret()
    file.write_text("farm_of_the_file\n")
    assert load().secret() == "farm_of_the_file"
    monkeypatch.setenv("FARM_API_KEY", "farm_of_the_environment")
    settings = load()
    assert settings.secret() == "farm_of_the_environment"
    assert "farm_of" not in f"{settings!r} {settings.model_dump()}"
