"""Where demand goes while a replica starts: what lasts, what the forecast adds, how wrong that has been."""

import math

import numpy as np
import pytest

from daemon.model import Forecast
from daemon.pace import GROWTH_MAX, PAST_S, Pace, expected, growth_of, lately, level_at, watch

HOUR = 3600.0


def ahead(*medians: float, at: float = 0.0) -> Forecast:
    row = np.array(medians)
    return Forecast(at, "chat", "concurrency", HOUR, (0.5, 0.9), np.array([row, 1.2 * row]))


def watched(demand: list[float], *, horizon_s: float = 120.0, step_s: float = 15.0) -> Pace:
    pace = Pace()
    for k, work in enumerate(demand):
        watch(pace, work, k * step_s, horizon_s, None)
    return pace


def test_the_median_is_read_between_the_middles_of_the_hours():
    assert level_at(ahead(10.0, 20.0, 30.0), 0.5 * HOUR) == 10.0
    assert level_at(ahead(10.0, 20.0, 30.0), 1.0 * HOUR) == 15.0
    assert math.isnan(level_at(ahead(10.0, 20.0), 5 * HOUR))
    assert level_at(ahead(10.0), 0.2 * HOUR) == 10.0


def test_the_first_half_hour_goes_on_as_the_first_line_does():
    assert level_at(ahead(20.0, 10.0), 0.25 * HOUR) == 22.5
    assert growth_of(ahead(20.0, 10.0, 5.0), 0.0, 0.5 * HOUR) == pytest.approx(0.8)
    assert level_at(ahead(1.0, 9.0), 0.0) == 0.0


def test_growth_is_what_the_forecast_says_within_reason():
    assert growth_of(ahead(10.0, 20.0, 30.0), 0.5 * HOUR, 0.5 * HOUR) == pytest.approx(1.5)
    assert growth_of(ahead(1.0, 100.0, 100.0), 0.5 * HOUR, HOUR) == GROWTH_MAX
    assert growth_of(None, 0.0, HOUR) == 1.0
    assert growth_of(ahead(0.0, 5.0), 0.5 * HOUR, 0.25 * HOUR) == 1.0


def test_unknown_demand_changes_nothing():
    pace = watched([100.0] * 50)
    before = (pace.fast, pace.slow, list(pace.errors))

    watch(pace, math.nan, 50 * 15.0, 120.0, None)

    assert (pace.fast, pace.slow, pace.errors) == before


def test_bursts_that_are_over_before_a_replica_starts_are_found_not_to_last():
    calm_then_spike = ([100.0] * 36 + [180.0] * 4) * 60

    assert watched(calm_then_spike, horizon_s=240.0).lasts < 0.2


def test_changes_that_stay_are_found_to_last():
    stairs = [100.0 * (1.0 + (k // 200) % 2) for k in range(8000)]

    assert watched(stairs, horizon_s=60.0).lasts > 0.5


def test_steady_demand_is_expected_with_little_doubt_and_wild_demand_with_much():
    rng = np.random.default_rng(1)
    calm = watched([100.0] * 8000)
    wild = watched((100.0 * np.exp(0.5 * rng.standard_normal(400))).repeat(20).tolist())

    assert calm.factors[-1] < 1.06
    assert wild.factors[-1] > 1.3
    assert expected(calm, 1.2) == pytest.approx(120.0)


# -- the last half hour --------------------------------------------------------------------------------------


def test_the_last_half_hour_is_kept_minute_by_minute():
    pace = watched([100.0] * 400)

    assert lately(pace, None, 400 * 15.0, 120.0) == pytest.approx([100.0] * 30)
    assert pace.at - pace.past[0][0] < PAST_S


def test_what_was_needed_half_an_hour_ago_has_fallen_as_the_forecast_has_it():
    falling, pace = ahead(100.0, 60.0, 36.0), Pace()
    for k in range(160):
        watch(pace, 100.0, k * 15.0, 120.0, falling)

    past = lately(pace, falling, 2400.0, 0.0)

    assert past[0] == pytest.approx(100.0 * level_at(falling, 2400.0) / level_at(falling, pace.past[0][0]))
    assert past[0] < past[15] < past[-1] <= 100.0


def test_what_the_forecast_has_risen_since_is_not_added_twice():
    rising, pace = ahead(60.0, 100.0, 140.0), Pace()
    for k in range(160):
        watch(pace, 100.0, k * 15.0, 120.0, rising)

    assert lately(pace, rising, 2400.0, 0.0) == pytest.approx([100.0] * 30)
