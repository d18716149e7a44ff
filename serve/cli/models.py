"""`farm models`: the catalog for people and for scripts."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from actors.catalog import Availability, Catalog, Model
from actors.limits import Limits
from cluster import settings as settings_module
from serve.cli.wording import clean, size

HEADINGS = (("render", "These draw"), ("writer", "These write"))


def print_models(*, as_json: bool) -> None:
    """To standard output. Raises InvalidSettings."""
    home = settings_module.load().home
    catalog = Catalog.load(home / "models.d")
    entries = [(model, model.availability(home)) for model in catalog.models.values()]
    entries.sort(key=lambda entry: (not entry[1].ready, entry[0].id))
    if as_json:
        print(json.dumps([facts_of(*entry) for entry in entries], ensure_ascii=False, indent=2), file=sys.stdout)
        return
    Console(file=sys.stdout, highlight=False, emoji=False, markup=False).print(picture(entries))


def print_added(source: str, *, name: str | None, revision: str, as_json: bool) -> None:
    """Puts the model into the catalog of FARM_HOME and says what it is now. Raises as `catalog_add.add_model`."""
    from actors.catalog_add import add_model

    home = settings_module.load().home
    model = add_model(source, home=home, name=name, revision=revision)
    availability = model.availability(home)
    file = home / "models.d" / f"{model.id}.yaml"
    if as_json:
        print(json.dumps(facts_of(model, availability) | {"file": str(file)}, ensure_ascii=False), file=sys.stdout)
        return
    console = Console(file=sys.stdout, highlight=False, emoji=False, markup=False)
    console.print(Padding(_table([(model, availability)], len(model.id)), (1, 1, 0, 1)))
    verb = "image" if model.limits is not None and _stills_only(model.limits) else "clip"
    console.print(Text(f" Its entry is {file}; edit it as you like.", style="dim", no_wrap=True, overflow="fold"))
    console.print(Text(f' farm {verb} "..." --model {model.id}'))


def facts_of(model: Model, availability: Availability) -> dict[str, Any]:
    """An entry as data."""
    facts: dict[str, Any] = {
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
            "clips": None if _stills_only(model.limits) else model.limits.seconds(),
            "steps": {quality.value: preset.steps for quality, preset in model.defaults.items()},
            "vocabulary": model.vocabulary.summary() if model.vocabulary else None,
        }
    return facts


def picture(entries: list[tuple[Model, Availability]]) -> RenderableType:
    """The catalog as tables, then the words that each model with a vocabulary knows."""
    parts: list[RenderableType] = []
    widest = max((len(model.id) for model, _ in entries), default=0)
    for role, heading in HEADINGS:
        chosen = [entry for entry in entries if entry[0].role == role]
        if chosen:
            parts += [Text(heading, style="bold"), Text(), _table(chosen, widest)]
    for model, _ in entries:
        if model.vocabulary is not None:
            parts += _words(model)
    return Padding(Group(*parts), (1, 1, 0, 1))


def _table(entries: list[tuple[Model, Availability]], widest: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=1)
    table.add_column(min_width=widest, no_wrap=True)
    table.add_column(max_width=96)
    for model, availability in entries:
        sign = Text("●", style="green") if availability.ready else Text("○", style="dim")
        name = Text(model.id, style="bold" if availability.ready else "")
        table.add_row(sign, name, Group(Text(clean(model.description)), _facts(model, availability), Text()))
    return table


def _facts(model: Model, availability: Availability) -> Table:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(min_width=8, no_wrap=True)
    facts.add_column()
    if model.limits is not None:
        sizes = ", ".join(f"{width} × {height}" for width, height in model.limits.sizes)
        facts.add_row(Text("draws", style="dim"), f"{sizes}; {_lengths(model.limits)}")
        facts.add_row(
            "steps", ", ".join(f"{quality.value} {preset.steps}" for quality, preset in model.defaults.items())
        )
    facts.add_row(Text("needs", style="dim"), _needs(model))
    facts.add_row(Text("license", style="dim"), clean(model.licence))
    here, style = ("here", "green") if availability.ready else ("not here", "magenta")
    facts.add_row(Text(here, style=style), clean(availability.reason))
    return facts


def _needs(model: Model) -> str:
    if model.accelerator_gib:
        return f"an accelerator with {model.accelerator_gib:g} GiB"
    return f"a CPU, {size(model.memory_mb * 1_000_000)} of memory" if model.memory_mb else "a CPU"


def _stills_only(limits: Limits) -> bool:
    return set(limits.frames) == {1}


def _lengths(limits: Limits) -> str:
    return "stills only" if _stills_only(limits) else f"{limits.seconds()} at {float(limits.fps):g} fps"


def _words(model: Model) -> list[RenderableType]:
    assert model.vocabulary is not None
    summary = model.vocabulary.summary()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(max_width=96)
    for kind, words in summary.items():
        table.add_row(kind, ", ".join(words))
    example = model.caption({kind: words[0] for kind, words in summary.items()})
    note = (
        "Name some of these in a prompt: the seed chooses what you leave open, and many other words are understood as "
        f'the nearest of them. A prompt that says it all: "{example}".'
    )
    return [Text(f"What {model.id} can draw", style="bold"), Text(), table, Text(), Text(note, style="dim"), Text()]
