"""When Ray Serve replaces a replica: for what a restart can cure, never for what its requests wait for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from anyio.to_thread import current_default_thread_limiter

from cluster.settings import Settings
from serve import app


def test_a_replica_all_of_whose_requests_wait_for_the_ledger_is_not_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def standing() -> None: ...

    async def check() -> None:
        threads = current_default_thread_limiter()
        for n in range(int(threads.total_tokens)):
            threads.acquire_on_behalf_of_nowait(n)
        await asyncio.wait_for(app.Api(Settings(home=tmp_path)).check_health(), 30)

    supervisor = SimpleNamespace(standing=SimpleNamespace(remote=standing))
    monkeypatch.setattr(app, "supervisor", lambda settings: supervisor)
    monkeypatch.setattr(app.logs, "set_up", lambda: None)
    asyncio.run(check())
