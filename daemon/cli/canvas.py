"""Draws a series with its forecast and bands in the cells of a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

PAST, MEDIAN, BAND, NOTHING, NOW = "•", "━", "░", " ", "┊"
PLAIN = str.maketrans({PAST: "*", MEDIAN: "=", BAND: ":", NOW: "|", "┤": "|", "└": "+", "─": "-"})
"""For terminals that know ASCII only."""
MARGIN = 10


def draw(
    start: float,
    step_s: float,
    past: Sequence[float],
    quantiles: Sequence[Sequence[float]],
    levels: Sequence[float],
    *,
    width: int = 100,
    height: int = 16,
) -> list[str]:
    """Lines of text: the past as dots, the median as a line, the 10 % to 90 % band shaded.

    start : time of the first value of `past`; NaN = missing. quantiles : (quantile, step) from the end of the past on.
    Several steps share a column when the time is longer than the width. [] when there is nothing to draw.
    """
    cells = max(20, width - MARGIN)
    ahead = len(quantiles[0]) if quantiles else 0
    steps = len(past) + ahead
    if steps < 2:
        return []
    bins = np.minimum(np.arange(steps) * cells // steps, cells - 1)
    was = np.r_[np.array(past, dtype=float), np.full(ahead, math.nan)]

    def line(level: float) -> np.ndarray:
        row = (
            quantiles[list(levels).index(level)]
            if quantiles and level in levels
            else np.full(ahead, math.nan)
        )
        return np.concatenate([np.full(len(past), math.nan), np.array(row, dtype=float)])

    columns = {
        "past": _binned(was, bins, cells),
        "middle": _binned(line(0.5), bins, cells),
        "low": _binned(line(0.1), bins, cells),
        "high": _binned(line(0.9), bins, cells),
    }
    known = np.concatenate([c[np.isfinite(c)] for c in columns.values()])
    if not known.size:
        return []
    least, top = float(known.min()), float(known.max())
    # From zero where that leaves something to see; a series that hardly moves is shown from near its least.
    bottom = min(0.0, least) if least < 0.5 * top else least - 0.2 * (top - least)
    span = (top - bottom) or 1.0

    def row_of(value: float) -> int:
        return height - 1 - round((value - bottom) / span * (height - 1))

    grid = [[NOTHING] * cells for _ in range(height)]
    for x in range(cells):
        low, high = columns["low"][x], columns["high"][x]
        if math.isfinite(low) and math.isfinite(high):
            for y in range(row_of(high), row_of(low) + 1):
                grid[y][x] = BAND
        if math.isfinite(columns["middle"][x]):
            grid[row_of(columns["middle"][x])][x] = MEDIAN
        if math.isfinite(columns["past"][x]):
            grid[row_of(columns["past"][x])][x] = PAST
    if past and ahead:
        edge = int(bins[len(past)])
        for y in range(height):
            if grid[y][edge] == NOTHING:
                grid[y][edge] = NOW
    lines = [
        f"{_short(top - span * y / (height - 1)) if y % 5 == 0 or y == height - 1 else '':>{MARGIN - 2}} ┤{''.join(r)}"
        for y, r in enumerate(grid)
    ]
    lines.append(" " * (MARGIN - 1) + "└" + "─" * cells)
    lines.append(" " * MARGIN + _days(start, step_s, steps, cells))
    return [text.rstrip() for text in lines]


def _binned(values: np.ndarray, bins: np.ndarray, cells: int) -> np.ndarray:
    known = np.isfinite(values)
    number = np.bincount(bins[known], minlength=cells)
    total = np.bincount(bins[known], values[known], minlength=cells)
    return np.where(number > 0, total / np.maximum(number, 1), math.nan)


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"


def _days(start: float, step_s: float, steps: int, cells: int) -> str:
    """Names of days under the columns at which they begin, as many as fit."""
    text = [" "] * cells
    free = 0
    first_midnight = math.ceil(start / 86400.0) * 86400.0
    for day in np.arange(first_midnight, start + steps * step_s, 86400.0):
        x = int((day - start) / step_s) * cells // steps
        label = f"{datetime.fromtimestamp(float(day), UTC):%a %d}"
        if x >= free and x + len(label) <= cells:
            text[x : x + len(label)] = label
            free = x + len(label) + 2
    return "".join(text)
