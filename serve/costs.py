"""What was spent, on what, as data: what `farm cost` prints and draws, and `/v1/costs` answers."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cluster.clock import to_datetime
from cluster.errors import InvalidInput
from cluster.ledger import costs
from cluster.ledger.costs import By, Group, Span
from cluster.ledger.ledger import Ledger
from cluster.ledger.outcomes import Sight
from cluster.rates import usd
from serve.rows import Row

PAGE = 1_000
"""Groups of a page, at most."""
KINDS = ("busy", "wasted", "load", "idle", "tokens", "storage", "egress")


class CostsAsked(Row):
    """Unix seconds; `until` is not part of it. `after` is the name of the last group of the page before."""

    by: By = By.SHOW
    show: str | None = None
    since: int | None = None
    until: int | None = None
    limit: int = PAGE
    after: str | None = None

    def query(self, **more: Any) -> dict[str, Any]:
        asked = self.model_dump(mode="json") | {"limit": min(self.limit, PAGE)} | more
        return {name: value for name, value in asked.items() if value is not None}


class CostRow(Row):
    name: str = Field(
        description="tenant/show, a film or job, film/shot, a model, a fleet, a day of UTC; or (what else)"
    )
    title: str | None = Field(description="Of the film or job")
    cost_usd: str
    cost_by_kind_usd: dict[str, str] = Field(description="busy, wasted, load, idle, tokens, storage, egress")
    held_s: float = Field(description="Accelerator-seconds; worker-seconds of those that have none")
    finished_s: float = Field(
        description="How long the takes play that are drawn; of a film its newest revision counts"
    )
    accepted_s: float = Field(description="Of those the ones that are in a film, past their gate if there is one")
    usd_per_finished_minute: str | None
    usd_per_accepted_minute: str | None
    cache_hits: int
    saved_usd: str = Field(description="What the takes had cost that were not drawn again")
    saved_s: float


class CostTable(Row):
    """The dearest first; days in their order."""

    object: str = "list"
    by: By
    since: str | None
    until: str | None
    data: list[CostRow]
    total: CostRow = Field(description="Over all pages")
    wasted_by_reason_usd: dict[str, str]
    last_id: str | None
    has_more: bool


def cost_table(ledger: Ledger, asked: CostsAsked, sight: Sight) -> CostTable:
    """Raises InvalidInput for an `after` that is none, or a span that is none."""
    if asked.since is not None and asked.until is not None and asked.since >= asked.until:
        raise InvalidInput("since is not before until", field="since", remedy="give an earlier one")
    show = sight.show if sight.show is not None else asked.show
    nothing = sight.show is not None and asked.show not in (None, sight.show)
    span = Span(
        tenant=sight.tenant,
        show=show,
        since_us=None if asked.since is None else asked.since * 1_000_000,
        until_us=0 if nothing else None if asked.until is None else asked.until * 1_000_000,
    )
    found = ledger.view(lambda c: costs.costs(c, asked.by, span))
    first = 0
    if asked.after is not None:
        names = [group.name for group in found.groups]
        if asked.after not in names:
            raise InvalidInput("there is no such group", field="after", remedy="begin again without it")
        first = names.index(asked.after) + 1
    page = found.groups[first : first + asked.limit]
    return CostTable(
        by=asked.by,
        since=_iso(asked.since),
        until=_iso(asked.until),
        data=[cost_row(group) for group in page],
        total=cost_row(found.total),
        wasted_by_reason_usd={reason: _usd(nano) for reason, nano in found.wasted.items()},
        last_id=page[-1].name if page else None,
        has_more=first + len(page) < len(found.groups),
    )


def cost_row(group: Group) -> CostRow:
    return CostRow(
        name=group.name,
        title=group.title,
        cost_usd=_usd(group.nano),
        cost_by_kind_usd={kind: _usd(nano) for kind in KINDS if (nano := group.nano_by_kind[kind])},
        held_s=group.held_us / 1e6,
        finished_s=round(float(group.finished_s), 6),
        accepted_s=round(float(group.accepted_s), 6),
        usd_per_finished_minute=_usd(round(60 * group.nano / group.finished_s)) if group.finished_s else None,
        usd_per_accepted_minute=_usd(round(60 * group.nano / group.accepted_s)) if group.accepted_s else None,
        cache_hits=group.hits,
        saved_usd=_usd(group.saved_nano),
        saved_s=round(group.saved_s, 6),
    )


def _usd(nano: int) -> str:
    return f"{usd(nano):.9f}"


def _iso(unix_s: int | None) -> str | None:
    return None if unix_s is None else to_datetime(unix_s * 1_000_000).isoformat()
