"""The verbs of operating against a farm that is elsewhere: what they print and do is what they print and do here."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cluster.ledger.keys import KeySpec, Scope
from cluster.ledger.ledger import Ledger
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from serve.cli.main import run
from serve.http import create_app
from tests.front_desk import CATALOG
from tests.ledger_desk import task
from tests.left_farm import WORKER, left_farm
from tests.listening import served

ROOT = Path(__file__).resolve().parents[2]
DAYS_US = 200_000_000_000
"""So long ago that ages stand still: "2 d"."""
Said = tuple[int, str, str]
"""(exit code, standard output, standard error)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Elsewhere:
    """A farm behind HTTP with the ledger of `home`."""

    home: Path
    ledger: Ledger
    url: str

    def key(self, *scopes: Scope, **more: Any) -> str:
        spec = KeySpec(**{"tenant": "studio", "name": "test", "scopes": scopes or (Scope.ADMIN,), **more})
        return self.ledger.create_key(spec)[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Both:
    """The same books twice: in this FARM_HOME, and behind HTTP."""

    here: Path
    there: Elsewhere
    film: str
    clip: str
    secret: str
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def locally(self, *argv: str) -> Said:
        self.monkeypatch.setenv("FARM_HOME", str(self.here))
        self.monkeypatch.delenv("FARM_URL", raising=False)
        return self._said(argv)

    def remotely(self, *argv: str, key: str | None = None) -> Said:
        self.monkeypatch.setenv("FARM_HOME", str(self.here / "nowhere"))
        self.monkeypatch.setenv("FARM_URL", self.there.url)
        self.monkeypatch.setenv("FARM_API_KEY", key or self.secret)
        return self._said(argv)

    def alike(self, *argv: str) -> Said:
        argv = tuple(part.replace("FILM", self.film).replace("CLIP", self.clip) for part in argv)
        here, there = self.locally(*argv), self.remotely(*argv)
        assert here == there
        return here

    def _said(self, argv: Sequence[str]) -> Said:
        code = run(argv)
        return code, *self.capsys.readouterr()


@contextmanager
def elsewhere(home: Path) -> Iterator[Elsewhere]:
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}", durable=False)
    try:
        with served(create_app(ledger, DirectoryStore(home / "store"), CATALOG, Settings(home=home))) as url:
            yield Elsewhere(home=home, ledger=ledger, url=url)
    finally:
        ledger.close()


@pytest.fixture(scope="module")
def left(fast_folder: Path, empty_ledger: Path) -> tuple[Path, str, str]:
    path = fast_folder / "left-twice.db"
    return path, *left_farm(path, empty_ledger, ago_us=DAYS_US)


@pytest.fixture
def both(
    left: tuple[Path, str, str],
    fast_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Both]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    path, film, clip = left
    homes = [fast_folder / uuid4().hex for _ in range(2)]
    for home in homes:
        home.mkdir()
        shutil.copyfile(path, home / "ledger.db")
    monkeypatch.setenv("COLUMNS", "100")
    with elsewhere(homes[1]) as there:
        yield Both(here=homes[0], there=there, film=film, clip=clip, secret=there.key(),
                   monkeypatch=monkeypatch, capsys=capsys)  # fmt: skip
    for home in homes:
        shutil.rmtree(home)
    for signum, handler in before.items():
        signal.signal(signum, handler)


LOOKS = [
    ["ls"],
    ["ls", "--state", "failed", "--state", "queued", "--limit", "1"],
    ["ls", "--show", "nobody"],
    ["info", "FILM"],
    ["info", "CLIP"],
    ["tasks", "FILM"],
    ["tasks", "FILM", "--state", "dead"],
    ["log", "FILM"],
    ["log", "FILM", "--after", "7"],
    ["log", "CLIP", "--follow"],
    ["why", "FILM"],
    ["why", "FILM/conform"],
    ["why", "CLIP"],
    ["workers"],
    ["workers", "--all", "--limit", "2"],
    ["shows"],
    ["shows", "lanterns"],
    ["cost", "--by", "film", "--show", "lanterns"],
    ["cost", "--by", "shot", "--show", "default", "--limit", "1"],
    ["estimate", "a red boat crosses the sea", "--shots", "3", "--takes", "2"],
    ["estimate", "clip", "a red boat crosses the sea", "--quality", "draft"],
    ["estimate", "image", "a red boat"],
]


def test_what_is_looked_at_is_printed_alike(both: Both) -> None:
    for argv in LOOKS:
        for more in ([], ["--json"]):
            code, out, err = both.alike(*argv, *more)
            assert (code, err) == (0, ""), argv
            assert out or more, argv


VERBS = [
    ["eat", "FILM"],
    ["retry", "FILM/sh020.t1", "--json"],
    ["retry", "FILM"],
    ["cancel", "FILM"],
    ["cancel", "FILM", "--yes"],
    ["cancel", "CLIP", "--yes"],
    ["hold", "FILM"],
    ["release", "FILM", "--tasks"],
    ["requeue", "FILM/conform", "--yes"],
    ["hold", "FILM/conform"],
    ["release", "FILM/conform", "--json"],
    ["cancel", "FILM/conform", "--yes", "--json"],
    ["requeue", "FILM"],
    ["requeue", "FILM", "--json"],
    ["requeue", "FILM/script", "--yes"],
    ["requeue", "FILM", "--state", "stale", "--yes", "--json"],
    ["eat", "FILM"],
    ["requeue", "FILM/conform", "--yes"],
    ["eat", "FILM/conform", "--yes"],
    ["pri", "FILM", "--priority", "70", "--tier", "interactive"],
    ["pri", "CLIP", "--tier", "normal", "--json"],
    ["drain", "9abcde"],
    ["drain", "9abcde", "--yes", "--reason", "it is old"],
    ["drain", WORKER, "--yes", "--json"],
    ["shows", "lanterns", "--share", "2.5"],
    ["shows", "to come", "--share", "1", "--json"],
    ["budget", "set", "show", "lanterns", "--cap", "3", "--period", "month", "--at", "0.5=notify", "--at", "1=cancel"],
    ["budget", "set", "tenant", "--cap", "$0.25"],
    ["budget", "set", "tenant", "--cap", "12.5", "--at", "0.9=finish"],
    ["budget", "ls"],
    ["shows", "lanterns"],
    ["budget", "rm", "show", "lanterns"],
    ["budget", "rm", "show", "lanterns", "--yes"],
    ["budget", "ls"],
]


def test_what_is_done_is_said_and_done_alike(both: Both) -> None:
    here, there = Ledger(f"sqlite:///{both.here / 'ledger.db'}", durable=False), both.there.ledger
    refused = []
    for argv in VERBS:
        if both.alike(*argv)[0] != 0:
            refused.append(" ".join(argv))
        for job in (both.film, both.clip):
            told = [[(e.kind, e.task_id, e.to_state, e.data) for e in books.events(job)] for books in (here, there)]
            assert told[0] == told[1], argv
    assert here.draining() == there.draining() == {WORKER: "it is old"}
    assert here.shares() == there.shares()
    assert refused == [
        "eat FILM",
        "cancel FILM",
        "requeue FILM",
        "requeue FILM --json",
        "drain 9abcde",
        "budget rm show lanterns",
    ]  # without a yes
    here.close()


MISTAKES = [
    ["info", "nobody"],
    ["why", "nobody"],
    ["why", "task_nobody"],
    ["drain", "nobody", "--yes"],
    ["info", "z"],
    ["info", "job_"],
    ["cancel", "FILM/sh010", "--yes"],
    ["retry", "FILM/script"],
    ["eat", "FILM/script", "--yes"],
    ["release", "FILM/sh020.t1"],
    ["requeue", "FILM", "--state", "running"],
    ["pri", "FILM"],
    ["pri", "FILM/script", "--priority", "1"],
    ["shows", "nobody"],
    ["shows", "a\x01", "--share", "1"],
    ["shows", "x" * 65],
    ["info", "a\x01bcd"],
    ["keys", "revoke", "key_none", "--yes"],
    ["keys", "rotate", "k", "--yes"],
    ["estimate", "opera", "a red boat"],
    ["budget", "show", "show", "nobody"],
    ["budget", "rm", "tenant", "--yes"],
    ["budget", "set", "show", "--cap", "3"],
    ["budget", "set", "tenant", "x", "--cap", "3"],
    ["budget", "set", "film", "film_none", "--cap", "3"],
    ["budget", "set", "tenant", "--cap", "3", "--currency", "EUR"],
    ["budget", "set", "tenant", "--cap", "a lot"],
    ["budget", "set", "tenant", "--cap", "3", "--at", "80%"],
]


def test_mistakes_are_told_alike(both: Both) -> None:
    for argv in MISTAKES:
        code, out, err = both.alike(*argv)
        assert (code, out, err.count("\n")) == (2, "", 1), argv


def test_what_only_the_farm_can_refuse_is_refused_by_the_same_field(both: Both) -> None:
    for argv, said in (
        (["pri", "FILM", "--priority", "101"], "priority: input should be less than or equal to 100"),
        (["shows", "lanterns", "--share", "0"], "share: input should be greater than 0"),
        (["keys", "add", ""], "name is empty"),
        (["keys", "add", "ci", "--requests-per-minute", "0"], "requests_per_minute must be from 1 to 1,000,000"),
    ):
        code, out, err = both.remotely(*(part.replace("FILM", both.film) for part in argv))
        assert (code, out) == (2, "")
        assert said in err


def test_keys_are_made_rotated_and_revoked_from_elsewhere(both: Both) -> None:
    key = both.there.key()

    def rows(*argv: str) -> list[dict[str, Any]]:
        code, out, err = both.remotely("keys", *argv, "--json", key=key)
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    [made] = rows("add", "ci", "--scope", "read", "--show", "lanterns", "--in-flight", "60")
    admitted = both.there.ledger.authenticate(made["secret"])
    assert admitted is not None
    assert (admitted.key.tenant, admitted.key.show, admitted.key.in_flight_s) == ("studio", "lanterns", 60.0)
    assert [row["name"] for row in rows("ls")] == ["test", "test", "ci"]
    assert both.remotely("keys", "revoke", made["key"][-8:], key=key)[0] == 2
    [new] = rows("rotate", made["key"], "--yes")
    assert both.there.ledger.authenticate(made["secret"]) is None
    rows("revoke", new["key"], "--yes")
    assert both.there.ledger.authenticate(new["secret"]) is None
    code, out, _ = both.remotely("keys", "ls", key=key)
    assert code == 0
    assert "revoked" in out
    assert new["secret"] not in out


def test_the_ledger_itself_is_cared_for_where_it_is(both: Both, tmp_path: Path) -> None:
    for argv in (["check"], ["backup", str(tmp_path / "b.db")], ["restore", str(tmp_path / "b.db"), "--yes"]):
        code, out, err = both.remotely("ledger", *argv)
        assert (code, out) == (2, "")
        assert "works where the ledger is, not over HTTP; give the command on a machine of the farm" in err


def test_a_log_is_followed_from_elsewhere_until_the_job_is_over(both: Both) -> None:
    job = both.there.ledger.submit(_brief(), [task("a"), task("b")])[0]
    code = f"import sys; from serve.cli.main import run; sys.exit(run(['log', '{job}', '--follow', '--json']))"
    both.remotely("ls")  # sets the environment
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        kinds = [json.loads(following.stdout.readline())["event"] for _ in range(3)]
        both.there.ledger.cancel_job(job)
        kinds += [json.loads(line)["event"] for line in following.stdout]
    assert kinds[0] == "job.created"
    assert kinds[-1] == "job.ended"
    assert following.returncode == 0


def test_asking_from_elsewhere_imports_no_database(both: Both) -> None:
    both.remotely("ls")  # sets the environment
    code = (
        "import sys\nfrom serve.cli.main import run\n"
        f"codes = [run([verb, '{both.film}']) for verb in ('why', 'info', 'tasks', 'retry')]\n"
        "print(codes, {'torch', 'ray', 'sqlalchemy', 'numpy', 'fastapi', 'boto3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0] set()"


# Keys and addresses that do not open


def test_a_key_that_is_none_or_may_not_is_said_in_one_line_without_it(both: Both) -> None:
    unknown = "farm_" + "x" * 43
    code, out, err = both.remotely("ls", key=unknown)
    assert (code, out) == (2, "")
    assert err == (
        f"farm: FARM_API_KEY: the farm at {both.there.url} knows no such key; `farm keys add` on a machine of the farm "
        "makes one\n"
    )
    code, out, err = both.remotely("cancel", both.film, "--yes", key=both.there.key(Scope.READ))
    assert (code, out) == (2, "")
    assert "this API key may not do that; use a key with the scope operate" in err
    both.monkeypatch.delenv("FARM_API_KEY")
    assert run(["ls"]) == 2
    assert "FARM_API_KEY: a farm at" in both.capsys.readouterr().err


def test_another_tenant_sees_and_names_nothing_of_it(both: Both) -> None:
    theirs = both.there.key(tenant="other")
    assert both.remotely("ls", key=theirs)[1] == "no jobs\n"
    for verb in ("info", "cancel", "why"):
        code, out, err = both.remotely(verb, both.film[-8:], key=theirs)
        assert (code, out) == (2, "")
        assert f"{both.film[-8:]}; `farm ls` lists them" in err


def test_a_farm_that_is_away_is_one_line_and_our_fault(both: Both) -> None:
    both.remotely("ls")  # sets the environment
    both.monkeypatch.setenv("FARM_URL", "http://127.0.0.1:1")
    both.monkeypatch.setattr("serve.remote.FIRST_WAIT_S", 0.001)
    assert run(["ls"]) == 1
    err = both.capsys.readouterr().err
    assert err.startswith("farm: the farm at http://127.0.0.1:1 does not answer: ")
    assert err.count("\n") == 1


def _brief() -> Any:
    from tests.ledger_desk import brief

    return brief(title="followed")


def test_models_are_those_of_the_farm_and_are_added_where_it_is(both: Both) -> None:
    here, there = (json.loads(ask("models", "--json")[1]) for ask in (both.locally, both.remotely))
    named = [[entry["id"], entry["ready"], entry.get("sizes"), entry.get("clips")] for entry in here]
    assert named == [[entry["id"], entry["ready"], entry.get("sizes"), entry.get("clips")] for entry in there]
    assert str(both.there.home) not in json.dumps(there)
    pictures = [ask("models")[1] for ask in (both.locally, both.remotely)]
    words = [text.partition("What house-video can draw")[2] for text in pictures]
    assert words[0] == words[1] != ""
    code, _, err = both.remotely("models", "add", "somewhere")
    assert code == 2
    assert "farm models add works where the ledger is" in err
