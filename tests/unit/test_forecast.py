"""The forecaster on series whose future is known, and on series that are hardly one."""

import numpy as np
import pytest

from detectors.forecast import DAY, LEVELS, WEEK, MedianForecaster, fill, fit, forecast_series, hourly

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

    quantiles, skill = forecast_series(whole[: 4 * WEEK], WEEK)

    assert quantiles.shape == (len(LEVELS), WEEK)
    assert np.abs(middle(quantiles) - whole[4 * WEEK :]).mean() < 0.05 * whole.mean()
    assert np.isnan(skill) or skill > 0


def test_with_noise_it_beats_last_weeks_values():
    whole = tide(5 * WEEK, noise=0.1)
    truth = whole[4 * WEEK :]

    quantiles, skill = forecast_series(whole[: 4 * WEEK], WEEK)

    assert np.abs(middle(quantiles) - truth).mean() < np.abs(whole[3 * WEEK : 4 * WEEK] - truth).mean()
    assert skill < 1.0


def test_bands_hold_most_of_what_comes():
    inside = []
    for seed in range(6):
        whole = tide(5 * WEEK, noise=0.15, seed=seed)
        quantiles, _ = forecast_series(whole[: 4 * WEEK], 72)
        truth = whole[4 * WEEK : 4 * WEEK + 72]
        inside.append(
            ((truth >= quantiles[LEVELS.index(0.1)]) & (truth <= quantiles[LEVELS.index(0.9)])).mean()
        )

    assert 0.65 < np.mean(inside) <= 1.0


@pytest.mark.parametrize(
    "series",
    [
        tide(4 * WEEK, noise=0.3),
        np.zeros(4 * WEEK),
        np.full(4 * WEEK, 7.0),
        tide(60),
        np.r_[tide(3 * WEEK), 3 * tide(WEEK)],
    ],
    ids=["noisy", "zeros", "constant", "short", "shifted"],
)
def test_quantiles_are_ordered_finite_and_never_negative(series: np.ndarray):
    quantiles, _ = forecast_series(series, WEEK)

    assert np.isfinite(quantiles).all()
    assert (quantiles >= 0.0).all()
    assert (np.diff(quantiles, axis=0) >= 0.0).all()


def test_a_constant_series_stays_where_it_is():
    quantiles, _ = forecast_series(np.full(3 * WEEK, 7.0), 72)

    assert middle(quantiles) == pytest.approx(np.full(72, 7.0), rel=0.02)


def test_nothing_forecasts_nothing():
    quantiles, skill = forecast_series(np.zeros(3 * WEEK), 72)

    assert quantiles.max() < 1e-3
    assert np.isnan(skill)


@pytest.mark.parametrize("hours", [0, 1, 2 * DAY - 1])
def test_under_two_days_of_history_nothing_is_known(hours: int):
    quantiles, skill = forecast_series(tide(hours) if hours else np.empty(0), 72)

    assert quantiles.shape == (len(LEVELS), 72)
    assert np.isnan(quantiles).all()
    assert np.isnan(skill)


def test_two_days_of_history_are_enough_for_a_day_shape():
    whole = tide(3 * DAY)

    quantiles, _ = forecast_series(whole[: 2 * DAY], DAY)

    assert np.corrcoef(middle(quantiles), whole[2 * DAY :])[0, 1] > 0.8


def test_gaps_cost_little():
    whole = tide(5 * WEEK)
    holed = whole[: 4 * WEEK].copy()
    holed[np.random.default_rng(2).random(holed.size) < 0.1] = np.nan
    holed[2 * WEEK : 2 * WEEK + 30] = np.nan

    quantiles, _ = forecast_series(holed, 72)

    assert np.abs(middle(quantiles) - whole[4 * WEEK : 4 * WEEK + 72]).mean() < 0.1 * whole.mean()


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

    quantiles, _ = forecast_series(series, DAY)

    assert np.abs(middle(quantiles)[:6] - truth[:6]).mean() < 0.35 * truth[:6].mean()
    assert quantiles[LEVELS.index(0.95)][:DAY].sum() > middle(quantiles).sum()


def test_samples_become_means_of_full_hours_with_gaps_kept():
    at = START + np.array([0.0, 1800.0, 3 * 3600.0, 3 * 3600.0 + 60.0])

    hours, values = hourly(at, np.array([1.0, 3.0, 5.0, np.nan]))

    assert hours.tolist() == [START + 3600.0 * k for k in range(4)]
    assert values[0] == 2.0
    assert np.isnan(values[1:3]).all()
    assert values[3] == 5.0


def test_the_forecast_begins_at_the_hour_after_the_last_sample():
    at = START + 300.0 * np.arange(4 * WEEK * 12)

    forecast = fit("chat", at, np.repeat(tide(4 * WEEK), 12), 168 * 3600.0)

    assert forecast.at == START + 4 * WEEK * 3600.0
    assert (forecast.target, forecast.signal, forecast.step_s) == ("chat", "concurrency", 3600.0)
    assert forecast.at_level(0.9).shape == (168,)
    with pytest.raises(ValueError, match="tuple"):
        forecast.at_level(0.42)


def test_a_forecaster_without_any_sample_knows_nothing():
    forecaster = MedianForecaster("chat")

    assert np.isnan(forecaster.forecast(3600.0 * 24).quantiles).all()
