"""Keeps what showed an incident when it closed, so that its page can be read months later."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

import numpy as np

from daemon.model import NAN, Array
from daemon.recent import Trace
from daemon.store import Store

KEPT_S = 90 * 86400.0
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS pictures (incident TEXT PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL)",
)


class Pictures:
    """Traces of closed incidents, some two kilobytes each."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keep(self, at: float, incident: str, traces: Sequence[Trace]) -> None:
        """Keep the traces of an incident; none is no news."""
        if not traces:
            return
        body = zlib.compress(json.dumps([_plain(t) for t in traces]).encode(), 6)
        self._store.write("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?)", [(incident, at, body)])

    def of(self, incident: str) -> list[Trace]:
        """The traces kept of an incident, [] when there are none."""
        rows = self._store.rows("SELECT body FROM pictures WHERE incident = ?", (incident,))
        return [_trace(t) for (body,) in rows for t in json.loads(zlib.decompress(body))]

    def prune(self, at: float) -> None:
        self._store.write("DELETE FROM pictures WHERE at < ?", [(at - KEPT_S,)])


LINES = ("own", "median", "low", "high")


def _plain(trace: Trace) -> dict[str, object]:
    return {
        "kind": trace.kind,
        "name": trace.name,
        "signal": trace.signal,
        "at": [round(t, 1) for t in trace.at.tolist()],
        **{line: [_short(v) for v in getattr(trace, line).tolist()] for line in LINES},
    }


def _short(value: float) -> float | None:
    """Four significant digits: a picture shows no more."""
    return float(f"{value:.4g}") if value == value else None


def _trace(plain: dict[str, list[float | None]]) -> Trace:
    def line(name: str) -> Array:
        return np.array([NAN if v is None else v for v in plain[name]])

    return Trace(
        str(plain["kind"]), str(plain["name"]), str(plain["signal"]), line("at"), *(line(n) for n in LINES)
    )
