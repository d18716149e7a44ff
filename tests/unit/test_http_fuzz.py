"""A short run of `make fuzz`: some made up requests to every route, some of them as the document says and some not."""

from __future__ import annotations

from pathlib import Path

from tests.echo_writer import EchoWriter
from tests.front_desk import front_desk
from tests.fuzz import fuzz
from tests.unit.test_http_isolation import World


def test_whatever_is_made_up_is_answered_as_the_document_says(sqlite_url: str, tmp_path: Path):
    with front_desk(sqlite_url, tmp_path, EchoWriter(), image_wait_s=0.001) as desk:
        tallies = fuzz(World(desk), cases=160, seed=1)
    assert {label: tally.broken for label, tally in tallies.items() if tally.broken} == {}
    assert sum(tally.cases for tally in tallies.values()) >= 150
