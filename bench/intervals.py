"""Figures that say how sure they are: exact intervals of counts and shares, quantiles of what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import betaincinv, gammaincinv

LEVEL = 0.95


def poisson_rate(count: int, exposure: float, level: float = LEVEL) -> tuple[float, float, float]:
    """(rate, low, high) of events per unit of exposure; NaN without exposure.

    Exact (Garwood): from no event in 60 follows at most 0.061 at one side of 97.5 %.

    >>> [round(v, 4) for v in poisson_rate(0, 60.0)]
    [0.0, 0.0, 0.0615]
    """
    if exposure <= 0:
        return math.nan, math.nan, math.nan
    tail = (1 - level) / 2
    low = float(gammaincinv(count, tail)) if count else 0.0
    high = float(gammaincinv(count + 1, 1 - tail))
    return count / exposure, low / exposure, high / exposure


def share(hits: int, total: int, level: float = LEVEL) -> tuple[float, float, float]:
    """(share, low, high), exact (Clopper-Pearson); NaN of nothing.

    >>> [round(v, 3) for v in share(9, 10)]
    [0.9, 0.555, 0.997]
    """
    if not total:
        return math.nan, math.nan, math.nan
    tail = (1 - level) / 2
    low = float(betaincinv(hits, total - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, total - hits, 1 - tail)) if hits < total else 1.0
    return hits / total, low, high


def quantile(values: Sequence[float], level: float) -> float:
    """Of the values found; NaN of none."""
    return float(np.quantile(np.array(values), level)) if values else math.nan


def f_score(precision: float, recall: float) -> float:
    """Harmonic mean; 0 when both are 0, NaN when one is unknown."""
    if math.isnan(precision) or math.isnan(recall):
        return math.nan
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def plain(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
