"""A boosted-tree model of an hourly series for every lead time at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daemon.model import NAN, Array
from detectors.forecast_members import DAY, WEEK

ROWS = 4000
WEEKS = 8
CLIP = 6.0
"""Targets are in levels of the series; what lies further off than this is an accident that teaches nothing."""


@dataclass(slots=True)
class Boosted:
    """Median of a demand series by gradient-boosted trees on (origin, lead) pairs drawn from its past.

    horizon : leads learnt. A pair's features use only what was known at its origin; targets are the distance from
    the mean of the same hour of the last days and weeks, in levels of the week before.
    """

    horizon: int
    floor: float = 0.0
    top: float = 0.0
    columns: list[int] = field(default_factory=list)
    model: Any = None

    def fit(self, y: Array, seed: int, seen: Array | None = None) -> Boosted:
        """Learn from y : (hour,), no gaps, six days or more. seed : draws the pairs; same seed, same model.

        seen : (hour or more,) NaN where y was filled; such hours are no target. None = all were measured.
        """
        from sklearn.ensemble import HistGradientBoostingRegressor  # half a second: only where it is used

        rng = np.random.default_rng(seed)
        to = rng.integers(max(2 * DAY, y.size - WEEKS * WEEK), y.size, ROWS)
        lead = rng.integers(1, self.horizon + 1, ROWS)
        near = rng.random(ROWS) < 0.25  # the first day is what scaling acts on
        lead[near] = rng.integers(1, min(DAY, self.horizon) + 1, int(near.sum()))
        origin = to - lead + 1
        keep = origin >= 2 * DAY
        if seen is not None:
            keep &= np.isfinite(seen[to])
        to, lead, origin = to[keep], lead[keep], origin[keep]
        self.floor, self.top = 0.25 * float(y.mean()) + 1e-9, 2.5 * float(y.max())
        x, scale, base = self._features(y, origin, lead)
        self.columns = [c for c in range(x.shape[1]) if _varies(x[:, c])]
        self.model = HistGradientBoostingRegressor(
            loss="absolute_error",
            max_iter=40,
            learning_rate=0.12,
            max_leaf_nodes=12,
            min_samples_leaf=30,
            l2_regularization=5.0,
            max_bins=64,
            early_stopping=False,
            random_state=0,
        )
        self.model.fit(x[:, self.columns], np.clip((y[to] - base) / scale, -CLIP, CLIP))
        return self

    def forecast(self, y: Array) -> Array:
        """(horizon,) after the last value of y, which may be longer than what was learnt from."""
        return np.asarray(self.forecasts(y, np.array([y.size]))[0], dtype=float)

    def forecasts(self, y: Array, origins: Array) -> Array:
        """(origin, horizon) from each number of first values of y."""
        lead = np.tile(np.arange(1, self.horizon + 1), origins.size)
        x, scale, base = self._features(y, np.repeat(origins.astype(np.int64), self.horizon), lead)
        made = base + self.model.predict(x[:, self.columns]) * scale
        return np.asarray(np.clip(made, 0.0, self.top).reshape(origins.size, self.horizon), dtype=float)

    def _features(self, y: Array, origin: Any, lead: Any) -> tuple[Array, Array, Array]:
        """(row, feature), (row,) scale, (row,) base. origin : values known; lead : 1 = the first hour after them."""
        total = np.r_[0.0, np.cumsum(y)]

        def mean(end: Any, hours: int) -> Array:
            begin = np.maximum(end - hours, 0)
            return np.asarray((total[end] - total[begin]) / np.maximum(end - begin, 1), dtype=float)

        def value(index: Any) -> Array:
            known = (index >= 0) & (index < origin)
            return np.where(known, y[np.clip(index, 0, y.size - 1)], NAN)

        to = origin + lead - 1
        same_hour = to - DAY * ((lead - 1) // DAY + 1)
        weeks = np.vstack([value(to - k * WEEK) for k in range(1, 5)])
        days = np.vstack([value(same_hour - k * DAY) for k in range(7)])
        by_week, by_day = _mean_of_known(weeks), _mean_of_known(days)
        base = np.where(np.isfinite(by_week), 0.5 * (by_week + by_day), by_day)
        scale = np.maximum(mean(origin, WEEK), self.floor)
        week_ago = np.maximum(origin - WEEK, 0)
        levels = np.column_stack(
            [
                *weeks[:2],
                value(to - WEEK - 1),
                value(to - WEEK + 1),
                by_week,
                days[0],
                days[1],
                by_day,
                y[origin - 1],
                value(origin - 1 - WEEK),
                mean(origin, DAY),
                mean(origin, 3 * DAY),
                mean(week_ago, DAY),
                mean(week_ago, WEEK),
                mean(origin, WEEK),
            ]
        )
        x = np.column_stack([lead, to % DAY, to // DAY % 7, levels / scale[:, None]])
        return x, scale, base


def _mean_of_known(rows: Array) -> Array:
    """(column,) mean of what is known in each column, NaN where nothing is."""
    known = np.isfinite(rows)
    number = known.sum(axis=0)
    total = np.where(known, rows, 0.0).sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), NAN)


def _varies(column: Array) -> bool:
    known = column[np.isfinite(column)]
    return bool(known.size and np.unique(known).size > 2)
