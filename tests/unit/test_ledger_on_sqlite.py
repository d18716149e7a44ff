"""The contract of the ledger on SQLite; the same tests run on PostgreSQL in tests/live."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.ledger_budgets import *  # noqa: F403
from tests.contracts.ledger_costs import *  # noqa: F403
from tests.contracts.ledger_films import *  # noqa: F403
from tests.contracts.ledger_gates import *  # noqa: F403
from tests.contracts.ledger_graphs import *  # noqa: F403
from tests.contracts.ledger_hooks import *  # noqa: F403
from tests.contracts.ledger_inventory import *  # noqa: F403
from tests.contracts.ledger_keys import *  # noqa: F403
from tests.contracts.ledger_leases import *  # noqa: F403
from tests.contracts.ledger_meters import *  # noqa: F403
from tests.contracts.ledger_money import *  # noqa: F403
from tests.contracts.ledger_retention import *  # noqa: F403
from tests.contracts.ledger_threads import *  # noqa: F403
from tests.contracts.ledger_tokens import *  # noqa: F403
from tests.contracts.ledger_totals import *  # noqa: F403
from tests.contracts.ledger_upkeep import *  # noqa: F403
from tests.contracts.ledger_views import *  # noqa: F403
from tests.ledger_desk import LedgerDesk


@pytest.fixture
def desk(sqlite_url: str) -> Iterator[LedgerDesk]:
    desk = LedgerDesk(sqlite_url)
    yield desk
    desk.close()
