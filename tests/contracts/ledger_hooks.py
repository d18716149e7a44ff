"""Webhook endpoints and their outbox: for every database that a ledger can have."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cluster.errors import FailureClass, IllegalMove, InvalidInput, NotFound
from cluster.ledger import hooks
from cluster.ledger.hooks import Delivery, Hook, HookSight, HookSpec, Message, Progress, Tried
from cluster.states import JobState, Move
from tests.ledger_desk import LedgerDesk, task

FILM = "pipelines.recipes.film"
SIGHT = HookSight(tenant="studio")
EVERY = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.IN_REVIEW)


def listener(desk: LedgerDesk, *states: JobState, tenant: str = "studio", show: str | None = None) -> Hook:
    topics = tuple(hooks.topic(FILM, state) for state in states or EVERY)
    spec = HookSpec(tenant=tenant, name="mine", url="https://example.com/hook", topics=topics, show=show)
    return desk.ledger.create_hook(spec)[0]


def outbox(desk: LedgerDesk, hook: Hook, *, tenant: str = "studio") -> list[Delivery]:
    sight = HookSight(tenant=tenant)
    return desk.ledger.view(lambda c: hooks.log(c, sight, hook.id, after=None, limit=100))[0]


def states_told(desk: LedgerDesk, hook: Hook) -> list[str]:
    """Oldest first."""
    return [one.topic.removeprefix(f"{FILM} ") for one in reversed(outbox(desk, hook))]


def claimed(desk: LedgerDesk, **more: Any) -> list[Message]:
    return desk.ledger.claim_deliveries(
        **{"limit": 10, "each": 10, "of_tenant": 10, "beside": (), "lease_s": 60.0, **more}
    )


def signing(desk: LedgerDesk, hook: Hook) -> tuple[str, ...]:
    """The secrets that sign now, the newest first."""
    now_us = desk.clock.now_us()
    return desk.ledger.view(lambda c: hooks.signing(c, SIGHT, hook.id, now_us=now_us))[1]


def ended(desk: LedgerDesk, **more: Any) -> str:
    """A job that has succeeded."""
    job = desk.submit(task("a", params={"n": str(desk.clock.now_us())}), **more)
    desk.run(job, "a")
    return job


def answered(status: int | None) -> Tried:
    return Tried(at_us=1, ms=12, status=status, error=None if status else "nobody answers")


def test_who_listens_is_told_how_a_job_ended(desk: LedgerDesk) -> None:
    hook = listener(desk)
    done = ended(desk)
    desk.clock.advance(1)
    failed = desk.submit(task("b"))
    desk.fail(desk.lease(failed, "b"), FailureClass.INPUT)
    desk.clock.advance(1)
    canceled = desk.submit(task("c"))
    desk.ledger.cancel_job(canceled)
    assert states_told(desk, hook) == ["succeeded", "failed", "canceled"]
    assert [one.job_id for one in reversed(outbox(desk, hook))] == [done, failed, canceled]
    assert {one.progress for one in outbox(desk, hook)} == {Progress.DUE}
    desk.check()


def test_only_what_an_endpoint_wants_of_its_own_tenant_and_show_is_told(desk: LedgerDesk) -> None:
    failures = listener(desk, JobState.FAILED)
    trailer = listener(desk, show="trailer")
    theirs = listener(desk, tenant="other")
    job = ended(desk)
    assert (outbox(desk, failures), outbox(desk, trailer), outbox(desk, theirs, tenant="other")) == ([], [], [])
    shown = ended(desk, show="trailer")
    assert [one.job_id for one in outbox(desk, trailer)] == [shown]
    assert shown != job
    ended(desk, recipe="pipelines.recipes.clip", show="trailer")
    assert len(outbox(desk, trailer)) == 1


def test_a_job_that_is_answered_at_submit_is_told_of_too(desk: LedgerDesk) -> None:
    asked = task("a")
    first = desk.submit(asked)
    desk.run(first, "a")
    hook = listener(desk)
    second = desk.submit(asked)
    assert desk.ledger.job(second).state is JobState.SUCCEEDED
    assert [one.job_id for one in outbox(desk, hook)] == [second]


def test_a_job_that_is_opened_again_is_told_of_again_under_another_id(desk: LedgerDesk) -> None:
    hook = listener(desk)
    job = ended(desk)
    desk.clock.advance(1)
    desk.move(job, "a", Move.REOPEN)
    desk.run(job, "a")
    assert states_told(desk, hook) == ["succeeded", "succeeded"]
    assert len({one.id for one in outbox(desk, hook)}) == 2


def test_a_dead_task_that_is_eaten_makes_its_job_a_success_that_is_told(desk: LedgerDesk) -> None:
    hook = listener(desk)
    job = desk.submit(task("a"))
    desk.fail(desk.lease(job, "a"), FailureClass.INPUT)
    desk.clock.advance(1)
    desk.move(job, "a", Move.EAT)
    assert states_told(desk, hook) == ["failed", "succeeded"]


def test_a_film_that_is_published_is_completed_whatever_take_was_lost(desk: LedgerDesk) -> None:
    hook = listener(desk)
    job = desk.submit(task("a"), task("spare"), task("publish", "a", step="publish"))
    desk.run(job, "a")
    desk.fail(desk.lease(job, "spare"), FailureClass.INPUT)
    assert states_told(desk, hook) == []
    desk.run(job, "publish")
    assert desk.ledger.job(job).state is JobState.FAILED
    assert states_told(desk, hook) == ["succeeded"]
    desk.clock.advance(1)
    stopped = desk.submit(task("b"), task("other"), task("publish", "b", step="publish"))
    desk.run(stopped, "b")
    desk.run(stopped, "publish")
    desk.ledger.cancel_job(stopped)
    assert states_told(desk, hook) == ["succeeded", "succeeded"]
    desk.check()


def test_a_job_that_waits_for_a_person_is_told_of_once_it_has_nothing_else_to_do(desk: LedgerDesk) -> None:
    hook = listener(desk)
    job = desk.submit(task("a", gate="shot"), task("b"))
    desk.run(job, "a")
    assert states_told(desk, hook) == []  # b is still to be drawn
    desk.run(job, "b")
    assert states_told(desk, hook) == ["in_review"]
    desk.clock.advance(1)
    desk.move(job, "a", Move.APPROVE)
    assert states_told(desk, hook) == ["in_review", "succeeded"]


def test_nothing_is_told_of_what_did_not_commit(desk: LedgerDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = listener(desk)
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("cluster.ledger.moves.hooks.tell", broken)
    with pytest.raises(ZeroDivisionError):
        desk.commit(leased)
    monkeypatch.undo()
    assert outbox(desk, hook) == []
    assert desk.state(job, "a") == "running"
    desk.commit(leased)
    assert states_told(desk, hook) == ["succeeded"]


def test_an_event_has_one_id_at_all_endpoints(desk: LedgerDesk) -> None:
    one, other = listener(desk), listener(desk)
    ended(desk)
    assert [d.id for d in outbox(desk, one)] == [d.id for d in outbox(desk, other)]


def test_what_is_claimed_is_nobody_elses_until_its_lease_ends(desk: LedgerDesk) -> None:
    listener(desk)
    ended(desk)
    [first] = claimed(desk)
    assert claimed(desk) == []
    desk.clock.advance(61)
    [again] = claimed(desk)
    assert (again.id, again.epoch) == (first.id, first.epoch + 1)
    assert not desk.ledger.settle_delivery(first, answered(500), next_us=0)  # of a deliverer that was thought dead
    assert desk.ledger.settle_delivery(again, answered(500), next_us=desk.clock.now_us() + 5_000_000)


def test_what_was_heard_was_heard_whoever_has_it_now(desk: LedgerDesk) -> None:
    hook = listener(desk)
    ended(desk)
    [slow] = claimed(desk)
    desk.clock.advance(61)
    [now] = claimed(desk)
    assert desk.ledger.settle_delivery(slow, answered(204), next_us=None)
    assert not desk.ledger.settle_delivery(now, answered(500), next_us=0)
    [line] = outbox(desk, hook)
    assert (line.progress, line.next_us, [t.status for t in line.tries]) == (Progress.DELIVERED, None, [204])
    assert claimed(desk) == []


def test_a_failed_try_waits_for_its_time_and_the_last_one_ends_it(desk: LedgerDesk) -> None:
    hook = listener(desk)
    ended(desk)
    [message] = claimed(desk)
    desk.ledger.settle_delivery(message, answered(None), next_us=desk.clock.now_us() + 300_000_000)
    assert claimed(desk) == []
    desk.clock.advance(300)
    [message] = claimed(desk)
    assert message.num_tries == 1
    desk.ledger.settle_delivery(message, answered(302), next_us=None)
    [line] = outbox(desk, hook)
    assert (line.progress, line.num_tries) == (Progress.FAILED, 2)
    assert [(t.status, t.error) for t in line.tries] == [(None, "nobody answers"), (302, None)]
    desk.clock.advance(1e6)
    assert claimed(desk) == []
    desk.ledger.redeliver(SIGHT, hook.id, line.id)
    assert [(m.id, m.num_tries) for m in claimed(desk)] == [(line.id, 0)]


def test_an_endpoint_that_is_gone_hears_nothing_more_until_it_is_enabled(desk: LedgerDesk) -> None:
    hook = listener(desk)
    for _ in range(3):
        ended(desk)
    [message] = claimed(desk, limit=1)
    desk.ledger.settle_delivery(message, answered(410), next_us=1)
    ended(desk)
    assert claimed(desk) == []
    assert {line.progress for line in outbox(desk, hook)} == {Progress.FAILED}
    assert len(outbox(desk, hook)) == 3
    gone = desk.ledger.view(lambda c: hooks.find(c, SIGHT, hook.id))
    assert gone.disabled_reason == "it answered 410 Gone"
    assert gone.disabled_us is not None
    assert desk.ledger.change_hook(SIGHT, hook.id, enabled=True).disabled_us is None
    ended(desk)
    assert len(claimed(desk)) == 1


def test_what_was_heard_while_the_endpoint_was_given_up_was_heard(desk: LedgerDesk) -> None:
    hook = listener(desk)
    for _ in range(3):
        ended(desk)
    gone, heard, lost = claimed(desk)
    assert desk.ledger.settle_delivery(gone, answered(410), next_us=1)
    assert desk.ledger.settle_delivery(heard, answered(200), next_us=1)
    assert not desk.ledger.settle_delivery(heard, answered(200), next_us=1)
    assert not desk.ledger.settle_delivery(lost, answered(500), next_us=1)
    lines = {line.id: (line.progress, [t.status for t in line.tries]) for line in outbox(desk, hook)}
    assert lines[gone.id] == (Progress.FAILED, [410])
    assert lines[heard.id] == (Progress.DELIVERED, [200])
    assert lines[lost.id] == (Progress.FAILED, [])


def test_nothing_is_sent_again_to_an_endpoint_that_is_disabled(desk: LedgerDesk) -> None:
    hook = listener(desk)
    ended(desk)
    [message] = claimed(desk)
    desk.ledger.settle_delivery(message, answered(410), next_us=1)
    with pytest.raises(NotFound):
        desk.ledger.redeliver(SIGHT, hook.id, "evt_none")
    with pytest.raises(IllegalMove, match="disabled") as refused:
        desk.ledger.redeliver(SIGHT, hook.id, message.id)
    assert (refused.value.field, refused.value.remedy) == ("enabled", "enable it first")
    assert [line.progress for line in outbox(desk, hook)] == [Progress.FAILED]
    desk.ledger.change_hook(SIGHT, hook.id, enabled=True)
    assert desk.ledger.redeliver(SIGHT, hook.id, message.id).progress is Progress.DUE
    assert [one.id for one in claimed(desk)] == [message.id]


def test_an_endpoint_that_has_moved_does_not_end_by_what_its_old_address_says(desk: LedgerDesk) -> None:
    hook = listener(desk)
    ended(desk)
    [message] = claimed(desk)
    moved = desk.ledger.change_hook(SIGHT, hook.id, url="https://new.example.com/")
    desk.ledger.settle_delivery(message, answered(410), next_us=1)
    assert desk.ledger.view(lambda c: hooks.find(c, SIGHT, hook.id)) == moved
    [again] = claimed(desk)
    assert (again.id, again.url) == (message.id, "https://new.example.com/")


def test_no_endpoint_takes_the_deliverer_for_itself(desk: LedgerDesk) -> None:
    noisy, quiet = listener(desk), listener(desk, show="trailer")
    for _ in range(6):
        ended(desk)
    ended(desk, show="trailer")
    found = claimed(desk, limit=5, each=4)
    assert [m.hook_id for m in found].count(noisy.id) == 4
    assert [m.hook_id for m in found].count(quiet.id) == 1
    assert claimed(desk, each=4, beside=found) == []
    assert [m.hook_id for m in claimed(desk, each=4, beside=found[1:])] == [noisy.id]


def test_no_tenant_takes_the_deliverer_for_itself(desk: LedgerDesk) -> None:
    noisy, other, off = listener(desk), listener(desk), listener(desk)
    for _ in range(6):
        ended(desk)
        desk.clock.advance(1)
    desk.ledger.change_hook(SIGHT, off.id, enabled=False)
    quiet = listener(desk, tenant="other")
    ended(desk, tenant="other")
    found = claimed(desk, limit=8, each=4, of_tenant=7)
    assert Counter(m.tenant for m in found) == {"studio": 7, "other": 1}
    assert sorted(Counter(m.hook_id for m in found).values()) == [1, 3, 4]
    assert found[-1].hook_id == quiet.id
    assert claimed(desk, each=4, of_tenant=7, beside=found) == []
    assert len(claimed(desk, each=4, of_tenant=8, beside=found)) == 1
    assert {m.hook_id for m in claimed(desk)} == {noisy.id, other.id}


def test_what_an_endpoint_has_to_wait_with_takes_no_place_of_its_tenant(desk: LedgerDesk) -> None:
    noisy = listener(desk, show="feature")
    for _ in range(6):
        ended(desk, show="feature")
    desk.clock.advance(1)
    quiet = listener(desk, show="trailer")
    ended(desk, show="trailer")
    assert Counter(m.hook_id for m in claimed(desk, each=2, of_tenant=3)) == {noisy.id: 2, quiet.id: 1}


def test_after_a_rotation_both_secrets_sign_until_the_old_one_runs_out(desk: LedgerDesk) -> None:
    hook = listener(desk)
    [first] = signing(desk, hook)
    rotated, second = desk.ledger.rotate_hook(SIGHT, hook.id, keep_old_s=60)
    assert signing(desk, hook) == (second, first)
    assert rotated.hint.endswith(second[-4:])
    desk.clock.advance(61)
    assert signing(desk, hook) == (second,)
    _, third = desk.ledger.rotate_hook(SIGHT, hook.id)
    assert signing(desk, hook) == (third,)
    assert len({first, second, third}) == 3
    ended(desk)
    [message] = claimed(desk)
    assert (message.secrets, third in repr(message), third in repr(rotated)) == ((third,), False, False)


def test_a_rotation_whose_answer_was_lost_and_that_comes_again_still_signs_as_is_known(desk: LedgerDesk) -> None:
    hook = listener(desk)
    [known] = signing(desk, hook)
    desk.ledger.rotate_hook(SIGHT, hook.id, keep_old_s=60)
    desk.clock.advance(30)
    _, told = desk.ledger.rotate_hook(SIGHT, hook.id, keep_old_s=60)
    assert signing(desk, hook) == (told, known)
    desk.clock.advance(59)
    assert signing(desk, hook) == (told, known)
    desk.clock.advance(1)
    assert signing(desk, hook) == (told,)
    _, next_one = desk.ledger.rotate_hook(SIGHT, hook.id, keep_old_s=60)
    assert signing(desk, hook) == (next_one, told)
    _, only = desk.ledger.rotate_hook(SIGHT, hook.id)
    assert signing(desk, hook) == (only,)


def test_what_is_anothers_is_not_there(desk: LedgerDesk) -> None:
    hook, bound = listener(desk), listener(desk, show="trailer")
    ended(desk)
    [line] = outbox(desk, hook)
    for sight, seen in ((HookSight(tenant="other"), hook), (HookSight(tenant="studio", show="trailer"), hook)):
        for ask in (
            lambda s=sight, h=seen: desk.ledger.view(lambda c: hooks.find(c, s, h.id)),
            lambda s=sight, h=seen: desk.ledger.view(lambda c: hooks.log(c, s, h.id, after=None, limit=1)),
            lambda s=sight, h=seen: desk.ledger.change_hook(s, h.id, name="x"),
            lambda s=sight, h=seen: desk.ledger.rotate_hook(s, h.id),
            lambda s=sight, h=seen: desk.ledger.redeliver(s, h.id, line.id),
            lambda s=sight, h=seen: desk.ledger.remove_hook(s, h.id),
        ):
            with pytest.raises(NotFound):
                ask()  # type: ignore[no-untyped-call]
    found, more = desk.ledger.view(
        lambda c: hooks.page(c, HookSight(tenant="studio", show="trailer"), after=None, limit=9)
    )
    assert ([one.id for one in found], more) == ([bound.id], False)


def test_pages_follow_each_other_newest_first(desk: LedgerDesk) -> None:
    made = []
    for _ in range(5):
        made.append(listener(desk).id)
        desk.clock.advance(1)
    seen: list[str] = []
    more = True
    while more:
        after = seen[-1] if seen else None
        found, more = desk.ledger.view(lambda c, a=after: hooks.page(c, SIGHT, after=a, limit=2))  # type: ignore[misc]
        seen += [one.id for one in found]
    assert seen == made[::-1]
    for _ in range(3):
        ended(desk)
        desk.clock.advance(1)
    lines, more = desk.ledger.view(lambda c: hooks.log(c, SIGHT, made[0], after=None, limit=2))
    last, none = desk.ledger.view(lambda c: hooks.log(c, SIGHT, made[0], after=lines[-1].id, limit=2))
    assert (more, none, len({line.id for line in [*lines, *last]})) == (True, False, 3)


def test_with_an_endpoint_goes_all_that_it_had(desk: LedgerDesk) -> None:
    hook = listener(desk)
    ended(desk)
    [message] = claimed(desk)
    desk.ledger.remove_hook(SIGHT, hook.id)
    assert not desk.ledger.settle_delivery(message, answered(200), next_us=None)
    desk.clock.advance(100)
    assert claimed(desk) == []
    with pytest.raises(NotFound):
        desk.ledger.view(lambda c: hooks.find(c, SIGHT, hook.id))


def test_what_is_over_is_forgotten_after_its_time_and_what_is_due_is_not(desk: LedgerDesk) -> None:
    hook = listener(desk)
    ended(desk)
    ended(desk)
    [message] = claimed(desk, limit=1)
    desk.ledger.settle_delivery(message, answered(200), next_us=None)
    assert desk.ledger.forget_deliveries(older_s=60) == 0
    desk.clock.advance(61)
    assert desk.ledger.forget_deliveries(older_s=60) == 1
    assert [line.progress for line in outbox(desk, hook)] == [Progress.DUE]


def test_a_tenant_has_a_bounded_number_of_endpoints(desk: LedgerDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "MOST", 2)
    listener(desk)
    listener(desk)
    with pytest.raises(InvalidInput, match="2 endpoints"):
        listener(desk)
    listener(desk, tenant="other")


@pytest.mark.parametrize(("name", "url"), [("", "https://a"), ("x\n", "https://a"), ("x", ""), ("x", "h" * 2001)])
def test_what_is_no_endpoint_is_refused(desk: LedgerDesk, name: str, url: str) -> None:
    with pytest.raises(InvalidInput):
        HookSpec(tenant="studio", name=name, url=url, topics=())
    hook = listener(desk)
    with pytest.raises(InvalidInput):
        desk.ledger.change_hook(SIGHT, hook.id, name=name, url=url)
