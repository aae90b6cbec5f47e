"""Sums of named series by the hour, over the last day."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from daemon.model import NAN

HOUR_S = 3600.0
DAY_H = 24


@dataclass(slots=True)
class Hours:
    """rows : series -> [[hour since the epoch, sum, count], ...], oldest first, at most 24."""

    rows: dict[str, list[list[float]]] = field(default_factory=dict)

    def add(self, name: str, at: float, value: float) -> None:
        """Take in one value. NaN = not measured, and is left out."""
        if value != value:
            return
        hour = math.floor(at / HOUR_S)
        rows = self.rows.setdefault(name, [])
        if not rows or rows[-1][0] != hour:
            rows.append([hour, 0.0, 0.0])
            while rows[0][0] <= hour - DAY_H:
                rows.pop(0)
        rows[-1][1] += value
        rows[-1][2] += 1.0

    def forget(self, at: float) -> None:
        """Drop the series that nothing was added to for a day."""
        last = math.floor(at / HOUR_S) - DAY_H
        for name in [n for n, rows in self.rows.items() if rows[-1][0] <= last]:
            del self.rows[name]

    def mean(self, name: str) -> float:
        """Of the hours that were seen, each counting alike. NaN = never seen."""
        means = [total / count for _, total, count in self.rows.get(name, ())]
        return sum(means) / len(means) if means else NAN

    def peak(self, name: str) -> float:
        """The mean of the busiest hour. NaN = never seen."""
        return max((total / count for _, total, count in self.rows.get(name, ())), default=NAN)

    def total(self, name: str) -> float:
        """Sum over the day. NaN = never seen."""
        rows = self.rows.get(name)
        return sum(row[1] for row in rows) if rows else NAN

    def top(self, name: str) -> float:
        """The largest sum of one hour. NaN = never seen."""
        return max((row[1] for row in self.rows.get(name, ())), default=NAN)

    def seen_h(self, name: str) -> int:
        return len(self.rows.get(name, ()))

    def names(self, prefix: str) -> list[str]:
        """What follows the prefix in the names of series, sorted."""
        return sorted(n.removeprefix(prefix) for n in self.rows if n.startswith(prefix))
