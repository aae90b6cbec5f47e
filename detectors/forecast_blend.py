"""The cheap models weighed by how far off each would have been lately."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daemon.model import NAN, Array
from detectors.forecast_boost import Boosted
from detectors.forecast_members import DAY, MEMBERS, members

BANDS = ((0, 1), (1, 3), (3, 6), (6, 12), (12, 24), (24, 48), (48, 72), (72, 120), (120, 168), (168, 10_000))
"""Lead times, in hours, that are weighed apart: the last value is the best model of the next hour and the worst of the next week."""
STRIDE_H = 11
"""Distance of past origins: odd to the day, so that every hour of it is one."""
POWER = 14.0
STEADY = ((DAY // 2, 0.1), (DAY, 0.2))
"""From which lead on what share is left to the mean of trees and median: models chosen by eighteen days of errors mislead where
a series changes, and what is the same on easy series is worth having on hard ones. Source: bench/forecast.py --part tune."""
DOUBT = 6.0
"""Origins' worth of doubt: with few origins the weights are nearly equal. Source: bench/forecast.py --part tune."""
PRIOR_ORIGINS = 2.0
"""Origins' worth of belief that all models are as good as the one in the middle."""
MIDDLE_PRIOR = 0.7
"""A median of many models is hard to mislead: it starts with less error than any model of its own."""
CAP = 4.0
"""Usual errors of the median that a single error counts at most. Source: bench/forecast.py --part tune."""
MEMORY_PER_DAY = 0.97
BOOST_BACK = 12 * DAY
BOOST_MIN = 6 * DAY


@dataclass(frozen=True, slots=True)
class Effort:
    """What a fit may cost. origins : past forecasts that are made again to weigh the models; trees : whether boosted
    trees take part, nine tenths of the time."""

    origins: int
    trees: bool


FULL = Effort(40, trees=True)
INLINE = Effort(6, trees=False)
"""For a loop that has no worker: a hundredth of a second a fit."""


@dataclass(frozen=True, slots=True)
class Blend:
    """Forecasts of the blend and of weekly naive, now and at origins of the past.

    origins : (origin,) values known then, oldest first, the last is now. truth : (origin, lead), NaN = not come yet or
    not measured. made, naive : (origin, lead). weights : (member,) of the last origin in the band of 24 to 48 h.
    """

    origins: Array
    truth: Array
    made: Array
    naive: Array
    weights: dict[str, float]


def blend(y: Array, seen: Array, horizon: int, effort: Effort = FULL) -> Blend:
    """Weigh the members by elapsed errors.

    y : (hour,) two days or more, no gaps, >= 0. seen : (hour,) the same with NaN where a gap was filled: what nobody
    measured proves nobody right, least of all the model whose value was filled in.
    """
    origins = origins_of(y.size, effort.origins)
    truth = np.full((origins.size, horizon), NAN)
    each = np.empty((origins.size, len(MEMBERS), horizon))
    for i, origin in enumerate(origins):
        come = seen[origin : origin + horizon]
        truth[i, : come.size] = come
        each[i] = members(y[:origin], horizon)
    names = list(MEMBERS)
    if effort.trees:
        trees = _trees(y, seen, origins, horizon)
        if trees is not None:
            each = np.concatenate([each, trees[:, None, :]], axis=1)
            names.append("boosted_trees")
    # A model without a past of its own stands in as the median, and is judged as that.
    with np.errstate(all="ignore"):
        middle = np.nanmedian(each, axis=1)
    each = np.where(np.isnan(each), middle[:, None, :], each)
    each = np.concatenate([each, middle[:, None, :]], axis=1)
    names.append("median")
    made, weights = _weighed(origins, truth, each)
    if "boosted_trees" in names:
        share = _steady_share(horizon)
        made = (1.0 - share) * made + share * each[:, -2:].mean(axis=1)
    return Blend(origins, truth, made, each[:, 0], dict(zip(names, weights.tolist(), strict=True)))


def origins_of(size: int, number: int = FULL.origins) -> Array:
    """Numbers of values known at each origin, oldest first; the last is now."""
    first = 8 * DAY if size >= 14 * DAY else 3 * DAY
    back = [size - k * STRIDE_H for k in range(number, 0, -1)]
    return np.array([o for o in back if o >= first] + [size], dtype=np.int64)


def _trees(y: Array, seen: Array, origins: Array, horizon: int) -> Array | None:
    """(origin, horizon) of the boosted trees, NaN before the model that gives their past was fitted. None = too young."""
    back = min(BOOST_BACK, y.size // 3)
    if np.isfinite(seen[: y.size - back]).sum() < BOOST_MIN:
        return None
    made = np.full((origins.size, horizon), NAN)
    past = origins[(origins >= y.size - back) & (origins < y.size)]
    if past.size:
        before = Boosted(horizon).fit(y[: y.size - back], seed=y.size, seen=seen)
        made[np.isin(origins, past)] = before.forecasts(y, past)
    made[-1] = Boosted(horizon).fit(y, seed=y.size, seen=seen).forecast(y)
    return made


def wider(low: int, high: int, horizon: int) -> slice:
    """A band with its neighbours: errors of near leads say something of each other and few are to be had."""
    return slice(int(low / 1.6), min(horizon, int(np.ceil(high * 1.6))))


def ages(origins: Array, now: float) -> Array:
    """(origin,) weight of what was learnt at each origin, 1 = now."""
    return np.asarray(MEMORY_PER_DAY ** ((now - origins) / DAY), dtype=float)


def _weighed(origins: Array, truth: Array, each: Array) -> tuple[Array, Array]:
    """(origin, lead) blends, each from errors that had come by its origin, and the last weights a day ahead."""
    horizon = truth.shape[1]
    lead = np.arange(horizon)
    error = np.abs(each - truth[:, None, :])
    prior = np.ones(each.shape[1])
    prior[-1] = MIDDLE_PRIOR
    made = np.empty(truth.shape)
    shown = prior / prior.sum()
    for i, now in enumerate(origins):
        come = (origins[:i, None] + lead[None, :] < now) & np.isfinite(truth[:i])
        weight = ages(origins[:i], now)[:, None] * come
        capped = np.minimum(error[:i], _cap(error[:i, -1], come))
        summed = np.einsum("jl,jml->ml", weight, np.where(come[:, None, :], capped, 0.0))
        number = weight.sum(axis=0)
        for low, high in BANDS:
            if low >= horizon:
                break
            near = wider(low, high, horizon)
            count = float(number[near].mean())
            share = _shares(summed[:, near].mean(axis=1), count, prior)
            made[i, low:high] = share @ each[i, :, low:high]
            if low == DAY:
                shown = share
    return made, shown


def _steady_share(horizon: int) -> Array:
    """(lead,) share of STEADY."""
    share = np.zeros(horizon)
    for lead, part in STEADY:
        share[lead:] = part
    return share


def _cap(usual: Array, come: Array) -> float:
    """What an error may count at most: one event that nobody foresaw must not choose the models for weeks."""
    known = usual[come]
    return CAP * float(np.median(known)) if known.size and np.median(known) > 0 else np.inf


def _shares(summed: Array, count: float, prior: Array) -> Array:
    """(member,) weights that sum to 1, from summed errors over `count` origins' worth of evidence."""
    usual = float(np.median(summed)) / count if count > 0 else 1.0
    if not usual > 0:
        usual = float(summed.max()) / count if count > 0 and summed.max() > 0 else 1.0
    expected = (summed + PRIOR_ORIGINS * usual * prior) / (count + PRIOR_ORIGINS)
    power = POWER * count / (count + DOUBT)
    share = (expected / expected.min()) ** -power
    return np.asarray(share / share.sum(), dtype=float)
