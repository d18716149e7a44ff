"""Chats over HTTP: the shapes of OpenAI's clients, refusals, streams that break, clients that leave, the meter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from cluster.clock import ManualClock
from cluster.errors import LedgerUnavailable, NoWriter
from cluster.ledger.keys import KeySpec, Scope
from tests.echo_writer import DIE, PAUSE, EchoWriter
from tests.front_desk import FrontDesk, front_desk
from tests.line import PATH, Line

SAID = "a red boat crosses the sea"
Chatting = tuple[FrontDesk, EchoWriter]


class Shot(BaseModel):
    title: str
    seconds: int


class Script(BaseModel):
    title: str
    shots: list[Shot]


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def chatting(sqlite_url: str, tmp_path: Path) -> Iterator[Chatting]:
    writer = EchoWriter()
    with front_desk(sqlite_url, tmp_path, writer, clock=ManualClock(), chats_per_key=2) as desk:  # no minute turns
        yield desk, writer


@pytest.fixture(scope="module")
def idle(fast_folder: Path) -> Iterator[FrontDesk]:
    with front_desk(f"sqlite:///{fast_folder}/idle-chat.db", fast_folder / "idle-chat", EchoWriter()) as desk:
        yield desk


def ask(desk: FrontDesk, text: str = SAID, *, key: str | None = None, **fields: Any) -> Any:
    return desk.ask("POST", PATH, key=key, json={"messages": user(text), **fields})


def test_a_chat_is_answered_at_once(chatting: Chatting):
    desk, writer = chatting
    made = desk.openai().chat.completions.create(
        model="house-writer", messages=user(SAID), temperature=0.2, top_p=0.9, seed=-7, frequency_penalty=1, stop="the"
    )
    [choice] = made.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "a red boat crosses",
        "stop",
    )
    assert made.usage is not None
    assert made.usage.prompt_tokens_details is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (6, 4, 10)
    assert made.usage.prompt_tokens_details.cached_tokens == 1
    assert (made.object, made.model, made.id[:9]) == ("chat.completion", "house-writer", "chatcmpl-")
    [asked] = writer.asked
    assert (asked.temperature, asked.top_p, asked.seed, asked.frequency_penalty, asked.stop) == (
        0.2,
        0.9,
        -7,
        1,
        ("the",),
    )
    assert asked.max_tokens is None


def test_a_stream_adds_up_to_the_answer_and_ends_with_its_usage(chatting: Chatting):
    desk, _ = chatting
    chunks = list(
        desk.openai().chat.completions.create(
            model="house-writer", messages=user(SAID), stream=True, stream_options={"include_usage": True}
        )
    )
    first, *middle, end, usage = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(c.choices[0].delta.content or "" for c in middle) == SAID
    assert [c.choices[0].finish_reason for c in (first, *middle, end)] == [None] * (len(middle) + 1) + ["stop"]
    assert (usage.choices, usage.usage and usage.usage.total_tokens) == ([], 12)
    assert {(c.id, c.object, c.model) for c in chunks} == {(first.id, "chat.completion.chunk", "house-writer")}


def test_a_stream_is_events_that_nobody_keeps(chatting: Chatting):
    desk, _ = chatting
    response = ask(desk, "boat", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "boat"},
        {},
    ]
    assert all("usage" not in chunk for chunk in chunks)


def test_an_answer_is_parsed_into_the_model_that_was_asked_for(chatting: Chatting):
    client = chatting[0].openai()
    made = client.chat.completions.parse(model="house-writer", messages=user("boat"), response_format=Script)
    assert made.choices[0].message.parsed == Script(title="boat", shots=[Shot(title="boat", seconds=4)])
    with client.chat.completions.stream(model="house-writer", messages=user("boat"), response_format=Script) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(deltas) > 2
    assert final.choices[0].message.parsed == made.choices[0].message.parsed
    schema = chatting[1].asked[0].schema
    assert schema is not None
    assert schema["additionalProperties"] is False


def test_an_answer_that_is_cut_off_says_so(chatting: Chatting):
    client = chatting[0].openai()
    made = client.chat.completions.create(model="house-writer", messages=user(SAID), max_completion_tokens=2)
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == ("a red", "length")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="house-writer", messages=user(SAID), response_format=Script, max_tokens=1)


def test_any_json_object_can_be_asked_for(chatting: Chatting):
    response = ask(chatting[0], "in JSON", response_format={"type": "json_object"})
    assert json.loads(response.json()["choices"][0]["message"]["content"]) == {}
    assert chatting[1].asked[0].schema == {"type": "object"}


def test_what_was_answered_may_be_sent_back_and_text_comes_in_parts(chatting: Chatting):
    client = chatting[0].openai()
    said = client.chat.completions.create(model="house-writer", messages=user("boat")).choices[0].message
    parts = [{"type": "text", "text": "and "}, {"type": "text", "text": "then"}]
    client.chat.completions.create(
        model="house-writer",
        messages=[
            {"role": "developer", "content": "be brief"},
            *user("boat"),
            said.model_dump(),  # type: ignore[list-item]
            {"role": "user", "content": parts, "name": "ann"},  # type: ignore[misc,list-item]
        ],
        tools=[],
        n=1,
        logprobs=False,
        user="ann",
    )
    roles = [(message["role"], message["content"]) for message in chatting[1].asked[-1].messages]
    assert roles == [("system", "be brief"), ("user", "boat"), ("assistant", "boat"), ("user", "and then")]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_input"),
        ({"n": 2}, "n", "unsupported_input"),
        ({"logprobs": True}, "logprobs", "unsupported_input"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_input"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "unsupported_input"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role", "unsupported_input"),
        (
            {"messages": [*user("x"), {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.1.content.0",
            "unsupported_input",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "messages.0.tool_calls",
            "unsupported_input",
        ),
        ({"messages": []}, "messages", "invalid_input"),
        ({"messages": "hello"}, "messages", "invalid_input"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "invalid_input"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "invalid_input"),
        ({"temperature": 3}, "temperature", "invalid_input"),
        ({"temperature": float("inf")}, None, "invalid_body"),
        ({"top_p": 0}, "top_p", "invalid_input"),
        ({"max_tokens": 0}, "max_tokens", "invalid_input"),
        ({"seed": 2**63}, "seed", "invalid_input"),
        ({"stop": ["a"] * 5}, "stop", "invalid_input"),
        ({"stop": ""}, "stop.0", "invalid_input"),
        ({"response_format": {"type": "grammar"}}, "response_format", "invalid_input"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.json_schema", "invalid_input"),
        ({"colour": "red"}, "colour", "invalid_input"),
        ({"model": "no-writer"}, "model", "unknown_model"),
        ({"model": "house-video"}, "model", "unknown_model"),
    ],
    ids=lambda v: str(v)[:40],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_cannot_be_is_refused_by_its_field(
    idle: FrontDesk, fields: dict[str, Any], param: str, code: str, stream: bool
):
    body = json.dumps({"messages": user("x"), "stream": stream, **fields})
    if "stream_options" in fields:
        body = body.replace('"stream": true', '"stream": false')
    response = idle.ask("POST", PATH, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == (400 if code == "invalid_body" else 422)
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_a_schema_may_not_be_endless(idle: FrontDesk):
    schema = {"type": "string", "enum": ["x" * 1000] * 70}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    error = ask(idle, response_format=form).json()["error"]
    assert error["param"].startswith("response_format")
    assert "65536 bytes" in error["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_chat_beyond_the_context_is_a_bad_request(idle: FrontDesk, stream: bool):
    with pytest.raises(openai.BadRequestError) as refused:
        idle.openai().chat.completions.create(model="house-writer", messages=user("boat " * 70), stream=stream)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


class Nobody:
    def answer(self, chat: Any) -> Any:
        raise NoWriter("no writer is up", retry_after_s=5.0)


@pytest.mark.parametrize("chat_desk", [None, Nobody()], ids=["never", "now"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_without_a_writer_it_is_said_when_to_ask_again(sqlite_url: str, tmp_path: Path, chat_desk: Any, stream: bool):
    with front_desk(sqlite_url, tmp_path, chat_desk) as desk:
        response = ask(desk, stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "no_writer")
    assert int(response.headers["retry-after"]) >= 2


def test_a_writer_that_dies_is_a_status_before_the_first_word_and_an_event_after_it(chatting: Chatting):
    desk, _ = chatting
    client = desk.openai(max_retries=0)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as early:
            client.chat.completions.create(model="house-writer", messages=user(DIE), stream=stream)
        assert (early.value.status_code, early.value.code) == (503, "worker_lost")
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="house-writer", messages=user(f"a boat {DIE}"))
    stream_of_it = client.chat.completions.create(model="house-writer", messages=user(f"a boat {DIE}"), stream=True)
    words: list[str] = []
    with pytest.raises(openai.APIError) as late:
        words.extend(chunk.choices[0].delta.content or "" for chunk in stream_of_it)
    assert (late.value.code, late.value.type) == ("worker_lost", "service_unavailable_error")
    assert "[DONE]" not in ask(desk, f"a boat {DIE}", stream=True).text


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


async def until(ready: Callable[[], bool]) -> None:
    while not await asyncio.to_thread(ready):  # noqa: ASYNC110  # nobody there tells of it
        await asyncio.sleep(0.005)


def used(desk: FrontDesk, **query: Any) -> list[tuple[int, int, int]]:
    """(requests, prompt tokens, completion tokens) of all rows."""
    data = desk.ask("GET", "/v1/usage", params=query).json()["data"]
    names = ("requests", "prompt_tokens", "completion_tokens")
    return [tuple(row[name] for name in names) for minute in data for row in minute["results"]]  # type: ignore[misc]


def test_a_client_that_leaves_stops_the_writer_and_what_was_made_is_metered(chatting: Chatting):
    desk, writer = chatting

    async def leave() -> None:
        stream = Line(desk, {"messages": user(f"a boat {PAUSE} at sea"), "stream": True})
        await stream.hear("boat")
        await stream.hang_up()
        await until(lambda: len(writer.aborted) == 1)
        whole = Line(desk, {"messages": user(f"a boat {PAUSE} at sea")})
        await until(lambda: writer.num_paused == 2)
        await whole.hang_up()
        await until(lambda: len(writer.aborted) == 2)
        await until(lambda: used(desk) == [(2, 10, 4)])

    on_a_loop(leave)


def test_a_stream_in_which_nothing_comes_says_that_it_lives(sqlite_url: str, tmp_path: Path):
    writer = EchoWriter()
    with front_desk(sqlite_url, tmp_path, writer, chat_keepalive_s=0.01) as desk:

        async def wait_long() -> None:
            early, late = (
                Line(desk, {"messages": user(text), "stream": True}) for text in (f"{PAUSE} boat", f"boat {PAUSE}")
            )
            await early.hear(": keepalive\n\n: keepalive\n\n")  # the stream begins before the first word
            await late.hear("boat")
            await late.hear(": keepalive\n\n")
            writer.go_on.set()
            await asyncio.gather(early.task, late.task)
            assert (early.status, early.sent.endswith(b"data: [DONE]\n\n")) == (200, True)

        on_a_loop(wait_long)


def test_a_writer_that_says_nothing_more_is_given_up(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serve.chats.LATE_S", 0.0)
    with front_desk(sqlite_url, tmp_path, EchoWriter(), chat_s=0.01) as desk:
        response = ask(desk, PAUSE)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "worker_lost")


def test_a_key_has_so_many_chats_at_once(chatting: Chatting):
    desk, writer = chatting
    body = {"messages": user(f"boat {PAUSE}"), "stream": True}

    async def crowd() -> None:
        lines = [Line(desk, body) for _ in range(2)]
        for line in lines:
            await line.hear("boat")
        third = Line(desk, body)
        await third.task
        assert third.status == 429
        assert json.loads(third.sent)["error"]["code"] == "rate_limited"
        other = Line(desk, body, secret=desk.key())
        await other.hear("boat")
        await lines[0].hang_up()
        fourth = Line(desk, body)
        await fourth.hear("boat")
        writer.go_on.set()
        await asyncio.gather(lines[1].task, other.task, fourth.task)
        assert [line.sent.endswith(b"[DONE]\n\n") for line in (lines[1], other, fourth)] == [True] * 3

    on_a_loop(crowd)


def test_tokens_are_limited_by_the_minute_and_the_client_is_told(chatting: Chatting):
    desk, writer = chatting
    key = desk.key(tokens_per_minute=12)
    first = ask(desk, SAID, key=key)
    assert [first.headers[f"x-ratelimit-{name}-tokens"] for name in ("limit", "remaining", "reset")] == [
        "12",
        "12",
        "0.000s",
    ]
    second = ask(desk, SAID, key=key, stream=True)
    assert (second.status_code, second.json()["error"]["code"]) == (429, "rate_limited")
    assert second.headers["retry-after"] == "5"
    assert second.headers["x-ratelimit-remaining-tokens"] == "0"
    assert len(writer.asked) == 1
    assert "x-ratelimit-limit-tokens" not in ask(desk).headers


def test_usage_is_told_by_the_minute_to_those_who_may_see_it(chatting: Chatting):
    desk, _ = chatting
    bound = desk.key(show="trailer")
    for key in (None, None, bound):
        ask(desk, "boat at sea", key=key)
    ask(desk, DIE)  # refused before the first word: it was read
    page = desk.ask("GET", "/v1/usage").json()
    results = [row for minute in page["data"] for row in minute["results"]]
    assert sum(row["requests"] for row in results) == 4
    assert {(row["model"], row["price_class"], row["show"]) for row in results} == {
        ("house-writer", "spot", "default"),
        ("house-writer", "spot", "trailer"),
    }
    assert sum(row["prompt_tokens"] for row in results) == 10
    assert all(minute["end_time"] - minute["start_time"] == 60 for minute in page["data"])
    of_show = desk.ask("GET", "/v1/usage", key=bound).json()["data"]
    assert [row["show"] for minute in of_show for row in minute["results"]] == ["trailer"]
    assert desk.ask("GET", "/v1/usage", key=desk.key(tenant="other")).json()["data"] == []
    assert used(desk, start_time=0, end_time=60) == []
    refused = desk.ask("GET", "/v1/usage", params={"start_time": 60, "end_time": 60})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "start_time")


def test_a_page_of_usage_goes_on_where_the_last_one_ended(chatting: Chatting):
    from cluster.ledger.tokens import Counts, Meter

    desk, _ = chatting
    key, _ = desk.ledger.create_key(KeySpec(tenant="studio", name="ci", scopes=(Scope.READ,)))
    for minute in (1, 3, 4):
        meter = Meter(
            key_id=key.id, tenant="studio", show="s", model="m", price_class="spot", minute_us=minute * 60_000_000
        )
        desk.ledger.book_tokens("a", [(meter, Counts(requests=minute, prompt_tokens=1))])
    first = desk.ask("GET", "/v1/usage", params={"start_time": 0, "limit": 2}).json()
    assert ([m["start_time"] for m in first["data"]], first["has_more"], first["next_page"]) == ([60, 180], True, 240)
    second = desk.ask("GET", "/v1/usage", params={"start_time": first["next_page"], "limit": 2}).json()
    assert ([m["start_time"] for m in second["data"]], second["has_more"]) == ([240], False)


def test_what_the_ledger_does_not_take_is_booked_with_the_next_answer(
    chatting: Chatting, monkeypatch: pytest.MonkeyPatch
):
    desk, _ = chatting
    book = desk.ledger.book_tokens

    def lost(*args: Any) -> None:
        book(*args)  # it was committed, and nobody heard of it
        raise LedgerUnavailable("the ledger went away during a commit")

    monkeypatch.setattr(desk.ledger, "book_tokens", lost)
    assert ask(desk, "boat").status_code == 200
    monkeypatch.undo()
    assert ask(desk, "boat").status_code == 200
    assert [sum(column) for column in zip(*used(desk), strict=True)] == [2, 2, 2]
