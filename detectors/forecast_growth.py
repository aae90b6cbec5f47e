"""Growth from day to day that has only begun, which shapes of past weeks cannot know: how likely, how fast."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from daemon.model import Array
from detectors.forecast_members import DAY

SHORTEST = 3
LONGEST = (14, 7)
"""Days since when a growth may have begun; a longer one has shown in the errors of the models."""
WEEKS_BACK = 3
SPAN_DAYS = 28
BEFORE_MIN = 6
CHANCE, STEP_CHANCE = 0.3, 0.1
"""How likely a growth, and a step of the level, are before anything was seen. Source: bench/warn.py --part tune."""
RATE_SPREAD, STEP_SPREAD = 0.05, 0.5
"""Usual size of a growth a day and of a step, as shares of the level."""
NOISE_MIN = 0.012
LEVEL_NOISE = 0.1
"""How well the level before a growth is known, as a share of it."""
RATE_MAX = 0.25
"""What grows faster a day is an event that ends by itself."""
OUTAGE = 0.6
"""A day below this share of its neighbours was no usual one and says nothing of growth."""
SAMPLES = 80
FOLLOWED = (0.0, 0.0, 0.0, 0.5, 0.75, 1.0, 1.0)
"""Share of the rate at each of LEVELS that the level takes: it may end tomorrow. Source: bench/forecast.py --part tune."""
POINTS = (-1.28, -0.52, 0.0, 0.52, 1.28)
"""A normal distribution as five equally likely values."""


class Growth(NamedTuple):
    """rates : (SAMPLES,) equally likely growths a day as shares of the level today, in rising order, 0 = none.
    days : since when, as is most likely."""

    rates: Array
    days: int

    @property
    def chance(self) -> float:
        return float((self.rates > 0).mean())

    @property
    def rate(self) -> float:
        """What it is if there is one."""
        return float(np.median(self.rates[self.rates > 0]))

    def factors(self, levels: tuple[float, ...], horizon: int) -> Array:
        """(quantile, hour) what bands are multiplied with."""
        at_level = np.array(FOLLOWED) * np.quantile(self.rates, levels)
        return np.asarray(1.0 + np.outer(at_level, _days_ahead(horizon)), dtype=float)

    def levelled(self, y: Array) -> Array:
        """The series as if it had always stood at the level of its last day. y : (hour,), the last is now; NaN stays.

        Else models learnt from a rising week lag behind it, and their errors, all on one side, count the rise again.
        """
        days_before = (np.arange(y.size)[::-1] + 0.5 - DAY / 2.0) / DAY
        slope = self.rate / max(0.3, 1.0 - self.rate * self.days)
        risen = 1.0 + slope * np.maximum(self.days - days_before, 0.0)
        return np.asarray(y * (1.0 + slope * self.days) / risen, dtype=float)

    def along(self, paths: int, horizon: int) -> Array:
        """(path, hour) what sampled paths are multiplied with: each has a rate of its own, in an order that goes with nothing else."""
        order = np.argsort(np.arange(paths) * 37 % paths, kind="stable")
        mine = np.resize(self.rates, paths)[order]
        return np.asarray(1.0 + np.outer(mine, _days_ahead(horizon)), dtype=float)


def _days_ahead(horizon: int) -> Array:
    """(hour,) from the middle of the last day, which is where the level of a forecast stands."""
    return np.asarray((np.arange(horizon) + 0.5 + DAY / 2.0) / DAY, dtype=float)


class _Claim(NamedTuple):
    """A growth of so many days against none: the logarithm of how much likelier what was seen is, its rate and how well
    that is known; grown, stepped : of a growth, of a step at the same time."""

    days: int
    grown: float
    stepped: float
    rate: float
    spread: float


def growth_of(y: Array, seen: Array | None = None) -> Growth | None:
    """What growth may be under way, None when there is none or too little is known. y : (hour,), no gaps, >= 0; five weeks best.
    seen : (hour,) NaN where y was filled; a day of which less than half was measured says nothing. None = all was measured.

    Each day counts as its ratio to the same weekday of up to three weeks before. "It grows since L days", "it stepped up
    L days ago" and "nothing" are weighed by how likely they make these ratios, given how the ratios before scattered and
    followed each other: a series that wanders grows by chance.
    """
    whole = y.size % DAY
    known_h = np.isfinite((y if seen is None else seen)[whole:]).reshape(-1, DAY).sum(axis=1)
    days = np.where(known_h >= DAY // 2, y[whole:].reshape(-1, DAY).mean(axis=1), np.nan)
    days = days[::-1]  # newest first
    ratio = _ratios(days)
    known = np.flatnonzero(_is_usual(ratio))
    # What is usual comes from days before any growth that is looked for; a young series is asked for short ones alone.
    longest = next((n for n in LONGEST if (known >= n).sum() >= BEFORE_MIN), 0)
    claims = _claims(ratio, known, longest) if longest else []
    if not claims:
        return None
    grown, stepped = np.array([c.grown for c in claims]), np.array([c.stepped for c in claims])
    top = max(0.0, float(grown.max()), float(stepped.max()))
    weight = CHANCE / len(claims) * np.exp(grown - top)
    nothing = (1.0 - CHANCE - STEP_CHANCE) * math.exp(-top)
    nothing += STEP_CHANCE / len(claims) * float(np.exp(stepped - top).sum())
    rates = _sampled(claims, weight, nothing)
    if not rates.any():
        return None
    return Growth(rates, claims[int(weight.argmax())].days)


def _sampled(claims: list[_Claim], weight: Array, nothing: float) -> Array:
    """(SAMPLES,) rates in rising order, as likely as the claims are; what shrinks or explodes counts as none."""
    rates = np.array([0.0, *(c.rate + z * c.spread for c in claims for z in POINTS)])
    rates[(rates < 0) | (rates > RATE_MAX)] = 0.0
    share = np.array([nothing, *np.repeat(weight / len(POINTS), len(POINTS))])
    order = np.argsort(rates, kind="stable")
    below = np.cumsum(share[order]) / share.sum()
    wanted = (np.arange(SAMPLES) + 0.5) / SAMPLES
    return np.asarray(rates[order][np.minimum(np.searchsorted(below, wanted), order.size - 1)], dtype=float)


def _claims(ratio: Array, known: NDArray[np.intp], longest: int) -> list[_Claim]:
    """What growths of up to `longest` days have for them. ratio : (day,), newest first. known : (row,) days that count."""
    before = known[known >= longest]
    usual = float(np.median(ratio[before]))
    follow, noise = _scatter(ratio, before, usual)
    ago = known.astype(float)
    apart = np.abs(ago[:, None] - ago[None, :])
    root = np.linalg.cholesky(noise**2 / (1.0 - follow**2) * follow**apart + LEVEL_NOISE**2)
    seen = np.linalg.solve(root, ratio[known] - usual)
    found = []
    for length in range(SHORTEST, longest + 1):
        ramp = np.linalg.solve(root, np.maximum(length - ago, 0.0))
        step = np.linalg.solve(root, (ago < length).astype(float))
        grown, slope, spread = _evidence(seen, ramp, RATE_SPREAD**2)
        stepped, _, _ = _evidence(seen, step, STEP_SPREAD**2)
        today = max(0.3, usual + slope * length)
        found.append(_Claim(length, grown, stepped, slope / today, math.sqrt(spread) / today))
    return found


def _evidence(seen: Any, shape: Any, prior: float) -> tuple[float, float, float]:
    """Log likelihood ratio of a shape of unknown size over none; mean and variance of its size. All in units of the noise."""
    size, fit = float(shape @ shape), float(shape @ seen)
    sure = 1.0 + prior * size
    return 0.5 * prior * fit**2 / sure - 0.5 * math.log(sure), prior * fit / sure, prior / sure


def _scatter(ratio: Array, before: NDArray[np.intp], usual: float) -> tuple[float, float]:
    """How much of a day's distance from the usual is left the day after, and the standard deviation of what is new."""
    off = ratio - usual
    older = before[1:][np.diff(before) == 1]
    now, then = off[older - 1], off[older]
    size = float(off[before] @ off[before]) / before.size
    # Drawn to 0.3 by six days' worth of doubt: of few days nothing is known. Source: judgement.
    follow = (float(now @ then) + 0.3 * 6.0 * size) / (float(then @ then) + 6.0 * size + 1e-12)
    follow = min(0.95, max(0.0, follow))
    new = now - follow * then
    if not new.size:
        return follow, LEVEL_NOISE
    robust = 1.4826 * float(np.median(np.abs(new - np.median(new))))
    noise = max(robust, 0.7 * float(new.std()), NOISE_MIN)
    return follow, noise * math.sqrt((before.size + 4.0) / before.size)


def _is_usual(ratio: Array) -> NDArray[np.bool_]:
    """(day,) bool: known, and not far below its neighbours as the day of an outage is."""
    known = np.isfinite(ratio)
    around = np.array(
        [np.median(near[np.isfinite(near)]) if np.isfinite(near).any() else np.nan for near in _near(ratio)]
    )
    return known & ~(ratio <= OUTAGE * around)


def _near(ratio: Array) -> list[Array]:
    return [ratio[max(0, day - 3) : day + 4] for day in range(ratio.size)]


def _ratios(days: Array) -> Array:
    """(day,) each day over the median of the same weekday of three weeks before, newest first, SPAN_DAYS at most.

    As many days as have at least one such week. Of three weeks one may have grown already: the median is of those before.
    """
    size = max(0, min(SPAN_DAYS, days.size - 7))
    usual = np.full((WEEKS_BACK, size), np.nan)
    for week in range(WEEKS_BACK):
        back = days[7 * (week + 1) :][:size]
        usual[week, : back.size] = back
    told = np.isfinite(usual).any(axis=0)
    middle = np.full(size, np.nan)
    middle[told] = np.nanmedian(usual[:, told], axis=0)
    return np.where(middle > 0, days[:size] / np.where(middle > 0, middle, 1.0), np.nan)
