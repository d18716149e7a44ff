"""What the farm sells, as FOCUS names it: services, their meters, their units and prices. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from cluster.focus.lines import Charge, Line
from cluster.rates import GIB, HOUR_US, MILLION, usd

FINE = Decimal(1).scaleb(-14)
FINE_PRICE = Decimal(1).scaleb(-16)


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    category: str
    subcategory: str  # FOCUS says to which category each belongs
    sku: str
    meter: str


AI = "AI and Machine Learning"
POOL = Service("Worker Pool", "Compute", "Other (Compute)", "pool", "Held Time")
"""What belongs to no task: loading models, and waiting for work."""
METERED = {
    "tokens": Service("Chat", AI, "Generative AI", "tokens", "Tokens"),
    "storage": Service("Asset Storage", "Storage", "Object Storage", "storage", "Stored Bytes"),
    "egress": Service("Asset Delivery", "Networking", "Content Delivery", "egress", "Delivered Bytes"),
}
BY_ROLE = {
    "writer": Service("Script Writing", AI, "Generative AI", "writing", "Held Time"),
    "render": Service("Text to Video", AI, "Generative AI", "video", "Held Time"),
    "finish": Service("Film Finishing", "Media", "Content Creation", "finishing", "Held Time"),
}
CHATS = Service("Chat", AI, "Generative AI", "chat", "Held Time")
STILLS = Service("Image Generation", AI, "Generative AI", "stills", "Held Time")
OTHER = Service("Other Work", AI, "Other (AI and Machine Learning)", "other", "Held Time")


@dataclass(frozen=True, slots=True)
class Priced:
    """`quantity` of `unit` at `unit_price`; what was consumed is exact, in a finer unit."""

    unit_price: Decimal  # 16 digits
    quantity: Decimal  # 14 digits
    unit: str
    consumed: Decimal
    consumed_unit: str


def service_of(line: Line) -> Service:
    if line.kind in METERED:
        return METERED[line.kind]
    if line.task_id is None and line.kind in ("idle", "load"):
        return POOL
    if line.role == "render" and line.recipe is not None and line.recipe.endswith(".image"):
        return STILLS
    if line.role == "writer" and line.task_id is None:
        return CHATS
    return BY_ROLE.get(line.role or "", OTHER)


def priced(charge: Charge) -> Priced:
    """A worker's time by the hour of an accelerator, or of a worker without; meters by the unit of the rate card."""
    line, amounts = charge.of, charge.amounts
    if line.kind == "tokens":
        quantity = Decimal(amounts.quantity)
        return Priced(_meter_price(line), quantity / MILLION, "1000000 Tokens", quantity, "Tokens")
    if line.kind == "egress":
        quantity = Decimal(amounts.quantity)
        return Priced(_meter_price(line), (quantity / GIB).quantize(FINE), "GiB", quantity, "B")
    if line.kind == "storage":
        mib_seconds = Decimal(amounts.quantity)
        gib_hours = (mib_seconds / (1024 * 3600)).quantize(FINE)
        price = (_meter_price(line) / 730).quantize(FINE_PRICE)
        return Priced(price, gib_hours, "GiB-Hours", mib_seconds, "MiB-Seconds")
    whose = "Instance" if line.accelerator == "cpu" else "GPU"
    hours = (Decimal(amounts.held_us) / HOUR_US).quantize(FINE)
    price = _hourly(line, amounts.nano, amounts.held_us)
    return Priced(price, hours, f"{whose}-Hours", Decimal(amounts.held_us) / MILLION, f"{whose}-Seconds")


def _meter_price(line: Line) -> Decimal:
    return usd(line.price_nano or 0)


def _hourly(line: Line, nano: int, held_us: int) -> Decimal:
    """Of its worker; where nothing is known of that any more, what the charge itself shows."""
    if line.nano_per_hour is not None:
        return _per_accelerator(line.nano_per_hour, max(1, line.num_accelerators or 0))
    return (usd(nano) * HOUR_US / held_us).quantize(FINE_PRICE) if held_us else Decimal(0)


@lru_cache(maxsize=1024)
def _per_accelerator(nano_per_hour: int, num_accelerators: int) -> Decimal:
    return (usd(nano_per_hour) / num_accelerators).quantize(FINE_PRICE)
