"""The upkeep of a farm, and what a store still holds of attempts that are over: for every database of a ledger."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.assets import checkpoint_key, receipt_key
from cluster.errors import StoreUnavailable
from cluster.ledger import chores
from cluster.store.directory import DirectoryStore
from cluster.sweeper import Swept, sweep
from serve.upkeep import AGAIN_S, Chore, Upkeep
from tests.ledger_desk import Leased, LedgerDesk, task

DAY_S = 86400.0


def told(desk: LedgerDesk) -> dict[str, chores.Told]:
    return {one.name: one for one in desk.ledger.view(chores.read)}


def test_a_chore_is_done_at_its_interval_also_by_a_farm_that_starts_again(desk: LedgerDesk) -> None:
    done: list[int] = []

    def again() -> Upkeep:
        return Upkeep(desk.ledger, [Chore(name="dust", every_s=600.0, do=lambda: {"dusted": done.append(1)})])

    again().look()
    again().look()
    assert len(done) == 1
    desk.clock.advance(601.0)
    again().look()
    assert len(done) == 2
    assert told(desk)["dust"].done_us == desk.clock.now_us()


def test_a_chore_that_fails_is_tried_again_soon_and_keeps_none_of_the_others_waiting(desk: LedgerDesk) -> None:
    tried: list[str] = []

    def away() -> dict[str, Any]:
        tried.append("away")
        if len(tried) < 4:
            raise StoreUnavailable("the store is away") if len(tried) == 1 else KeyError("a mistake of ours")
        return {}

    def other() -> dict[str, Any]:
        tried.append("other")
        return {}

    upkeep = Upkeep(desk.ledger, [Chore(name=do.__name__, every_s=3600.0, do=do) for do in (away, other)])
    upkeep.look()
    assert tried == ["away", "other"]
    assert (told(desk)["away"].error, told(desk)["away"].done_us) == ("the store is away", None)
    desk.clock.advance(AGAIN_S + 1)
    upkeep.look()
    assert "KeyError" in (told(desk)["away"].error or "")
    desk.clock.advance(AGAIN_S + 1)
    upkeep.look()
    assert tried == ["away", "other", "away", "away"]
    assert told(desk)["away"].error is None
    assert told(desk)["away"].done_us == desk.clock.now_us()


def test_a_farm_that_ends_begins_no_more_chores(desk: LedgerDesk) -> None:
    stopping = threading.Event()

    def last() -> dict[str, Any]:
        stopping.set()
        return {}

    Upkeep(desk.ledger, [Chore(name="last", every_s=1.0, do=last), Chore(name="none", every_s=1.0, do=last)]).run(
        stopping
    )
    assert list(told(desk)) == ["last"]


def leave(store: DirectoryStore, leased: Leased) -> tuple[str, str]:
    """A checkpoint and a receipt, as an attempt leaves them."""
    saved, receipt = checkpoint_key("studio", leased.attempt_id, 7), receipt_key("studio", leased.attempt_id)
    store.put_once(saved, b"latents")
    store.put_once(receipt, b"{}")
    return saved, receipt


def test_what_attempts_left_goes_once_they_are_long_over_and_what_is_committed_keeps_its_receipt(
    desk: LedgerDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.sweeper.AT_ONCE", 2)
    store = DirectoryStore(tmp_path / "store")
    job = desk.submit(task("committed"), task("lost"), task("interrupted"), task("runs"), task("young"))
    left = {key: leave(store, desk.lease(job, key, worker=w)) for key, w in (("committed", "w1"), ("runs", "w2"))}
    rows = {key: desk.task(job, key) for key in left}
    committed = Leased(
        task_id=rows["committed"]["id"],
        attempt_id=rows["committed"]["attempt_id"],
        epoch=rows["committed"]["epoch"],
        row=rows["committed"],
    )
    desk.commit(committed)
    for key in ("lost", "interrupted"):
        leased = desk.lease(job, key)
        left[key] = leave(store, leased)
        desk.lose(leased) if key == "lost" else desk.interrupt(leased)
    strange = checkpoint_key("studio", "attempt_of_another_farm", 3)
    store.put_once(strange, b"latents")
    desk.clock.advance(8 * DAY_S)
    leased = desk.lease(job, "young")
    left["young"] = leave(store, leased)
    desk.lose(leased)

    assert sweep(desk.ledger, store, uploads_kept_s=DAY_S, remains_kept_s=30 * DAY_S) == Swept(
        uploads=0, checkpoints=0, receipts=0
    )
    assert sweep(desk.ledger, store, uploads_kept_s=DAY_S, remains_kept_s=7 * DAY_S) == Swept(
        uploads=0, checkpoints=3, receipts=2
    )
    assert set(store.list("studio/")) == {left["committed"][1], *left["runs"], *left["young"], strange}
