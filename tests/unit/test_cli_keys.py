"""`farm keys`: what is printed once, what is printed always, and what needs a yes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.ledger.keys import Scope
from cluster.ledger.ledger import Ledger
from serve.cli.main import run

Farm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Farm]:
    """A command: (exit code, what it printed, its line on standard error)."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))

    def command(*argv: str) -> tuple[int, str, str]:
        code = run(argv)
        out, err = capsys.readouterr()
        return code, out, err

    yield command
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    (tmp_path / "home").mkdir()
    ledger = Ledger(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}", durable=False)
    yield ledger
    ledger.close()


def rows(answer: tuple[int, str, str]) -> list[dict[str, Any]]:
    assert answer[0] == 0, answer
    return [json.loads(line) for line in answer[1].splitlines()]


def test_a_key_is_made_before_the_farm_has_worked_and_its_secret_is_alone_on_standard_output(
    farm: Farm, tmp_path: Path
):
    code, out, err = farm("keys", "add", "ci", "--scope", "read", "--show", "trailer", "--requests-per-minute", "9")
    assert (code, out.count("\n")) == (0, 1)
    secret = out.strip()
    assert "it is not shown again" in err
    assert secret not in err
    ledger = Ledger(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}")
    admitted = ledger.authenticate(secret)
    ledger.close()
    assert admitted is not None
    key = admitted.key
    assert (key.tenant, key.show, key.scopes, key.requests_per_minute) == ("studio", "trailer", (Scope.READ,), 9)
    listed = farm("keys", "ls")[1]
    assert key.id in listed
    assert secret not in listed
    assert [row["prefix"] for row in rows(farm("keys", "ls", "--json"))] == [secret[:12]]


def test_a_key_is_rotated_and_revoked_only_with_a_yes(farm: Farm, ledger: Ledger):
    [made] = rows(farm("keys", "add", "ci", "--json"))
    for argv in (("keys", "rotate", made["key"]), ("keys", "revoke", made["key"][-8:])):
        code, out, err = farm(*argv)
        assert (code, "would" in out, "nothing was done" in err) == (2, True, True)
        assert ledger.authenticate(made["secret"]) is not None
    [both] = rows(farm("keys", "rotate", made["key"], "--keep-old", "1", "--json"))
    assert [ledger.authenticate(s) is not None for s in (made["secret"], both["secret"])] == [True, True]
    [new] = rows(farm("keys", "rotate", made["key"], "--yes", "--json"))
    assert [ledger.authenticate(s) is not None for s in (both["secret"], new["secret"])] == [False, True]
    [gone] = rows(farm("keys", "revoke", made["key"][-8:], "--yes", "--json"))
    assert gone["revoked"] is not None
    assert ledger.authenticate(new["secret"]) is None
    assert "revoked" in farm("keys", "ls")[1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["keys", "add", ""], "name is empty"),
        (["keys", "add", "ci", "--tenant", "No Such"], "is not a name"),
        (["keys", "add", "ci", "--scope", "all"], "'all' is not one of"),
        (["keys", "add", "ci", "--requests-per-minute", "0"], "from 1 to 1,000,000"),
        (["keys", "add", "ci", "--in-flight", "0"], "in_flight_s must be above 0"),
        (["keys", "revoke", "key_none", "--yes"], "no key key_none; `farm keys ls` lists them"),
        (["keys", "rotate", "k", "--yes"], "too little of an id"),
    ],
)
def test_a_key_that_cannot_be_is_refused(farm: Farm, argv: list[str], said: str):
    code, out, err = farm(*argv)
    assert (code, out) == (2, "")
    assert said in err
