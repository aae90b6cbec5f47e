"""Means of signals over five minutes, later over hours, for forecasts that outlive a restart."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from daemon.model import Array
from daemon.store import Store

FINE_KEPT_S = 13 * 7 * 86_400.0
"""How long five-minute rows are kept: a quarter, so that a weekly pattern has been seen 13 times."""
HOURLY_KEPT_S = 2 * 365 * 86_400.0
HOUR_S = 3600.0

ROLLUP_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS series (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, entity TEXT NOT NULL, signal TEXT NOT NULL, UNIQUE (kind, entity, signal))",
    "CREATE TABLE IF NOT EXISTS rollups (series INTEGER, at REAL, mean REAL NOT NULL, max REAL NOT NULL, count REAL NOT NULL, PRIMARY KEY (series, at)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS rollups_hourly (series INTEGER, at REAL, mean REAL NOT NULL, max REAL NOT NULL, count REAL NOT NULL, PRIMARY KEY (series, at)) WITHOUT ROWID",
)
_FOLD = """INSERT OR REPLACE INTO rollups_hourly
    SELECT series, CAST(at / ?2 AS INTEGER) * ?2, sum(mean * count) / sum(count), max(max), sum(count)
    FROM rollups WHERE at < ?1 GROUP BY series, floor(at / ?2)"""


class Rollups:
    """The kept rows of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ids = {
            (kind, entity, signal): int(number)
            for number, kind, entity, signal in store.rows("SELECT id, kind, entity, signal FROM series")
        }
        self._next = 1 + max(self._ids.values(), default=0)

    def add(self, rows: Iterable[tuple[str, str, str, float, float, float, float]]) -> None:
        """Keep rows (kind, entity, signal, at, mean, max, count). Rows without a finite mean or a count are skipped."""
        known = [
            (self._id(kind, entity, signal), at, mean, mean if math.isnan(high) else high, count)
            for kind, entity, signal, at, mean, high, count in rows
            if math.isfinite(mean) and count > 0
        ]
        if known:
            self._store.write("INSERT OR REPLACE INTO rollups VALUES (?, ?, ?, ?, ?)", known)

    def series(self, kind: str, entity: str, signal: str, since: float, until: float) -> tuple[Array, Array]:
        """(row,) start times and (row,) means in [since, until): hours where only they are left, five minutes after."""
        number = self._ids.get((kind, entity, signal), -1)
        rows = self._store.rows(
            "SELECT at, mean FROM rollups_hourly WHERE series = ?1 AND at >= ?2 AND at < ?3 UNION ALL "
            "SELECT at, mean FROM rollups WHERE series = ?1 AND at >= ?2 AND at < ?3 ORDER BY 1",
            (number, since, until),
        )
        table = np.array(rows, dtype=float).reshape(len(rows), 2)
        return table[:, 0], table[:, 1]

    def prune(self, at: float) -> None:
        """Fold whole hours older than FINE_KEPT_S into one row, drop hours older than HOURLY_KEPT_S."""
        edge = math.floor((at - FINE_KEPT_S) / HOUR_S) * HOUR_S
        self._store.write(_FOLD, [(edge, HOUR_S)])
        self._store.write("DELETE FROM rollups WHERE at < ?", [(edge,)])
        self._store.write("DELETE FROM rollups_hourly WHERE at < ?", [(at - HOURLY_KEPT_S,)])

    def _id(self, kind: str, entity: str, signal: str) -> int:
        found = self._ids.get((kind, entity, signal))
        if found is not None:
            return found
        number, self._next = self._next, self._next + 1
        self._ids[kind, entity, signal] = number
        self._store.write(
            "INSERT INTO series VALUES (?, ?, ?, ?)", [(number, kind, entity, signal)], keep=True
        )
        return number
