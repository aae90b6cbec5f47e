"""Demand for the days ahead: the median of cheap models, with bands from their own past errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from daemon.model import NAN, Array, Forecast

DAY, WEEK = 24, 168
LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
HANDOVER_H = 6
"""Hours over which the last value hands over to the profiles. Source: docs/en/reference/forecasting.md."""
BANDS = ((0, 6), (6, 24), (24, 72), (72, 10_000))
"""Lead times, in hours, whose errors are pooled: errors grow with the lead and few origins are to be had."""

Member = Callable[[Array, int], Array]


def seasonal_naive(y: Array, horizon: int, period: int) -> Array:
    """The value one period before, repeated."""
    return y[-period:][np.arange(horizon) % period] if y.size >= period else np.full(horizon, NAN)


def weekly_naive(y: Array, horizon: int) -> Array:
    return seasonal_naive(y, horizon, WEEK if y.size >= WEEK else DAY)


def hour_of_week(y: Array, horizon: int) -> Array:
    """Median of each hour of the week over the last four weeks."""
    weeks = min(4, y.size // WEEK)
    if weeks < 1:
        return np.full(horizon, NAN)
    profile = np.median(y[-weeks * WEEK :].reshape(weeks, WEEK), axis=0)
    return profile[np.arange(horizon) % WEEK]


def scaled_profile(y: Array, horizon: int) -> Array:
    """The week's profile scaled to the level of the last two days."""
    profile = hour_of_week(y, WEEK)
    if np.isnan(profile).any():
        return np.full(horizon, NAN)
    recent, usual = y[-2 * DAY :], profile[-2 * DAY :]
    scale = recent.sum() / usual.sum() if usual.sum() > 0 else 1.0
    return profile[np.arange(horizon) % WEEK] * float(np.clip(scale, 0.2, 5.0))


def hour_of_day(y: Array, horizon: int) -> Array:
    """Median of each hour of the day over the last week, at its recent level."""
    days = min(7, y.size // DAY)
    if days < 1:
        return np.full(horizon, NAN)
    table = y[-days * DAY :].reshape(days, DAY)
    return np.median(table, axis=0)[np.arange(horizon) % DAY]


def fourier(y: Array, horizon: int) -> Array:
    """Ridge regression on a trend with daily and weekly harmonics, in log1p so that peaks scale with the level."""
    n = min(y.size, 6 * WEEK)
    if n < 3 * DAY:
        return np.full(horizon, NAN)
    n -= n % (WEEK if n >= 2 * WEEK else DAY)
    target = np.log1p(np.maximum(y[-n:], 0.0))
    ceiling = 3.0 * float(np.max(y[-n:]))
    return np.asarray(np.minimum(np.expm1(_projection(n, horizon) @ target), ceiling), dtype=float)


@lru_cache(maxsize=64)
def _projection(n: int, horizon: int) -> Array:
    """(horizon, n) what turns n hours into the ridge regression's forecast. Whole periods only, so few are needed."""
    t = np.arange(n + horizon, dtype=float)
    columns = [np.ones_like(t), t / n]
    for period, harmonics in ((DAY, 4), (WEEK, 6 if n >= 2 * WEEK else 0)):
        for k in range(1, harmonics + 1):
            columns += [np.sin(2 * np.pi * k * t / period), np.cos(2 * np.pi * k * t / period)]
    x = np.column_stack(columns)
    penalty = np.eye(x.shape[1]) * 1.0
    penalty[0, 0] = 1e-6
    penalty[1, 1] = 0.1 * n  # a trend over a week ahead is rarely real
    return np.asarray(x[n:] @ np.linalg.solve(x[:n].T @ x[:n] + penalty, x[:n].T), dtype=float)


def last_value(y: Array, horizon: int) -> Array:
    return np.full(horizon, y[-1])


MEMBERS: dict[str, Member] = {
    "weekly_naive": weekly_naive,
    "hour_of_week": hour_of_week,
    "scaled_profile": scaled_profile,
    "hour_of_day": hour_of_day,
    "fourier": fourier,
    "last_value": last_value,
}


def point(y: Array, horizon: int) -> Array:
    """Median of the members, led in from the last value over the first hours. y : (hour,), no gaps."""
    with np.errstate(all="ignore"):
        each = np.vstack([member(y, horizon) for member in MEMBERS.values()])
    usable = each[~np.isnan(each).any(axis=1)]
    middle = np.median(usable, axis=0)
    lead = np.exp(-np.arange(1, horizon + 1) / (HANDOVER_H / 2.0))
    # Not the last value itself but how far it stands from its own profile: the profile's shape is kept.
    gap = y[-1] - middle[0]
    return np.asarray(np.maximum(middle + gap * lead, 0.0), dtype=float)


def fill(values: Array) -> Array:
    """Gaps filled causally: the same hour a week before, a day before, else the last value; leading gaps dropped."""
    known = np.flatnonzero(np.isfinite(values))
    if not known.size:
        return np.empty(0)
    y = values[known[0] :].copy()
    for i in np.flatnonzero(np.isnan(y)):
        y[i] = next((y[i - back] for back in (WEEK, DAY, 1) if i >= back), 0.0)
    return y


def past_errors(y: Array, horizon: int, origins: int = 24, stride: int = 13) -> list[Array]:
    """Relative errors of forecasts made at past origins, one array a band of lead times.

    The stride is odd to the day so that every hour of it is an origin. Relative to the forecast plus a tenth of the
    mean, because errors of demand grow with demand.
    """
    pooled: list[list[Array]] = [[] for _ in BANDS]
    base = 0.1 * float(np.mean(y)) + 1e-9
    for k in range(1, origins + 1):
        origin = y.size - k * stride
        if origin < max(2 * DAY, y.size // 3):
            break
        ahead = min(horizon, y.size - origin)
        made = point(y[:origin], ahead)
        error = (y[origin : origin + ahead] - made) / (made + base)
        for band, (low, high) in enumerate(BANDS):
            pooled[band].append(error[low:high])
    return [np.concatenate(b) if b else np.empty(0) for b in pooled]


WIDEN = 1.15
"""Past errors are few and correlated; bands from them alone cover too little. Source: bench/forecast.py."""


def forecast_series(values: Array, horizon: int) -> tuple[Array, float]:
    """Quantiles and skill of an hourly series.

    values : (hour,), NaN = missing. Returns (quantile, hour) for LEVELS, and the mean absolute error of the past
    forecasts against weekly naive's (below 1 is better; NaN with too little history). All NaN with under two days.
    """
    y = fill(values)
    if y.size < 2 * DAY:
        return np.full((len(LEVELS), horizon), NAN), NAN
    middle = point(y, horizon)
    errors = past_errors(y, horizon)
    base = 0.1 * float(np.mean(y)) + 1e-9
    out = np.empty((len(LEVELS), horizon))
    widest = errors[0]
    for band, (low, high) in enumerate(BANDS):
        # A band without errors of its own takes the wider of what is known: it cannot be surer than a nearer one.
        own = errors[band] if errors[band].size >= 30 else widest
        if own.size >= 30:
            widest = own
            spread = np.quantile(own, LEVELS) - np.median(own)
            centre = float(np.median(own))
        else:
            spread, centre = np.array([-0.6, -0.5, -0.25, 0.0, 0.25, 0.5, 0.6]), 0.0
        steps = slice(low, min(high, horizon))
        scale = middle[steps] + base
        out[:, steps] = middle[steps] + np.outer(spread * WIDEN + 0.5 * centre, scale)
    quantiles = np.asarray(np.maximum.accumulate(np.maximum(out, 0.0), axis=0), dtype=float)
    return quantiles, skill(y, horizon)


def skill(y: Array, horizon: int, origins: int = 6) -> float:
    """Mean absolute error over weekly naive's, at origins a day apart whose future is known."""
    ours, naive = 0.0, 0.0
    for k in range(1, origins + 1):
        origin = y.size - k * DAY - DAY
        if origin < WEEK + DAY:
            break
        ahead = min(horizon, y.size - origin, 3 * DAY)
        truth = y[origin : origin + ahead]
        ours += float(np.abs(truth - point(y[:origin], ahead)).mean())
        naive += float(np.abs(truth - weekly_naive(y[:origin], ahead)).mean())
    return ours / naive if naive > 0 else NAN


@dataclass(slots=True)
class MedianForecaster:
    """Forecasts one pool's demand. Needs two days of history to say anything, and says how good it was.

    target : the pool. signal : what is forecast.
    """

    target: str
    signal: str = "concurrency"
    at: Array = field(default_factory=lambda: np.empty(0))
    values: Array = field(default_factory=lambda: np.empty(0))

    def update(self, at: Array, values: Array) -> None:
        """Give the whole history. at : (step,) left edges, seconds since the epoch; values : (step,), NaN = missing."""
        self.at, self.values = at, values

    def forecast(self, horizon_s: float) -> Forecast:
        """Hourly, from the full hour after the last sample."""
        hours, y = hourly(self.at, self.values)
        start = float(hours[-1]) + 3600.0 if hours.size else 0.0
        quantiles, found = forecast_series(y, int(horizon_s // 3600))
        return Forecast(start, self.target, self.signal, 3600.0, LEVELS, quantiles, "median of six", found)


def hourly(at: Array, values: Array) -> tuple[Array, Array]:
    """Means of full hours, NaN where an hour has no sample. Returns (hour,) left edges and values."""
    known = np.isfinite(values)
    if not known.any():
        return np.empty(0), np.empty(0)
    hour = (at[known] // 3600).astype(np.int64)
    first, size = int(hour[0]), int(hour[-1] - hour[0]) + 1
    number = np.bincount(hour - first, minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(hour - first, values[known], minlength=size) / number
    hours = (np.arange(size, dtype=float) + first) * 3600.0
    return hours, np.asarray(mean, dtype=float)


def fit(pool: str, at: Array, values: Array, horizon_s: float) -> Forecast:
    """One pool's forecast in one call, for a worker process."""
    forecaster = MedianForecaster(pool)
    forecaster.update(at, values)
    return forecaster.forecast(horizon_s)
