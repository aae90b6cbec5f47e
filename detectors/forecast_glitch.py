"""Hours that no series of this kind can have had: a wrong unit, a counter that ran over."""

from __future__ import annotations

import numpy as np

from daemon.model import NAN, Array
from detectors.forecast_shift import HOURS_MIN

TIMES = 20.0
"""How far above everything else. Judgement: on the first 70 % of the series of bench/forecast.py the highest hour is at most 2.1
times any hour that is not near it."""
REST_MIN_H = 48


def without_glitch(values: Array) -> tuple[Array, float]:
    """The series with a glitch unknown, and how many times the rest the glitch stood; 0 = there was none.

    values : (hour,), NaN = missing. Fewer than HOURS_MIN hours around the highest, each more than TIMES as high as any
    other hour of the series. What lasts longer is a new level, and what has come twice may come again.
    """
    known = np.isfinite(values)
    if known.sum() <= REST_MIN_H:
        return values, 0.0
    top = int(np.nanargmax(values))
    near = slice(max(0, top - HOURS_MIN + 1), top + HOURS_MIN)
    others = np.r_[values[: near.start], values[near.stop :]]
    others = others[np.isfinite(others)]
    rest = float(others.max()) if others.size >= REST_MIN_H else 0.0
    if not rest > 0 or not values[top] > TIMES * rest:
        return values, 0.0
    is_glitch = np.zeros(values.size, dtype=bool)
    is_glitch[near] = values[near] > TIMES * rest
    if is_glitch.sum() >= HOURS_MIN:
        return values, 0.0
    return np.where(is_glitch, NAN, values), float(values[top]) / rest
