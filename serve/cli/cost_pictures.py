"""Costs as a person looks at them: a table, and a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from cluster.errors import InvalidInput, StoreFull
from cluster.ledger.costs import By
from serve.cli.tables import Card, Grid
from serve.cli.wording import clean, dollars, plural, seconds, short_id, watch
from serve.costs import KINDS, CostRow, CostTable

COLORS = {
    "busy": "#3f8f5b",
    "wasted": "#c8432f",
    "load": "#e0a33a",
    "idle": "#b9bdc4",
    "tokens": "#3f6fb5",
    "storage": "#2f9aa0",
    "egress": "#8a5fb0",
}
SUFFIXES = (".png", ".svg", ".pdf")
MOST_BARS = 60
LONGEST = 44


def written(table: CostTable) -> RenderableType:
    """The groups, and below them what they come to."""
    if not table.data:
        return Text("nothing was spent")
    rows = [*table.data, table.total]
    wasted, made, saved = _any(rows, _wasted), any(r.finished_s for r in rows), _any(rows, lambda r: r.saved_usd)
    accepted = any(r.accepted_s not in (0.0, r.finished_s) for r in rows)
    grid = Grid(
        ">COST", *([">WASTED"] if wasted else []), ">HELD", *([">MINUTES", ">A MINUTE"] if made else []),
        *([">ACCEPTED"] if accepted else []), *([">SAVED"] if saved else []), table.by.value.upper(),
    )  # fmt: skip
    for row in rows:
        last = row is table.total
        cells = [
            dollars(Decimal(row.cost_usd)),
            *([_money(_wasted(row))] if wasted else []),
            seconds(row.held_s) if row.held_s else "",
            *([watch(row.finished_s) if row.finished_s else "", _money(row.usd_per_finished_minute)] if made else []),
            *([_money(row.usd_per_accepted_minute)] if accepted else []),
            *([_money(row.saved_usd)] if saved else []),
            "total" if last else _name(row),
        ]
        grid.row(*(Text(cell, style="bold" if last else "") for cell in cells))
    if table.has_more:
        grid.note(f"and more, in the total: the {len(table.data)} dearest are shown")
    return Group(grid, Text(), _summary(table))


def _summary(table: CostTable) -> Card:
    total, card = table.total, Card()
    parts = [f"{kind} {dollars(Decimal(nano))}" for kind, nano in total.cost_by_kind_usd.items() if Decimal(nano)]
    card.row("spent", dollars(Decimal(total.cost_usd)) + (f": {', '.join(parts)}" if parts else ""))
    if table.wasted_by_reason_usd:
        reasons = [f"{clean(why)} {dollars(Decimal(usd))}" for why, usd in table.wasted_by_reason_usd.items()]
        card.row("wasted", ", ".join(reasons))
    if total.cache_hits:
        said = f"{dollars(Decimal(total.saved_usd))} by {plural(total.cache_hits, 'cache hit')}"
        card.row("saved", f"{said}, {seconds(total.saved_s)} of work")
    if total.usd_per_finished_minute is not None:
        finished = f"{dollars(Decimal(total.usd_per_finished_minute))} of what is drawn"
        accepted = total.usd_per_accepted_minute
        said = f", {dollars(Decimal(accepted))} of what is accepted" if accepted else ""
        card.row("a minute", finished + said)
    return card


def check(path: Path) -> None:
    """Raises InvalidInput for what no plot can be written to."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(f"{path} is no picture", field="--plot", remedy=f"name a file in {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"there is no directory {path.parent}", field="--plot", remedy="make it first")


def draw(table: CostTable, path: Path) -> None:
    """Bars of what each group cost, by kind: days side by side, all else one below the other. Raises StoreFull."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    rows = _folded(table.data)
    days = table.by is By.DAY
    size = (max(6.4, 2.2 + 0.22 * len(rows)), 4.2) if days else (8.6, 1.7 + 0.3 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    starts, at = [0.0] * len(rows), list(range(len(rows)))
    for kind in KINDS:
        parts = [float(row.cost_by_kind_usd.get(kind, 0)) for row in rows]
        if not any(parts):
            continue
        if days:
            axes.bar(at, parts, bottom=starts, color=COLORS[kind], label=kind, width=0.72)
        else:
            axes.barh(at, parts, left=starts, color=COLORS[kind], label=kind, height=0.68)
        starts = [start + part for start, part in zip(starts, parts, strict=True)]
    names = [_name(row) for row in rows]
    money = FuncFormatter(lambda value, _: _axis(value, max(starts, default=0)))
    most = max(starts, default=0) or 1.0
    if days:
        turned: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if len(rows) > 8 else {}
        axes.set_xticks(at, names, **turned)
        axes.yaxis.set_major_formatter(money)
        axes.set_ylim(0, most * 1.08)
        axes.set_xlim(-0.8, max(len(rows), 4) - 0.2)
    else:
        axes.set_yticks(at, names, parse_math=False)
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(money)
        axes.set_xlim(0, most * 1.16)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        for place, row in enumerate(rows):
            said = dollars(Decimal(row.cost_usd))
            axes.text(starts[place] + most * 0.01, place, said, va="center", fontsize=8, parse_math=False)
    axes.tick_params(labelsize=8, length=0)
    axes.grid(visible=True, axis="y" if days else "x", color="#e4e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.set_title(_title(table), loc="left", fontsize=11, parse_math=False)
    figure.legend(loc="outside lower center", ncols=len(KINDS), fontsize=8, frameon=False)
    try:
        figure.savefig(path, dpi=144)
    except OSError as error:
        raise StoreFull(f"{path} cannot be written: {error.strerror}", remedy="make room, or name another") from error


def _folded(rows: Sequence[CostRow]) -> list[CostRow]:
    """As many as one can read; the rest as one."""
    if len(rows) <= MOST_BARS:
        return list(rows)
    rest = rows[MOST_BARS - 1 :]
    kinds = {kind: str(sum(Decimal(row.cost_by_kind_usd.get(kind, "0")) for row in rest)) for kind in KINDS}
    whole = str(sum(Decimal(row.cost_usd) for row in rest))
    others = rest[0].model_copy(
        update={"name": f"({len(rest)} others)", "title": None, "cost_usd": whole, "cost_by_kind_usd": kinds}
    )
    return [*rows[: MOST_BARS - 1], others]


def _title(table: CostTable) -> str:
    when = [f"{word} {at[:16].replace('T', ' ')}" for word, at in (("from", table.since), ("until", table.until)) if at]
    return " ".join([f"Cost by {table.by.value}: {dollars(Decimal(table.total.cost_usd))}", *when])


def _axis(value: float, most: float) -> str:
    return f"${value:,.0f}" if most >= 10 else f"${value:.2f}" if most >= 0.1 else f"${value:.4f}"


def _name(row: CostRow) -> str:
    """The end of an id, and its title."""
    if row.title is None:
        return clean(row.name, LONGEST)
    whose, slash, part = row.name.partition("/")
    return f"{short_id(whose)}{slash}{part} {clean(row.title, 30)}"


def _wasted(row: CostRow) -> str:
    return row.cost_by_kind_usd.get("wasted", "0")


def _money(usd: str | None) -> str:
    return dollars(Decimal(usd)) if usd is not None and Decimal(usd) else ""


def _any(rows: Sequence[CostRow], of: Callable[[CostRow], str]) -> bool:
    return any(Decimal(of(row)) for row in rows)
