"""The ledger against the model, at length: 300 runs of 50 steps on SQLite, 100 on PostgreSQL; `chaos` runs longer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import emptied
from tests.ledger_desk import LedgerDesk
from tests.ledger_machine import LedgerMachine
from tests.sqlite_copies import copies

pytestmark = pytest.mark.timeout(3_600)
PROFILE = os.environ.get("REELFARM_TEST_PROFILE", "ci")


def test_the_ledger_on_sqlite_does_what_the_model_does(fast_folder: Path, empty_ledger: Path) -> None:
    with copies(fast_folder, empty_ledger) as new_url:

        class OnSqlite(LedgerMachine):
            @staticmethod
            def new_desk() -> LedgerDesk:
                return LedgerDesk(new_url())

        run_state_machine_as_test(OnSqlite, settings=settings.get_profile(PROFILE))


def test_the_ledger_on_postgresql_does_what_the_model_does(migrated_postgresql_url: str) -> None:
    class OnPostgresql(LedgerMachine):
        @staticmethod
        def new_desk() -> LedgerDesk:
            return LedgerDesk(emptied(migrated_postgresql_url))

    run_state_machine_as_test(OnPostgresql, settings=settings.get_profile(f"{PROFILE}-postgresql"))
