"""What goes by the settings of a farm, as its upkeep does it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from cluster import retention
from cluster.errors import DamagedLedger
from cluster.ledger import schema
from cluster.ledger.replay import SUMMARY
from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from serve.upkeep import chores_of
from tests.ledger_desk import LedgerDesk, file, task

DAY_S = 86_400.0


@pytest.fixture
def desk(sqlite_url: str) -> Iterator[LedgerDesk]:
    desk = LedgerDesk(sqlite_url)
    yield desk
    desk.close()


def done(desk: LedgerDesk, folder: Path, **settings: float) -> dict[str, dict[str, int]]:
    """What the chores say that they did, by their names."""
    chores = chores_of(Settings(home=folder, **settings), desk.ledger, DirectoryStore(folder / "store"))  # type: ignore[arg-type]
    return {chore.name: chore.do() for chore in chores if chore.name in ("collect-assets", "forget")}


def test_all_is_kept_for_ever_if_nothing_is_said(desk: LedgerDesk, tmp_path: Path) -> None:
    job = desk.submit(task("a"))
    desk.run(job, "a", files=[file("x")])
    desk.ledger.delete_job(job)
    kinds = desk.kinds(job)
    desk.clock.advance(10_000 * DAY_S)
    assert all(not n for did in done(desk, tmp_path).values() for n in did.values())
    assert (desk.kinds(job), len(desk.ledger.attempts(job))) == (kinds, 1)


def test_what_is_older_than_the_settings_say_goes(desk: LedgerDesk, tmp_path: Path) -> None:
    old = desk.submit(task("a"))
    desk.fail(desk.lease(old, "a"))
    desk.ledger.delete_job(old)
    desk.clock.advance(10 * DAY_S)
    new = desk.submit(task("b"))
    desk.fail(desk.lease(new, "b"))
    desk.ledger.delete_job(new)
    kept = {"events_kept_s": 5 * DAY_S, "attempts_kept_s": 5 * DAY_S, "assets_kept_s": 5 * DAY_S}
    did = done(desk, tmp_path, **kept)
    assert did["forget"] == {"events_of": 1, "attempts_of": 1}
    assert did["collect-assets"]["jobs"] == 1
    assert desk.kinds(old) == [SUMMARY]
    assert SUMMARY not in desk.kinds(new)
    said = [[a["message"] for a in desk.ledger.attempts(job)] for job in (old, new)]
    assert said == [[None], ["it broke"]]
    again = done(desk, tmp_path, **kept)
    assert again["forget"] == {"events_of": 0, "attempts_of": 0}
    desk.check()


def test_a_job_whose_events_convict_the_farm_keeps_nothing_else_of_a_tenant_who_goes(
    desk: LedgerDesk, tmp_path: Path
) -> None:
    store, events = DirectoryStore(tmp_path / "store"), schema.events
    damaged, other = desk.submit(task("a"), title="secret"), desk.submit(task("b"), title="secret")
    desk.run(damaged, "a")
    desk.ledger.database.transaction(
        lambda c: c.execute(update(events).where(events.c.job_id == damaged).values(epoch=1))
    )
    store.put_blob("studio", b"a picture", media_type="text/plain")
    with pytest.raises(DamagedLedger, match=r"1 of their jobs: .*epochs grow"):
        retention.erase(desk.ledger, store, "studio")
    assert list(store.list("studio/")) == []
    assert (desk.ledger.job(other).title, desk.state(other, "b")) == ("erased", "canceled")
