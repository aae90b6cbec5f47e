"""Keeps the last two hours of the signals that people look at, a value a minute, to be drawn and forgotten."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array, Entity, Frames, Incident

EVERY_S = 60.0
KEPT = 120
"""Minutes: ten thousand GPUs with their ports take some 60 MB."""
SIGNALS: Mapping[str, tuple[str, ...]] = {
    "gpu": ("util_ratio", "sm_clock_mhz", "temp_c", "power_w"),
    "engine": ("itl_mean_s", "ttft_p95_s", "running", "waiting", "kv_used_ratio"),
    "port": ("rx_bytes_s", "tx_bytes_s"),
    "node": ("load1",),
    "pool": ("concurrency", "waiting", "kv_used_ratio_max", "ttft_p95_s_max"),
}
"""Kind -> what is kept of each entity; what nobody exports takes room as NaN and is not drawn."""


BEFORE_S = 1800.0
"""How much of the time before an incident its pictures show."""
SHOWN_MAX = 2
PEERS_MAX = 64


@dataclass(frozen=True, slots=True, eq=False)
class Minute:
    """values : kind -> (entity, signal) as in SIGNALS. entities : kind -> names, shared between minutes alike.

    groups : kind -> the peer group of each entity as detectors see it, () where there are none.
    """

    at: float
    entities: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, tuple[str, ...]]
    values: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One signal of one entity beside its peers'. All (minute,), NaN = not measured.

    median, low, high : of the peers without it, the 10 % and 90 % levels; all NaN when it has none.
    """

    kind: str
    name: str
    signal: str
    at: Array
    own: Array
    median: Array
    low: Array
    high: Array


@dataclass(slots=True)
class Recent:
    """Lives beside the loop and is not part of what is decided on: gone with the process."""

    minutes: deque[Minute] = field(default_factory=lambda: deque(maxlen=KEPT))

    def push(self, frames: Frames) -> None:
        """Keep this tick if a minute has passed since the last one kept."""
        if self.minutes and frames.at - self.minutes[-1].at < EVERY_S:
            return
        there = {k: frames[k] for k in SIGNALS if frames[k].entities}
        values = {k: f.columns(SIGNALS[k]).astype(np.float32) for k, f in there.items()}
        names = {k: f.entities for k, f in there.items()}
        groups = {k: f.facts.get("peer", ()) for k, f in there.items()}
        self.minutes.append(Minute(frames.at, names, groups, values))

    def peers(self, entity: Entity, at: float = np.inf) -> list[str]:
        """Names an entity was compared with at a time, or last before or first after it, itself among them; [] when unknown."""
        before = [m for m in self.minutes if m.at <= at]
        for minute in (*reversed(before), *islice(self.minutes, len(before), None)):
            names, groups = minute.entities.get(entity.kind, ()), minute.groups.get(entity.kind, ())
            if groups and entity.name in names:
                own = groups[names.index(entity.name)]
                alike = [n for n, g in zip(names, groups, strict=True) if g == own and own]
                # Evenly over a large group: a band of 64 is the band of all.
                return alike[:: max(1, len(alike) // PEERS_MAX)]
        return []

    def traces(self, kind: str, name: str, peers: Sequence[str] = (), since: float = NAN) -> list[Trace]:
        """What is kept of one entity, a trace a signal that was measured at all. peers : names to hold it against."""
        minutes = [m for m in self.minutes if kind in m.values and not m.at < since]
        if not minutes:
            return []
        others = [p for p in peers if p != name]
        own = np.full((len(minutes), len(SIGNALS[kind])), NAN)
        rest = np.full((len(minutes), len(others), len(SIGNALS[kind])), NAN)
        place: dict[str, int] = {}
        last: tuple[str, ...] = ()
        for i, minute in enumerate(minutes):
            if minute.entities[kind] is not last:
                last = minute.entities[kind]
                place = {n: k for k, n in enumerate(last)}
            if name in place:
                own[i] = minute.values[kind][place[name]]
            rows = [(j, place[p]) for j, p in enumerate(others) if p in place]
            if rows:
                into, of = np.array(rows).T
                rest[i, into] = minute.values[kind][of]
        at = np.array([m.at for m in minutes])
        low, median, high = levels(rest)
        return [
            Trace(kind, name, signal, at, own[:, s], median[:, s], low[:, s], high[:, s])
            for s, signal in enumerate(SIGNALS[kind])
            if np.isfinite(own[:, s]).any()
        ]


def levels(values: Array) -> tuple[Array, Array, Array]:
    """10 %, 50 % and 90 % of values (minute, peer, signal) over the peers, NaN where none was measured."""
    if not values.shape[1]:
        blank = np.full((values.shape[0], values.shape[2]), NAN)
        return blank, blank, blank
    ordered = np.sort(values, axis=1)  # NaN sorts last
    number = np.isfinite(ordered).sum(axis=1)
    found = []
    for level in (0.1, 0.5, 0.9):
        place = np.maximum(np.rint(level * (number - 1)), 0).astype(np.intp)
        picked = np.take_along_axis(ordered, place[:, None, :], axis=1)[:, 0]
        found.append(np.where(number > 0, picked, NAN))
    return found[0], found[1], found[2]


def pictured(recent: Recent, incident: Incident) -> list[Trace]:
    """What shows an incident: the signals of the first entities it blames, beside their peers'."""
    named = dict.fromkeys([incident.scope, *(f.entity for f in incident.findings)])
    shown = [e for e in named if e.kind in SIGNALS][:SHOWN_MAX]
    since = incident.since if incident.since == incident.since else incident.opened
    # As they were when it opened: what has been set aside has other peers, idle ones, and seems well beside them.
    peers = {e: recent.peers(e, incident.opened) for e in shown}
    return [t for e in shown for t in recent.traces(e.kind, e.name, peers[e], since - BEFORE_S)]
