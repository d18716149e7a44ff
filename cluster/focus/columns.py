"""The columns of FOCUS, and what the farm says in them. Pure; money is Decimal throughout.

Source: FOCUS 1.4 and 1.2, dataset Cost and Usage (https://focus.finops.org). What is left out (commitments, contracts,
regions, other currencies) is what the farm has not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum
from functools import lru_cache

from cluster.focus.charges import WHOLE
from cluster.focus.lines import Charge, Line, month_after
from cluster.focus.services import Priced, Service, priced, service_of
from cluster.rates import HOUR_US, usd

METHOD = "reelfarm-held-time-v1"
"""How an hour of a worker is split between those who used it: see README.md beside this file."""
EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
FINE = Decimal(1).scaleb(-12)
"""Of what is computed from a price: two digits less than quantities have, or $2.80 would be 2.80000000000001."""
Value = str | Decimal | int | None
"""What stands in a field; an instant is whole microseconds, of a column of the type TIME."""


class Version(StrEnum):
    V1_4 = "1.4"
    V1_2 = "1.2"


class Mode(StrEnum):
    """Showback: somebody else invoices (a cloud, or nobody), and nothing is billed here. Invoice: the farm does."""

    SHOWBACK = "showback"
    INVOICE = "invoice"


class Type(StrEnum):
    TEXT = "text"
    MONEY = "money"
    PRICE = "price"
    TIME = "time"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parties:
    """Who is who. `host` owns the machines; None: that is not said."""

    provider: str = "Reelfarm"
    issuer: str = "Reelfarm"
    host: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    version: Version = Version.V1_4
    mode: Mode = Mode.SHOWBACK
    parties: Parties = Parties()


@dataclass(frozen=True, slots=True)
class Facts:
    """A charge with all that several columns need."""

    charge: Charge
    line: Line
    service: Service
    priced: Priced
    manner: Manner

    @property
    def effective(self) -> Decimal:
        return usd(self.charge.amounts.nano)

    @property
    def listed(self) -> Decimal:
        """The price times the quantity: what the ledger has rounded to nano-dollars, less finely rounded."""
        return EXACT.quantize(EXACT.multiply(self.priced.unit_price, self.priced.quantity), FINE)

    @property
    def split(self) -> bool:
        """Whether it is a part of an hour of a worker."""
        return self.line.worker_id is not None

    @property
    def allocated_to(self) -> str | None:
        """None for what nobody used: the unallocated part."""
        if not self.split or self.line.kind == "idle":
            return None
        return self.line.task_id or self.line.kind


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: Type
    value: Callable[[Facts], Value]
    only: Version | None = None


def rows_of(manner: Manner) -> tuple[tuple[Column, ...], Callable[[Charge], list[Value]]]:
    """(the columns of the file, what makes a row of them from a charge)."""
    columns = tuple(column for column in COLUMNS if column.only in (None, manner.version))
    values = tuple(column.value for column in columns)

    def row(charge: Charge) -> list[Value]:
        line = charge.of
        facts = Facts(charge, line, service_of(line), priced(charge), manner)
        return [value(facts) for value in values]

    return columns, row


def invoice_id(tenant: str, month_us: int) -> str:
    return f"{_at(month_us):%Y-%m}-{tenant}"


@lru_cache(maxsize=4096)
def tags(show: str, film: str | None, task_key: str | None, model: str | None) -> str:
    """Names alone: no prompt, no title, nobody's name."""
    shot, dot, take = (task_key or "").rpartition(".t")
    named = {"show": show, "film": film, "shot": shot if dot else None, "take": take if dot else None, "model": model}
    return json.dumps({name: value for name, value in named.items() if value is not None}, separators=(",", ":"))


def _allocated_tags(f: Facts) -> str | None:
    if f.allocated_to is None or f.line.job_id is None:
        return None
    said = {"reelfarm/job": f.line.job_id, "reelfarm/step": f.line.task_key or f.line.role or ""}
    return json.dumps(said, separators=(",", ":"))


def _method_details(f: Facts) -> str | None:
    """As text: a ratio of twelve digits is exact so, and would not be as a float."""
    if f.charge.ratio is None:
        return None
    ratio, seconds = Decimal(f.charge.ratio) / WHOLE, Decimal(f.charge.amounts.held_us) / 1_000_000
    return (
        f'{{"Elements":[{{"AllocatedRatio":{plain(ratio)},"UsageUnit":"{f.priced.consumed_unit}",'
        f'"UsageQuantity":{plain(seconds)}}}]}}'
    )


def _description(f: Facts) -> str:
    """The same for all parts of one whole: it names no task."""
    parts = [f.service.name.lower(), f.line.model, f.line.accelerator and f"on {f.line.accelerator}"]
    return f"{' '.join(part for part in parts if part)}, {f.line.price_class}"


def _resource_type(f: Facts) -> str | None:
    return "Worker" if f.split else None


def _sku(f: Facts) -> str:
    return "/".join(filter(None, (f.service.sku, f.line.accelerator, f.line.item and f.line.model)))


def _sku_price(f: Facts) -> str:
    return f"{f.line.rate_card}/{_sku(f)}/{f.line.price_class}"


@lru_cache(maxsize=1024)
def _details(price_class: str, rate_card: str, accelerator: str | None, num_accelerators: int | None) -> str:
    said: dict[str, str | int] = {"x_PriceClass": price_class, "x_RateCard": rate_card}
    if accelerator is not None:
        said["x_Accelerator"] = accelerator
    if num_accelerators:
        said["GpuCount"] = num_accelerators
    return json.dumps(said, separators=(",", ":"))


def _sku_details(f: Facts) -> str:
    return _details(f.line.price_class, f.line.rate_card, f.line.accelerator, f.line.num_accelerators)


def _pricing_category(f: Facts) -> str:
    known = {"on-demand": "Standard", "spot": "Dynamic", "preemptible": "Dynamic", "reserved": "Committed"}
    return "Standard" if not f.split else known.get(f.line.price_class, "Other")


def _billed(f: Facts) -> Decimal:
    return f.effective if f.manner.mode is Mode.INVOICE else Decimal(0)


def _invoice(f: Facts) -> str | None:
    return invoice_id(f.line.tenant, f.charge.month_us) if f.manner.mode is Mode.INVOICE else None


def _at(us: int) -> datetime:
    return datetime.fromtimestamp(us // 1_000_000, tz=UTC)


def plain(value: Decimal) -> str:
    """Digits without an exponent, and without zeros at the end."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


T, M, P, AT = Type.TEXT, Type.MONEY, Type.PRICE, Type.TIME
COLUMNS = (
    Column("ProviderName", T, lambda f: f.manner.parties.provider, Version.V1_2),
    Column("PublisherName", T, lambda f: f.manner.parties.provider, Version.V1_2),
    Column("ServiceProviderName", T, lambda f: f.manner.parties.provider, Version.V1_4),
    Column("HostProviderName", T, lambda f: f.manner.parties.host, Version.V1_4),
    Column("InvoiceIssuerName", T, lambda f: f.manner.parties.issuer),
    Column("InvoiceId", T, _invoice),
    Column("BillingAccountId", T, lambda f: f.line.tenant),
    Column("BillingAccountName", T, lambda f: f.line.tenant),
    Column("BillingCurrency", T, lambda f: "USD"),
    Column("BillingPeriodStart", AT, lambda f: f.charge.month_us),
    Column("BillingPeriodEnd", AT, lambda f: month_after(f.charge.month_us)),
    Column("SubAccountId", T, lambda f: f"{f.line.tenant}/{f.line.show}"),
    Column("SubAccountName", T, lambda f: f"{f.line.tenant}/{f.line.show}"),
    Column("ChargePeriodStart", AT, lambda f: f.charge.hour_us),
    Column("ChargePeriodEnd", AT, lambda f: f.charge.hour_us + HOUR_US),
    Column("ChargeCategory", T, lambda f: "Usage"),
    Column("ChargeClass", T, lambda f: "Correction" if f.charge.correction else None),
    Column("ChargeDescription", T, _description),
    Column("ChargeFrequency", T, lambda f: "Usage-Based"),
    Column("BilledCost", M, _billed),
    Column("EffectiveCost", M, lambda f: f.effective),
    Column("ListCost", M, lambda f: f.listed),
    Column("ContractedCost", M, lambda f: f.listed),
    Column("ListUnitPrice", P, lambda f: f.priced.unit_price),
    Column("ContractedUnitPrice", P, lambda f: f.priced.unit_price),
    Column("PricingCategory", T, _pricing_category),
    Column("PricingQuantity", M, lambda f: f.priced.quantity),
    Column("PricingUnit", T, lambda f: f.priced.unit),
    Column("ConsumedQuantity", M, lambda f: f.priced.consumed),
    Column("ConsumedUnit", T, lambda f: f.priced.consumed_unit),
    Column("CommitmentDiscountStatus", T, lambda f: None, Version.V1_2),  # its validator wants the column
    Column("ServiceCategory", T, lambda f: f.service.category),
    Column("ServiceSubcategory", T, lambda f: f.service.subcategory),
    Column("ServiceName", T, lambda f: f.service.name),
    Column("SkuId", T, _sku),
    Column("SkuMeter", T, lambda f: f.service.meter),
    Column("SkuPriceId", T, _sku_price),
    Column("SkuPriceDetails", T, _sku_details),
    Column("ResourceId", T, lambda f: f.line.worker_id),
    Column("ResourceName", T, lambda f: f.line.worker_id),
    Column("ResourceType", T, _resource_type),
    Column("AllocatedMethodId", T, lambda f: METHOD if f.split else None, Version.V1_4),
    Column("AllocatedMethodDetails", T, _method_details, Version.V1_4),
    Column("AllocatedResourceId", T, lambda f: f.allocated_to, Version.V1_4),
    Column("AllocatedResourceName", T, lambda f: f.allocated_to and (f.line.task_key or f.line.kind), Version.V1_4),
    Column("AllocatedTags", T, _allocated_tags, Version.V1_4),
    Column("Tags", T, lambda f: tags(f.line.show, f.line.film_id, f.line.task_key, f.line.model)),
    Column("x_CostKind", T, lambda f: f.line.kind),
    Column("x_WastedReason", T, lambda f: f.line.note if f.line.kind == "wasted" else None),
    Column("x_Recipe", T, lambda f: f.line.recipe and f.line.recipe.rpartition(".")[2]),
    Column("x_JobId", T, lambda f: f.line.job_id),
    Column("x_TaskId", T, lambda f: f.line.task_id),
    Column("x_AttemptId", T, lambda f: f.line.attempt_id),
    Column("x_RateCard", T, lambda f: f.line.rate_card),
)
