"""What work is likely to take and to cost: pure, by what attempts have taught."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest

from cluster.forecast import Before, Crew, Kind, Span, forecast, total
from cluster.rates import cost_until
from cluster.timing import Pace, Paces, Sample, shape_of

HOUR_NANO = 3_600_000_000  # a worker-second costs 1,000,000
CPU = Crew(
    role="render", model="house", accelerator="cpu", num_accelerators=0, price_class="spot", rate_card="t",
    nano_per_hour=HOUR_NANO, num_workers=1,
)  # fmt: skip
NOBODY = Crew(
    role="", model=None, accelerator="cpu", num_accelerators=0, price_class="on-demand", rate_card="t",
    nano_per_hour=2 * HOUR_NANO, num_workers=0,
)  # fmt: skip


def take(num_tasks: int = 1, predicted_s: float = 6.0, **more: str | None) -> Kind:
    named: dict[str, str | None] = {"step": "render", "role": "render", "model": "house", "shape": "s", **more}
    return Kind(**named, predicted_s=predicted_s, num_tasks=num_tasks)  # type: ignore[arg-type]


def taught(*actual_s: float, shape: str | None = "s", model: str = "house", predicted_s: float = 6.0) -> list[Sample]:
    return [
        Sample(step="render", model=model, shape=shape, predicted_s=predicted_s, actual_s=actual) for actual in actual_s
    ]


def crew(**more: object) -> Crew:
    return Crew(**{**{name: getattr(CPU, name) for name in CPU.__slots__}, **more})  # type: ignore[arg-type]


def test_nothing_learned_is_the_prediction_of_the_recipe_and_says_so():
    found = forecast([take()], paces=Paces(taught(9.0, 9.0)), crews=[CPU], unknown=NOBODY, before=Before())
    assert found.steps[0].pace == Pace(mean=1.0, p50=1.0, p95=3.0, num_samples=0)
    assert found.elapsed_s == Span(p50=6.0, p95=18.0)
    assert found.nano == Span(p50=6_000_000, p95=18_000_000)


def test_an_accelerator_is_known_by_what_ran_on_it_and_a_new_one_by_what_ran_on_all():
    slow, fast = (
        [replace(one, accelerator=kind) for one in taught(*took)]
        for kind, took in (("cpu", (60,) * 4), ("h100", (6,) * 4))
    )
    here = {kind: crew(accelerator=kind) for kind in ("cpu", "h100", "new")}
    found = {
        kind: forecast([take()], paces=Paces([*slow, *fast]), crews=[one], unknown=NOBODY, before=Before())
        for kind, one in here.items()
    }
    assert [found[kind].elapsed_s.p50 for kind in ("cpu", "h100")] == [60.0, 6.0]
    assert {kind: one.steps[0].pace.num_samples for kind, one in found.items()} == {"cpu": 4, "h100": 4, "new": 8}


def test_what_was_learned_of_its_own_shape_counts_before_what_was_learned_of_its_model():
    paces = Paces([*taught(12, 12, 12), *taught(3, 3, 3, 3, shape="other"), *taught(60, 60, 60, model="big")])
    assert paces.of("render", "house", "s") == Pace(mean=2.0, p50=2.0, p95=2.0, num_samples=3)
    assert paces.of("render", "house", "unseen").num_samples == 7
    assert paces.of("render", "house", "unseen").p50 == 0.5
    assert paces.of("render", "third", "s").num_samples == 0
    assert paces.of("conform", "house", "s").num_samples == 0


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ({"width_px": 512, "height_px": 512, "num_frames": 24, "num_steps": 16, "prompt": "a", "seed": 1},
         "width_px=512 height_px=512 num_frames=24 num_steps=16"),
        ({"num_shots": 4, "logline": "x"}, "num_shots=4"),
        ({"takes": []}, None),
        ({"num_frames": None}, None),
    ],
    ids=["take", "script", "conform", "null"],
)  # fmt: skip
def test_the_shape_of_a_task_is_what_decides_how_long_it_takes(asked: dict[str, object], shape: str | None):
    assert shape_of(asked) == shape


def test_many_tasks_are_spread_over_the_workers_and_each_costs():
    found = forecast(
        [take(7)], paces=Paces(taught(6, 6, 6)), crews=[crew(num_workers=3)], unknown=NOBODY, before=Before()
    )
    assert found.elapsed_s.p50 == 3 * 6  # three rounds of three workers
    assert found.held_s.p50 == 7 * 6
    assert found.nano.p50 == 7 * cost_until(HOUR_NANO, 6_000_000)


def test_the_accelerators_of_a_gang_are_all_counted_and_its_price_is_that_of_the_whole_worker():
    gang = crew(accelerator="H100", num_accelerators=4, nano_per_hour=4 * HOUR_NANO)
    found = forecast([take()], paces=Paces(taught(6, 6, 6)), crews=[gang], unknown=NOBODY, before=Before())
    assert (found.elapsed_s.p50, found.held_s.p50, found.nano.p50) == (6, 24, 24_000_000)


def test_workers_of_another_model_or_role_do_not_count():
    other, finisher = crew(model="big", num_workers=9), crew(role="finish", model=None, num_workers=9)
    found = forecast([take()], paces=Paces(()), crews=[other, finisher, CPU], unknown=NOBODY, before=Before())
    assert found.steps[0].crew == CPU
    alone = forecast([take()], paces=Paces(()), crews=[other, finisher], unknown=NOBODY, before=Before())
    assert alone.steps[0].crew == NOBODY
    cut = take(step="conform", role="finish", model=None)
    assert (
        forecast([cut], paces=Paces(()), crews=[finisher, CPU], unknown=NOBODY, before=Before()).steps[0].crew
        == finisher
    )


def test_workers_of_two_prices_work_together_at_the_price_of_the_most():
    dear, cheap = crew(nano_per_hour=5 * HOUR_NANO), crew(num_workers=2)
    found = forecast([take(3)], paces=Paces(()), crews=[dear, cheap], unknown=NOBODY, before=Before())
    assert found.steps[0].crew.num_workers == 3
    assert (found.elapsed_s.p50, found.nano.p50) == (6.0, 18_000_000)


@pytest.mark.parametrize(
    ("before", "num_workers", "wait"),
    [
        (Before(), 1, Span(p50=0, p95=0)),
        (Before(running_s=6, num_running=1), 2, Span(p50=0, p95=0)),
        (Before(running_s=6, num_running=1), 1, Span(p50=6, p95=12)),
        (Before(running_s=6, num_running=1, ready_s=12), 1, Span(p50=30, p95=36)),
        (Before(running_s=6, num_running=1, ready_s=12), 2, Span(p50=15, p95=18)),
        (Before(ready_s=12), 0, None),
    ],
    ids=["idle", "a-worker-is-free", "half-done", "queue", "two-workers", "nobody"],
)
def test_the_wait_is_what_comes_first_at_the_pace_that_was_learned(before: Before, num_workers: int, wait: Span | None):
    paces = Paces(taught(12, 12, 12))
    found = forecast([take()], paces=paces, crews=[crew(num_workers=num_workers)], unknown=NOBODY, before=before)
    assert found.wait_s == wait


@pytest.mark.parametrize(("num_samples", "tightness"), [(20, 0.9), (200, 0.85)])
def test_what_fifty_tasks_come_to_is_mostly_below_the_p95_which_is_far_below_fifty_of_them(
    num_samples: int, tightness: float
):
    """Over many farms, each of which has learned from attempts of its own."""
    draw, below = random.Random(7), []

    def uneven() -> float:  # mostly quick, sometimes slow: the mean is above the median
        return draw.choice([4.0, 5.0, 5.0, 6.0, 12.0])

    for _ in range(200):
        paces = Paces(taught(*(uneven() for _ in range(num_samples))))
        found = forecast([take(50)], paces=paces, crews=[CPU], unknown=NOBODY, before=Before())
        below.append(sum(uneven() for _ in range(50)) <= found.held_s.p95)
        assert found.held_s.p95 < 50 * 12.0 * tightness
    assert statistics.fmean(below) > 0.9


def test_parts_that_follow_each_other_add_up_to_less_than_their_p95s():
    assert total([Span(p50=1, p95=4), Span(p50=2, p95=6)]) == Span(p50=3, p95=8)
    assert total([]) == Span(p50=0, p95=0)


def test_a_machine_that_has_become_busy_is_believed_for_all_shapes_and_for_few_tasks():
    """Five takes of one shape took three times as long as that shape did: so will one of another shape."""
    calm = [*taught(*[6.0] * 9), *taught(*[12.0] * 9, shape="long", predicted_s=12.0)]
    paces = Paces([*taught(*[18.0] * 5), *calm])
    assert paces.of("render", "house", "long", 12.0).p50 == pytest.approx(3.0)
    assert Paces(calm).of("render", "house", "long", 12.0).p50 == 1.0
    one, many = (forecast([take(n, predicted_s=12.0, shape="long")], paces=paces, crews=[CPU], unknown=NOBODY,
                          before=Before()).held_s.p50 for n in (1, 500))  # fmt: skip
    assert (one, many) == (pytest.approx(36.0), pytest.approx(500 * 12.0, rel=0.05))


def test_a_shape_that_nobody_has_seen_has_the_base_of_the_others_and_grows_with_what_was_predicted():
    """Ten seconds, and two for each that was predicted: no ratio would fit both."""
    paces = Paces([*taught(*[14.0] * 4, shape="short", predicted_s=2.0), *taught(*[30.0] * 4, predicted_s=10.0)])
    assert paces.of("render", "house", "unseen", 6.0).p50 * 6.0 == pytest.approx(22.0)
    assert paces.of("render", "house", "unseen", 0.1).p50 * 0.1 == pytest.approx(10.2)
