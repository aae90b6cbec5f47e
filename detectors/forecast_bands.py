"""How far off a forecast may be, by lead time, from how far off earlier ones were."""

from __future__ import annotations

import numpy as np

from daemon.model import Array
from detectors.forecast_blend import BANDS, ages, wider

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
PATHS = 80
UNKNOWN_SPREAD = np.array([-0.42, -0.35, -0.175, 0.0, 0.175, 0.35, 0.42])
"""Relative errors at LEVELS while nothing is known of them. Source: judgement, about the worst series of bench/forecast.py."""
DOUBT = 0.2
"""Origins' worth of doubt with which a width is drawn up to UNKNOWN_SPREAD, never down to it."""
BASE = 0.1
"""Share of the level added to what an error is relative to: a series near zero still has errors."""
CENTRE = 0.25
"""Share of a past bias that is taken off: the rest does not come back."""
WIDEN = 1.0
"""Factor on past errors. Source: bench/forecast.py --part tune."""
ERRORS_MIN = 10
SIZES = np.array([-1.0, 0.5, 1.0, 1.0, 1.3, 2.0])
"""Factors on past errors along sampled paths, equally likely."""
RANK_BEYOND = 2.0
"""How far beyond 0 and 1 a rank may lie: an error twenty outer bands wide says only that it was far off."""


def bands(made: Array, truth: Array, origins: Array, level: Array) -> Array:
    """(quantile, lead) around the last row of `made`.

    made, truth : (origin, lead) forecasts of one forecaster and what came, NaN = not known. origins : values known at
    each. level : (origin,) usual size of the series then. Quantiles are in order and not below zero.
    """
    horizon = made.shape[1]
    now = float(origins[-1])
    come = (origins[:-1, None] + np.arange(horizon)[None, :] < now) & np.isfinite(truth[:-1])
    errors = relative_errors(made, truth, level)[:-1]
    weight = ages(origins[:-1], now)[:, None] * come
    out = np.empty((len(LEVELS), horizon))
    widest = np.zeros(len(LEVELS))
    for low, high in BANDS:
        if low >= horizon:
            break
        near = wider(low, high, horizon)
        known = come[:, near]
        spread, centre = _spread(errors[:, near][known], weight[:, near][known], near.stop - near.start)
        # Errors grow with the lead: a band far ahead is never surer than the one before it.
        widest = np.where(np.array(LEVELS) < 0.5, np.minimum(spread, widest), np.maximum(spread, widest))
        size = np.abs(made[-1, low:high]) + BASE * level[-1]
        out[:, low:high] = made[-1, low:high] + np.outer(widest + centre, size)
    return np.asarray(np.maximum.accumulate(np.maximum(out, 0.0), axis=0), dtype=float)


def relative_errors(made: Array, truth: Array, level: Array) -> Array:
    """(origin, lead) errors over the forecast plus a share of the level: errors of demand grow with demand."""
    return np.asarray((truth - made) / (np.abs(made) + BASE * level[:, None] + 1e-9), dtype=float)


def _spread(errors: Array, weight: Array, leads: int) -> tuple[Array, float]:
    """Relative distances of LEVELS from the centre, and the centre."""
    if errors.size < ERRORS_MIN:
        return UNKNOWN_SPREAD, 0.0
    found = weighted_quantiles(errors, weight, LEVELS)
    centre = float(found[LEVELS.index(0.5)])
    spread = (found - centre) * WIDEN
    count = float(weight.sum()) / leads
    doubt = DOUBT / (count + DOUBT)
    upper = np.array(LEVELS) > 0.5
    careful = np.where(upper, np.maximum(spread, UNKNOWN_SPREAD), np.minimum(spread, UNKNOWN_SPREAD))
    return (1.0 - doubt) * spread + doubt * careful, CENTRE * centre


def weighted_quantiles(values: Array, weight: Array, levels: tuple[float, ...]) -> Array:
    """
    >>> weighted_quantiles(np.array([3.0, 1.0, 2.0]), np.ones(3), (0.5,)).tolist()
    [2.0]
    """
    order = np.argsort(values)
    below = np.cumsum(weight[order]) - 0.5 * weight[order]
    return np.asarray(np.interp(levels, below / weight.sum(), values[order]), dtype=float)


def paths(made: Array, truth: Array, origins: Array, level: Array, middle: Array) -> Array | None:
    """(path, lead) sampled ways around `middle`, None while fewer than eight past forecasts can be followed to their end.

    A path is the error of one past origin along all leads, the newest last, so that it keeps its memory and its spikes;
    where its hours are not known, those of an origin a week older go on. Eighteen days hold few ways to be
    wrong: each error is taken several times, larger, smaller and turned over. Pools that were forecast at the same times
    have the same origins in the same paths: what rose together rises together.
    Source: the Schaake shuffle (Clark et al. 2004); SIZES: bench/warn.py --part tune.
    """
    errors = relative_errors(made, truth, level)[:-1]
    known = np.isfinite(errors)
    rows = [r for r in range(errors.shape[0]) if known[: r + 1].any(axis=0).all()]
    if len(rows) < 8:
        return None
    week = int(np.ceil(168 / 11))
    filled = np.empty((len(rows), made.shape[1]))
    for i, row in enumerate(rows):
        path = errors[row].copy()
        for back in (*range(row - week, -1, -week), *range(row - 1, -1, -1)):
            path = np.where(np.isnan(path), errors[back], path)
        filled[i] = path
    half = PATHS // 2
    picked = np.tile(filled[np.arange(len(rows) - half, len(rows)) % len(rows)], (2, 1))
    order = np.argsort(np.arange(PATHS) * 31 % PATHS, kind="stable")
    size = np.resize(SIZES, PATHS)[order]
    away = picked * size[:, None] * (np.abs(middle) + BASE * level[-1])
    return np.asarray(np.maximum(middle + away, 0.0), dtype=float)


def ranks_of(values: Array, quantiles: Array) -> Array:
    """(path, lead) where paths run in the bands; beyond the outer levels as far as their outer slope goes.

    values : (path, lead); quantiles : (quantile, lead) for LEVELS. `daemon.outlook.along` is the way back. Where a band
    has no width, inside is the median.
    """
    found = np.empty(values.shape)
    grid = np.array(LEVELS)
    for lead in range(values.shape[1]):
        edges, column = quantiles[:, lead], values[:, lead]
        upper = np.clip(np.searchsorted(edges, column), 1, grid.size - 1)
        width = edges[upper] - edges[upper - 1]
        share = np.where(width > 0, (column - edges[upper - 1]) / np.where(width > 0, width, 1.0), 0.5)
        found[:, lead] = grid[upper - 1] + share * (grid[upper] - grid[upper - 1])
    return np.clip(found, -RANK_BEYOND, 1.0 + RANK_BEYOND)


def steady_ranks(horizon: int) -> Array:
    """(path, lead) of paths that keep their level: what is sampled while nothing is known of how errors follow each other."""
    steady = (np.arange(PATHS) + 0.5) / PATHS
    return np.repeat(steady[np.argsort(steady * 31 % 1.0)][:, None], horizon, axis=1)
