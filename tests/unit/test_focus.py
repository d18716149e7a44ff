"""Exports of costs: charges by the hour to the nano-dollar, FOCUS 1.4 by its linter, and what that does not see."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC
from decimal import Decimal
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet
import pytest
from focus_data_toolkit.generators.versions.v1_2 import COLUMNS as COLUMNS_OF_1_2
from focus_data_toolkit.model.validator import lint_focus_1_4_structure, load_model
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InvalidInput, NotReady
from cluster.focus.charges import WHOLE, charges
from cluster.focus.columns import METHOD, Manner, Mode, Parties, Version
from cluster.focus.files import Format
from cluster.focus.lines import GRACE_US, Charge, Line, Period, month_after, month_of
from cluster.focus.services import BY_ROLE, CHATS, METERED, OTHER, POOL, STILLS
from cluster.ledger.statement import Whose
from cluster.ledger.tokens import Counts, Meter
from cluster.rates import HOUR_US, cost_until, split, usd
from serve import exports
from serve.exports import Export
from tests.focus_ledger import DECEMBER_US, JANUARY_US, NOVEMBER_US, leave, small_farm, until
from tests.ledger_desk import RATE, LedgerDesk, task

HALF_PAST_US = NOVEMBER_US + HOUR_US // 2
ALL = Period(from_us=NOVEMBER_US - 48 * HOUR_US, to_us=JANUARY_US + 48 * HOUR_US)
TAKEN = ("SupportsUnitPricing", "SupportsMultiplePricingCategories")
UNITS = {"GPU-Hours", "GPU-Seconds", "Instance-Hours", "Instance-Seconds", "GiB", "GiB-Hours", "B", "MiB-Seconds",
         "1000000 Tokens", "Tokens"}  # fmt: skip
"""By hand, after the attribute UnitFormat."""
Row = dict[str, str]


@pytest.fixture(scope="module")
def desk(fast_folder: Path, empty_ledger: Path) -> Iterator[LedgerDesk]:
    import shutil

    shutil.copy(empty_ledger, fast_folder / "focus.db")
    desk = small_farm(f"sqlite:///{fast_folder}/focus.db")
    yield desk
    desk.close()


def export(period: Period = ALL, *, mode: Mode = Mode.SHOWBACK, **more: Any) -> Export:
    manner = Manner(version=more.pop("version", Version.V1_4), mode=mode, parties=Parties(host="Own"))
    return Export(**{"period": period, "manner": manner, "format": Format.CSV, "whose": Whose(), **more})


def rows(desk: LedgerDesk, asked: Export) -> list[Row]:
    text = b"".join(exports.pieces(desk.ledger, asked)).decode()
    return list(csv.DictReader(io.StringIO(text)))


def total(found: Sequence[Row], column: str = "EffectiveCost", **equals: str) -> Decimal:
    return sum((Decimal(r[column]) for r in found if all(r[k] == v for k, v in equals.items())), Decimal(0))


def test_every_nano_dollar_of_the_ledger_is_in_one_row(desk: LedgerDesk) -> None:
    # Its lines of meters are written by hand: no meter counted what they say.
    assert [flaw for flaw in desk.ledger.flaws() if not flaw.startswith("meters balance")] == []
    found = rows(desk, export())
    assert total(found) == usd(desk.ledger.spent().nano)
    for kind in ("busy", "wasted", "load", "idle", "tokens", "storage", "egress"):
        assert total(found, x_CostKind=kind) == usd(desk.ledger.spent(kind=kind).nano) != (kind == "none")
    for tenant in ("studio", "rival", "farm"):
        assert total(found, BillingAccountId=tenant) == usd(desk.ledger.spent(tenant=tenant).nano) > 0
        assert rows(desk, export(whose=Whose(tenant=tenant))) == [r for r in found if r["BillingAccountId"] == tenant]


def test_months_adjoin_without_gap_or_overlap(desk: LedgerDesk) -> None:
    ends = (ALL.from_us, NOVEMBER_US, NOVEMBER_US + 8 * 24 * HOUR_US, DECEMBER_US, JANUARY_US, ALL.to_us)
    parts = [rows(desk, export(Period(from_us=a, to_us=b))) for a, b in pairwise(ends)]
    assert all(parts)
    assert Counter(map(str, chain.from_iterable(parts))) == Counter(map(str, rows(desk, export())))


@pytest.mark.parametrize("mode", Mode)
def test_the_linter_of_1_4_finds_nothing(desk: LedgerDesk, mode: Mode) -> None:
    found = rows(desk, export(period=Period(from_us=NOVEMBER_US, to_us=JANUARY_US), mode=mode))
    report = lint_focus_1_4_structure("cost and usage", found, supported_conditions=TAKEN)
    assert report.messages() == []
    planted = [found[0] | {"ServiceCategory": "Media", "ChargePeriodStart": "2025-11-01 00:00"}]
    assert len(lint_focus_1_4_structure("cost and usage", planted, supported_conditions=TAKEN).messages()) == 2


def test_what_no_linter_sees(desk: LedgerDesk) -> None:
    for row in rows(desk, export(mode=Mode.INVOICE, period=Period(from_us=NOVEMBER_US, to_us=JANUARY_US))):
        for cost, price in (("ListCost", "ListUnitPrice"), ("ContractedCost", "ContractedUnitPrice")):
            assert abs(Decimal(row[price]) * Decimal(row["PricingQuantity"]) - Decimal(row[cost])) <= Decimal("5e-13")
        assert abs(Decimal(row["ListCost"]) - Decimal(row["EffectiveCost"])) < Decimal("3e-9")
        assert {row["PricingUnit"], row["ConsumedUnit"]} <= UNITS
        assert row["BilledCost"] == row["EffectiveCost"]
        assert not re.search(r"[eE]", row["EffectiveCost"] + row["ListUnitPrice"] + row["PricingQuantity"])


def test_every_service_stands_under_its_own_category() -> None:
    parents = load_model()["service_subcategory_parents"]
    for service in (POOL, CHATS, STILLS, OTHER, *METERED.values(), *BY_ROLE.values()):
        assert parents[service.subcategory] == service.category


def test_showback_bills_nothing_and_an_invoice_bills_all(desk: LedgerDesk) -> None:
    november = Period(from_us=NOVEMBER_US, to_us=DECEMBER_US)
    shown, billed = (rows(desk, export(november, mode=mode)) for mode in Mode)
    assert {(r["BilledCost"], r["InvoiceId"]) for r in shown} == {("0.0", "")}
    assert {r["InvoiceId"] for r in billed} == {"2025-11-studio", "2025-11-rival", "2025-11-farm"}
    assert total(billed, "BilledCost") == total(billed) == total(shown)


def test_what_a_closed_month_got_wrong_is_a_correction_on_a_later_bill(desk: LedgerDesk) -> None:
    found = rows(desk, export(mode=Mode.INVOICE, period=Period(from_us=NOVEMBER_US, to_us=month_after(JANUARY_US)))
                 )  # fmt: skip
    corrected = [r for r in found if r["ChargeClass"]]
    assert {(r["ChargePeriodStart"][:7], r["BillingPeriodStart"][:7], r["InvoiceId"]) for r in corrected} == {
        ("2025-11", "2025-12", "2025-12-studio"),
        ("2025-11", "2025-12", "2025-12-rival"),
        ("2025-11", "2026-01", "2026-01-rival"),
        ("2025-12", "2026-01", "2026-01-rival"),
    }
    assert {r["ChargeClass"] for r in corrected} == {"Correction"}
    assert total(corrected) == 0
    taken_back = [r for r in corrected if Decimal(r["EffectiveCost"]) < 0]
    assert {(r["x_CostKind"], r["InvoiceId"]) for r in taken_back} == {
        ("busy", "2025-12-studio"),
        ("busy", "2025-12-rival"),
        ("wasted", "2026-01-rival"),
    }
    others = [r for r in found if not r["ChargeClass"]]
    assert all(r["BillingPeriodStart"][:7] == r["ChargePeriodStart"][:7] for r in others)
    assert all(Decimal(r["EffectiveCost"]) >= 0 and Decimal(r["PricingQuantity"]) >= 0 for r in others)


def test_what_was_lost_within_its_month_is_wasted_and_nothing_else(desk: LedgerDesk) -> None:
    found = [r for r in rows(desk, export()) if r["AllocatedResourceName"] == "sh010.t1"]
    assert {(r["BillingAccountId"], r["x_CostKind"], r["x_WastedReason"]) for r in found} == {
        ("studio", "wasted", "lost"), ("rival", "wasted", "lost"),
    }  # fmt: skip
    assert len({r["ChargePeriodStart"] for r in found if r["BillingAccountId"] == "studio"}) == 3


def test_the_parts_of_an_hour_of_a_worker_sum_to_one_and_have_all_else_in_common(desk: LedgerDesk) -> None:
    own = {"EffectiveCost", "BilledCost", "ListCost", "ContractedCost", "PricingQuantity", "ConsumedQuantity", "Tags"}
    wholes: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows(desk, export()):
        if row["AllocatedMethodDetails"]:
            same = tuple(v for k, v in row.items() if k not in own and not k.startswith(("Allocated", "x_")))
            wholes[same].append(row)
            assert row["AllocatedMethodId"] == METHOD
            assert bool(row["AllocatedResourceId"]) == (row["x_CostKind"] != "idle")
    assert len(wholes) > 15
    assert {len(parts) for parts in wholes.values()} == {1, 2, 3}
    for parts in wholes.values():
        said = [json.loads(row["AllocatedMethodDetails"], parse_float=Decimal)["Elements"][0] for row in parts]
        assert sum(one["AllocatedRatio"] for one in said) == 1
        assert [one["UsageQuantity"] for one in said] == [Decimal(row["ConsumedQuantity"]) for row in parts]


def test_tags_name_show_film_shot_take_and_model_and_nothing_that_was_written(desk: LedgerDesk) -> None:
    found = rows(desk, export())
    take = next(r for r in found if r["AllocatedResourceName"] == "sh020.t2")
    assert json.loads(take["Tags"]) == {"show": "comet", "shot": "sh020", "take": "2", "model": "house-video"}
    assert json.loads(take["AllocatedTags"]) == {"reelfarm/job": take["x_JobId"], "reelfarm/step": "sh020.t2"}
    assert not any(
        "A film" in value or "prompt" in value for row in found for value in row.values() if value != "prompt"
    )


def test_parquet_says_what_csv_says(desk: LedgerDesk, tmp_path: Path) -> None:
    file = tmp_path / "costs.parquet"
    file.write_bytes(b"".join(exports.pieces(desk.ledger, export(format=Format.PARQUET))))
    table = pyarrow.parquet.read_table(file)
    assert {str(table.schema.field(n).type) for n in ("EffectiveCost", "PricingQuantity")} == {"decimal128(38, 14)"}
    assert str(table.schema.field("ListUnitPrice").type) == "decimal128(38, 16)"
    for said, row in zip(table.to_pylist(), rows(desk, export()), strict=True):
        for name, value in said.items():
            text = "" if value is None else value if isinstance(value, str) else None
            if isinstance(value, Decimal):
                assert value == Decimal(row[name])
            else:
                assert row[name] == (value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if text is None else text)


def test_a_reader_of_csv_takes_a_column_of_money_that_is_all_zero_for_money(desk: LedgerDesk) -> None:
    file = io.BytesIO(b"".join(exports.pieces(desk.ledger, export())))
    table = pyarrow.csv.read_csv(file)
    assert {str(table.schema.field(name).type) for name in ("BilledCost", "EffectiveCost")} == {"double"}


def test_1_2_has_the_older_names_and_no_others(desk: LedgerDesk) -> None:
    new, old = rows(desk, export()), rows(desk, export(version=Version.V1_2))
    gone = {"ServiceProviderName", "HostProviderName"} | {name for name in new[0] if name.startswith("Allocated")}
    assert new[0].keys() - old[0].keys() == gone
    assert old[0].keys() - new[0].keys() == {"ProviderName", "PublisherName", "CommitmentDiscountStatus"}
    assert [r["EffectiveCost"] for r in new] == [r["EffectiveCost"] for r in old]
    assert {name for name in old[0] if not name.startswith("x_")} <= set(COLUMNS_OF_1_2)
    assert list(new[0])[-7:] == [name for name in new[0] if name.startswith("x_")]


def test_a_writer_does_not_wait_for_an_export_which_is_of_one_instant(sqlite_url: str) -> None:
    desk = LedgerDesk(sqlite_url, start_us=NOVEMBER_US)
    job = desk.submit(task("a"))
    leased = desk.lease(job, "a")
    desk.clock.advance(60)
    desk.commit(leased)
    reading = exports.pieces(desk.ledger, export())
    head = next(reading)
    desk.join("w3", spawned_s_ago=30)
    desk.ledger.leave(desk.term, "w3")
    assert desk.spent("load") > 0
    text = (head + b"".join(reading)).decode()
    assert total(list(csv.DictReader(io.StringIO(text)))) == usd(desk.spent("busy"))
    desk.close()


def test_a_period_is_open_until_all_that_was_held_in_it_is_booked(sqlite_url: str) -> None:
    desk = LedgerDesk(sqlite_url, start_us=NOVEMBER_US)
    hour = export(Period(from_us=NOVEMBER_US, to_us=NOVEMBER_US + HOUR_US))
    desk.clock.advance(2 * 3600 - 1)
    with pytest.raises(NotReady, match="booked up to 2025-11-01T00:00Z"):
        exports.check(desk.ledger, hour)
    for worker in ("w1", "w2"):
        desk.ledger.leave(desk.term, worker)
    with pytest.raises(NotReady, match="booked up to 2025-11-01T00:59Z"):
        exports.check(desk.ledger, hour)
    exports.check(desk.ledger, replace(hour, provisional=True))
    desk.clock.advance(1)
    exports.check(desk.ledger, hour)
    meter = Meter(key_id="key_1", tenant="studio", show="s", model="m", price_class="on-demand", minute_us=HALF_PAST_US)
    counts = Counts(requests=1, prompt_tokens=5, completion_tokens=0, cached_tokens=0)
    desk.ledger.book_tokens("replica", [(meter, counts)])
    with pytest.raises(NotReady, match="booked up to 2025-11-01T00:30Z"):
        exports.check(desk.ledger, hour)
    desk.close()


def test_a_worker_that_comes_late_or_back_changes_no_file_of_a_closed_month(sqlite_url: str) -> None:
    desk = LedgerDesk(sqlite_url, start_us=DECEMBER_US - 2 * HOUR_US)
    november = export(Period(from_us=NOVEMBER_US, to_us=DECEMBER_US))
    december = export(Period(from_us=DECEMBER_US, to_us=JANUARY_US))
    until(desk, DECEMBER_US - HOUR_US)
    leave(desk, "w1", "w2")
    until(desk, DECEMBER_US + 2 * HOUR_US)
    exports.check(desk.ledger, november)
    sent = rows(desk, november)
    desk.join("w1")
    desk.join("w3", spawned_s_ago=3 * 3600)
    leave(desk, "w1", "w3")
    until(desk, JANUARY_US + 2 * HOUR_US)
    exports.check(desk.ledger, december)
    found = rows(desk, december)
    assert rows(desk, november) == sent
    assert total(found, ChargeClass="Correction") == 2 * usd(RATE)
    assert total(sent) + total(found) == usd(desk.spent("idle") + desk.spent("load"))
    desk.check()
    desk.close()


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ("2025-11-02", "2025-11-02", "not before the end"),
        ("2025-11-01T00:30Z", "2025-12-01", "no whole hour"),
        ("november", "2025-12-01", "no instant"),
        ("2025-11-01", "9999-12-31T23:00-12:00", "no instant"),
        ("1999-11-01", "2025-12-01", "no whole hour"),
    ],
)
def test_a_period_that_is_none_is_refused(first: str, last: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        exports.period_of(first, last, now_us=JANUARY_US)
    assert refused.value.field in ("from", "to")
    assert refused.value.remedy


def test_without_a_period_it_is_the_last_month_that_is_closed() -> None:
    november = Period(from_us=NOVEMBER_US, to_us=DECEMBER_US)
    assert exports.period_of(None, None, now_us=DECEMBER_US + GRACE_US) == november
    assert exports.period_of(None, None, now_us=DECEMBER_US + GRACE_US - 1).to_us == NOVEMBER_US
    assert exports.period_of("2025-11-01T01:00+01:00", "2025-12-01", now_us=0) == november


@pytest.mark.parametrize(
    "wrong", [{"period": Period(from_us=NOVEMBER_US, to_us=DECEMBER_US - HOUR_US)}, {"provisional": True}]
)
def test_an_invoice_is_of_whole_months_and_final(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        export(**{"period": Period(from_us=NOVEMBER_US, to_us=DECEMBER_US), "mode": Mode.INVOICE, **wrong})
    assert refused.value.remedy


# Random ledgers: workers whose time is a chain of intervals, split between attempts, some of which are booked again.


@st.composite
def chains(draw: st.DrawFn) -> list[Line]:
    """Of two workers around the end of November, by the rules of the ledger."""
    lines: list[Line] = []
    for worker in ("w1", "w2"):
        rate, gpus = draw(st.integers(0, 20_000_000_007)), draw(st.integers(1, 4))
        at_us = begun_us = DECEMBER_US - draw(st.integers(1, 20 * HOUR_US))
        own: dict[str, list[Line]] = defaultdict(list)
        for step in range(draw(st.integers(1, 6))):
            until_us = at_us + draw(st.integers(1, 6 * HOUR_US))
            nano = cost_until(rate, until_us - begun_us) - cost_until(rate, at_us - begun_us)
            who = draw(st.sets(st.integers(step // 2, step // 2 + 2), max_size=3))
            weights = [draw(st.integers(1, 5)) for _ in who]
            held = (until_us - at_us) * gpus
            shares = zip(who, split(nano, weights), split(held, weights), strict=True) if who else [(None, nano, held)]
            for attempt, part, time in shares:
                name = None if attempt is None else f"{worker}-{attempt}"
                lines.append(_line(worker, at_us, until_us, part, time, name, rate, gpus, len(lines)))
                if name is not None:
                    own[name].append(lines[-1])
            at_us = until_us
        for name in draw(st.sets(st.sampled_from(sorted(own)))) if own else ():
            booked_us = own[name][-1].to_us
            kind, other = "busy", "wasted"
            for _ in range(draw(st.integers(1, 3))):
                booked_us += draw(st.integers(0, 40 * HOUR_US))
                part = draw(st.sampled_from([1.0, 0.31])) if kind == "wasted" else 1.0
                lines += _again(
                    [line for line in lines if line.attempt_id == name], kind, other, part, booked_us, len(lines)
                )
                kind, other = other, kind
    return sorted(lines, key=lambda line: (str(line.worker_id), line.from_us, line.id))


def _line(
    worker: str, from_us: int, to_us: int, nano: int, held_us: int, attempt: str | None, rate: int, gpus: int, id_: int
) -> Line:
    of_task = {"job_id": "job", "task_id": "task", "role": "render", "recipe": "x.film", "task_key": "sh010.t1"}
    bare: dict[str, Any] = dict.fromkeys(Line._fields)
    whose = {"tenant": "studio", "show": "s", "kind": "busy", **of_task}
    return Line(
        **bare | (whose if attempt else {"tenant": "farm", "show": "farm", "kind": "idle"})
        | {
            "id": id_, "at_us": to_us, "attempt_id": attempt, "worker_id": worker, "from_us": from_us, "to_us": to_us,
            "held_us": held_us, "nano": nano, "accelerator": "H100", "price_class": "spot", "rate_card": "t",
            "nano_per_hour": rate, "num_accelerators": gpus,
        }
    )  # fmt: skip


def _again(own: list[Line], old: str, new: str, part: float, at_us: int, id_: int) -> list[Line]:
    """As `cluster.ledger.money` does it."""
    lines = [line for line in own if line.kind == old]
    held, nano = (round(part * sum(getattr(line, name) for line in lines)) for name in ("held_us", "nano"))
    if not lines or (not held and not nano):
        return []
    row = lines[0]._replace(
        at_us=at_us, from_us=min(x.from_us for x in lines), to_us=max(x.to_us for x in lines), note="lost"
    )  # fmt: skip
    return [
        row._replace(id=id_, kind=old, nano=-nano, held_us=-held),
        row._replace(id=id_ + 1, kind=new, nano=nano, held_us=held),
    ]


@given(chains(), st.lists(st.integers(-30, 200), max_size=3))
@settings(max_examples=80, deadline=None)
def test_random_ledgers_are_told_to_the_nano_however_time_is_cut(lines: list[Line], cuts: list[int]) -> None:
    ends = sorted({ALL.from_us, *(DECEMBER_US + hours * HOUR_US for hours in cuts), ALL.to_us})
    found: list[Charge] = []
    for first, last in pairwise(ends):
        found += charges(lines, Period(from_us=first, to_us=last))
    for what in ("nano", "held_us"):
        told, booked = Counter[Any](), Counter[Any]()
        for charge in found:
            told[charge.of.worker_id, charge.of.attempt_id, charge.of.kind] += getattr(charge.amounts, what)
        for line in lines:
            booked[line.worker_id, line.attempt_id, line.kind] += getattr(line, what)
        assert +told == +booked
        assert -told == -booked
    for charge in found:
        assert charge.correction == (month_of(charge.hour_us) < charge.month_us)
        assert charge.correction or min(charge.amounts) >= 0
    ratios = Counter[Any]()
    for charge in found:
        if charge.ratio is not None:
            ratios[charge.hour_us, charge.of.worker_id, charge.of.tenant] += charge.ratio
    assert set(ratios.values()) <= {WHOLE}
    whole = list(charges(lines, ALL))
    assert Counter(map(str, whole)) == Counter(map(str, found))
    assert _by_hour(whole) == _by_hour(charges([line for line in lines if line.note is None], ALL))


def _by_hour(found: Iterable[Charge]) -> Counter[Any]:
    """Of each attempt, whatever it is called: what is booked again stays in its hour."""
    nano = Counter[Any]()
    for charge in found:
        nano[charge.of.attempt_id or charge.of.worker_id, charge.hour_us] += charge.amounts.nano
    return +nano
