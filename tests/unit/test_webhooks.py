"""The deliverer of webhooks: what it sends, when it tries again, and what is left when it is killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from cluster import faults
from cluster.clock import SystemClock
from cluster.errors import LedgerUnavailable
from cluster.faults import Action, Fault
from cluster.ledger import hooks
from cluster.ledger.hooks import Delivery, Hook, HookSight, HookSpec, Progress
from serve.guard import Guard
from serve.webhooks import AT_ONCE, DELAYS_S, EACH, TOPICS, Deliverer
from tests.ledger_desk import LedgerDesk, task
from tests.listener import Listener, listening, nobody

CLIP = "pipelines.recipes.clip"
SIGHT = HookSight(tenant="studio")
OPEN = Guard(private=True)
THREE_DAYS_S = 3.0 * 86_400


@pytest.fixture
def desk(sqlite_url: str) -> Iterator[LedgerDesk]:
    desk = LedgerDesk(sqlite_url, start_us=SystemClock().now_us())  # the client of OpenAI refuses an old timestamp
    yield desk
    desk.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as listener:
        yield listener


@pytest.fixture(autouse=True)
def unarmed() -> Iterator[None]:
    yield
    faults.disarm()


def hook_of(desk: LedgerDesk, url: str, *kinds: str, tenant: str = "studio") -> tuple[Hook, str]:
    topics = tuple(TOPICS[kind] for kind in kinds or TOPICS)
    return desk.ledger.create_hook(HookSpec(tenant=tenant, name="mine", url=url, topics=topics))


def clip(desk: LedgerDesk, name: str = "a", **more: str) -> str:
    """The id of a clip that has succeeded."""
    job = desk.submit(task(name), recipe=CLIP, **more)
    desk.run(job, name)
    return job


def log_of(desk: LedgerDesk, hook: Hook) -> list[Delivery]:
    """Newest first."""
    return desk.ledger.view(lambda c: hooks.log(c, SIGHT, hook.id, after=None, limit=100))[0]


def deliver(desk: LedgerDesk, guard: Guard = OPEN) -> int:
    return asyncio.run(Deliverer(desk.ledger, guard, dice=random.Random(1)).deliver_due())


def test_the_client_of_openai_can_unwrap_what_is_sent(desk: LedgerDesk, listener: Listener):
    hook, secret = hook_of(desk, listener.url)
    job = clip(desk)
    assert deliver(desk) == 1
    [heard] = listener.heard
    client = OpenAI(api_key="x")
    event = client.webhooks.unwrap(heard.body, heard.headers, secret=secret)
    assert (event.type, event.data.id) == ("video.completed", job.replace("job_", "video_"))  # type: ignore[union-attr,comparison-overlap]
    told = json.loads(heard.body)
    assert set(told) == {"id", "object", "type", "created_at", "data"}
    assert (told["object"], told["id"], heard.path) == ("event", heard.headers["webhook-id"], "/hook")
    assert heard.headers["content-type"] == "application/json"
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(heard.body + b" ", heard.headers, secret=secret)
    [line] = log_of(desk, hook)
    assert (line.progress, [tried.status for tried in line.tries]) == (Progress.DELIVERED, [200])
    assert deliver(desk) == 0


def test_both_secrets_verify_while_the_old_one_is_kept(desk: LedgerDesk, listener: Listener):
    hook, old = hook_of(desk, listener.url)
    _, new = desk.ledger.rotate_hook(SIGHT, hook.id, keep_old_s=60)
    clip(desk)
    deliver(desk)
    [heard] = listener.heard
    client = OpenAI(api_key="x")
    for secret in (old, new):
        client.webhooks.verify_signature(heard.body, heard.headers, secret=secret)
    assert len(heard.headers["webhook-signature"].split()) == 2


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 500, 503])
def test_what_is_no_2xx_is_tried_again_and_no_redirect_is_followed(desk: LedgerDesk, listener: Listener, status: int):
    listener.statuses = [status]
    hook, _ = hook_of(desk, listener.url)
    clip(desk)
    deliver(desk)
    [line] = log_of(desk, hook)
    assert (line.progress, line.tries[0].status) == (Progress.DUE, status)
    assert [heard.path for heard in listener.heard] == ["/hook"]


def test_the_tries_follow_the_schedule_with_jitter_under_one_id_and_then_end(desk: LedgerDesk, listener: Listener):
    listener.statuses = [500]
    hook, secret = hook_of(desk, listener.url)
    clip(desk)
    for wait_s in DELAYS_S:
        assert deliver(desk) == 1
        [line] = log_of(desk, hook)
        assert line.next_us is not None
        next_s = (line.next_us - desk.clock.now_us()) / 1e6
        assert wait_s <= next_s <= wait_s * 1.2
        assert next_s != wait_s
        desk.clock.advance(next_s - 0.1)
        assert deliver(desk) == 0
        desk.clock.advance(0.1)
    assert deliver(desk) == 1
    [line] = log_of(desk, hook)
    assert (line.progress, line.num_tries, line.next_us) == (Progress.FAILED, 10, None)
    assert len({heard.headers["webhook-id"] for heard in listener.heard}) == 1
    assert len({heard.body for heard in listener.heard}) == 1
    assert len({heard.headers["webhook-timestamp"] for heard in listener.heard}) == 10
    assert len({heard.headers["webhook-signature"] for heard in listener.heard}) == 10
    assert sum(DELAYS_S) > THREE_DAYS_S
    assert secret not in str(listener.heard)


def test_nobody_there_is_tried_again_and_the_log_says_why(desk: LedgerDesk):
    with nobody() as port:
        hook, _ = hook_of(desk, f"http://127.0.0.1:{port}/hook")
        clip(desk)
        deliver(desk)
    [line] = log_of(desk, hook)
    assert (line.progress, line.tries[0].status) == (Progress.DUE, None)
    assert line.tries[0].error == "the URL did not answer: ConnectError"


def test_a_private_address_is_not_asked(desk: LedgerDesk, listener: Listener):
    hook, _ = hook_of(desk, listener.url.replace("http:", "https:"))
    clip(desk)
    deliver(desk, Guard(ports=(443, int(listener.url.split(":")[2].split("/")[0]))))
    [line] = log_of(desk, hook)
    assert line.tries[0].error == "the host of the URL has no public address"
    assert listener.heard == []


def test_an_endpoint_that_answers_gone_is_disabled(desk: LedgerDesk, listener: Listener):
    listener.statuses = [410]
    hook, _ = hook_of(desk, listener.url)
    clip(desk)
    deliver(desk)
    clip(desk, "b")
    assert deliver(desk) == 0
    assert len(listener.heard) == 1
    found = desk.ledger.view(lambda c: hooks.find(c, SIGHT, hook.id))
    assert found.disabled_reason == "it answered 410 Gone"


@pytest.mark.parametrize(
    ("point", "action", "times"),
    [
        ("webhooks.claim", Action.BEFORE, 1),
        ("webhooks.claim", Action.AFTER, 1),
        ("webhooks.claim", Action.TWICE, 1),
        ("webhooks.send", Action.BEFORE, 1),
        ("webhooks.send", Action.AFTER, 2),
        ("webhooks.settle", Action.BEFORE, 2),
        ("webhooks.settle", Action.AFTER, 1),
        ("webhooks.settle", Action.TWICE, 1),
    ],
    ids=lambda value: str(value),
)
def test_whatever_breaks_it_is_heard_at_least_once_under_one_id(
    desk: LedgerDesk, listener: Listener, tmp_path: Path, point: str, action: Action, times: int
):
    hook, _ = hook_of(desk, listener.url)
    clip(desk)
    faults.arm([Fault(point=point, action=action)], tmp_path)
    deliverer = Deliverer(desk.ledger, OPEN)

    async def one_round() -> None:
        with contextlib.suppress(ExceptionGroup):
            await deliverer.deliver_due()

    for _ in range(2):
        asyncio.run(one_round())
        desk.clock.advance(61)
    assert faults.struck(tmp_path) == 1
    assert len(listener.heard) == times
    assert len({heard.headers["webhook-id"] for heard in listener.heard}) == 1
    assert [line.progress for line in log_of(desk, hook)] == [Progress.DELIVERED]


def test_two_deliverers_share_the_work(desk: LedgerDesk, listener: Listener):
    hook_of(desk, listener.url)
    jobs = {clip(desk, f"clip-{n}").replace("job_", "video_") for n in range(6)}

    async def both() -> None:
        pair = [Deliverer(desk.ledger, OPEN) for _ in range(2)]
        while sum(await asyncio.gather(*(one.deliver_due() for one in pair))):
            pass

    asyncio.run(both())
    assert sorted(json.loads(heard.body)["data"]["id"] for heard in listener.heard) == sorted(jobs)


def test_it_runs_until_it_is_stopped_waits_out_a_ledger_and_ends_what_it_sends(
    desk: LedgerDesk, listener: Listener, monkeypatch: pytest.MonkeyPatch
):
    hook, _ = hook_of(desk, listener.url)
    clip(desk)
    claim, calls = desk.ledger.claim_deliveries, threading.Event()

    def away_at_first(**more: object) -> object:
        if not calls.is_set():
            calls.set()
            raise LedgerUnavailable("the ledger does not answer")
        return claim(**more)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.ledger, "claim_deliveries", away_at_first)
    monkeypatch.setattr("serve.webhooks.LOOK_S", 0.01)
    listener.answers.clear()

    async def live() -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(Deliverer(desk.ledger, OPEN).run(stop))
        assert await asyncio.to_thread(listener.came.wait, 30)
        stop.set()  # in the middle of a try
        listener.answers.set()
        await running

    asyncio.run(live())
    assert [line.progress for line in log_of(desk, hook)] == [Progress.DELIVERED]


def test_a_slow_endpoint_does_not_hold_up_another(desk: LedgerDesk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serve.webhooks.LOOK_S", 0.01)
    with listening() as slow, listening() as quick:
        hook_of(desk, slow.url)
        slow.answers.clear()
        for n in range(8):
            clip(desk, f"clip-{n}")
        _, _ = hook_of(desk, quick.url)
        last = clip(desk, "last").replace("job_", "video_")

        async def live() -> None:
            stop = asyncio.Event()
            running = asyncio.create_task(Deliverer(desk.ledger, OPEN).run(stop))
            assert await asyncio.to_thread(quick.came.wait, 30)
            assert json.loads(quick.heard[0].body)["data"]["id"] == last
            slow.answers.set()
            stop.set()
            await running

        asyncio.run(live())
        assert len(slow.heard) <= 8  # and never all the places of its tenant


def test_a_tenant_of_slow_endpoints_does_not_hold_up_another(desk: LedgerDesk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serve.webhooks.LOOK_S", 0.01)
    monkeypatch.setattr("serve.webhooks.WAIT_S", 60.0)
    with listening() as slow, listening() as quick:
        slow.answers.clear()
        for _ in range(AT_ONCE // EACH + 1):
            hook_of(desk, slow.url)
        for n in range(EACH):
            clip(desk, f"clip-{n}")
        hook_of(desk, quick.url, tenant="other")
        clip(desk, "last", tenant="other")

        async def live() -> int:
            stop = asyncio.Event()
            running = asyncio.create_task(Deliverer(desk.ledger, OPEN).run(stop))
            assert await asyncio.to_thread(quick.came.wait, 30), "it waits for another tenant's endpoints"
            num_slow = len(slow.heard)
            stop.set()
            slow.answers.set()
            await running
            return num_slow

        assert asyncio.run(live()) <= AT_ONCE // 4
