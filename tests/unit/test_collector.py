"""The collection of what nobody needs, beside commits that want it at the same moment."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import collector as collection
from cluster import faults
from cluster.assets import Blob, ReceiptFile, checkpoint_key, derived_key, receipt_key
from cluster.collector import Collector, Found, Rules
from cluster.errors import DamagedAsset, FailureClass, NotFound, Unavailable
from cluster.faults import Action, Fault
from cluster.ledger import inventory
from cluster.ledger.leases import Answer
from cluster.ledger.outcomes import Sight
from cluster.states import Move
from cluster.store.directory import DirectoryStore
from cluster.sweeper import sweep
from tests.farm import in_process_farm
from tests.ledger_desk import Leased, LedgerDesk, brief, task
from tests.quick_engine import QuickEngine

NOW = Rules(kept_s=0.0, grace_s=0.0)


class Desk(LedgerDesk):
    """A ledger with the files that it names."""

    def __init__(self, url: str, root: Path) -> None:
        super().__init__(url)
        self.store = DirectoryStore(root)
        self.collector = Collector(self.ledger, self.store, now_s=self.clock.monotonic_s)

    def put(self, text: str, tenant: str = "studio") -> Blob:
        return self.store.put_blob(tenant, text.encode(), media_type="text/plain")

    def made(self, key: str, text: str, **more: Any) -> str:
        job = self.submit(task(key), **more)
        blob = self.put(text, more.get("tenant", "studio"))
        self.run(job, key, files=[receipt_file(blob)])
        return job

    def collect(self, rules: Rules = NOW) -> Found:
        self.clock.advance(1)
        return self.collector.run(rules)


def receipt_file(blob: Blob) -> dict[str, Any]:
    of = ReceiptFile.of("clip.mp4", blob)
    return {name: getattr(of, name) for name in of.__slots__}


@pytest.fixture
def desk(sqlite_url: str, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(sqlite_url, tmp_path / "store")
    yield desk
    desk.close()


def test_files_of_a_deleted_job_go_after_the_grace_and_those_of_others_stay(desk: Desk) -> None:
    gone, stays = desk.made("a", "a picture"), desk.made("b", "another")
    shared = desk.made("c", "another")
    attempt = desk.ledger.attempts(gone)[0]["id"]
    saved = checkpoint_key("studio", attempt, 3)
    desk.store.put_once(saved, b"half a denoise")
    sheet = derived_key("studio", desk.put("a picture").sha256, "sheet.json")
    desk.store.put_once(sheet, b"{}")
    for job in (gone, shared):
        desk.ledger.delete_job(job)
    rules = Rules(kept_s=60.0, grace_s=30.0)
    assert desk.collect(rules) == Found()
    desk.clock.advance(60)
    assert desk.collector.plan(rules) == Found(jobs=2, marked=1, marked_bytes=9)
    assert desk.collect(rules) == Found(jobs=2, marked=1, marked_bytes=9)
    assert desk.store.exists(desk.task(gone, "a")["files"][0]["key"])
    assert not desk.store.exists(saved)
    desk.clock.advance(30)
    assert desk.collector.plan(rules) == Found(removed=1, removed_bytes=9)
    assert desk.collect(rules) == Found(removed=1, removed_bytes=9)
    assert list(desk.store.list("studio/assets/")) == [desk.task(stays, "b")["files"][0]["key"]]
    assert not desk.store.exists(sheet)
    desk.check()


def receipt(desk: Desk, leased: Leased) -> str:
    """Its key, once it is in the store."""
    key = receipt_key("studio", leased.attempt_id)
    desk.store.put_once(key, b"{}")
    return key


def test_a_receipt_stays_for_as_long_as_somebody_who_took_its_answer(desk: Desk) -> None:
    failed = desk.submit(task("a"), task("b"))
    kept = receipt(desk, desk.run(failed, "a", files=[receipt_file(desk.put("a picture"))]))
    doomed = desk.lease(failed, "b")
    gone = receipt(desk, doomed)
    desk.fail(doomed, FailureClass.INPUT)
    took = desk.submit(task("a"))
    assert desk.task(took, "a")["receipt_key"] == kept
    desk.collect()
    assert (desk.store.exists(kept), desk.store.exists(gone)) == (True, False)
    desk.ledger.delete_job(took)
    desk.collect()
    desk.clock.advance(1)
    swept = sweep(desk.ledger, desk.store, uploads_kept_s=1.0, remains_kept_s=0.0)
    assert (swept.receipts, desk.store.exists(kept)) == (1, False)
    desk.check()


def test_what_is_opened_again_while_a_collection_runs_keeps_what_it_saved(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [desk.submit(task(key)) for key in ("a", "b")]
    for job, key in zip(jobs, ("a", "b"), strict=True):
        desk.fail(desk.lease(job, key), FailureClass.INPUT)
    release, saved = desk.ledger.release_job, list[str]()

    def retried_meanwhile(job: str, *, before_us: int) -> bool:
        if not saved:
            other, key = (jobs[1], "b") if job == jobs[0] else (jobs[0], "a")
            desk.move(other, key, Move.REOPEN)
            saved.append(checkpoint_key("studio", desk.lease(other, key).attempt_id, 3))
            desk.store.put_once(saved[0], b"half a denoise")
        return release(job, before_us=before_us)

    monkeypatch.setattr(desk.ledger, "release_job", retried_meanwhile)
    assert desk.collect().jobs == 1
    assert desk.store.exists(saved[0])
    desk.check()


def test_two_tenants_never_share_an_asset(desk: Desk) -> None:
    """The same question, the same bytes: each has its own task, its own blob, its own row, and goes alone."""
    ours = desk.made("a", "a picture")
    theirs = desk.submit(task("a"), tenant="rival")
    assert desk.state(theirs, "a") == "ready"
    desk.run(theirs, "a", files=[receipt_file(desk.put("a picture", "rival"))])
    files = [desk.task(job, "a")["files"][0] for job in (ours, theirs)]
    assert files[0]["sha256"] == files[1]["sha256"]
    assert [file["key"].split("/")[0] for file in files] == ["studio", "rival"]
    desk.ledger.delete_job(ours)
    desk.collect()
    desk.collect()
    assert not desk.store.exists(files[0]["key"])
    desk.store.verify(ReceiptFile(**files[1]).blob)


def test_blobs_that_no_ledger_names_are_marked_first_and_kept_if_somebody_commits_them(desk: Desk) -> None:
    lost, found = desk.put("nobody's"), desk.put("a late one")
    leased = desk.lease(desk.submit(task("a")), "a")
    day = Rules(kept_s=None, grace_s=60.0)
    assert desk.collect(day) == Found(marked=2, marked_bytes=18, strays=2)
    assert desk.commit(leased, files=[receipt_file(found)]) is Answer.MARKED
    assert desk.commit(leased, files=[receipt_file(found)]) is Answer.ACCEPTED
    desk.clock.advance(60)
    assert desk.collect(day) == Found(removed=1, removed_bytes=8)
    assert not desk.store.exists(lost.key)
    desk.store.verify(found)


class Committer:
    """Puts a file, sees that it is there, commits it; again from the beginning when it is told that it was marked."""

    def __init__(self, desk: Desk, leased: Leased, text: str) -> None:
        self._desk, self._leased, self._text = desk, leased, text
        self._steps = self._work()
        self.done = False

    def step(self) -> None:
        if not self.done:
            self.done = next(self._steps, True)

    def _work(self) -> Iterator[bool]:
        answer = Answer.MARKED
        while answer is Answer.MARKED:
            blob = self._desk.put(self._text)
            yield False
            try:
                self._desk.store.verify(blob)
            except (NotFound, DamagedAsset):
                continue
            yield False
            answer = self._desk.commit(self._leased, files=[receipt_file(blob)])
            yield answer is not Answer.MARKED
        assert answer is Answer.ACCEPTED


class Interrupted:
    """Stands for a ledger or a store: before each of its named calls somebody else gets his turn."""

    def __init__(self, real: Any, names: tuple[str, ...], turn: Callable[[], None]) -> None:
        self._real, self._names, self._turn = real, names, turn

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            self._turn()
        return getattr(self._real, name)


CALLS = ("view", "mark_assets", "claim_assets", "unmark_assets", "delete")
TURNS = 8  # of a run over one tenant with one blob to remove
PLACES = (0, 3, 5, 6, 7)  # before it begins, reads the rows, marks, claims, removes


def test_wherever_a_commit_meets_a_collection_nothing_is_lost(sqlite_url: str, tmp_path: Path) -> None:
    """A collection that marks and one that removes, with the three steps of a commit before any of their calls."""
    desk = Desk(sqlite_url, tmp_path / "store")
    met = set[int]()
    for number, (marked, *places) in enumerate(
        (marked, *p) for marked in (False, True) for p in itertools.combinations_with_replacement(PLACES, 3)
    ):
        old, new, text = f"old{number}", f"new{number}", f"picture {number}"
        desk.ledger.delete_job(desk.made(old, text))
        if marked:
            assert desk.collect().marked == 1
        job = desk.submit(task(new))
        committer, turns = Committer(desk, desk.lease(job, new), text), itertools.count()

        def turn(places: list[int] = places, committer: Committer = committer, turns: Any = turns) -> None:
            now = next(turns)
            for place in places:
                if place == now:
                    committer.step()

        desk.clock.advance(1)
        Collector(
            Interrupted(desk.ledger, CALLS, turn),  # type: ignore[arg-type]
            Interrupted(desk.store, CALLS, turn),  # type: ignore[arg-type]
            now_s=desk.clock.monotonic_s,
        ).run(NOW, tenant="studio")
        met.add(next(turns))
        while not committer.done:
            desk.clock.advance(30)
            committer.step()
        assert desk.collect().removed == 0
        desk.store.verify(ReceiptFile(**desk.task(job, new)["files"][0]).blob)
    desk.check()
    desk.close()
    assert max(met) == TURNS


def test_what_is_committed_while_collections_run_all_the_time_is_there(desk: Desk) -> None:
    """Two threads commit the same few contents again and again and delete what they made, while a third collects."""
    errors, over, num_refused = list[BaseException](), threading.Event(), list[bool]()
    rounds, another = [0], threading.Condition()
    seen = dict.fromkeys(("w1", "w2"), 0.0)  # rounds, when a committer began its step: rows are dropped 30 later

    def commit(worker: str) -> None:
        try:
            for number in range(6):
                key = f"{worker}-{number}"
                job = desk.submit(task(key))
                committer = Committer(desk, desk.lease(job, key, worker=worker), f"content {number % 2}")
                num_steps = 0
                while not committer.done:
                    with another:
                        seen[worker] = rounds[0]
                        another.notify_all()
                    committer.step()
                    num_steps += 1
                num_refused.append(num_steps > 3)
                desk.store.verify(ReceiptFile(**desk.task(job, key)["files"][0]).blob)
                desk.ledger.delete_job(job)
                with another:
                    since, seen[worker] = rounds[0], math.inf
                    another.notify_all()
                    another.wait_for(lambda since=since: rounds[0] > since + 1 or errors)  # type: ignore[misc]
                    seen[worker] = rounds[0]
        except BaseException as error:
            errors.append(error)
        finally:
            with another:
                seen[worker] = math.inf
                another.notify_all()

    def collect() -> None:
        try:
            while not over.is_set():
                desk.collect()
                desk.clock.advance(inventory.CLAIM_US / 1e6)  # here alone: its claims last as long as it removes
                with another:
                    rounds[0] += 1
                    another.notify_all()
                    another.wait_for(lambda: rounds[0] - min(seen.values()) < 10)
        except BaseException as error:
            errors.append(error)

    committing = [threading.Thread(target=commit, args=(worker,)) for worker in ("w1", "w2")]
    collecting = threading.Thread(target=collect)
    for thread in (*committing, collecting):
        thread.start()
    for thread in committing:
        thread.join()
    over.set()
    collecting.join()
    assert errors == []
    assert any(num_refused), "they never met"
    desk.check()


BREAKS = [
    *((point, action) for point in ("assets.mark", "assets.claim") for action in (Action.TWICE,)),
    *((p, a) for p in ("assets.mark", "assets.claim", "assets.remove") for a in (Action.BEFORE, Action.AFTER)),
]


@pytest.mark.parametrize(("point", "action"), BREAKS, ids=[f"{p}-{a}" for p, a in BREAKS])
def test_a_collection_that_broke_is_finished_by_the_next_ones(
    desk: Desk, tmp_path: Path, point: str, action: Action
) -> None:
    stays, goes = desk.made("a", "a picture"), desk.made("b", "another")
    desk.ledger.delete_job(goes)
    faults.arm([Fault(point=point, action=action)], tmp_path / "faults")
    try:
        for _ in range(5):
            with contextlib.suppress(Unavailable):
                desk.collect()
            desk.clock.advance(inventory.DROP_US / 1e6 + 1)
        assert faults.struck(tmp_path / "faults") == 1
    finally:
        faults.disarm()
    assert list(desk.store.list("studio/assets/")) == [desk.task(stays, "a")["files"][0]["key"]]
    assert desk.ledger.view(lambda c: inventory.totals(c, Sight())) == (1, 9)
    desk.check()


def test_a_worker_whose_take_was_about_to_be_removed_puts_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.worker.RETRY_AFTER_S", 0.01)
    monkeypatch.setattr(inventory, "CLAIM_US", 200_000)
    with in_process_farm(tmp_path) as farm:
        collector = Collector(farm.ledger, farm.store, now_s=lambda: 0.0)
        first = farm.ledger.submit(brief(), [task("a")])[0]
        farm.work_until_over(first, farm.worker(QuickEngine()))
        blob = ReceiptFile(**farm.ledger.tasks(first)[0]["files"][0]).blob
        farm.ledger.delete_job(first)
        assert collector.run(NOW).marked == 1
        assert collector.run(NOW).removed == 1
        assert not farm.store.exists(blob.key)
        second = farm.ledger.submit(brief(), [task("a")])[0]
        farm.work_until_over(second, farm.worker(QuickEngine()))
        assert [t["state"] for t in farm.ledger.tasks(second)] == ["succeeded"]
        farm.store.verify(blob)
        assert collector.run(NOW) == Found()
        assert farm.ledger.flaws() == []


def test_a_claim_is_not_used_beyond_half_of_its_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "CLAIMED_AT_ONCE", 2)
    for n in range(3):
        desk.ledger.delete_job(desk.made(f"t{n}", f"picture {n}"))
    assert desk.collect().marked == 3
    slow = itertools.count(step=70.0)
    assert Collector(desk.ledger, desk.store, now_s=lambda: next(slow)).run(NOW).removed == 0
    desk.clock.advance(inventory.DROP_US / 1e6 + 1)
    assert desk.collect().strays == 3
    assert desk.collect().removed == 3
