"""Disks, host memory and KV caches that will be full within days: the trend of hourly medians, without the daily swing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Frames, Severity
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


@dataclass(frozen=True, slots=True)
class Store:
    """What may be used up.

    kind : of the entities that have one. rule : that claims it. words : its name, of which comes the entity's. size, left :
    a frame's columns -> (entity,) how much there is in all and how much is left, NaN = not measured. unit : of both.
    lowest_h : over how many hours the least that was left counts: what swings with the day is full at the day's peak.
    """

    kind: str
    rule: str
    words: str
    size: Callable[[Frame], Array]
    left: Callable[[Frame], Array]
    unit: str = "B"
    lowest_h: int = 1


STORES = {
    "disk": Store(
        "node",
        "capacity.disk_filling",
        "the root filesystem",
        lambda f: f.column("fs_size_bytes"),
        lambda f: f.column("fs_avail_bytes"),
    ),
    "memory": Store(
        "node",
        "capacity.memory_filling",
        "host memory",
        lambda f: f.column("mem_total_bytes"),
        lambda f: f.column("mem_available_bytes"),
    ),
    "kv": Store(
        "pool",
        "capacity.kv_filling",
        "the KV cache",
        lambda f: np.ones(len(f.entities)),
        lambda f: 1.0 - f.column("kv_used_ratio_mean"),
        unit="ratio",
        lowest_h=DAY_H,
    ),
}


@dataclass(slots=True)
class Trend:
    """Hourly medians of what a store has left. past : (hour)(entity,). in_a_row, raised : by name of the entity."""

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
    """What every node and pool has left, judged once an hour; the claims stand in between."""

    trends: dict[str, Trend] = field(default_factory=lambda: {name: Trend() for name in STORES})
    claims: dict[str, list[Finding]] = field(default_factory=dict)

    def update(self, frames: Frames) -> list[Finding]:
        """Claims that stand now."""
        standing: list[Finding] = []
        for name, store in STORES.items():
            frame = frames[store.kind]
            if not frame.entities:
                continue
            if self.trends[name].push(frame.at, frame.entities, store.left(frame)):
                self.claims[name] = self._judge(frame, name)
            standing += [replace(claim, at=frame.at) for claim in self.claims.get(name, ())]
        return standing

    def _judge(self, frame: Frame, kind: str) -> list[Finding]:
        store, trend = STORES[kind], self.trends[kind]
        past = np.array(trend.past)
        slow, middle, fast = slopes(past)
        size, left = store.size(frame), _lowest(past[-store.lowest_h :], store.left(frame))
        found = []
        with np.errstate(divide="ignore", invalid="ignore"):
            # Per hour; only a loss that even the slow end of the trend shows is a trend at all.
            ends = np.where(slow < 0, left / -middle * HOUR_S, np.inf)
            soonest, latest = left / -fast * HOUR_S, np.where(slow < 0, left / -slow * HOUR_S, np.inf)
        # Before two days are known a loss may be half of a daily swing: it is followed for half as long as it was seen.
        hours = len(trend.past)
        reach = np.inf if hours >= 2 * DAY_H else 0.5 * hours * HOUR_S
        for i, name in enumerate(frame.entities):
            limit = min(reach, CLEAR_S if name in trend.raised else RAISE_S)
            is_near = bool(ends[i] < limit) and bool(-middle[i] * DAY_H > 0.01 * size[i])
            trend.in_a_row[name] = trend.in_a_row.get(name, 0) + 1 if is_near else 0
            if not is_near:
                trend.raised.pop(name, None)
            elif trend.in_a_row[name] >= CONFIRM:
                trend.raised.setdefault(name, frame.at)
                ends_s = (float(soonest[i]), float(ends[i]), float(latest[i]))
                amount = (float(left[i]), float(size[i]), float(-middle[i]))
                found.append(_claim(frame.at, kind, name, amount, ends_s, trend.raised[name]))
        for gone in trend.in_a_row.keys() - set(frame.entities):
            del trend.in_a_row[gone]
            trend.raised.pop(gone, None)
        return found


def slopes(past: Array) -> tuple[Array, Array, Array]:
    """(entity,) slow, middle and fast loss an hour, negative = less is left; NaN with too few hours.

    past : (hour, entity). Differences over a whole day where there are two of them, so that the daily swing falls out,
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


def _lowest(past: Array, left: Array) -> Array:
    """(entity,) the least that was left over some hours and now, NaN where nothing was measured."""
    return np.asarray(np.fmin.reduce(np.vstack([past, left]), axis=0), dtype=float) if len(past) > 1 else left


def _claim(
    at: float,
    kind: str,
    name: str,
    amount: tuple[float, float, float],
    ends_s: tuple[float, float, float],
    since: float,
) -> Finding:
    """amount : left, in all, and the loss an hour. ends_s : soonest, likely and latest end."""
    left, size, pace = amount
    soonest, middle, latest = ends_s
    store = STORES[kind]
    day = f"{datetime.fromtimestamp(at + middle, UTC):%A %H:%M} UTC"
    span = (
        f"{soonest / HOUR_S:.0f} to {latest / HOUR_S:.0f} h"
        if np.isfinite(latest)
        else f"{soonest / HOUR_S:.0f} h or more"
    )
    if store.unit == "B":
        loses, has = f"{pace * DAY_H / 1e9:.3g} GB", f"{left / 1e9:.3g} GB"
    else:
        loses, has = f"{pace * DAY_H:.1%}", f"{left:.0%}"
    return say(
        at,
        store.rule,
        Entity(store.kind, name),
        "running_out",
        0.7,
        Severity.CRITICAL if middle < CRITICAL_S else Severity.WARNING,
        Evidence(f"{kind}_left", left, store.unit),
        Evidence(f"{kind}_share_left", left / size, "ratio"),
        Evidence("loss_a_day", pace * DAY_H, store.unit),
        Evidence("full_in", middle / HOUR_S, "h"),
        since=since,
        text=f"{store.words} of {name} loses {loses} a day and has {has} left: full in about {middle / HOUR_S:.0f} h ({span}), by {day}",
    )
