"""A table of senders and receivers taken apart: is a row slow, a column, or one cell?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daemon.model import NAN, Array
from detectors.stats import MAD_TO_SIGMA

ROUNDS = 10


@dataclass(frozen=True, slots=True, eq=False)
class TwoWay:
    """table = whole + rows[:, None] + columns[None, :] + cells, where it was measured.

    rows, columns : effect of each line, NaN where nothing of it was measured. cells : (row, column) what neither explains.
    sigma : robust spread of the cells, 0 where fewer than four are known.
    """

    whole: float
    rows: Array
    columns: Array
    cells: Array
    sigma: float


def median_polish(table: Array) -> TwoWay:
    """Takes medians out of rows and columns in turn, so that a few odd cells move neither.

    table : (row, column), NaN = not measured. Source: Tukey, Exploratory Data Analysis, 1977.

    >>> flat = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [5.0, 6.0, 17.0]])
    >>> found = median_polish(flat)
    >>> (found.whole, found.rows.tolist(), found.columns.tolist(), found.cells[2].tolist())
    (3.0, [-1.0, 0.0, 3.0], [-1.0, 0.0, 1.0], [0.0, 0.0, 10.0])
    """
    cells = table.copy()
    rows, columns, whole = np.zeros(table.shape[0]), np.zeros(table.shape[1]), 0.0
    for _ in range(ROUNDS):
        by_row = _medians(cells, 1)
        cells = cells - np.nan_to_num(by_row)[:, None]
        rows += np.nan_to_num(by_row)
        middle = float(np.median(columns))
        columns, whole = columns - middle, whole + middle
        by_column = _medians(cells, 0)
        cells = cells - np.nan_to_num(by_column)[None, :]
        columns += np.nan_to_num(by_column)
        middle = float(np.median(rows))
        rows, whole = rows - middle, whole + middle
        if not (np.nan_to_num(by_row).any() or np.nan_to_num(by_column).any()):
            break
    known = np.isfinite(table)
    rows[~known.any(axis=1)] = NAN
    columns[~known.any(axis=0)] = NAN
    left = np.abs(cells[known])
    sigma = MAD_TO_SIGMA * float(np.median(left)) if left.size >= 4 else 0.0
    return TwoWay(whole, rows, columns, cells, sigma)


def _medians(table: Array, axis: int) -> Array:
    """Medians along an axis, NaN where nothing is known."""
    found = np.full(table.shape[1 - axis], NAN)
    some = np.isfinite(table).any(axis=axis)
    found[some] = np.nanmedian(table[some] if axis == 1 else table[:, some], axis=axis)
    return found
