"""Demand on days unlike others, learnt from how far such days stood from the usual."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from daemon.model import NAN, Array, Occasion
from detectors.forecast_members import DAY, WEEK

HOUR_S = 3600.0
WIDER = 0.5
"""What an occasion adds to the width of its hours: few of its kind have been seen. Source: judgement."""
FACTORS = (0.2, 5.0)


def hours_of(occasion: Occasion, start: float, size: int) -> slice:
    """The hours of a series that begins at `start` which an occasion touches; empty when it lies outside."""
    first = int(np.floor((occasion.start - start) / HOUR_S))
    last = int(np.ceil((occasion.end - start) / HOUR_S))
    return slice(min(max(first, 0), size), min(max(last, 0), size))


def without(y: Array, start: float, occasions: Sequence[Occasion]) -> Array:
    """The series with the hours of past occasions unknown, so that no usual day is learnt from them."""
    y = y.copy()
    for occasion in occasions:
        y[hours_of(occasion, start, y.size)] = NAN
    return y


def ratios(y: Array, start: float, occasions: Sequence[Occasion]) -> dict[str, list[float]]:
    """group -> demand of each of its past occasions over that of the same hours of the last usual week before."""
    found: dict[str, list[float]] = {}
    usual_y = without(y, start, occasions)
    for occasion in occasions:
        span = hours_of(occasion, start, y.size)
        hours = np.arange(span.start, span.stop)
        before = np.full(hours.size, NAN)
        for back in (3 * WEEK, 2 * WEEK, WEEK):  # the nearest week that is known comes last and stands
            there = hours >= back
            value = usual_y[np.maximum(hours - back, 0)]
            before = np.where(there & np.isfinite(value), value, before)
        known = np.isfinite(before) & np.isfinite(y[hours])
        usual = float(before[known].sum())
        if known.sum() >= 3 and usual > 0:
            found.setdefault(occasion.group, []).append(float(y[hours][known].sum()) / usual)
    return found


def ahead(
    y: Array, start: float, occasions: Sequence[Occasion], horizon: int
) -> tuple[Array, Array, list[str]]:
    """(hour,) factor on the forecast, (hour,) factor on its width, and the groups that are coming.

    y : (hour,) as measured, NaN = missing, from `start` on. An occasion with a factor of its own has that; else the
    mean of its group's past, drawn to 1 while there are few; a group never seen widens and moves nothing.
    """
    factor, width, coming = np.ones(horizon), np.ones(horizon), []
    seen = ratios(y, start, occasions)
    for occasion in occasions:
        span = hours_of(occasion, start + y.size * HOUR_S, horizon)
        if span.stop <= span.start:
            continue
        expected = occasion.factor
        if expected != expected:
            past = np.log(np.clip(seen.get(occasion.group, []), *FACTORS))
            expected = float(np.exp(past.sum() / (past.size + 1.0)))
        factor[span] = np.clip(expected, *FACTORS)
        width[span] = 1.0 + WIDER
        coming.append(occasion.group)
    return factor, width, sorted(set(coming))


def masked(y: Array, start: float, spans: Sequence[tuple[float, float]]) -> Array:
    """The series with outages unknown: a zero that was no demand teaches a wrong night."""
    return without(y, start, [Occasion(s, e, "") for s, e in spans if e - s <= 3 * DAY * HOUR_S])
