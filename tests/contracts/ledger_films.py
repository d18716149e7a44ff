"""Films: chains of jobs, of which the newest is the film."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.errors import IllegalMove, NotFound
from cluster.graph import TaskSpec
from cluster.ledger import films, hooks
from cluster.ledger.films import Change, Film
from cluster.ledger.hooks import HookSight, HookSpec
from cluster.ledger.outcomes import Sight
from cluster.states import JobState, State
from tests.ledger_desk import LedgerDesk, brief, task

SIGHT = Sight(tenant="studio", recipe="pipelines.recipes.film")
CUT = task("cut", "a", "b")


def begun(desk: LedgerDesk, *graph: TaskSpec) -> Film:
    return look(desk, desk.ledger.submit_film(brief(), graph)[0])


def look(desk: LedgerDesk, film_id: str) -> Film:
    return desk.ledger.view(lambda c: films.find(c, SIGHT, film_id))


def revised(desk: LedgerDesk, film: Film, *graph: TaskSpec, reason: str = "script") -> Film:
    desk.clock.advance(1)
    job = film.now.job
    spec = films.same_job(job, brief(spec={"n": 2}))
    desk.ledger.revise_film(Change(film_id=film.id, of_job=job.id, reason=reason, spec=spec, graph=graph))
    return look(desk, film.id)


def states(desk: LedgerDesk, film: Film) -> Sequence[dict[str, str]]:
    """Of the tasks, by revision."""
    return [desk.states(revision.job.id) for revision in film.revisions]


def test_a_revision_takes_what_is_done_and_ends_what_nobody_wants_any_more(desk: LedgerDesk) -> None:
    film = begun(desk, task("a"), task("b"), CUT)
    assert film.id.partition("_")[2] == film.now.job.id.partition("_")[2]
    desk.run(film.now.job.id, "a", seconds=2)
    film = revised(desk, film, task("a"), task("c"), task("cut", "a", "c"))
    assert states(desk, film) == [
        {"a": "succeeded", "b": "canceled", "cut": "canceled"},
        {"a": "succeeded", "c": "ready", "cut": "pending"},
    ]
    assert [(one.number, one.reason) for one in film.revisions] == [(1, "created"), (2, "script")]
    desk.run(film.now.job.id, "c", seconds=3)
    film = look(desk, film.id)
    assert (film.spend.nano, film.spend_by_key["a"].held_s, film.spend_by_key["c"].held_s) == (5_000_000, 2.0, 3.0)
    desk.check()


def test_what_runs_is_finished_for_the_revision_that_asks_it_too_and_stops_before_its_gate(desk: LedgerDesk) -> None:
    film = begun(desk, task("a", gate="a"), task("b", gate="b"), CUT)
    running, unwanted = desk.lease(film.now.job.id, "a"), desk.lease(film.now.job.id, "b")
    film = revised(desk, film, task("a", gate="a"), task("c"), task("cut", "a", "c"))
    assert states(desk, film)[0] == {"a": "running", "b": "canceled", "cut": "canceled"}
    assert desk.try_lease(film.now.job.id, "a") is None  # somebody is at it
    assert desk.commit(unwanted) == "superseded"
    desk.commit(running)
    assert [one["a"] for one in states(desk, film)] == ["succeeded", "in_review"]
    assert look(desk, film.id).revisions[0].job.state is JobState.CANCELED
    desk.check()


def test_what_runs_for_both_and_fails_is_tried_again_for_one_of_them(desk: LedgerDesk) -> None:
    film = begun(desk, task("a"), CUT, task("b"))
    running = desk.lease(film.now.job.id, "a")
    film = revised(desk, film, task("a"))
    desk.lose(running)
    assert [one["a"] for one in states(desk, film)] == ["ready", "ready"]
    desk.run(film.now.job.id, "a")
    assert [one["a"] for one in states(desk, film)] == ["succeeded", "succeeded"]
    desk.check()


def test_who_changed_what_is_no_longer_the_newest_is_refused(desk: LedgerDesk) -> None:
    film = begun(desk, task("a"))
    revised(desk, film, task("b"))
    with pytest.raises(IllegalMove, match="revised meanwhile"):
        revised(desk, film, task("c"))
    assert len(look(desk, film.id).revisions) == 2


def test_a_film_on_hold_is_on_hold_in_its_next_revision(desk: LedgerDesk) -> None:
    film = begun(desk, task("a"))
    desk.ledger.set_held(film.now.job.id, True)
    assert revised(desk, film, task("b")).now.job.held


def test_a_canceled_film_goes_on_nowhere_and_a_deleted_one_is_not_there(desk: LedgerDesk) -> None:
    film = begun(desk, task("a"), task("b"))
    desk.lease(film.now.job.id, "a")
    film = revised(desk, film, task("a"))
    desk.ledger.cancel_film(film.id)
    assert states(desk, film) == [{"a": "canceled", "b": "canceled"}, {"a": "canceled"}]
    desk.ledger.delete_film(film.id)
    with pytest.raises(NotFound):
        look(desk, film.id)
    assert all(job.deleted_us is not None for job in desk.ledger.jobs())
    desk.check()


def test_others_see_no_film_of_somebody_else(desk: LedgerDesk) -> None:
    film = begun(desk, task("a"))
    for sight in (replace(SIGHT, tenant="other"), replace(SIGHT, show="trailer")):
        with pytest.raises(NotFound):
            desk.ledger.view(lambda c, s=sight: films.find(c, s, film.id))  # type: ignore[misc]
        assert desk.ledger.view(lambda c, s=sight: films.page(c, s, after=None, limit=9, newest_first=True)) == (  # type: ignore[misc]
            [],
            False,
        )


def test_who_listens_hears_of_a_film_by_its_one_name_and_only_of_its_newest_revision(desk: LedgerDesk) -> None:
    topics = tuple(hooks.topic(SIGHT.recipe, state) for state in (JobState.CANCELED, JobState.SUCCEEDED))
    spec = HookSpec(tenant="studio", name="mine", url="https://example.com/hook", topics=topics)
    hook = desk.ledger.create_hook(spec)[0]
    first = begun(desk, task("a"))
    film = revised(desk, first, task("b"))
    desk.run(film.now.job.id, "b")
    sight = HookSight(tenant="studio")
    told = desk.ledger.view(lambda c: hooks.log(c, sight, hook.id, after=None, limit=100))[0]
    assert [(one.topic, one.job_id) for one in told] == [(topics[1], first.now.job.id)]
    assert desk.state(first.now.job.id, "a") is State.CANCELED
