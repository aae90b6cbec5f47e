"""The forecaster on series whose future is known, and on series that are hardly one."""

import numpy as np
import pytest

from daemon.model import Occasion, Track
from daemon.outlook import along
from detectors.forecast import LEVELS, BlendForecaster, fill, fit, forecast_series, hourly, plugin
from detectors.forecast_backtest import backtest
from detectors.forecast_bands import ranks_of
from detectors.forecast_blend import INLINE
from detectors.forecast_growth import growth_of
from detectors.forecast_members import DAY, MEMBERS, WEEK, members
from detectors.forecast_shift import shift_of

START = 1_780_272_000.0
"""A Monday, 00:00 UTC."""


def tide(hours: int, *, noise: float = 0.0, seed: int = 1, level: float = 100.0) -> np.ndarray:
    """Daily and weekly rhythm around `level`."""
    t = np.arange(hours)
    day = 1.0 + 0.5 * np.sin(2 * np.pi * (t - 8) / DAY)
    week = np.where((t // DAY) % 7 >= 5, 0.7, 1.0)
    return level * day * week * (1 + noise * np.random.default_rng(seed).standard_normal(hours))


def middle(quantiles: np.ndarray) -> np.ndarray:
    return quantiles[LEVELS.index(0.5)]


def test_a_seasonal_series_is_continued():
    whole = tide(5 * WEEK)

    made = forecast_series(whole[: 4 * WEEK], WEEK)

    assert made.quantiles.shape == (len(LEVELS), WEEK)
    assert np.abs(middle(made.quantiles) - whole[4 * WEEK :]).mean() < 0.05 * whole.mean()
    assert np.isnan(made.skill) or made.skill > 0


@pytest.mark.parametrize("noise", [0.04, 0.1, 0.2])
def test_with_noise_it_beats_last_weeks_values_and_says_so(noise: float):
    """Four weeks' mean is off by 1.12 of the noise, last week's values by 1.41: a ratio of 0.79 is to be had."""
    whole = tide(5 * WEEK, noise=noise)
    truth = whole[4 * WEEK :]

    made = forecast_series(whole[: 4 * WEEK], WEEK)

    off = np.abs(middle(made.quantiles) - truth).mean()
    assert off < 0.85 * np.abs(whole[3 * WEEK : 4 * WEEK] - truth).mean()
    assert made.skill < 0.92


def test_a_series_that_repeats_itself_exactly_gives_no_ratio_of_rounding_errors():
    made = forecast_series(tide(5 * WEEK), WEEK)

    assert made.skill < 1000.0
    assert middle(made.quantiles) == pytest.approx(tide(6 * WEEK)[5 * WEEK :], rel=0.02)


def test_bands_hold_most_of_what_comes():
    inside = []
    for seed in range(6):
        whole = tide(5 * WEEK, noise=0.15, seed=seed)
        made = forecast_series(whole[: 4 * WEEK], 72)
        truth = whole[4 * WEEK : 4 * WEEK + 72]
        inside.append(
            (
                (truth >= made.quantiles[LEVELS.index(0.1)]) & (truth <= made.quantiles[LEVELS.index(0.9)])
            ).mean()
        )

    assert 0.65 < np.mean(inside) <= 1.0


@pytest.mark.parametrize(
    "series",
    [
        tide(4 * WEEK, noise=0.3),
        np.full(4 * WEEK, 7.0),
        tide(60),
        np.r_[tide(3 * WEEK), 3 * tide(WEEK)],
    ],
    ids=["noisy", "constant", "short", "shifted"],
)
def test_quantiles_are_ordered_finite_and_never_negative(series: np.ndarray):
    made = forecast_series(series, WEEK)

    assert np.isfinite(made.quantiles).all()
    assert (made.quantiles >= 0.0).all()
    assert (np.diff(made.quantiles, axis=0) >= 0.0).all()


def test_a_constant_series_stays_where_it_is():
    made = forecast_series(np.full(3 * WEEK, 7.0), 72)

    assert middle(made.quantiles) == pytest.approx(np.full(72, 7.0), rel=0.02)


def test_nothing_but_zeros_is_refused_and_never_passed_off_as_a_forecast():
    made = forecast_series(np.zeros(3 * WEEK), 72)

    assert np.isnan(made.quantiles).all()
    assert made.note == "nothing but zeros for 504 h: no demand has been seen, so none can be forecast"


@pytest.mark.parametrize("hours", [0, 1, 2 * DAY - 1])
def test_under_two_days_of_history_nothing_is_known(hours: int):
    made = forecast_series(tide(hours) if hours else np.empty(0), 72)

    assert made.quantiles.shape == (len(LEVELS), 72)
    assert np.isnan(made.quantiles).all()
    assert np.isnan(made.skill)


def test_two_days_of_history_are_enough_for_a_day_shape():
    whole = tide(3 * DAY)

    made = forecast_series(whole[: 2 * DAY], DAY)

    assert np.corrcoef(middle(made.quantiles), whole[2 * DAY :])[0, 1] > 0.8


def test_gaps_cost_little():
    whole = tide(5 * WEEK)
    holed = whole[: 4 * WEEK].copy()
    holed[np.random.default_rng(2).random(holed.size) < 0.1] = np.nan
    holed[2 * WEEK : 2 * WEEK + 30] = np.nan

    made = forecast_series(holed, 72)

    assert np.abs(middle(made.quantiles) - whole[4 * WEEK : 4 * WEEK + 72]).mean() < 0.1 * whole.mean()


def test_a_gap_is_filled_with_the_past_only():
    y = np.arange(float(WEEK + 5))
    y[:2] = np.nan
    y[WEEK + 3] = np.nan

    filled = fill(y)

    assert filled.size == y.size - 2  # leading gaps are no history
    assert filled[WEEK + 1] == y[3]  # the same hour a week before


def test_after_a_level_shift_the_next_hours_follow_the_new_level():
    series = np.r_[tide(4 * WEEK), 2.0 * tide(3 * DAY)]
    truth = 2.0 * tide(4 * DAY)[3 * DAY :]

    made = forecast_series(series, DAY)

    assert np.abs(middle(made.quantiles)[:6] - truth[:6]).mean() < 0.35 * truth[:6].mean()
    assert made.quantiles[LEVELS.index(0.95)][:DAY].sum() > middle(made.quantiles).sum()


def test_samples_become_means_of_full_hours_with_gaps_kept():
    at = START + np.array([0.0, 1800.0, 3 * 3600.0, 3 * 3600.0 + 60.0])

    hours, values = hourly(at, np.array([1.0, 3.0, 5.0, np.nan]))

    assert hours.tolist() == [START + 3600.0 * k for k in range(4)]
    assert values[0] == 2.0
    assert np.isnan(values[1:3]).all()
    assert values[3] == 5.0


def test_the_forecast_begins_at_the_hour_after_the_last_sample():
    at = START + 300.0 * np.arange(4 * WEEK * 12)

    forecast = fit(Track("chat", at, np.repeat(tide(4 * WEEK), 12)), 168 * 3600.0)

    assert forecast.at == START + 4 * WEEK * 3600.0
    assert (forecast.target, forecast.signal, forecast.step_s) == ("chat", "concurrency", 3600.0)
    assert forecast.at_level(0.9).shape == (168,)
    with pytest.raises(ValueError, match="tuple"):
        forecast.at_level(0.42)


def test_a_forecaster_without_any_sample_knows_nothing():
    forecaster = BlendForecaster(Track("chat", np.empty(0), np.empty(0)))

    assert np.isnan(forecaster.forecast(3600.0 * 24).quantiles).all()


# -- no look-ahead ----------------------------------------------------------------------------------------


def test_a_spike_in_the_future_changes_nothing_before_it():
    whole = tide(6 * WEEK, noise=0.1)
    spiked = whole.copy()
    spiked[5 * WEEK :] *= 50.0

    calm, warned = (forecast_series(y[: 5 * WEEK], WEEK) for y in (whole, spiked))

    assert np.array_equal(calm.quantiles, warned.quantiles)
    assert np.array_equal(calm.ranks, warned.ranks)


def test_past_origins_of_a_fit_see_nothing_after_themselves():
    whole = tide(5 * WEEK, noise=0.1)
    spiked = whole.copy()
    spiked[-1] *= 50.0

    before = members(whole[: 4 * WEEK], WEEK)
    after = members(spiked[: 4 * WEEK], WEEK)

    assert np.array_equal(before, after)


def test_a_backtest_scores_origins_with_the_past_alone():
    whole = tide(6 * WEEK, noise=0.1)
    spiked = whole.copy()
    spiked[-20:] *= 50.0

    calm, wild = backtest(whole), backtest(spiked)

    # The last 20 hours come after every truth of one hour ahead, so that row cannot differ.
    assert calm[0] == wild[0]
    assert [row["hours"] for row in calm] == [1, 24, 72, 168]
    assert calm[3]["error_ratio"] < 1.0


def test_the_same_series_gives_the_same_forecast_twice():
    y = tide(4 * WEEK, noise=0.1)

    assert np.array_equal(forecast_series(y, WEEK).quantiles, forecast_series(y, WEEK).quantiles)


# -- bad input --------------------------------------------------------------------------------------------


def test_a_constant_series_keeps_a_width():
    made = forecast_series(np.full(3 * WEEK, 7.0), 72)

    assert (made.quantiles[-1] > made.quantiles[0]).all()


def test_an_all_missing_series_says_that_there_is_no_history():
    made = forecast_series(np.full(3 * WEEK, np.nan), 72)

    assert np.isnan(made.quantiles).all()
    assert made.note.startswith("not enough history (have 0 h, need 48 h")


def test_three_points_say_how_many_are_needed():
    made = forecast_series(np.array([1.0, 2.0, 3.0]), 72)

    assert made.note.startswith("not enough history (have 3 h, need 48 h")


def test_infinite_values_count_as_missing():
    y = tide(3 * WEEK)
    y[100], y[200] = np.inf, -np.inf

    assert np.isfinite(forecast_series(y, 72).quantiles).all()


def test_unordered_and_doubled_timestamps_make_the_same_hours():
    at = START + 3600.0 * np.arange(100)
    values = tide(100)
    order = np.random.default_rng(3).permutation(np.r_[0:100, 0:100])

    hours, means = hourly(at[order], values[order])

    assert np.array_equal(hours, at)
    assert means == pytest.approx(values)


def test_an_hour_doubled_by_the_end_of_summer_time_is_averaged():
    local = np.r_[0:3, 2:48].astype(float)  # a local clock shows 02:00 twice

    _, means = hourly(START + 3600.0 * local, np.r_[0.0, 1.0, 2.0, 4.0, np.ones(45)])

    assert means[2] == 3.0
    assert means.size == 48


def test_values_below_zero_are_forecast_and_named():
    y = tide(4 * WEEK) - 80.0
    truth = tide(5 * WEEK)[4 * WEEK :] - 80.0

    made = forecast_series(y, WEEK)

    assert np.abs(middle(made.quantiles) - truth).mean() < 5.0
    assert made.note == "values below zero were found, down to -45"


@pytest.mark.parametrize("factor", [1000.0, 0.001])
def test_units_that_change_a_thousandfold_are_taken_for_a_new_level_at_once(factor: float):
    whole = tide(5 * WEEK, noise=0.05)
    whole[4 * WEEK :] *= factor
    truth = whole[4 * WEEK + DAY :][:72]

    made = forecast_series(whole[: 4 * WEEK + DAY], 72)

    assert np.abs(middle(made.quantiles) - truth).mean() < 0.2 * truth.mean()
    assert "the level changed by a factor of" in made.note


def test_an_outage_of_zeros_is_no_new_level():
    y = tide(4 * WEEK, noise=0.05)
    y[-12:] = 0.0

    assert shift_of(y) is None


def test_a_night_like_any_other_is_no_new_level():
    found = [
        shift_of(tide(8 * WEEK, noise=0.25, seed=seed)[: 5 * WEEK + 31 * k])
        for seed in range(5)
        for k in range(8)
    ]

    assert found == [None] * 40


def test_a_gap_of_a_week_is_bridged_to_now():
    at = START + 3600.0 * np.arange(4 * WEEK)
    now = at[-1] + 3600.0 * (WEEK + 1)

    made = fit(Track("chat", at, tide(4 * WEEK), until=now), 168 * 3600.0)

    assert made.at == now
    assert np.abs(made.at_level(0.5) - tide(6 * WEEK)[5 * WEEK :]).mean() < 10.0


# -- young pools, outages, days unlike others ----------------------------------------------------------------


def test_what_was_filled_in_proves_no_model_right():
    """A week that nobody measured is filled with the week before it: weekly naive would look perfect and the band close."""
    y = tide(5 * WEEK, noise=0.1)
    y[-WEEK - 6 : -6] = np.nan

    made = forecast_series(y, DAY)

    low, high = made.quantiles[LEVELS.index(0.1)], made.quantiles[LEVELS.index(0.9)]
    assert ((high - low) / middle(made.quantiles)).min() > 0.1
    assert np.isnan(made.skill)


def test_a_gap_is_no_day_without_growth():
    y = grown(tide(6 * WEEK, noise=0.01), 9, 0.06)
    seen = y.copy()
    seen[-5 * DAY : -4 * DAY] = np.nan

    found = growth_of(fill(seen), seen)

    assert found is not None
    assert found.chance > 0.9
    assert found.rate == pytest.approx(0.04, abs=0.02)


def test_a_value_a_day_is_refused_as_no_hourly_series():
    y = np.full(60 * DAY, np.nan)
    y[::DAY] = 100.0

    made = forecast_series(y, DAY)

    assert np.isnan(made.quantiles).all()
    assert "only 1 of the 24 hours of the day" in made.note


def test_demand_that_has_just_begun_is_no_month_of_history():
    y = np.zeros(4 * WEEK)
    y[-3:] = 5.0

    made = forecast_series(y, DAY)

    assert np.isnan(made.quantiles).all()
    assert made.note.startswith("not enough history (have 3 h, after nothing but zeros, need 48 h")


def test_a_single_hour_of_a_wrong_unit_moves_nothing_and_is_named():
    y = tide(5 * WEEK, noise=0.05)
    wrong = y.copy()
    wrong[-1] *= 1e6

    usual, made = forecast_series(y, DAY, INLINE), forecast_series(wrong, DAY, INLINE)

    assert middle(made.quantiles) == pytest.approx(middle(usual.quantiles), rel=0.1)
    assert "is not believed until it comes again" in made.note


def test_what_has_come_twice_is_no_glitch():
    y = tide(5 * WEEK, noise=0.05)
    y[[100, 400]] *= 1000.0

    assert forecast_series(y, DAY, INLINE).note == ""


@pytest.mark.parametrize("unit", [1e-12, 1e9, 1e290])
def test_the_unit_of_a_series_changes_nothing(unit: float):
    y = tide(3 * WEEK, noise=0.1)

    made, other = forecast_series(y, DAY, INLINE), forecast_series(y * unit, DAY, INLINE)

    assert other.quantiles / unit == pytest.approx(made.quantiles, rel=1e-3)


def test_numbers_that_would_overflow_are_refused():
    made = forecast_series(tide(3 * WEEK) * 1e304, DAY)

    assert np.isnan(made.quantiles).all()
    assert "no demand is that high" in made.note


def test_a_new_pool_borrows_the_shape_of_a_like_one_and_says_so():
    old_at, old = START + 3600.0 * np.arange(5 * WEEK), tide(5 * WEEK, level=100.0)
    young_at, young = old_at[-DAY:], 0.2 * old[-DAY:]
    truth = 0.2 * tide(6 * WEEK)[5 * WEEK :]

    made = fit(
        Track("new", young_at, young, sibling_name="chat", sibling_at=old_at, sibling_values=old),
        168 * 3600.0,
    )

    assert np.abs(made.at_level(0.5) - truth).mean() < 0.1 * truth.mean()
    assert "its shape is borrowed from chat: no warning three days ahead is to be had of it" in made.note
    assert np.isnan(made.skill)


def test_a_masked_outage_teaches_no_zero():
    y = tide(4 * WEEK, noise=0.02)
    at = START + 3600.0 * np.arange(y.size)
    y[-30:-6] = 0.0

    made = fit(Track("chat", at, y, masked=((at[-30], at[-6]),)), 72 * 3600.0)

    truth = tide(5 * WEEK)[4 * WEEK : 4 * WEEK + 72]
    assert np.abs(made.at_level(0.5) - truth).mean() < 0.1 * truth.mean()


def test_a_holiday_is_expected_to_be_like_the_ones_before():
    y = tide(6 * WEEK, noise=0.02)
    day = 86400.0
    past = [Occasion(START + k * day, START + (k + 1) * day, "holiday CN") for k in (17, 24, 31)]
    for o in past:
        first = int((o.start - START) // 3600)
        y[first : first + 24] *= 0.5
    coming = Occasion(START + 43 * day, START + 44 * day, "holiday CN")

    made = fit(Track("chat", START + 3600.0 * np.arange(y.size), y, occasions=(*past, coming)), 168 * 3600.0)

    usual = tide(7 * WEEK)[6 * WEEK + 24 : 6 * WEEK + 48].mean()
    assert made.at_level(0.5)[24:48].mean() == pytest.approx(0.6 * usual, rel=0.1)  # drawn to 1 by a quarter
    assert made.at_level(0.5)[72:96].mean() == pytest.approx(usual, rel=0.1)
    assert made.note == "ahead: holiday CN"


def test_a_planned_event_raises_its_own_hours_alone():
    y = tide(4 * WEEK)
    launch = Occasion(START + (4 * WEEK + 10) * 3600.0, START + (4 * WEEK + 12) * 3600.0, "launch", 2.0)
    track = Track("chat", START + 3600.0 * np.arange(y.size), y, occasions=(launch,))

    made = fit(track, 72 * 3600.0)

    plain = forecast_series(y, 72).quantiles[LEVELS.index(0.5)]
    assert made.at_level(0.5)[10:12] == pytest.approx(2.0 * plain[10:12])
    assert made.at_level(0.5)[20:] == pytest.approx(plain[20:])


# -- parts --------------------------------------------------------------------------------------------------


def test_paths_keep_the_memory_and_the_spikes_of_past_errors():
    whole = tide(6 * WEEK, noise=0.05)
    rng = np.random.default_rng(4)
    hours = rng.choice(whole.size, 30, replace=False)
    whole[hours] *= 2.5  # an hour in a month that no band of 95 % holds

    made = forecast_series(whole, WEEK)
    found = along(made.quantiles, LEVELS, made.ranks)

    assert made.ranks.shape == (80, WEEK)
    assert np.median(found) == pytest.approx(np.median(middle(made.quantiles)), rel=0.1)
    top = made.quantiles[LEVELS.index(0.95)]
    assert (found > 1.3 * top).any(axis=1).mean() > 0.2


def test_ranks_lead_back_to_the_paths_they_came_from():
    bands = np.linspace(50.0, 150.0, len(LEVELS))[:, None] * np.ones(3)
    paths = np.array([[100.0, 55.0, 149.0], [40.0, 200.0, 50.0]])

    assert along(bands, LEVELS, ranks_of(paths, bands)) == pytest.approx(paths)


def test_in_a_band_without_width_every_path_is_the_band():
    bands = np.full((len(LEVELS), 2), 7.0)

    found = along(bands, LEVELS, ranks_of(np.array([[7.0, 9.0]]), bands))

    assert found == pytest.approx(np.full((1, 2), 7.0))


@pytest.mark.parametrize("size", [2 * DAY, 60, 5 * DAY, WEEK, 10 * DAY, 4 * WEEK])
def test_every_member_says_something_from_two_days_on(size: int):
    made = members(tide(size), WEEK)

    assert made.shape == (len(MEMBERS), WEEK)
    assert np.isfinite(made).all()


def test_a_cheap_fit_is_nearly_as_good_on_a_plain_tide():
    whole = tide(5 * WEEK, noise=0.1)

    made = forecast_series(whole[: 4 * WEEK], 72, INLINE)

    truth = tide(5 * WEEK)[4 * WEEK : 4 * WEEK + 72]
    assert np.abs(middle(made.quantiles) - truth).mean() < 0.15 * truth.mean()


def test_a_forecaster_that_is_not_installed_is_named_and_the_blend_goes_on():
    y = tide(4 * WEEK)

    made = fit(Track("chat", START + 3600.0 * np.arange(y.size), y, plugin="oracle"), 72 * 3600.0)

    assert np.isfinite(made.quantiles).all()
    assert "oracle failed: no forecaster 'oracle' in the entry points tidewarden.forecasters" in made.note
    with pytest.raises(ValueError, match="none is installed"):
        plugin("oracle")


def test_a_backtest_of_too_little_says_what_it_needs():
    with pytest.raises(ValueError, match=r"have 100 h, need 216 h"):
        backtest(tide(100))


# -- growth -------------------------------------------------------------------------------------------------


def grown(y: np.ndarray, days: int, rate: float) -> np.ndarray:
    """The series growing by `rate` of its level a day for its last days."""
    return y * (1.0 + rate * np.maximum(np.arange(y.size) - (y.size - days * DAY), 0) / DAY)


def test_a_week_of_growth_is_found_with_its_rate_and_carried_on():
    calm = tide(5 * WEEK, noise=0.1)

    found = growth_of(grown(calm, 7, 0.06))

    assert found is not None
    assert found.chance > 0.9
    assert found.rate == pytest.approx(0.06 / 1.42, rel=0.25)  # of the level today
    ahead = found.factors(LEVELS, WEEK)
    assert (np.diff(ahead[:, -1]) >= 0).all()
    assert ahead[0, -1] == 1.0  # it may end tomorrow


def test_a_steep_growth_is_carried_on_from_where_it_stands_and_is_no_new_level():
    whole = grown(tide(6 * WEEK, noise=0.02), 12, 0.12)
    truth = whole[5 * WEEK : 5 * WEEK + DAY]

    made = forecast_series(whole[: 5 * WEEK], WEEK, INLINE)

    assert "it has grown" in made.note
    assert "the level changed" not in made.note
    assert middle(made.quantiles)[:DAY].sum() == pytest.approx(truth.sum(), rel=0.08)
    assert made.quantiles[LEVELS.index(0.95)][:DAY].sum() < 1.25 * truth.sum()


def test_a_calm_series_hardly_grows():
    found = growth_of(tide(5 * WEEK, noise=0.1))

    assert found is None or found.chance < 0.3


def test_a_series_that_wanders_is_not_said_to_grow_when_it_has_risen_as_before():
    rng = np.random.default_rng(3)
    wander = np.repeat(np.exp(np.cumsum(0.08 * rng.standard_normal(42))), DAY)
    risen = wander * np.repeat(np.r_[np.ones(37), 1.05, 1.1, 1.14, 1.19, 1.24], DAY)
    calm = grown(tide(6 * WEEK, noise=0.05), 5, 0.05)

    unsure, sure = growth_of(risen), growth_of(calm)

    assert sure is not None
    assert sure.chance > 0.9
    assert unsure is None or unsure.chance < 0.6


def test_a_step_up_is_no_growth():
    stepped = np.r_[tide(5 * WEEK, noise=0.05), 1.3 * tide(4 * DAY, noise=0.05)]

    found = growth_of(stepped)

    assert found is None or found.chance < 0.5


def test_a_day_of_outage_does_not_hide_a_growth():
    y = grown(tide(5 * WEEK, noise=0.05), 7, 0.06)
    y[-3 * DAY - 12 : -2 * DAY - 12] *= 0.1

    found = growth_of(y)

    assert found is not None
    assert found.chance > 0.8


def test_growth_raises_the_chance_of_a_far_level_at_once():
    y = tide(5 * WEEK, noise=0.1)
    limit = 1.5 * y.max()

    def chance(series: np.ndarray) -> float:
        made = forecast_series(series, WEEK)
        return float((along(made.quantiles, LEVELS, made.ranks) > limit).any(axis=1).mean())

    assert chance(y) < 0.05
    assert chance(grown(y, 7, 0.08)) > 0.5


def test_two_weeks_are_too_few_to_tell_growth_from_a_busy_day():
    assert growth_of(grown(tide(12 * DAY), 5, 0.1)) is None
