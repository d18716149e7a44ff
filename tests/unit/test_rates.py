from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidSettings
from cluster.rates import GIB, GIB_MONTH, HOUR_US, cost_until, load_rate_card, split, usd

AT = datetime(2026, 11, 21, tzinfo=UTC)


def card(folder: Path, rates: str, head: str = 'version: "t"') -> Path:
    path = folder / "rates.yaml"
    path.write_text(f"{head}\nrates: {rates}\n", encoding="utf-8")
    return path


def line(**more: str) -> str:
    row = {"accelerator": "GPU", "price_class": "spot", "usd_per_hour": '"2.5"', "since": "2026-01-01"} | more
    return "[{" + ", ".join(f"{k}: {v}" for k, v in row.items()) + "}]"


def test_the_card_that_comes_with_the_project_prices_a_cpu() -> None:
    rate = load_rate_card().rate("cpu", "on-demand", AT)
    assert rate.nano_per_hour == 40_000_000


def test_the_card_that_comes_with_the_project_prices_room_what_leaves_and_tokens() -> None:
    mine = load_rate_card()
    assert mine.gaps(AT, held=[("H100", "spot")], models=["house-writer"]) == []
    assert mine.price("storage", AT).of(GIB_MONTH) == 23_000_000
    assert mine.price("egress", AT).of(GIB // 2) == 45_000_000
    assert mine.price("completion", AT, model="house-writer").of(10**9) == 0


def test_a_model_has_its_own_price_of_tokens_from_a_date_on(tmp_path: Path) -> None:
    rows = ", ".join(
        f"{{model: {model}, prompt_usd_per_million: {price}, completion_usd_per_million: 9, since: {since}}}"
        for model, price, since in (
            ('"*"', 1, "2026-01-01"),
            ("big", 2, "2026-01-01"),
            ("big", 3, "2026-11-01"),
            ("big", 4, "2027-01-01"),
        )
    )
    mine = load_rate_card(card(tmp_path, f"{line()}\ntokens: [{rows}]"))
    assert [mine.price("prompt", AT, model=m).of(1_500_000) for m in ("small", "big")] == [15 * 10**8, 45 * 10**8]
    assert mine.price("prompt", datetime(2026, 10, 31, tzinfo=UTC), model="big").nano == 2 * 10**9
    assert mine.price("completion", AT, model="big").of(1) == 9_000


def test_every_gap_of_a_card_is_named_with_its_remedy(tmp_path: Path) -> None:
    old = load_rate_card(card(tmp_path, line()))
    gaps = old.gaps(AT, held=[("GPU", "spot"), ("TPU", "spot")], models=["m"])
    assert [gap.field for gap in gaps] == ["rates", "storage", "egress", "tokens", "tokens"]
    assert all("FARM_RATE_CARD" in str(gap.remedy) for gap in gaps)
    assert "no price for completion tokens of m on 2026-11-21" in gaps[-1].line()


@pytest.mark.parametrize(
    ("section", "row"),
    [
        ("storage", '{usd_per_gib_month: "-0.1", since: 2026-01-01}'),
        ("egress", "{since: 2026-01-01}"),
        ("egress", '{usd_per_gib: "1"}'),
        ("tokens", "{prompt_usd_per_million: 1, completion_usd_per_million: 1, since: 2026-01-01}"),
        ("tokens", "{model: m, prompt_usd_per_million: .nan, completion_usd_per_million: 1, since: 2026-01-01}"),
    ],
)
def test_a_bad_price_of_a_meter_is_refused_by_its_line(tmp_path: Path, section: str, row: str) -> None:
    with pytest.raises(InvalidSettings, match=rf"cannot read the rate {section}\[0\]") as refused:
        load_rate_card(card(tmp_path, f"{line()}\n{section}: [{row}]"))
    assert refused.value.field == f"{section}[0]"


def test_the_newest_rate_in_force_counts(tmp_path: Path) -> None:
    rows = "".join(line(usd_per_hour=f'"{n}"', since=f"2026-{n:02}-01")[1:-1] + "," for n in (1, 3, 12))
    rates = load_rate_card(card(tmp_path, f"[{rows}]"))
    assert rates.rate("GPU", "spot", AT).nano_per_hour == 3 * 10**9
    assert rates.rate("GPU", "spot", datetime(2026, 2, 28, 23, tzinfo=UTC)).nano_per_hour == 10**9


@pytest.mark.parametrize(("accelerator", "price_class"), [("TPU", "spot"), ("GPU", "on-demand")])
def test_a_gap_in_the_card_is_said_with_a_remedy(tmp_path: Path, accelerator: str, price_class: str) -> None:
    rates = load_rate_card(card(tmp_path, line()))
    with pytest.raises(InvalidSettings, match=f"no price for {accelerator}, {price_class}") as refused:
        rates.rate(accelerator, price_class, AT)
    assert "FARM_RATE_CARD" in str(refused.value.remedy)
    with pytest.raises(InvalidSettings):
        rates.rate("GPU", "spot", datetime(2025, 12, 31, tzinfo=UTC))


@pytest.mark.parametrize(
    "bad",
    [
        *({"usd_per_hour": x} for x in ('"-1"', '".nan"', ".nan", ".inf", '"Infinity"', "free", "true")),
        *({"since": x} for x in ('"2026-13-01"', "2026-13-01", "yesterday", "2026-01-01T00:00:00Z")),
    ],
    ids=str,
)
def test_a_bad_line_is_refused_by_its_number(tmp_path: Path, bad: dict[str, str]) -> None:
    with pytest.raises(InvalidSettings, match=r"rates\[0\]") as refused:
        load_rate_card(card(tmp_path, line(**bad)))
    assert refused.value.field == "rates[0]"
    assert "FARM_RATE_CARD" in str(refused.value.remedy)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "cannot read"),
        ("[1, 2]", "cannot read"),
        ("version: x", "cannot read"),
        ("version: x\nrates: [a", "cannot read"),
        ("version: x\nrates: [a]", r"rates\[0\]"),
        ("version: x\nrates: [{}]", "it has no 'usd_per_hour'"),
        ("version: x\nrates:", "rates is no list"),
        ("version: x\nrates: []\nstorage: {}\negress: free", "egress is no list"),
        ("version: x\ncurrency: EUR\nrates: []", "only USD"),
    ],
)
def test_a_file_that_is_no_rate_card_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSettings, match=what) as refused:
        load_rate_card(path)
    assert "FARM_RATE_CARD" in str(refused.value.remedy)


def test_bytes_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    with pytest.raises(InvalidSettings, match="cannot read"):
        load_rate_card(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidSettings, match="cannot read"):
        load_rate_card(path)


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**13), max_size=20))
def test_adjoining_intervals_cost_what_the_whole_costs(rate: int, steps: list[int]) -> None:
    ends = [0]
    for step in steps:
        ends.append(ends[-1] + step)
    parts = [cost_until(rate, b) - cost_until(rate, a) for a, b in pairwise(ends)]
    assert sum(parts) == cost_until(rate, ends[-1])
    assert min(parts, default=0) >= 0
    assert abs(cost_until(rate, ends[-1]) - Decimal(rate) * ends[-1] / HOUR_US) <= Decimal("0.5")


@given(st.integers(-(10**15), 10**15), st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_a_split_loses_nothing_and_is_off_by_less_than_one(total: int, weights: list[int]) -> None:
    parts = split(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    if whole:
        assert all(abs(p - Decimal(total) * w / whole) < 1 for p, w in zip(parts, weights, strict=True))


def test_equal_remainders_go_to_the_earlier() -> None:
    assert split(8, [1, 1, 1]) == [3, 3, 2]
    assert split(5, [0, 0]) == [3, 2]


@pytest.mark.parametrize("weights", [[], [1, -1]])
def test_weights_must_be_some_and_none_below_zero(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="weights"):
        split(1, weights)


def test_nano_dollars_are_exact_dollars() -> None:
    assert usd(1) == Decimal("0.000000001")
    assert usd(40_000_000) == Decimal("0.04")
