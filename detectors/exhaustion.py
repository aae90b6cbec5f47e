"""Disks and host memory that will be full within days: the trend of hourly medians, with the daily swing taken out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.stats import Rings

HOUR_S = 3600.0
DAY_H = 24
LEAST_H = 12
"""Hours seen before a trend is believed."""
KEPT_H = 7 * DAY_H
RAISE_S, CLEAR_S = 72 * HOUR_S, 120 * HOUR_S
"""Full within this long raises the warning, and beyond that long ends it. Source: three days are what the white paper
asks of capacity warnings; the gap keeps a trend near the limit from flapping (judgement)."""
CRITICAL_S = 6 * HOUR_S
CONFIRM = 2
"""Hours in a row that must say so."""
STORES = {
    "disk": ("capacity.disk_filling", "fs_size_bytes", "fs_avail_bytes", "the root filesystem"),
    "memory": ("capacity.memory_filling", "mem_total_bytes", "mem_available_bytes", "host memory"),
}
"""Store -> rule, signal of its size, signal of what is left, its name in words."""
SIGNALS = tuple(s for _, size, left, _ in STORES.values() for s in (size, left))


@dataclass(slots=True)
class Trend:
    """Hourly medians of what one store has left. past : (hour)(node,) bytes. since, in_a_row : (node,) by name."""

    ring: Rings = field(default_factory=lambda: Rings((HOUR_S,)))
    names: tuple[str, ...] = ()
    past: list[list[float]] = field(default_factory=list)
    in_a_row: dict[str, int] = field(default_factory=dict)
    raised: dict[str, float] = field(default_factory=dict)

    def push(self, at: float, names: tuple[str, ...], left: Array) -> bool:
        """Add one tick; whether an hour ended, so that the trend has something new."""
        if names != self.names:
            place = {name: i for i, name in enumerate(self.names)}
            index = [place.get(name, -1) for name in names]
            self.past = [[row[i] if i >= 0 else NAN for i in index] for row in self.past]
            self.names = names
        if not self.ring.push(at, names, left):
            return False
        self.past = [*self.past, [float(v) for v in self.ring.medians()[0]]][-KEPT_H:]
        return True


@dataclass(slots=True)
class Exhaustion:
    """Every node's disk and memory, judged once an hour; the claims stand in between."""

    trends: dict[str, Trend] = field(default_factory=lambda: {name: Trend() for name in STORES})
    claims: dict[str, list[Finding]] = field(default_factory=dict)

    def update(self, node: Frame) -> list[Finding]:
        """Claims that stand now."""
        if not node.entities:
            return []
        values = node.columns(SIGNALS)
        for k, store in enumerate(STORES):
            size, left = values[:, 2 * k], values[:, 2 * k + 1]
            if self.trends[store].push(node.at, node.entities, left):
                self.claims[store] = self._judge(node, store, size, left)
        return [replace(c, at=node.at) for claims in self.claims.values() for c in claims]

    def _judge(self, node: Frame, store: str, size: Array, left: Array) -> list[Finding]:
        trend = self.trends[store]
        slow, middle, fast = slopes(np.array(trend.past))
        found = []
        with np.errstate(divide="ignore", invalid="ignore"):
            # Per hour; only a loss that even the slow end of the trend shows is a trend at all.
            ends = np.where(slow < 0, left / -middle * HOUR_S, np.inf)
            soonest, latest = left / -fast * HOUR_S, np.where(slow < 0, left / -slow * HOUR_S, np.inf)
        # Before two days are known a loss may be half of a daily swing: it is followed for half as long as it was seen.
        hours = len(trend.past)
        reach = np.inf if hours >= 2 * DAY_H else 0.5 * hours * HOUR_S
        for i, name in enumerate(node.entities):
            limit = min(reach, CLEAR_S if name in trend.raised else RAISE_S)
            is_near = bool(ends[i] < limit) and bool(-middle[i] * DAY_H > 0.01 * size[i])
            trend.in_a_row[name] = trend.in_a_row.get(name, 0) + 1 if is_near else 0
            if not is_near:
                trend.raised.pop(name, None)
            elif trend.in_a_row[name] >= CONFIRM:
                trend.raised.setdefault(name, node.at)
                found.append(
                    _claim(
                        node,
                        store,
                        i,
                        left,
                        size,
                        -middle,
                        (soonest[i], ends[i], latest[i]),
                        trend.raised[name],
                    )
                )
        for gone in trend.in_a_row.keys() - set(node.entities):
            del trend.in_a_row[gone]
            trend.raised.pop(gone, None)
        return found


def slopes(past: Array) -> tuple[Array, Array, Array]:
    """(node,) slow, middle and fast loss an hour, negative = less is left; NaN with too few hours.

    past : (hour, node). Differences over a whole day where there are two of them, so that the daily swing falls out,
    else over half of what is there; the quartiles of these differences are the slow and the fast end.
    """
    hours = past.shape[0]
    blank = np.full(past.shape[1] if past.ndim == 2 else 0, NAN)
    if hours < LEAST_H:
        return blank, blank, blank
    lag = DAY_H if hours >= 2 * DAY_H else hours // 2
    steps = (past[lag:] - past[:-lag]) / lag
    known = np.isfinite(steps).sum(axis=0) * 2 >= steps.shape[0]
    with np.errstate(invalid="ignore"):
        fast, middle, slow = np.nanquantile(np.where(known, steps, 0.0), (0.25, 0.5, 0.75), axis=0)
    return (np.where(known, slow, NAN), np.where(known, middle, NAN), np.where(known, fast, NAN))


def _claim(
    node: Frame,
    store: str,
    i: int,
    left: Array,
    size: Array,
    pace: Array,
    ends_s: tuple[float, float, float],
    since: float,
) -> Finding:
    soonest, middle, latest = ends_s
    rule, _, _, words = STORES[store]
    day = f"{datetime.fromtimestamp(node.at + middle, UTC):%A %H:%M} UTC"
    span = (
        f"{soonest / HOUR_S:.0f} to {latest / HOUR_S:.0f} h"
        if np.isfinite(latest)
        else f"{soonest / HOUR_S:.0f} h or more"
    )
    return say(
        node.at,
        rule,
        Entity("node", node.entities[i]),
        "running_out",
        0.7,
        Severity.CRITICAL if middle < CRITICAL_S else Severity.WARNING,
        Evidence(f"{store}_left", float(left[i]), "B"),
        Evidence(f"{store}_share_left", float(left[i] / size[i]), "ratio"),
        Evidence("loss_a_day", float(pace[i] * DAY_H), "B"),
        Evidence("full_in", middle / HOUR_S, "h"),
        since=since,
        text=f"{words} of {node.entities[i]} loses {pace[i] * DAY_H / 1e9:.3g} GB a day and has {left[i] / 1e9:.3g} GB left: "
        f"full in about {middle / HOUR_S:.0f} h ({span}), by {day}",
    )
