"""Growth from day to day that has only begun, which shapes of past weeks cannot know."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from daemon.model import Array
from detectors.forecast_members import DAY

DAYS = (3, 4, 5, 6, 7, 9, 11, 13)
"""Lengths of a growth that are looked for: a shorter one is a busy day, a longer one has shown in the errors."""
WEEKS_BACK = 3
NOISE_DAYS = 14
NOISE_MIN = 0.012
RATE_MIN, RATE_MAX = 0.025, 0.2
"""Shares of the level a day. What grows faster is an event that ends by itself. Source: bench/warn.py --part tune."""
SURE = 3.5
"""Least slope in its own standard errors. Source: bench/warn.py --part tune."""
FOLLOWED = (0.0, 0.1, 0.4, 0.8, 1.0, 1.0, 1.0)
"""Share of the growth each of LEVELS takes: it may end tomorrow, and the lower levels say so."""


class Growth(NamedTuple):
    """rate : growth a day, as a share of the level today. days : since when, as far as can be told."""

    rate: float
    days: int

    def factors(self, horizon: int) -> Array:
        """(quantile, hour) what LEVELS are multiplied with."""
        ahead = self.rate * (np.arange(horizon) + 0.5 + DAY / 2.0) / DAY
        return np.asarray(1.0 + np.outer(FOLLOWED, ahead), dtype=float)


def growth_of(y: Array) -> Growth | None:
    """A steady growth of the last three to seven days, None without one. y : (hour,), no gaps, >= 0; five weeks best.

    Each day counts as its ratio to the same day of up to three weeks before; the slope of the ratios must stand out
    from how much they scattered in the two weeks before, and the growth must explain where the last day stands.
    """
    days = y[y.size % DAY :].reshape(-1, DAY).mean(axis=1)[::-1]  # newest first
    best: tuple[float, Growth] | None = None
    for length in DAYS:
        # A growth longer than a week is compared with weeks from before it began.
        ratio = _ratios(days, first_week=2 if length > 7 else 1)
        now, before = ratio[:length], ratio[length : length + NOISE_DAYS]
        if before.size < 5 or not (np.isfinite(now).all() and np.isfinite(before).all()):
            continue
        noise = max(NOISE_MIN, 1.4826 * float(np.median(np.abs(before - np.median(before)))))
        t = -np.arange(length, dtype=float)
        t -= t.mean()
        rate = float(t @ now / (t @ t))
        sure = rate / (noise / float(np.sqrt(t @ t)))
        grown = float(now[0] - np.median(before))
        rises = int((np.diff(now[::-1]) > 0).sum())
        explained = 0.5 * rate * length <= grown <= 1.7 * rate * (length + 1)
        is_steady = rises >= 0.75 * (length - 1)
        if not (sure >= SURE and explained and is_steady and now[0] > 0):
            continue
        found = Growth(rate / float(now[0]), length)
        if RATE_MIN <= found.rate <= RATE_MAX and (best is None or sure > best[0]):
            best = sure, found
    return best[1] if best else None


def _ratios(days: Array, first_week: int) -> Array:
    """(day,) each day over the median of the same weekday of three weeks before, newest first.

    first_week : how many weeks back they begin. As many days as have at least one such week.
    """
    size = max(0, days.size - 7 * first_week)
    usual = np.full((WEEKS_BACK, size), np.nan)
    for week in range(WEEKS_BACK):
        back = days[7 * (week + first_week) :][:size]
        usual[week, : back.size] = back
    middle = np.nanmedian(usual, axis=0) if size else np.empty(0)
    return np.where(middle > 0, days[:size] / np.where(middle > 0, middle, 1.0), np.nan)
