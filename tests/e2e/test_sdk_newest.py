"""Every call of the matrix of clients, by the newest one, which is installed here; `make sdks` asks the others too."""

from __future__ import annotations

import sys

import pytest

from tests.sdks.matrix import calls, small_farm

pytestmark = pytest.mark.e2e


def test_the_newest_client_does_everything_against_a_farm():
    with small_farm() as (url, key):
        told = calls(sys.executable, url, key)
    version = told.pop("version")
    assert version.startswith("3.")
    assert {name: said for name, said in told.items() if said != "completed"} == {}
    assert len(told) == 11
