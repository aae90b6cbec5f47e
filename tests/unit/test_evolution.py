"""Growing from tier to tier: how fast the fleet grows, and when it crosses."""

from __future__ import annotations

import numpy as np
import pytest
from small_frames import frame

from daemon.evolution import advice, growth, of_demand
from daemon.model import Frames
from daemon.policy import Policy
from daemon.posture import Day
from daemon.topology import Topology


def days(per_day: float, count: int = 36, start: float = 30.0, weekend: float = 0.7, seed: int = 1) -> Day:
    """Peaks of `count` days that grow by `per_day` GPUs, smaller at weekends, with a GPU or two of noise."""
    rng = np.random.default_rng(seed)
    peaks = [
        (start + per_day * d) * (weekend if d % 7 >= 5 else 1.0) + rng.normal(0.0, 0.7) for d in range(count)
    ]
    return Day(daily=[[float(20_000 + d), float(p)] for d, p in enumerate(peaks)])


def said(day: Day, tier: str = "small") -> list[str]:
    return [s for s in advice(day, Frames(0.0, {}), Policy(tier=tier)) if "crosses" in s]


def all_said(day: Day, before: list[tuple[float, float]] | None = None) -> list[str]:
    return advice(day, Frames(0.0, {}), Policy(tier="small"), before=before or ())


def test_steady_growth_says_when_the_tier_is_crossed() -> None:
    # 30 + 0.5 x 35 = 47.5 at the last working days: 16 GPUs more at 3.5 a week is five weeks.
    (sentence,) = said(days(0.5))

    assert "it crosses 64 GPUs in about 5 weeks" in sentence
    assert "medium architecture" in sentence


def test_weekends_are_no_shrinking_and_strange_days_move_nothing() -> None:
    day = days(0.5)
    day.daily[10][1], day.daily[20][1] = 5.0, 200.0

    assert "in about 5 weeks" in said(day)[0]


@pytest.mark.parametrize("per_day", [0.0, -0.3])
def test_without_growth_nothing_is_said(per_day: float) -> None:
    assert said(days(per_day)) == []


def test_two_weeks_are_needed() -> None:
    assert said(days(0.5, count=10)) == []
    assert np.isnan(growth([])).all()


def test_with_too_few_days_it_is_said_that_nothing_is_known_and_what_would_help() -> None:
    (sentence,) = all_said(days(0.5, count=10))

    assert sentence.startswith(
        "whether the next tier (64 GPUs) is near is not known: 9 days of demand are, two weeks are needed"
    )
    assert "sources.prometheus" in sentence


def test_days_of_history_stand_in_for_days_that_were_not_measured() -> None:
    whole = days(0.5)
    young = Day(daily=whole.daily[-5:])
    before = [(at, gpus) for at, gpus in whole.daily[:-5]]

    assert all_said(young, before) == all_said(whole)
    assert "in about 5 weeks" in all_said(young, before)[0]


def demand(day: Day, per_gpu: float) -> tuple[np.ndarray, np.ndarray]:
    """Requests in flight by the hour, a peak at noon of each day."""
    at = np.array([86_400.0 * d + 3600.0 * h for d, _ in day.daily for h in range(24)])
    values = np.array([p / per_gpu * (1.0 if h == 12 else 0.4) for _, p in day.daily for h in range(24)])
    return at, values


def test_past_demand_is_told_in_the_measure_of_the_days_that_were_seen() -> None:
    whole = days(0.5)
    # Demand alone would need four fifths of what stood on the days that were seen.
    found = of_demand([(*demand(whole, 0.1), 0.08)], whole.daily[-5:])

    assert [at for at, _ in found] == [at for at, _ in whole.daily]
    assert [gpus for _, gpus in found] == pytest.approx([gpus for _, gpus in whole.daily])


def test_a_day_on_which_a_pool_is_missing_is_left_out() -> None:
    two = Day(daily=[[0.0, 8.0], [1.0, 8.0]])
    at, values = demand(two, 1.0)
    gap = np.where(at < 86_400.0, values, np.nan)

    assert [d for d, _ in of_demand([(at, values, 1.0), (at, gap, 1.0)], [])] == [0.0]


def test_a_large_cluster_crosses_nothing_and_half_a_year_is_the_horizon() -> None:
    assert said(days(0.5), "large") == []
    assert said(days(0.05, start=31.0)) == []


def test_the_day_keeps_the_highest_of_each_day_for_ten_weeks() -> None:
    day = Day()
    for number in range(80):
        for hour, serving in ((3, 8), (14, 16), (22, 10)):
            at = 86_400.0 * number + 3600.0 * hour
            gpus = {f"n/gpu{k}": {"util_ratio": 0.5} for k in range(serving)}
            gpu = frame("gpu", at, gpus, {g: {"engine": "e"} for g in gpus})
            day.watch(Frames(at, {"gpu": gpu}), Topology())

    assert len(day.daily) == 70
    assert {peak for _, peak in day.daily} == {16.0}
