"""A quick run of the ledger against the model, on SQLite; the long ones are in tests/live."""

from __future__ import annotations

from pathlib import Path

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.ledger_desk import LedgerDesk
from tests.ledger_machine import LedgerMachine
from tests.sqlite_copies import copies


def test_the_ledger_does_what_the_model_does(fast_folder: Path, empty_ledger: Path) -> None:
    with copies(fast_folder, empty_ledger) as new_url:

        class OnSqlite(LedgerMachine):
            @staticmethod
            def new_desk() -> LedgerDesk:
                return LedgerDesk(new_url())

        run_state_machine_as_test(OnSqlite, settings=settings.get_profile("desk"))
