"""The verbs of a person who looks at takes, on the ledger of a farm that does not run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.catalog import Catalog
from cluster.ledger import films
from cluster.ledger.films import Film
from cluster.ledger.jobs import JobSpec
from cluster.states import Move
from pipelines.recipes import film as recipe
from serve.cli.main import run
from serve.revision import RECIPE, takes_of
from tests.ledger_desk import LedgerDesk
from tests.scripts import script_of
from tests.unit.test_cli_remote import elsewhere

CATALOG = Catalog.load()


class Home:
    """A film of one shot and two takes, both drawn and in review, in a FARM_HOME that no farm works in."""

    def __init__(self, home: Path) -> None:
        self.desk = LedgerDesk(f"sqlite:///{home}/ledger.db")
        brief = recipe.Brief(logline="", script=script_of(CATALOG, "boat"), num_takes=2, review=True)
        spec = JobSpec(recipe=RECIPE, title="The Crossing", spec=brief.to_json(), tenant="studio")
        self.id = self.desk.ledger.submit_film(spec, recipe.plan(brief, CATALOG))[0]
        for key in ("sh010.t1", "sh010.t2"):
            self.desk.run(self.film.now.job.id, key)

    @property
    def film(self) -> Film:
        return self.desk.ledger.view(lambda c: films.read(c, self.id))

    def name(self, key: str) -> str:
        return f"{self.film.now.job.id}/{key}"

    def states(self) -> dict[str, str]:
        return {key: task["state"] for key, task in takes_of(self.film).items()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    home = Home(tmp_path)
    yield home
    home.desk.close()


def test_an_approved_take_lets_the_film_go_on_and_says_how(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["approve", home.name("sh010.t1")]) == 0
    assert capsys.readouterr().out == (
        "take 1 of sh010 is approved\n"
        f"no farm is at work here: farm render --film {home.id} goes on with it\n"
    )  # fmt: skip
    assert home.desk.state(home.film.now.job.id, "conform") == "ready"


def test_a_take_is_named_by_its_id_too_and_circled_in_a_new_revision(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    take = f"{home.id.replace('film_', 'take_')}.sh010.t2"
    assert run(["circle", take, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["verb"], said["take"], said["job"], said["done"]) == ("circle", take, home.film.now.job.id, True)
    assert [one.reason for one in home.film.revisions] == ["created", "circled sh010.t2"]
    first = home.film.revisions[0].job.id
    assert run(["approve", f"{first}/sh010.t2"]) == 0  # by an older job: the film is meant as it is now
    assert home.states() == {"sh010.t1": "succeeded", "sh010.t2": "succeeded"}


def test_a_rejection_says_first_what_it_does_and_wants_yes(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reject", home.name("sh010.t1")]) == 2
    said = capsys.readouterr()
    assert said.out == "reject take 1 of sh010: it is drawn again; $0.0010 was spent on it\n"
    assert said.err == "farm: reject: nothing was done; give --yes to do it\n"
    assert home.states()["sh010.t1"] == "in_review"
    assert run(["reject", "--yes", home.name("sh010.t1")]) == 0
    assert home.states()["sh010.t1"] == "ready"
    assert "another seed" in capsys.readouterr().out


def test_a_farm_elsewhere_is_told_the_same_way(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with elsewhere(tmp_path) as there:
        monkeypatch.setenv("FARM_URL", there.url)
        monkeypatch.setenv("FARM_API_KEY", there.key())
        assert run(["reject", home.name("sh010.t1")]) == 2
        assert capsys.readouterr().out == "reject take 1 of sh010: it is drawn again; $0.0010 was spent on it\n"
        assert run(["reject", "--yes", home.name("sh010.t1")]) == 0
        assert capsys.readouterr().out == "take 1 of sh010 is rejected, and drawn again with another seed\n"
        assert run(["approve", home.name("sh010.t2"), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["job"], said["state"], said["done"]) == (home.film.now.job.id, "succeeded", True)
        assert len(home.film.revisions) == 2
        assert run(["circle", home.name("sh010.t1")]) == 0  # of the newest revision, which has another name
        assert len(home.film.revisions) == 3
        assert run(["circle", takes_of(home.film)["sh010.t2"]["id"]]) == 0
        assert len(home.film.revisions) == 4
        assert run(["circle", home.name("conform")]) == 2
        assert "is no take" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["circle", "JOB/sh010.t3"], "no task 'sh010.t3'"),
        (["circle", "JOB/conform"], "is no take; name one as in JOB/sh010.t2"),
        (["approve", "nothing"], "no job or task nothing"),
        (["approve", "take_01arz3ndektsv4rrffq69g5fav.sh010.t1"], "no film film_01arz3ndektsv4rrffq69g5fav"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_what_is_no_take_is_said_in_one_line(
    home: Home, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([part.replace("JOB", home.film.now.job.id) for part in argv]) == 2
    assert said in capsys.readouterr().err


def test_why_names_the_verbs_of_the_person_it_waits_for(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["why", home.name("sh010.t1")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"farm approve {home.name('sh010.t1')[-17:]}" in out
    home.desk.move(home.film.now.job.id, "sh010.t1", Move.REJECT)
    assert run(["approve", home.name("sh010.t1")]) == 2
    assert "the take is ready; wait until it is drawn" in capsys.readouterr().err
