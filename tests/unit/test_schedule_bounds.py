"""The bounds that `cluster.schedule` states, on simulated shots: a fleet, a virtual clock, the real order."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.schedule import AGEING_S, KEPT, WINDOW_S, Balance, Candidate, Charge, ranked


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """A job: `num` shots of one show that become ready at once."""

    show: str
    tier: str = "normal"
    num: int = 100
    predicted_s: float = 10.0
    takes_s: float | None = None  # what a shot really takes, if not what is predicted
    at_s: float = 0.0
    priority: int = 50
    deadline_s: float | None = None
    chain: bool = False  # one shot is ready at a time: the next when it ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    at_s: float
    job: int
    show: str
    tier: str
    seconds: float
    takes_s: float
    waited_s: float
    oldest_s: float  # since when the oldest one of the same show and tier had been ready
    ready: dict[str, frozenset[str]]  # shows with READY work, by tier
    here: dict[str, frozenset[str]]  # shows with READY or running work, by tier


@dataclass
class Fleet:
    """Runs loads to their end, or to `until_s`. `given` is every lease in its order."""

    loads: Sequence[Load]
    shares: dict[str, float] = field(default_factory=dict)
    num_workers: int = 8
    until_s: float = float("inf")
    given: list[Given] = field(default_factory=list)

    def run(self) -> Fleet:
        balance = Balance()
        left = [load.num for load in self.loads]
        ready_s = [load.at_s for load in self.loads]
        free = [(0.0, n) for n in range(self.num_workers)]
        ends: list[tuple[float, int, Charge, float]] = []
        while any(left) and free[0][0] < self.until_s:
            now_s, worker = heapq.heappop(free)
            while ends and ends[0][0] <= now_s:
                _, _, charge, took_s = heapq.heappop(ends)
                balance.settle(charge, took_s)
            heads = [self._head(n, ready_s[n]) for n in range(len(left)) if left[n] and ready_s[n] <= now_s]
            standing = balance.standing(heads, shares=self.shares)
            best = ranked(heads, standing=standing, now_us=round(now_s * 1e6))
            if not best:
                heapq.heappush(free, (min(r for n, r in enumerate(ready_s) if left[n]), worker))
                continue
            job = int(best[0].job_id)
            load = self.loads[job]
            takes_s = load.predicted_s if load.takes_s is None else load.takes_s
            tiers = ("interactive", "normal", "batch")
            ready = {t: frozenset(c.show for c in heads if c.tier == t) for t in tiers}
            here = {t: ready[t] | {charge.show for _, _, charge, _ in ends if charge.tier == t} for t in tiers}
            self.given.append(
                Given(
                    at_s=now_s, job=job, show=load.show, tier=load.tier, seconds=load.predicted_s, takes_s=takes_s,
                    waited_s=now_s - ready_s[job], ready=ready, here=here,
                    oldest_s=min(c.ready_us for c in heads if (c.show, c.tier) == (load.show, load.tier)) / 1e6,
                )
            )  # fmt: skip
            charge = balance.charge(best[0], now_s=now_s)
            heapq.heappush(ends, (now_s + takes_s, len(self.given), charge, takes_s))
            heapq.heappush(free, (now_s + takes_s, worker))
            left[job] -= 1
            if load.chain:
                ready_s[job] = now_s + takes_s
        return self

    def _head(self, job: int, ready_s: float) -> Candidate:
        load = self.loads[job]
        return Candidate(
            task_id=f"{job:06}", job_id=str(job), epoch=0, show=load.show, tier=load.tier, priority=load.priority,
            deadline_us=None if load.deadline_s is None else round(load.deadline_s * 1e6),
            ready_us=round(ready_s * 1e6), predicted_s=load.predicted_s,
        )  # fmt: skip

    def lacking(self) -> list[str]:
        """Shows that lacked more of their share than the module states, in some window in which they had work."""
        longest_s, wrong = max(load.predicted_s for load in self.loads), []
        for tier in ("interactive", "normal", "batch"):
            for show in {load.show for load in self.loads}:
                num_shows = len({load.show for load in self.loads})
                for stretch in self._stretches(show, tier):
                    first, owed_s, got_s = 0, 0.0, 0.0
                    for g in stretch:
                        owed_s += self._owed(g, show, tier)
                        got_s += g.seconds * (g.show == show)
                        while g.at_s - stretch[first].at_s > WINDOW_S:
                            owed_s -= self._owed(stretch[first], show, tier)
                            got_s -= stretch[first].seconds * (stretch[first].show == show)
                            first += 1
                        if got_s < 0.9 * owed_s - (num_shows + 1) * longest_s - 1e-6:
                            wrong.append(f"{show} in {tier} at {g.at_s:.0f} s: {got_s:.0f} of {owed_s:.0f} s")
                            break
        return wrong

    def _stretches(self, show: str, tier: str) -> list[list[Given]]:
        """Leases in a row during which the show had READY work in the tier."""
        found: list[list[Given]] = [[]]
        for g in self.given:
            if show in g.ready[tier]:
                found[-1].append(g)
            elif found[-1]:
                found.append([])
        return found

    def _owed(self, g: Given, show: str, tier: str) -> float:
        whole = sum(self.shares.get(s, 1.0) for s in g.here[tier])
        return g.seconds * self.shares.get(show, 1.0) / whole if g.tier == tier else 0.0

    def seconds(self, *, between: tuple[float, float] = (0.0, float("inf"))) -> dict[str, float]:
        """What each show really got of what was leased in between."""
        sums: dict[str, float] = defaultdict(float)
        for g in self.given:
            if between[0] <= g.at_s < between[1]:
                sums[g.show] += g.takes_s
        return sums

    def kept(self, tier: str) -> list[str]:
        """Where a tier lacked more of what is kept for it than the module states."""
        longest_s, owed_s, wrong = max(load.predicted_s for load in self.loads), 0.0, []
        for g in self.given:
            if tier not in {t for t, shows in g.ready.items() if shows}:
                owed_s = 0.0
                continue
            owed_s = max(owed_s, 0.0) + KEPT * g.seconds - g.seconds * (g.tier == tier)
            if owed_s > 2 * longest_s + 1e-6:
                wrong.append(f"{tier} at {g.at_s:.0f} s lacks {owed_s:.0f} s")
        return wrong


loads = st.lists(
    st.builds(
        Load,
        show=st.sampled_from(["a", "b", "c", "d"]),
        tier=st.sampled_from(["interactive", "normal", "batch"]),
        num=st.integers(1, 300),
        predicted_s=st.floats(1, 30),
        at_s=st.floats(0, 3000),
        chain=st.booleans(),
    ),
    min_size=2,
    max_size=8,
)
weights = st.fixed_dictionaries({}, optional={s: st.floats(0.2, 5) for s in "abcd"})


@given(loads, weights, st.integers(1, 12))
def test_a_show_with_work_gets_its_share_of_every_window(work: list[Load], shares: dict[str, float], n: int) -> None:
    assert Fleet(work, shares, num_workers=n).run().lacking() == []


@given(loads, weights, st.integers(1, 12))
def test_lower_tiers_keep_a_tenth_while_they_have_work(work: list[Load], shares: dict[str, float], n: int) -> None:
    fleet = Fleet(work, shares, num_workers=n).run()
    assert fleet.kept("normal") + fleet.kept("batch") == []


def test_shares_are_kept_over_ten_thousand_shots() -> None:
    work = [Load(show=s, num=20_000, predicted_s=p) for s, p in (("a", 7), ("b", 20), ("c", 3), ("d", 11))]
    fleet = Fleet(work, {"a": 1, "b": 2, "c": 4, "d": 1}, num_workers=20, until_s=3000).run()
    got = fleet.seconds()
    whole = sum(got.values())
    assert len(fleet.given) > 10_000
    assert [got[s] / whole for s in "abcd"] == pytest.approx([1 / 8, 2 / 8, 4 / 8, 1 / 8], abs=0.005)


def test_shows_that_come_and_go_do_not_push_aside_the_one_that_stays() -> None:
    """With the use in a sliding window as the measure, each newcomer goes first until it has used as much."""
    steady = Load(show="steady", num=5000)
    guests = [Load(show=f"guest{n}", num=240, at_s=WINDOW_S + n * 300) for n in range(12)]
    fleet = Fleet([steady, *guests], num_workers=8, until_s=3 * WINDOW_S).run()
    got = fleet.seconds(between=(WINDOW_S, 2 * WINDOW_S))
    assert fleet.lacking() == []
    assert got["steady"] / sum(got.values()) > 0.28


def test_what_a_show_gets_as_interactive_counts_when_others_want_their_share() -> None:
    """Half of the fleet goes to the interactive clips of one show: the other one gets what is left."""
    clips = [Load(show="a", tier="interactive", num=40, at_s=100 * n) for n in range(60)]
    fleet = Fleet([*clips, Load(show="a", num=5000), Load(show="b", num=5000)], num_workers=8, until_s=6000).run()
    got = fleet.seconds(between=(600, 6000))
    assert got["b"] / sum(got.values()) == pytest.approx(0.5, abs=0.03)
    assert fleet.lacking() == []


def test_a_night_of_overuse_is_not_paid_back_for_more_than_a_part_of_a_window() -> None:
    night = [Load(show="a", tier="interactive", num=8000)]
    day = [Load(show="a", num=3000, at_s=9000), Load(show="b", num=3000, at_s=9000)]
    fleet = Fleet([*night, *day], num_workers=8, until_s=15_000).run()
    first = next(g.at_s for g in fleet.given if g.show == "b" and g.at_s > 10_000)
    got = fleet.seconds(between=(first, first + WINDOW_S))
    assert got["a"] > 0.4 * sum(got.values())


def test_a_show_that_takes_longer_than_predicted_gets_no_more_for_it() -> None:
    work = [Load(show="liar", num=9000, predicted_s=1, takes_s=10), Load(show="honest", num=9000, predicted_s=10)]
    got = Fleet(work, num_workers=8, until_s=4 * WINDOW_S).run().seconds()
    assert got["liar"] / sum(got.values()) == pytest.approx(0.5, abs=0.03)


def test_what_was_predicted_and_not_used_is_given_back() -> None:
    work = [Load(show="quick", num=9000, predicted_s=10, takes_s=1), Load(show="honest", num=9000, predicted_s=10)]
    got = Fleet(work, num_workers=8, until_s=WINDOW_S).run().seconds()
    assert got["quick"] / sum(got.values()) == pytest.approx(0.5, abs=0.03)


@given(loads)
def test_interactive_goes_before_normal_before_batch_but_for_what_is_kept(work: list[Load]) -> None:
    """No tier below the best one with work gets more than is kept for it, and one task."""
    longest_s = max(load.predicted_s for load in work)
    above_s, below_s = 0.0, 0.0
    for g in Fleet(work).run().given:
        best = next(t for t in ("interactive", "normal", "batch") if g.ready[t])
        above_s += g.seconds
        below_s += g.seconds * (g.tier != best)
    assert below_s <= 2 * KEPT * above_s + 2 * longest_s + 1e-6


def test_deadlines_go_in_their_order_within_a_show_and_before_what_has_none() -> None:
    work = [
        Load(show="a", num=50, deadline_s=d, priority=p) for d, p in ((None, 100), (9000, 100), (3000, 0), (6000, 50))
    ]
    order = [g.job for g in Fleet(work, num_workers=1).run().given]
    assert order == [2] * 50 + [3] * 50 + [1] * 50 + [0] * 50


def test_priority_orders_a_show_until_the_others_have_waited() -> None:
    """A task of priority 0 is overtaken by one of 100 for as long as AGEING_S, and no longer."""
    old = Load(show="a", num=1, priority=0)
    urgent = [Load(show="a", num=6, priority=100, at_s=s) for s in range(0, round(1.1 * AGEING_S), 60)]
    waited_s = next(g.waited_s for g in Fleet([old, *urgent], num_workers=1).run().given if g.job == 0)
    assert waited_s == pytest.approx(AGEING_S, abs=70)


@pytest.mark.parametrize("deadline_s", [-60, 60, 1e6], ids=["in-the-past", "soon", "far"])
def test_nothing_starves_behind_deadlines_that_go_on_coming(deadline_s: float) -> None:
    old = Load(show="a", num=1, priority=0)
    pressing = [
        Load(show="a", num=6, priority=100, at_s=s, deadline_s=s + deadline_s)
        for s in range(0, round(1.1 * AGEING_S), 60)
    ]
    waited_s = next(g.waited_s for g in Fleet([old, *pressing], num_workers=1).run().given if g.job == 0)
    assert waited_s == pytest.approx(AGEING_S, abs=70)


pressing_loads = st.lists(
    st.builds(
        Load,
        show=st.just("a"),
        num=st.integers(1, 60),
        predicted_s=st.floats(100, 900),
        at_s=st.floats(0, 30_000),
        priority=st.integers(0, 100),
        deadline_s=st.none() | st.floats(0, 60_000),
    ),
    min_size=2,
    max_size=8,
)


@given(pressing_loads)
def test_nothing_goes_before_what_is_due_that_came_after_it_was(work: list[Load]) -> None:
    for g in Fleet(work, num_workers=1).run().given:
        ready_s, due_s = g.at_s - g.waited_s, g.oldest_s + AGEING_S
        assert ready_s <= due_s or g.at_s < due_s
