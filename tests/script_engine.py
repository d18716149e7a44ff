"""A writer of milliseconds: a real script of as many shots as were asked for, without a language model."""

from __future__ import annotations

import json

from actors.catalog import Catalog
from actors.contract import Bench, Json, Made, MadeFile
from tests.scripts import script_of

SUBJECTS = ("boat", "star", "moon", "fish")


class ScriptEngine:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def start(self) -> Json:
        return {}

    def run(self, bench: Bench) -> Made:
        params = bench.order.params
        script = script_of(self._catalog, *SUBJECTS[: params["num_shots"]])
        script |= {"seed": params["seed"], "logline": params["logline"]}
        path = bench.scratch / "script.json"
        path.write_text(json.dumps(script), encoding="utf-8")
        file = MadeFile(name="script.json", path=path, media_type="application/json")
        return Made(files=(file,), result={"title": script["title"]})

    def close(self) -> None:
        return
