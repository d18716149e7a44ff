"""Schemathesis over the farm's own OpenAPI document: whatever it makes up is answered as the document says, never 5xx.

`make fuzz` (`python -m tests.fuzz --cases 2000`) prints how many cases each route had. The jobs that it makes are never
run: nobody works for the farm that it asks. A test runs fewer.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.python import asgi
from schemathesis.specs.openapi import checks

from cluster.ledger.keys import Scope
from tests.echo_writer import EchoWriter
from tests.front_desk import front_desk
from tests.unit.test_http_front import ROUTES
from tests.unit.test_http_isolation import SHARED, World

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
REAL = 7
"""So many of ten made up ids are those of something that is there."""


@dataclass(kw_only=True, slots=True)
class Tally:
    """Of one route."""

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    broken: str = ""


def fuzz(world: World, *, cases: int, seed: int) -> dict[str, Tally]:
    """At least `cases`, spread evenly over the routes of the document and over what fits it and what does not."""
    schema = openapi.from_asgi("/openapi.json", world.desk.app)
    operations = [result.ok() for result in schema.get_all_operations()]
    operations.sort(key=lambda one: one.method == "delete")  # what others ask about goes last
    each = -(-cases // (len(operations) * len(MODES)))
    with asgi.get_client(world.desk.app) as client:
        return {operation.label: _fuzzed(world, operation, client, each, seed) for operation in operations}


def _fuzzed(world: World, operation: Any, client: Any, each: int, seed: int) -> Tally:
    tally, ids, secret = Tally(), ids_of(world, operation), world.key(*Scope)
    world.desk.ledger.say_alive(world.term)  # the farm is ready

    def ask(case: Case) -> None:
        made_up = zlib.crc32(repr(case.path_parameters).encode()) % 10 >= REAL
        for name in () if made_up else case.path_parameters or ():
            case.path_parameters[name] = ids[name]
        response = case.call(session=client, headers={"Authorization": f"Bearer {secret}"})
        tally.cases += 1
        tally.statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    for mode in MODES:
        strategy = operation.as_strategy(generation_mode=mode)
        run = settings(max_examples=each, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        try:
            seeded(seed)(run(given(case=strategy)(ask)))()
        except Unsatisfiable:
            continue  # a route that takes nothing takes nothing wrong
        except (Exception, FailureGroup) as error:  # of any check, for any case: it is told with the others
            tally.broken += f"{mode}: {error}\n"
    return tally


def ids_of(world: World, operation: Any) -> dict[str, str]:
    """What stands in the path of a route of the document, by its names, which `ROUTES` shortens."""
    names = re.findall(r"\{(\w+)\}", operation.path)
    shape = (operation.method.upper(), re.sub(r"\{\w+\}", "{}", operation.path))
    [short] = [path for method, path, _ in [*ROUTES, ("GET", "/healthz", ()), ("GET", "/readyz", ())]
               if (method, re.sub(r"\{\w+\}", "{}", path)) == shape]  # fmt: skip
    ids = {**SHARED, **world.ids}
    return {name: ids[known] for name, known in zip(names, re.findall(r"\{(\w+)\}", short), strict=True)}


def main() -> int:
    asked = argparse.ArgumentParser(prog="tests.fuzz")
    asked.add_argument("--cases", type=int, default=2000)
    asked.add_argument("--seed", type=int, default=0)
    told = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with front_desk(f"sqlite:///{home}/ledger.db", home, EchoWriter(), image_wait_s=0.001) as desk:
            began_s = time.monotonic()
            tallies = fuzz(World(desk), cases=told.cases, seed=told.seed)
    for label, tally in tallies.items():
        print(f"{tally.cases:6} {label:50} {dict(sorted(tally.statuses.items()))}")
    broken = {label: tally.broken for label, tally in tallies.items() if tally.broken}
    print(f"{sum(tally.cases for tally in tallies.values()):6} cases over {len(tallies)} routes in "
          f"{time.monotonic() - began_s:.0f} s; {len(broken)} routes broke a promise")  # fmt: skip
    for label, said in broken.items():
        print(f"\n{label}\n{said}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
