"""`farm models`: the catalog for people and for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cluster import settings as settings_module
from cluster.settings import Settings
from serve.cli import office
from serve.cli.wording import clean, size

if TYPE_CHECKING:
    from actors.catalog import Availability, Model

Facts = dict[str, Any]
"""An entry of a catalog as data; with `sizes`, `clips`, `fps`, `steps`, `vocabulary` and `example` if it draws."""

HEADINGS = (("render", "These draw"), ("writer", "These write"))


def print_models(*, as_json: bool) -> None:
    """To standard output: the catalog of FARM_HOME or, where FARM_URL is set, of the farm that is there."""
    settings = settings_module.load()
    entries = _of_farm(settings) if settings.url else _of_home(settings.home)
    entries.sort(key=lambda facts: (not facts["ready"], facts["id"]))
    if as_json:
        print(json.dumps(entries, ensure_ascii=False, indent=2), file=sys.stdout)
        return
    Console(file=sys.stdout, highlight=False, emoji=False, markup=False).print(picture(entries))


def _of_home(home: Path) -> list[Facts]:
    from actors.catalog import Catalog

    catalog = Catalog.load(home / "models.d")
    return [facts_of(model, model.availability(home)) for model in catalog.models.values()]


def _of_farm(settings: Settings) -> list[Facts]:
    """What `/v1/models` says; where weights lie on a machine of the farm is not among it."""
    from serve.remote import Remote

    with Remote.of(settings) as remote:
        found = remote.get("/v1/models")["data"]
    return [
        {
            "id": one["id"],
            **told,
            "reason": "ready on the farm" if told["ready"] else "no worker of the farm holds it",
            **(
                {"clips": told["seconds"], "sizes": [_sides(size) for size in told["sizes"]]} if "sizes" in told else {}
            ),
        }
        for one in found
        for told in [one["reelfarm"]]
    ]


def _sides(size: str) -> list[int]:
    return [int(side) for side in size.split("x")]


def print_added(source: str, *, name: str | None, revision: str, as_json: bool) -> None:
    """Puts the model into the catalog of FARM_HOME and says what it is now. Raises as `catalog_add.add_model`."""
    from actors.catalog_add import add_model

    home = office.here("farm models add").home
    model = add_model(source, home=home, name=name, revision=revision)
    availability = model.availability(home)
    file = home / "models.d" / f"{model.id}.yaml"
    if as_json:
        print(json.dumps(facts_of(model, availability) | {"file": str(file)}, ensure_ascii=False), file=sys.stdout)
        return
    console = Console(file=sys.stdout, highlight=False, emoji=False, markup=False)
    facts = facts_of(model, availability)
    console.print(Padding(_table([facts], len(model.id)), (1, 1, 0, 1)))
    verb = "image" if "sizes" in facts and facts["clips"] is None else "clip"
    console.print(Text(f" Its entry is {file}; edit it as you like.", style="dim", no_wrap=True, overflow="fold"))
    console.print(Text(f' farm {verb} "..." --model {model.id}'))


def facts_of(model: Model, availability: Availability) -> Facts:
    """An entry as data."""
    facts: Facts = {
        "id": model.id,
        "role": model.role,
        "family": model.family,
        "title": model.title,
        "description": model.description,
        "license": model.licence,
        "revision": model.revision,
        "ready": availability.ready,
        "reason": availability.reason,
        "packages": list(model.packages),
        "memory_mb": model.memory_mb,
        "accelerator_gib": model.accelerator_gib,
    }
    if model.limits is not None:
        facts |= {
            "sizes": [list(size) for size in model.limits.sizes],
            "fps": float(model.limits.fps),
            "clips": None if set(model.limits.frames) == {1} else model.limits.seconds(),
            "steps": {quality.value: preset.steps for quality, preset in model.defaults.items()},
            "vocabulary": model.vocabulary.summary() if model.vocabulary else None,
            "example": model.example(),
        }
    return facts


def picture(entries: Sequence[Facts]) -> RenderableType:
    """The catalog as tables, then the words that each model with a vocabulary knows."""
    parts: list[RenderableType] = []
    widest = max((len(facts["id"]) for facts in entries), default=0)
    for role, heading in HEADINGS:
        chosen = [facts for facts in entries if facts["role"] == role]
        if chosen:
            parts += [Text(heading, style="bold"), Text(), _table(chosen, widest)]
    for facts in entries:
        if facts.get("vocabulary"):
            parts += _words(facts)
    return Padding(Group(*parts), (1, 1, 0, 1))


def _table(entries: Sequence[Facts], widest: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=1)
    table.add_column(min_width=widest, no_wrap=True)
    table.add_column(max_width=96)
    for facts in entries:
        sign = Text("●", style="green") if facts["ready"] else Text("○", style="dim")
        name = Text(clean(facts["id"]), style="bold" if facts["ready"] else "")
        table.add_row(sign, name, Group(Text(clean(facts["description"])), _more(facts), Text()))
    return table


def _more(facts: Facts) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=8, no_wrap=True)
    table.add_column()
    if "sizes" in facts:
        sizes = ", ".join(f"{width} × {height}" for width, height in facts["sizes"])
        lengths = "stills only" if facts["clips"] is None else f"{facts['clips']} at {facts['fps']:g} fps"
        table.add_row(Text("draws", style="dim"), f"{sizes}; {lengths}")
        table.add_row("steps", ", ".join(f"{quality} {steps}" for quality, steps in facts["steps"].items()))
    table.add_row(Text("needs", style="dim"), _needs(facts))
    table.add_row(Text("license", style="dim"), clean(facts["license"]))
    here, style = ("here", "green") if facts["ready"] else ("not here", "magenta")
    table.add_row(Text(here, style=style), clean(facts["reason"]))
    return table


def _needs(facts: Facts) -> str:
    if facts["accelerator_gib"]:
        return f"an accelerator with {facts['accelerator_gib']:g} GiB"
    memory_mb = facts["memory_mb"]
    return f"a CPU, {size(memory_mb * 1_000_000)} of memory" if memory_mb else "a CPU"


def _words(facts: Facts) -> list[RenderableType]:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(max_width=96)
    for kind, words in facts["vocabulary"].items():
        table.add_row(kind, ", ".join(words))
    note = (
        "Name some of these in a prompt: the seed chooses what you leave open, and many other words are understood as "
        f'the nearest of them. A prompt that says it all: "{facts["example"]}".'
    )
    heading = Text(f"What {clean(facts['id'])} can draw", style="bold")
    return [heading, Text(), table, Text(), Text(note, style="dim"), Text()]
