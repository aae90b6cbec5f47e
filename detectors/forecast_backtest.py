"""What the forecaster would have been worth on the past of one series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from daemon.model import NAN, Array
from detectors.forecast import LEVELS, forecast_series
from detectors.forecast_members import DAY, WEEK

HORIZONS_H = (1, 24, 72, 168)
ORIGINS = 12
HISTORY_MIN_H = 8 * DAY


@dataclass(slots=True)
class Sums:
    """Over the origins of one horizon: absolute errors, quantile losses, hours inside the 80 % band."""

    origins: int = 0
    hours: int = 0
    error: float = 0.0
    naive_error: float = 0.0
    loss: float = 0.0
    naive_loss: float = 0.0
    inside: int = 0

    def add(self, came: Array, ours: Array, naive: Array) -> None:
        """came : (hour,), NaN = missing; ours, naive : (quantile, hour)."""
        known = np.isfinite(came)
        if not known.any():
            return
        off, other = came[known] - ours[:, known], came[known] - naive[:, known]
        middle = LEVELS.index(0.5)
        self.origins += 1
        self.hours += int(known.sum())
        self.error += float(np.abs(off[middle]).sum())
        self.naive_error += float(np.abs(other[middle]).sum())
        self.loss += _pinball(off)
        self.naive_loss += _pinball(other)
        self.inside += int(((off[LEVELS.index(0.1)] >= 0) & (off[LEVELS.index(0.9)] <= 0)).sum())

    def row(self, hours: int) -> dict[str, Any]:
        return {
            "hours": hours,
            "origins": self.origins,
            "error": self.error / self.hours,
            "error_ratio": self.error / self.naive_error if self.naive_error > 0 else NAN,
            "loss_ratio": self.loss / self.naive_loss if self.naive_loss > 0 else NAN,
            "coverage80": self.inside / self.hours,
        }


def _pinball(off: Array) -> float:
    level = np.array(LEVELS)[:, None]
    return float(np.maximum(level * off, (level - 1.0) * off).sum())


def backtest(
    values: Array, told: Callable[[int, int], None] = lambda done, total: None
) -> list[dict[str, Any]]:
    """Scores at rolling origins of the last third of a series, one row a horizon.

    values : (hour,), NaN = missing. Each row: hours, origins, error (mean absolute, units of the series), error_ratio
    and loss_ratio (quantile loss) over weekly naive's, coverage80. Nothing after an origin is seen by its forecast.
    Raises ValueError where no origin can be scored, with the reason. told : (origins scored, origins in all).
    """
    known = np.isfinite(values)
    first = int(known.argmax()) if known.any() else values.size
    size = values.size - first
    start = first + max(HISTORY_MIN_H, 2 * size // 3)
    if values.size - start < DAY:
        raise ValueError(
            f"not enough history to test on (have {size} h, need {HISTORY_MIN_H + DAY} h; six weeks are good)"
        )
    sums, why = {hours: Sums() for hours in HORIZONS_H}, "nothing was measured after any origin"
    origins = range(start, values.size - DAY + 1, max(13, (values.size - DAY - start) // ORIGINS))
    for number, origin in enumerate(origins):
        told(number, len(origins))
        made = forecast_series(values[:origin], WEEK)
        if made.note and not np.isfinite(made.quantiles).all():
            why = made.note
            continue
        came = values[origin : origin + WEEK]
        for hours, found in sums.items():
            if came.size >= hours:
                found.add(came[:hours], made.quantiles[:, :hours], made.naive[:, :hours])
    rows = [found.row(hours) for hours, found in sums.items() if found.hours]
    if not rows:
        raise ValueError(f"no origin to test on: {why}")
    return rows
