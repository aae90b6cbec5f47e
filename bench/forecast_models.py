"""Forecasters the daemon's is measured against, each as quantiles of one hourly series."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np

from daemon.model import Array
from detectors.forecast import LEVELS, forecast_series
from detectors.forecast_bands import bands
from detectors.forecast_blend import BOOST_BACK, BOOST_MIN, origins_of
from detectors.forecast_boost import Boosted
from detectors.forecast_members import DAY, WEEK, daily_naive, last_value, weekly_naive

Model = Callable[[Array, int], Array]
"""(y, horizon) -> (quantile, hour) for LEVELS. y : (hour,), no gaps, the past of one origin."""


def predict_linear(y: Array, horizon: int) -> Array:
    """A straight line through the last week, as Prometheus' predict_linear draws it."""
    window = y[-WEEK:]
    slope, base = np.polyfit(np.arange(window.size) - window.size + 1.0, window, 1)
    return np.asarray(np.maximum(base + slope * np.arange(1, horizon + 1), 0.0), dtype=float)


def conformal(point: Callable[[Array, int], Array], y: Array, horizon: int) -> Array:
    """A point forecaster with bands from its own errors at past origins, as the daemon's are made."""
    origins = origins_of(y.size)
    return _banded(y, origins, np.vstack([point(y[:o], horizon) for o in origins]))


def _banded(y: Array, origins: Array, made: Array) -> Array:
    truth = np.full(made.shape, np.nan)
    for row, origin in zip(truth, origins, strict=True):
        come = y[origin : origin + made.shape[1]]
        row[: come.size] = come
    level = np.array([y[max(0, o - WEEK) : o].mean() for o in origins])
    return bands(made, truth, origins, level)


def boosted(y: Array, horizon: int) -> Array:
    """The boosted trees alone, with bands from a model fitted 12 days before."""
    back = min(BOOST_BACK, y.size // 3)
    now = Boosted(horizon).fit(y, seed=y.size).forecast(y)
    origins = origins_of(y.size)
    origins = origins[origins >= y.size - back] if y.size - back >= BOOST_MIN else origins[-1:]
    made = np.vstack([now] * origins.size)
    if origins.size > 1:
        before = Boosted(horizon).fit(y[: y.size - back], seed=y.size)
        made[:-1] = before.forecasts(y, origins[:-1])
    return _banded(y, origins, made)


def ours(y: Array, horizon: int) -> Array:
    return forecast_series(y, horizon).quantiles


def prophet(y: Array, horizon: int) -> Array:
    """Prophet with its defaults and its own predictive samples."""
    import pandas as pd
    from prophet import Prophet

    logging.getLogger("cmdstanpy").disabled = True
    times = pd.date_range("2024-01-01", periods=y.size + horizon, freq="h")
    model = Prophet(uncertainty_samples=200)
    model.fit(pd.DataFrame({"ds": times[: y.size], "y": y}))
    samples = model.predictive_samples(pd.DataFrame({"ds": times[y.size :]}))["yhat"]
    return np.maximum(np.quantile(samples, LEVELS, axis=1), 0.0)


def _statsforecast(name: str, y: Array, horizon: int) -> Array:
    """One model of statsforecast with its own intervals, on the last four weeks: more costs minutes."""
    from statsforecast import models

    made = {
        "auto_ets": lambda: models.AutoETS(season_length=DAY),
        "auto_theta": lambda: models.AutoTheta(season_length=DAY),
        "mstl": lambda: models.MSTL(season_length=[DAY, WEEK] if y.size >= 2 * WEEK else [DAY]),
    }[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = made.forecast(y[-4 * WEEK :], h=horizon, level=[50, 80, 90])
    order = ("lo-90", "lo-80", "lo-50", "mean", "hi-50", "hi-80", "hi-90")
    return np.maximum(np.vstack([found[k] for k in order]), 0.0)


def baselines(*, is_quick: bool) -> dict[str, Model]:
    """Weekly naive first; Prophet and statsforecast where they are installed, unless it must be quick."""
    found: dict[str, Model] = {
        "weekly_naive": partial(conformal, weekly_naive),
        "daily_naive": partial(conformal, daily_naive),
        "last_value": partial(conformal, last_value),
        "predict_linear": partial(conformal, predict_linear),
        "boosted_trees_alone": boosted,
    }
    if not is_quick and find_spec("prophet"):
        found["prophet"] = prophet
    if not is_quick and find_spec("statsforecast"):
        found |= {n: partial(_statsforecast, n) for n in ("auto_ets", "auto_theta", "mstl")}
    return found
