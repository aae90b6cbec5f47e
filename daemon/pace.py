"""Where the demand of a pool is going within the time a replica takes to start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.model import NAN, Forecast

FAST_TAU_S = 60.0
"""A handful of requests comes and goes at random; a burst lasts longer than this, and queues speak for themselves."""
SLOW_TAU_S = 480.0
KEEP_EVERY_S = 60.0
PAST_S = 1800.0
ERRORS, ERROR_WIDTH, ERROR_LOW = 60, 0.025, -0.5
"""Bins of what came over what was expected, as a logarithm: from 0.6 to 2.7 times."""
MEMORY = 0.9995
"""Of a minute: what happened a day and a half ago counts a third."""
PRIOR_MINUTES = 60.0
PRIOR_SPREAD = 0.12
"""Until an hour has been watched: what comes is within 12 % of what is expected two times in three. Judgement, near what
request services show over minutes."""
SHARES = (0.06, 0.17, 0.28, 0.39, 0.5, 0.61, 0.72, 0.83, 0.92, 0.98)


def usual_factors() -> list[float]:
    z = (-1.55, -0.95, -0.58, -0.28, 0.0, 0.28, 0.58, 0.95, 1.41, 2.05)
    return [math.exp(PRIOR_SPREAD * value) for value in z]


@dataclass(slots=True)
class Pace:
    """Demand in work a second.

    fast, slow : means over a minute and over eight. kept : (due, base, deviation) of each minute's expectation that
    has not come true yet. along, square : sums that say how much of a deviation lasts. errors : (bin,) minutes by what
    came over what was expected. factors : what comes over what is expected, ten equally likely cases. past : (at, work,
    the forecast's median then) of each minute of the last PAST_S.
    """

    fast: float = NAN
    slow: float = NAN
    at: float = NAN
    noted: float = NAN
    kept: list[tuple[float, float, float]] = field(default_factory=list)
    along: float = 0.5
    square: float = 1.0
    errors: list[float] = field(default_factory=lambda: [0.0] * ERRORS)
    factors: list[float] = field(default_factory=usual_factors)
    past: list[tuple[float, float, float]] = field(default_factory=list)

    @property
    def lasts(self) -> float:
        """Share of a deviation from the slow mean that is still there when a replica has started, 0..1."""
        return min(1.0, max(0.0, self.along / self.square))


def watch(pace: Pace, work: float, at: float, horizon_s: float, forecast: Forecast | None) -> None:
    """Take in the demand of now (work a second; NaN = unknown changes nothing).

    horizon_s : how long a replica takes to start; each minute what is expected of then is kept to be compared.
    """
    if math.isnan(work):
        return
    if math.isnan(pace.fast):
        pace.fast = pace.slow = work
    elapsed = at - pace.at if not math.isnan(pace.at) else 0.0
    pace.fast += (work - pace.fast) * -math.expm1(-elapsed / FAST_TAU_S)
    pace.slow += (work - pace.slow) * -math.expm1(-elapsed / SLOW_TAU_S)
    pace.at = at
    if not at - pace.noted < KEEP_EVERY_S:
        pace.noted = at
        _come_true(pace, at)
        growth = growth_of(forecast, at, horizon_s + FAST_TAU_S)
        pace.kept.append((at + horizon_s + FAST_TAU_S, pace.slow * growth, pace.fast - pace.slow))
        median = level_at(forecast, at) if forecast is not None else NAN
        pace.past.append((at, pace.fast, median))
        while at - pace.past[0][0] >= PAST_S:
            pace.past.pop(0)


def lately(pace: Pace, forecast: Forecast | None, at: float, ahead_s: float) -> list[float]:
    """Work a second of each minute of the last half hour as it would be in `ahead_s`: what the forecast has fall since then
    has fallen, what it has rise within `ahead_s` rises."""
    here = level_at(forecast, at) if forecast is not None else NAN
    growth = growth_of(forecast, at, ahead_s)
    return [
        work * growth * (min(1.0, max(1.0 / GROWTH_MAX, here / then)) if here > 0 and then > 0 else 1.0)
        for _, work, then in pace.past
    ]


def _come_true(pace: Pace, at: float) -> None:
    """Compare what was expected of now with what is; expectations whose time was not watched are dropped."""
    while pace.kept and pace.kept[0][0] <= at:
        due, base, deviation = pace.kept.pop(0)
        if at - due > 2 * KEEP_EVERY_S or base <= 0:
            continue
        scale = base * base
        pace.along = MEMORY * pace.along + deviation * (pace.fast - base) / scale
        pace.square = MEMORY * pace.square + deviation * deviation / scale
        expected = max(base + pace.lasts * deviation, 0.05 * base)
        error = math.log(max(pace.fast, 0.05 * base) / expected)
        place = min(ERRORS - 1, max(0, int((error - ERROR_LOW) / ERROR_WIDTH)))
        pace.errors = [minutes * MEMORY for minutes in pace.errors]
        pace.errors[place] += 1.0
        pace.factors = _factors(pace.errors)


def _factors(errors: Sequence[float]) -> list[float]:
    """Ten equally likely factors out of the minutes watched, mixed with the usual ones while these are few."""
    minutes = sum(errors)
    found, seen, place = [], 0.0, 0
    for share in SHARES:
        while place < ERRORS - 1 and seen + errors[place] < share * minutes:
            seen += errors[place]
            place += 1
        within = (share * minutes - seen) / errors[place] if errors[place] > 0 else 0.5
        found.append(math.exp(ERROR_LOW + (place + min(1.0, max(0.0, within))) * ERROR_WIDTH))
    own = minutes / (minutes + PRIOR_MINUTES)
    return [own * f + (1.0 - own) * u for f, u in zip(found, usual_factors(), strict=True)]


def expected(pace: Pace, growth: float) -> float:
    """Demand when a replica that is started now is ready: the slow mean as the forecast moves it, and what lasts of the
    present deviation."""
    return max(0.0, pace.slow * growth + pace.lasts * (pace.fast - pace.slow))


def growth_of(forecast: Forecast | None, at: float, ahead_s: float) -> float:
    """Median demand in `ahead_s` over that of now, read between the middles of the forecast's steps. 1 without one."""
    return growths_of(forecast, at, (ahead_s,))[0]


def growths_of(forecast: Forecast | None, at: float, aheads_s: Sequence[float]) -> list[float]:
    """`growth_of` for several times ahead."""
    now = level_at(forecast, at) if forecast is not None else NAN
    if forecast is None or not now > 0:
        return [1.0] * len(aheads_s)
    found = [level_at(forecast, at + ahead_s) / now for ahead_s in aheads_s]
    return [1.0 if math.isnan(g) else min(GROWTH_MAX, max(1.0 / GROWTH_MAX, g)) for g in found]


GROWTH_MAX = 1.6
"""More than that is not believed of the shape of a forecast alone."""


def level_at(forecast: Forecast, at: float, level: float = 0.5) -> float:
    """Demand at an instant between the middles of two steps. NaN beyond the horizon.

    Before the first middle the first line goes on: a forecast is made when its first step begins, and would else be flat
    for half of it.
    """
    row = forecast.quantiles[forecast.levels.index(level)]
    place = (at - forecast.at) / forecast.step_s - 0.5
    if place >= row.size - 1 or place < -1.0:
        return NAN
    low = max(0, math.floor(place))
    here, then = float(row.item(low)), float(row.item(min(low + 1, row.size - 1)))
    return max(0.0, here + (place - low) * (then - here))
