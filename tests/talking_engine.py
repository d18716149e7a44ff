"""An engine of milliseconds that also chats: it says again what it was told, and does what some words mean."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from actors.contract import Chat, Engine, Piece
from cluster.accelerators import Fleet
from cluster.errors import Interrupted, WorkerLost
from cluster.settings import Settings
from tests.quick_engine import QuickEngine

WAIT, PID, DIE = "WAIT", "PID", "DIE"
"""Wait for the file `go` in its folder; say the process id instead; die, as an engine does whose core is gone."""


class TalkingEngine(QuickEngine):
    """Beside each chat it leaves in its folder how that ended, as a file of the chat's id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.dead = False

    def chat(self, chat: Chat, *, gone: Callable[[], bool]) -> Iterator[Piece]:
        end = "aborted"
        try:
            if self.dead:
                raise WorkerLost("the engine is dead")
            yield Piece(prompt_tokens=1)
            words = chat.messages[-1]["content"].split()
            for at, word in enumerate(words):
                if word == DIE:
                    self.dead = True
                    raise WorkerLost("the engine died")
                while word == WAIT and not (self._folder / "go").exists():
                    if gone():
                        raise Interrupted("nobody waits")
                    threading.Event().wait(0.01)
                yield Piece(
                    text=f"{os.getpid() if word == PID else word} ",
                    prompt_tokens=1,
                    completion_tokens=at + 1,
                    finish_reason="stop" if word is words[-1] else None,
                )
            end = "done"
        finally:
            (self._folder / chat.id).write_text(end, encoding="utf-8")


def make(fleet: Fleet, settings: Settings) -> Engine:
    return TalkingEngine(settings.home)
