"""Levels that changed for good: an old history moved to where the series stands now."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from daemon.model import Array
from detectors.forecast_members import DAY, WEEK, week_shape

HOURS_MIN = 6
HOURS_MAX = WEEK
SIZE_MIN = 0.35
"""Least step in the logarithm, a change by two fifths. Source: bench/forecast.py --part tune."""
NOISE_TIMES = 5.0
NOTHING = 1e-5
HALF_LIFE_H = 24.0
WIDER = 0.6


class Shift(NamedTuple):
    """hours : since when the level is new. factor : new over old."""

    hours: int
    factor: float

    def widening(self, horizon: int) -> Array:
        """(horizon,) what bands are multiplied with: a fresh level is little known, a day later it is usual."""
        fresh = 0.5 ** (self.hours / HALF_LIFE_H)
        return np.full(horizon, 1.0 + WIDER * fresh)


def shift_of(y: Array) -> Shift | None:
    """The step the series made within the last week, None without one.

    y : (hour,), no gaps, >= 0. Every hour since must stand apart from the week's usual shape on the same side, by far
    more than hours did before. Three weeks are needed to know what is usual.
    """
    if y.size < 3 * WEEK:
        return None
    before, window = y[:-WEEK], y[-2 * WEEK :]
    if float(np.median(window[-HOURS_MIN:])) <= NOTHING * float(before.mean()):
        return None  # an outage, or nobody there: no level to move a history to
    shape = week_shape(before, 4)
    # The shape ends where the last week begins; its hours repeat every week.
    usual = np.maximum(np.tile(shape, 2), 0.0)
    small = 0.05 * float(before[-WEEK:].mean()) + 1e-9
    apart = np.log((window + small) / (usual + small))
    now = float(np.median(apart[-HOURS_MIN:]))
    if abs(now) < SIZE_MIN:
        return None
    there = np.sign(now) * apart > 0.5 * abs(now)
    broken = np.flatnonzero(~there)
    hours = there.size - 1 - int(broken[-1]) if broken.size else there.size
    if not HOURS_MIN <= hours <= HOURS_MAX:
        return None
    usually = apart[: there.size - hours][-WEEK:]
    noise = 1.4826 * float(np.median(np.abs(usually - np.median(usually))))
    if abs(now - float(np.median(usually))) < max(SIZE_MIN, NOISE_TIMES * noise):
        return None
    # A night that is unlike others is no new level: a day's worth of swing must be exceeded while it is young.
    if hours < DAY and abs(now) < 2.0 * float(np.quantile(np.abs(usually), 0.95)):
        return None
    since = float(window[-hours:].sum() / usual[-hours:].sum())
    return Shift(hours, since / float(np.exp(np.median(usually))))


def rebased(y: Array, shift: Shift | None) -> Array:
    """The series as if it had always stood at the new level."""
    if shift is None:
        return y
    return np.asarray(np.r_[y[: -shift.hours] * shift.factor, y[-shift.hours :]], dtype=float)
