"""A writer of no model that keeps all the promises of one: it says again what it was told, a word at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from actors.contract import Chat, Piece
from cluster.errors import TooLong, WorkerLost

CONTEXT = 64
PAUSE, DIE = "PAUSE", "DIE"
"""Words at which it waits for `go_on`, and at which it dies."""


class EchoWriter:
    """A `ChatDesk`. A token is a word; a schema is filled with its examples, or with what was said."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.num_paused = 0
        self.asked: list[Chat] = []
        self.aborted: list[str] = []

    async def answer(self, chat: Chat) -> AsyncGenerator[Piece, None]:
        self.asked.append(chat)
        num_read = sum(len(message["content"].split()) for message in chat.messages)
        most = CONTEXT - num_read if chat.max_tokens is None else chat.max_tokens
        if most < 1 or num_read + most > CONTEXT:
            raise TooLong(f"the model's context has {CONTEXT} tokens", field="messages", remedy="send less")
        piece = Piece(prompt_tokens=num_read, price_class="spot")
        try:
            yield piece
            for at, word in enumerate(words := _words(chat)):
                await self._act(word)
                last = at + 1 == len(words)
                reason = "stop" if last else "length" if at + 1 == most else None
                piece = Piece(
                    text=word + ("" if last or reason else " "),
                    prompt_tokens=num_read,
                    completion_tokens=at + 1,
                    cached_tokens=1,
                    finish_reason=reason,
                    price_class="spot",
                )
                yield piece
                if reason:
                    return
        except WorkerLost:
            raise
        except BaseException:
            self.aborted.append(chat.id)
            raise

    async def _act(self, word: str) -> None:
        if word == PAUSE:
            self.num_paused += 1
            await self.go_on.wait()
        elif word == DIE:
            raise WorkerLost("the writer's engine died")


def _words(chat: Chat) -> list[str]:
    said = chat.messages[-1]["content"]
    if chat.schema is not None:
        said = json.dumps(_filled(chat.schema, chat.schema.get("$defs", {}), said))
    for text in chat.stop:
        said = said.partition(text)[0].rstrip()
    return said.split() or [""]


def _filled(schema: dict[str, Any], defs: dict[str, Any], said: str) -> Any:
    if "$ref" in schema:
        return _filled(defs[schema["$ref"].rpartition("/")[2]], defs, said)
    match schema.get("type"):
        case "object":
            return {name: _filled(inner, defs, said) for name, inner in schema.get("properties", {}).items()}
        case "array":
            return [_filled(schema["items"], defs, said)]
        case "integer":
            return len(said)
    return said
