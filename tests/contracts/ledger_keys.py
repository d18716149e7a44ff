"""Keys, requests that come again, and what those who asked see: for every database that a ledger can have."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event

from cluster.errors import FailureClass, IllegalMove, InvalidInput, NotFound, RateLimited, Unauthenticated
from cluster.ledger import films, keys, outcomes
from cluster.ledger.films import Change
from cluster.ledger.jobs import Terms
from cluster.ledger.keys import Key, KeySpec, Scope
from cluster.ledger.outcomes import Sight
from tests.ledger_desk import LedgerDesk, brief, task

SIGHT = Sight(tenant="studio", recipe="pipelines.recipes.film")


def key_of(desk: LedgerDesk, secret: str) -> Key | None:
    admitted = desk.ledger.authenticate(secret)
    return admitted.key if admitted else None


def test_a_secret_opens_and_is_kept_nowhere(desk: LedgerDesk) -> None:
    key, secret = desk.ledger.create_key(KeySpec(tenant="studio", name="ci", scopes=(Scope.READ,), show="trailer"))
    assert key_of(desk, secret) == key
    assert (key.tenant, key.show, key.scopes) == ("studio", "trailer", (Scope.READ,))
    assert secret.startswith(key.prefix)
    assert len(secret) >= 48
    with desk.ledger.database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM api_keys").all()
    assert secret not in str(rows)
    assert secret not in repr(key)


@pytest.mark.parametrize("wrong", ["", "farm_", "\udcff", "x" * 10_000], ids=["none", "short", "no-utf8", "long"])
def test_what_is_no_secret_opens_nothing(desk: LedgerDesk, wrong: str) -> None:
    _, secret = desk.ledger.create_key(KeySpec(tenant="studio", name="ci"))
    assert desk.ledger.authenticate(wrong) is None
    assert desk.ledger.authenticate(secret[:-1]) is None
    assert desk.ledger.authenticate(secret + "=") is None


def test_a_rotated_key_opens_with_both_secrets_until_the_old_one_runs_out(desk: LedgerDesk) -> None:
    key, first = desk.ledger.create_key(KeySpec(tenant="studio", name="ci"))
    _, second = desk.ledger.rotate_key(key.id, keep_old_s=60)
    assert [k is not None for k in (key_of(desk, first), key_of(desk, second))] == [True, True]
    desk.clock.advance(61)
    assert [k is not None for k in (key_of(desk, first), key_of(desk, second))] == [False, True]
    _, third = desk.ledger.rotate_key(key.id)
    assert [k is not None for k in (key_of(desk, second), key_of(desk, third))] == [False, True]


def test_a_rotation_whose_answer_was_lost_and_that_comes_again_keeps_the_secret_that_is_known(desk: LedgerDesk) -> None:
    key, known = desk.ledger.create_key(KeySpec(tenant="studio", name="ci"))
    _, lost = desk.ledger.rotate_key(key.id, keep_old_s=60)
    desk.clock.advance(30)
    _, told = desk.ledger.rotate_key(key.id, keep_old_s=60)
    assert [key_of(desk, secret) is not None for secret in (known, lost, told)] == [True, False, True]
    desk.clock.advance(59)
    assert key_of(desk, known) is not None
    desk.clock.advance(1)
    assert key_of(desk, known) is None
    _, next_one = desk.ledger.rotate_key(key.id, keep_old_s=60)
    assert [key_of(desk, secret) is not None for secret in (known, told, next_one)] == [False, True, True]
    _, only = desk.ledger.rotate_key(key.id)
    assert [key_of(desk, secret) is not None for secret in (told, next_one, only)] == [False, False, True]


def test_a_revoked_key_opens_nothing_and_stays_revoked(desk: LedgerDesk) -> None:
    key, first = desk.ledger.create_key(KeySpec(tenant="studio", name="ci"))
    _, second = desk.ledger.rotate_key(key.id, keep_old_s=3600)
    assert desk.ledger.revoke_key(key.id).revoked_us == desk.ledger.revoke_key(key.id).revoked_us
    assert (desk.ledger.authenticate(first), desk.ledger.authenticate(second)) == (None, None)
    with pytest.raises(IllegalMove, match="revoked"):
        desk.ledger.rotate_key(key.id)
    with pytest.raises(NotFound):
        desk.ledger.revoke_key("key_none")


def test_keys_that_are_revoked_or_gone_are_told_from_those_that_open(desk: LedgerDesk) -> None:
    opens, revoked = (desk.ledger.create_key(KeySpec(tenant="studio", name=name))[0].id for name in ("in", "out"))
    desk.ledger.revoke_key(revoked)
    told = desk.ledger.view(lambda c: keys.closed(c, {opens, revoked, "key_none"}))
    assert told == {revoked, "key_none"}


def test_a_key_pays_for_each_request_and_its_bucket_fills_again(desk: LedgerDesk) -> None:
    _, secret = desk.ledger.create_key(KeySpec(tenant="studio", name="ci", requests_per_minute=3))

    def asked() -> tuple[float, int | None]:
        admitted = desk.ledger.authenticate(secret)
        assert admitted is not None
        return admitted.wait_s, admitted.left

    assert [asked() for _ in range(4)] == [(0, 2), (0, 1), (0, 0), (20, 0)]
    desk.clock.advance(20)
    assert [asked() for _ in range(2)] == [(0, 0), (20, 0)]
    desk.clock.jump(-3600)  # the wall clock is set back: nobody waits an hour for it
    assert asked()[0] <= 60


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tenant": "No Such"}, "tenant"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"show": ""}, "show"),
        ({"scopes": ()}, "scopes"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": 0}, "tokens_per_minute"),
        ({"in_flight_s": float("nan")}, "in_flight_s"),
    ],
    ids=lambda v: str(v) if isinstance(v, str) else "",
)
def test_a_key_for_nothing_is_refused_with_its_field(more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        KeySpec(**{"tenant": "studio", "name": "ci", **more})
    assert refused.value.field == field


def test_work_that_does_not_fit_beside_what_is_open_is_refused_until_there_is_room(desk: LedgerDesk) -> None:
    terms = Terms(most_in_flight_s=10.0)
    big, _ = desk.ledger.submit(brief(), [task("big", weight=50.0)], terms)  # alone, it fits
    with pytest.raises(RateLimited) as refused:
        desk.ledger.submit(brief(), [task("small", weight=4.0)], terms)
    assert refused.value.retry_after_s == (50 + 4 - 10) / 2  # two workers
    assert len(desk.ledger.jobs()) == 1
    desk.ledger.submit(brief(tenant="other"), [task("theirs", weight=4.0)], terms)
    desk.ledger.cancel_job(big)
    desk.ledger.submit(brief(), [task("small", weight=4.0)], terms)


def test_what_is_yet_to_expand_counts_what_it_will_bring_until_that_is_there(desk: LedgerDesk) -> None:
    terms = Terms(most_in_flight_s=100.0, estimate={"to_come_s": 90.0})
    graph = [task("script", weight=5.0), task("expand", "script", expands=True, cacheable=False, weight=1.0)]
    desk.ledger.submit(brief(), [task("first", weight=5.0)])
    with pytest.raises(RateLimited, match="5 accelerator-seconds are in flight, 96 more"):
        desk.ledger.submit(brief(), graph, terms)
    film, _ = desk.ledger.submit(brief(tenant="other"), graph, terms)
    small = Terms(most_in_flight_s=100.0)
    with pytest.raises(RateLimited, match="96 accelerator-seconds are in flight"):
        desk.ledger.submit(brief(tenant="other"), [task("small", weight=10.0)], small)
    desk.run(film, "script")
    desk.run(film, "expand", children=[task("a", weight=2.0)])
    desk.ledger.submit(brief(tenant="other"), [task("small", weight=10.0)], small)


@pytest.mark.parametrize("end", ["revoked", "erased"])
def test_work_whose_key_went_while_it_was_on_its_way_is_not_taken(desk: LedgerDesk, end: str) -> None:
    key, other = (
        desk.ledger.create_key(KeySpec(tenant="rival", name=name, scopes=(Scope.GENERATE,)))[0] for name in ("a", "b")
    )
    film, _ = desk.ledger.submit_film(
        brief(tenant="rival", request={"key": other.id}), [task("a")], Terms(key=other.id)
    )
    desk.ledger.revoke_key(other.id)  # who goes on with its film has another one

    def revise() -> None:
        job = desk.ledger.view(lambda c: films.read(c, film)).now.job
        spec = films.same_job(job, brief())
        desk.ledger.revise_film(
            Change(film_id=film, of_job=job.id, reason="script", spec=spec, graph=[task("a")], key=key.id)
        )

    revise()
    if end == "revoked":
        desk.ledger.revoke_key(key.id)
        with pytest.raises(Unauthenticated):
            revise()
    else:
        desk.ledger.close_tenant("rival")
    for submit in (desk.ledger.submit, desk.ledger.submit_film):
        with pytest.raises(Unauthenticated):
            submit(brief(tenant="rival"), [task("a")], Terms(key=key.id))
    assert len(desk.ledger.jobs()) == 2
    desk.check()


def test_an_equal_request_that_calls_itself_a_retry_is_the_same_job(desk: LedgerDesk) -> None:
    def ask(*, retry: bool = False, key: str = "k1", asked: str = "a" * 64) -> tuple[str, bool]:
        spec = brief(asked=asked, request={"key": key, **({"retry": True} if retry else {})})
        since_us = desk.clock.now_us() - (600_000_000 if retry else 0)
        return desk.ledger.submit(spec, [task("t")], Terms(same_since_us=since_us))

    first, created = ask()
    assert created
    assert ask(retry=True) == (first, False)
    assert ask()[1]  # asked twice on purpose, at the same instant
    assert ask(retry=True, key="k2")[1]
    assert ask(retry=True, asked="b" * 64)[1]
    desk.clock.advance(1)
    assert ask()[1]
    desk.clock.advance(601)
    late, created = ask(retry=True)
    assert created
    assert ask() == (late, False)  # the retry had overtaken what it repeats


def test_a_retry_that_has_a_name_is_the_same_job_by_its_name_alone(desk: LedgerDesk) -> None:
    def ask(name: str | None, *, retry: bool) -> tuple[str, bool]:
        spec = brief(idempotency_key=name, asked="a" * 64, request={"key": "k", **({"retry": True} if retry else {})})
        return desk.ledger.submit(spec, [task("t")], Terms(same_since_us=0))

    first, _ = ask("one", retry=False)
    assert ask("two", retry=True)[1]  # its first try was refused
    assert ask("one", retry=True) == (first, False)
    unnamed, created = ask(None, retry=True)
    assert created
    assert ask(None, retry=True) == (unnamed, False)


def test_only_those_who_may_see_a_job_find_it_and_others_take_as_many_statements(desk: LedgerDesk) -> None:
    own, theirs = desk.submit(task("a"), show="trailer"), desk.submit(task("a"), tenant="other")
    deleted = desk.submit(task("a"))
    desk.ledger.delete_job(deleted)
    statements: list[str] = []
    event.listen(desk.ledger.database.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))

    def cost(job_id: str, sight: Sight = SIGHT) -> list[str]:
        del statements[:]
        with pytest.raises(NotFound):
            desk.ledger.view(lambda c: outcomes.find(c, sight, job_id))
        return list(statements)

    bound = Sight(tenant="studio", recipe="pipelines.recipes.film", show="feature")
    assert cost("job_none") == cost(theirs) == cost(deleted)
    assert cost(own, bound) == cost("job_none", bound)
    assert desk.ledger.view(lambda c: outcomes.find(c, SIGHT, own)).job.id == own
    desk.check()


def test_a_deleted_job_is_canceled_and_keeps_its_bill(desk: LedgerDesk) -> None:
    job = desk.submit(task("a"))
    desk.lease(job, "a")
    desk.clock.advance(10)
    desk.ledger.delete_job(job)
    desk.ledger.delete_job(job)
    assert desk.states(job) == {"a": "canceled"}
    assert desk.kinds(job).count("job.deleted") == 1
    assert desk.spent("wasted", job_id=job) == 10_000_000
    desk.check()


@pytest.mark.parametrize("newest_first", [True, False], ids=["newest", "oldest"])
def test_pages_hold_each_job_once_even_when_many_came_at_one_instant(desk: LedgerDesk, newest_first: bool) -> None:
    made = [desk.submit(task("a")) for _ in range(7)]
    desk.clock.advance(1)
    made += [desk.submit(task("a")) for _ in range(2)]
    seen: list[str] = []
    more, after = True, None
    while more:
        page = desk.ledger.view(
            lambda c: outcomes.page(c, SIGHT, after=after, limit=2, newest_first=newest_first)  # noqa: B023
        )
        seen += [outcome.job.id for outcome in page.outcomes]
        more, after = page.has_more, seen[-1]
    assert sorted(seen) == sorted(made)
    assert (seen[0] in made[7:]) == newest_first
    with pytest.raises(NotFound) as refused:
        desk.ledger.view(lambda c: outcomes.page(c, SIGHT, after="job_none", limit=2, newest_first=True))
    assert refused.value.field == "after"


@pytest.mark.parametrize("newest_first", [True, False], ids=["newest", "oldest"])
def test_a_page_goes_on_after_what_was_deleted_meanwhile(desk: LedgerDesk, newest_first: bool) -> None:
    made = [desk.ledger.submit_film(brief(), [task("a")])[0] for _ in range(3)]
    first, second, third = sorted(made, reverse=newest_first)
    jobs = {film: film.replace("film_", "job_") for film in made}
    for film in (first, second):
        desk.ledger.delete_film(film)
    order: dict[str, Any] = {"limit": 2, "newest_first": newest_first}
    page = desk.ledger.view(lambda c: outcomes.page(c, SIGHT, after=jobs[second], **order))
    assert [outcome.job.id for outcome in page.outcomes] == [jobs[third]]
    some, _ = desk.ledger.view(lambda c: films.page(c, SIGHT, after=second, **order))
    assert [film.id for film in some] == [third]
    other = Sight(tenant="other", recipe=SIGHT.recipe)
    with pytest.raises(NotFound):
        desk.ledger.view(lambda c: outcomes.page(c, other, after=jobs[second], **order))
    with pytest.raises(NotFound):
        desk.ledger.view(lambda c: films.page(c, other, after=second, **order))


def test_an_outcome_tells_files_cost_and_what_broke(desk: LedgerDesk) -> None:
    good, bad = desk.submit(task("a")), desk.submit(task("b"))
    desk.run(good, "a", seconds=3)
    desk.fail(desk.lease(bad, "b"), FailureClass.INPUT, "no such thing")
    page = desk.ledger.view(lambda c: outcomes.page(c, SIGHT, after=None, limit=9, newest_first=False))
    first, second = page.outcomes
    assert first.spend.nano == 3_000_000
    assert (first.file("a", "clip.mp4") or {})["media_type"] == "video/mp4"
    assert first.file("a", "none") is None
    assert first.broken is None
    assert second.broken is not None
    assert (second.broken.code, second.broken.message, second.broken.failure) == ("x", "no such thing", "input")


def test_the_backlog_counts_what_waits_and_what_runs(desk: LedgerDesk) -> None:
    slow = desk.submit(task("a", weight=5.0), task("b", weight=7.0), tier="batch")
    quick = desk.submit(task("c", weight=2.0), tier="interactive")
    held = desk.submit(task("d", weight=1.0))
    desk.ledger.set_held(held, True)
    desk.lease(slow, "a")
    seen = desk.ledger.view(outcomes.backlog)
    assert seen.before == (quick, slow)
    assert (seen.running_s, seen.ready_s, seen.num_ready) == ({"render": 5.0}, {"render": 9.0}, {"render": 2})
    assert seen.ready_by_tier_s == {("render", "batch"): 7.0, ("render", "interactive"): 2.0}
    assert seen.num_running == {"render": 1}
    assert seen.num_workers == {"render": 2}
