"""A writer in this process as one who answers chats: each answer is read by a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator

from actors.contract import Chat, Piece
from actors.writer import Writer
from cluster.errors import FarmError


class WriterAtHand:
    """A `ChatDesk`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def answer(self, chat: Chat) -> AsyncGenerator[Piece, None]:
        loop, gone = asyncio.get_running_loop(), threading.Event()
        arrived: asyncio.Queue[Piece | FarmError | None] = asyncio.Queue()

        def read() -> None:
            end: FarmError | None = None
            try:
                for piece in self._writer.stream(chat, gone=gone.is_set):
                    if gone.is_set():
                        return
                    loop.call_soon_threadsafe(arrived.put_nowait, piece)
            except FarmError as error:
                end = error
            if not gone.is_set():
                loop.call_soon_threadsafe(arrived.put_nowait, end)

        threading.Thread(target=read, name=chat.id, daemon=True).start()
        try:
            while (item := await arrived.get()) is not None:
                if isinstance(item, FarmError):
                    raise item
                yield item
        finally:
            gone.set()
