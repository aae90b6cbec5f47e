"""Cheap models of an hourly series, each a function of its past alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from daemon.model import Array

DAY, WEEK = 24, 168
ALPHAS = (0.02, 0.08, 0.2, 0.4, 0.7, 1.0)
"""Paces at which a level may follow, from a month's mean to the last value; the series chooses."""

PLAIN_WEEKS = 0.5
"""Weeks' worth of trust in day times hour. Source: bench/forecast.py --part tune, against 2 before."""

Member = Callable[[Array, int], Array]
"""(y, horizon) -> (horizon,). y : (hour,) at least two days, no gaps, oldest first."""


def _tiled(shape: Array, horizon: int) -> Array:
    return np.asarray(shape[np.arange(horizon) % shape.size], dtype=float)


def weekly_naive(y: Array, horizon: int) -> Array:
    """The value of a week before, of a day before with less than a week. What every other forecast is judged by."""
    return _tiled(y[-WEEK:] if y.size >= WEEK else y[-DAY:], horizon)


def daily_naive(y: Array, horizon: int) -> Array:
    return _tiled(y[-DAY:], horizon)


def last_value(y: Array, horizon: int) -> Array:
    return np.full(horizon, float(y[-1]))


def day_shape(y: Array, days: int) -> Array:
    """(24,) median of each hour of the day over the last `days`, from the hour after the last value on."""
    days = min(days, y.size // DAY)
    return np.asarray(np.median(y[-days * DAY :].reshape(days, DAY), axis=0), dtype=float)


def week_shape(y: Array, weeks: int = 4) -> Array:
    """(168,) each hour of the week, drawn towards day of the week times hour of the day while weeks are few: a weekend
    is so many times a weekday rather than so much less at every hour."""
    weeks = min(weeks, y.size // WEEK)
    if weeks < 1:
        return _tiled(day_shape(y, 7), WEEK)
    table = y[-weeks * WEEK :].reshape(weeks, 7, DAY)
    own = np.median(table, axis=0) if weeks > 2 else table.mean(axis=0)
    by_hour, by_day = own.mean(axis=0), own.mean(axis=1)
    plain = by_hour[None, :] * by_day[:, None] / max(own.mean(), 1e-9)
    trust = weeks / (weeks + PLAIN_WEEKS)
    return np.asarray((trust * own + (1.0 - trust) * plain).ravel(), dtype=float)


def _at_level(y: Array, shape: Array, window: int, horizon: int) -> Array:
    """A week's shape times how the last `window` hours stand to it."""
    usual = shape[np.arange(-window, 0) % WEEK].sum()
    scale = y[-window:].sum() / usual if usual > 0 else 1.0
    return _tiled(shape, horizon) * float(np.clip(scale, 0.2, 5.0))


def week_at_day_level(y: Array, horizon: int) -> Array:
    return _at_level(y, week_shape(y, 4), DAY, horizon)


def week_at_week_level(y: Array, horizon: int) -> Array:
    return _at_level(y, week_shape(y, 8), min(WEEK, y.size // DAY * DAY), horizon)


def hour_of_day_week(y: Array, horizon: int) -> Array:
    return _tiled(day_shape(y, 7), horizon)


def hour_of_day_month(y: Array, horizon: int) -> Array:
    return _tiled(day_shape(y, 28), horizon)


def hour_of_day_recent(y: Array, horizon: int) -> Array:
    days = min(3, y.size // DAY)
    return _tiled(y[-days * DAY :].reshape(days, DAY).mean(axis=0), horizon)


def yesterday_moved(y: Array, horizon: int) -> Array:
    """Yesterday's shape, moved to the last value."""
    return daily_naive(y, horizon) + (y[-1] - y[-DAY - 1] if y.size > DAY else 0.0)


def yesterday_drifting(y: Array, horizon: int) -> Array:
    """Yesterday's shape with the mean drift from day to day of the last week, damped."""
    if y.size < WEEK:
        return daily_naive(y, horizon)
    drift = (y[-DAY:].mean() - y[-WEEK : -WEEK + DAY].mean()) / 6.0
    days = np.cumsum(0.9 ** np.arange(horizon // DAY + 1))
    return np.asarray(daily_naive(y, horizon) + drift * days[np.arange(horizon) // DAY], dtype=float)


def last_week_moved(y: Array, horizon: int) -> Array:
    """Last week's values, moved by how far the last day is from the same day of the week before."""
    if y.size < WEEK + DAY:
        return daily_naive(y, horizon)
    return np.asarray(
        weekly_naive(y, horizon) + (y[-DAY:].mean() - y[-WEEK - DAY : -WEEK].mean()), dtype=float
    )


def fourier(y: Array, horizon: int) -> Array:
    """Ridge regression on a trend with daily and weekly waves over up to six weeks."""
    n = min(y.size, 6 * WEEK)
    n -= n % (WEEK if n >= 2 * WEEK else DAY)
    return np.asarray(_projection(n, horizon) @ y[-n:], dtype=float)


@lru_cache(maxsize=64)
def _projection(n: int, horizon: int) -> Array:
    """(horizon, n) what turns n hours into the ridge regression's forecast. Whole periods only, so few are needed."""
    t = np.arange(n + horizon, dtype=float)
    columns = [np.ones_like(t), t / n]
    for period, waves in ((DAY, 4), (WEEK, 6 if n >= 2 * WEEK else 0)):
        for k in range(1, waves + 1):
            columns += [np.sin(2 * np.pi * k * t / period), np.cos(2 * np.pi * k * t / period)]
    x = np.column_stack(columns)
    penalty = np.eye(x.shape[1])
    penalty[0, 0] = 1e-6
    penalty[1, 1] = 0.1 * n  # a trend over a week ahead is rarely real
    return np.asarray(x[n:] @ np.linalg.solve(x[:n].T @ x[:n] + penalty, x[:n].T), dtype=float)


@lru_cache(maxsize=16)
def _followers(n: int) -> Array:
    """(alpha, n, n) what turns n values into the level after each of them, beginning at the first value."""
    age = np.arange(n)[:, None] - np.arange(n)[None, :]
    made = np.zeros((len(ALPHAS), n, n))
    for row, alpha in enumerate(ALPHAS):
        made[row] = np.where(age >= 0, alpha * (1.0 - alpha) ** np.maximum(age, 0), 0.0)
        made[row][:, 0] = (1.0 - alpha) ** np.arange(n)
    return made


def level(x: Array) -> float:
    """The exponential mean of a series at the pace that would have missed its next values least. x : up to 14 days."""
    x = x[-2 * WEEK :]
    levels = _followers(x.size) @ x
    missed = np.abs(x[1:] - levels[:, :-1]).sum(axis=1)
    return float(levels[int(missed.argmin()), -1])


def _ratio_shape(window: Array, shape: Array) -> Array:
    """A shape around 1, kept off 0: what is divided by it must stay finite."""
    return np.asarray(np.maximum(shape / (window.mean() + 1e-9), 0.05), dtype=float)


def _whole_days(y: Array, weeks: int) -> Array:
    n = min(y.size, weeks * WEEK)
    return y[-(n - n % DAY) :]


def theta(y: Array, horizon: int) -> Array:
    """Level of the series divided by its day's shape, with half the drift of three weeks (Assimakopoulos 2000)."""
    window = _whole_days(y, 3)
    shape = _ratio_shape(window, window.reshape(-1, DAY).mean(axis=0))
    x = window / _tiled(shape, window.size)
    t = np.arange(x.size, dtype=float)
    drift = float(((t - t.mean()) @ (x - x.mean())) / ((t - t.mean()) @ (t - t.mean())))
    ahead = level(x) + 0.5 * drift * np.arange(1, horizon + 1)
    return np.asarray(ahead * _tiled(shape, horizon), dtype=float)


def level_and_day(y: Array, horizon: int) -> Array:
    """Level of the series less its day's shape, with half the damped drift of the last week."""
    window = _whole_days(y, 4)
    shape = window.reshape(-1, DAY).mean(axis=0)
    x = window - _tiled(shape, window.size)
    recent = x[-WEEK:]
    t = np.arange(recent.size, dtype=float) - (recent.size - 1) / 2.0
    drift = float((t @ recent) / (t @ t))
    damped = np.cumsum(0.98 ** np.arange(1, horizon + 1))
    return np.asarray(_tiled(shape, horizon) + level(x) + 0.5 * drift * damped, dtype=float)


def level_by_day(y: Array, horizon: int) -> Array:
    """Level of the series divided by its day's shape."""
    window = _whole_days(y, 4)
    shape = _ratio_shape(window, window.reshape(-1, DAY).mean(axis=0))
    return _tiled(shape, horizon) * level(window / _tiled(shape, window.size))


def level_by_week(y: Array, horizon: int) -> Array:
    """Level of the series divided by its week's shape."""
    window = _whole_days(y, 4)
    shape = _ratio_shape(window, week_shape(y, 4))
    return _tiled(shape, horizon) * level(window / shape[np.arange(-window.size, 0) % WEEK])


MEMBERS: dict[str, Member] = {
    "weekly_naive": weekly_naive,
    "last_value": last_value,
    "week_at_day_level": week_at_day_level,
    "week_at_week_level": week_at_week_level,
    "hour_of_day_week": hour_of_day_week,
    "hour_of_day_recent": hour_of_day_recent,
    "hour_of_day_month": hour_of_day_month,
    "yesterday_moved": yesterday_moved,
    "yesterday_drifting": yesterday_drifting,
    "last_week_moved": last_week_moved,
    "fourier": fourier,
    "theta": theta,
    "level_and_day": level_and_day,
    "level_by_day": level_by_day,
    "level_by_week": level_by_week,
}
"""weekly_naive comes first: others are measured against it."""


def members(y: Array, horizon: int) -> Array:
    """(member, horizon) in the order of MEMBERS, never below zero. y : (hour,) two days or more, no gaps, >= 0."""
    return np.maximum(np.vstack([made(y, horizon) for made in MEMBERS.values()]), 0.0)
