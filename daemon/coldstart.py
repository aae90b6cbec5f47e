"""How long replicas take to start, and what their weights were read from: measured as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from daemon.model import NAN, Frame, Frames
from daemon.policy import Policy, PoolPolicy

KEPT = 40
KNOWN = 5
"""From so many starts on, their own 95 % level is believed; before, the longer of it and the operator's figure."""
LONGEST_S = 3600.0
"""A replica that was first seen so long after its process began was hidden, not starting."""
ORDER_S = 300.0
"""A new replica whose process begins within this of a change of the pool's size was ordered by it: waiting for a node is a part
of the start. A replica that restarts was ordered by nobody."""
GAP_S = 120.0
"""After so long without a look nobody can say when those that serve now began to."""
READ_TAU_S = 60.0
READ_LEAST = 20e6
"""Bytes a second from which a store is being loaded from. Judgement: weights of 10 GB in eight minutes."""
MEMORY = "memory"
"""Source of a start during which no store of the node was read: the weights were in the page cache."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start. took_s : from the order, or the process where nobody ordered, to serving. weights_s : the part that read the
    weights, NaN = not told. source : "nvme", "nfs", "lustre", "ceph", what the target's label `weights` says, MEMORY, or
    "" = not known."""

    at: float
    took_s: float
    weights_s: float
    source: str
    node: str


@dataclass(slots=True)
class Starts:
    """kept : pool -> its last KEPT starts, oldest first. known : engine -> what tells its process from the one before.

    reading : store -> bytes a second read from it, fading over READ_TAU_S. at : of the last look, NaN = none. since : of the first of an
    unbroken row of looks.
    """

    kept: dict[str, list[Start]] = field(default_factory=dict)
    known: dict[str, float] = field(default_factory=dict)
    reading: dict[str, float] = field(default_factory=dict)
    at: float = NAN
    since: float = NAN

    def watch(self, frames: Frames, scaled: Mapping[str, float]) -> bool:
        """Take one tick in; whether a start was measured. scaled : pool -> when we last changed its size."""
        engines = frames["engine"]
        if not frames.at - self.at <= GAP_S or self.since != self.since:
            self.since = frames.at
        self._read(frames["store"], frames.at)
        self.at = frames.at
        found = False
        table = engines.columns(("running", "start_time_s", "startup_s", "weights_load_s")).tolist()
        pools = engines.facts.get("pool", ("",) * len(engines.entities))
        for i, (name, (running, begun, told_s, weights_s)) in enumerate(
            zip(engines.entities, table, strict=True)
        ):
            process = begun if begun == begun else told_s
            if running != running or process != process or self.known.get(name) == process:
                continue
            is_new = name not in self.known
            self.known[name] = process
            took_s = told_s
            # A first page may come several ticks late: only a process that began under our eyes has just started. What an
            # engine says of itself stands all the same.
            was_watched = (begun if begun == begun else frames.at - told_s) >= self.since
            if begun == begun and was_watched:
                ordered = scaled.get(pools[i], -math.inf)
                took_s = frames.at - (ordered if is_new and 0 <= begun - ordered <= ORDER_S else begun)
            if not 0 < took_s <= LONGEST_S or not pools[i]:
                continue
            node = engines.facts["node"][i] if "node" in engines.facts else ""
            told = engines.facts["weights"][i] if "weights" in engines.facts else ""
            source = told or (self._source(_stores_on(frames["store"]).get(node, {})) if was_watched else "")
            start = Start(frames.at, took_s, weights_s, source, node)
            self.kept[pools[i]] = [*self.kept.get(pools[i], ()), start][-KEPT:]
            found = True
        if len(self.known) > 2 * len(engines.entities):
            alive = set(engines.entities)
            self.known = {n: p for n, p in self.known.items() if n in alive}
        return found

    def _read(self, store: Frame, at: float) -> None:
        elapsed = at - self.at
        weight = -math.expm1(-elapsed / READ_TAU_S) if elapsed > 0 else 1.0
        rates = zip(store.entities, store.column("read_bytes_s").tolist(), strict=True)
        self.reading = {
            name: (1.0 - weight) * self.reading.get(name, 0.0) + weight * (rate if rate == rate else 0.0)
            for name, rate in rates
        }

    def _source(self, stores: Mapping[str, str]) -> str:
        """What a node was reading from lately. stores : store of the node -> its kind."""
        if not stores:
            return ""
        busiest = max(stores, key=lambda name: self.reading.get(name, 0.0))
        return stores[busiest] if self.reading.get(busiest, 0.0) >= READ_LEAST else MEMORY


def _stores_on(store: Frame) -> dict[str, dict[str, str]]:
    """node -> its stores that tell what is read -> their kind."""
    found: dict[str, dict[str, str]] = {}
    if not store.entities:
        return found
    blank = ("",) * len(store.entities)
    nodes, sources = store.facts.get("node", blank), store.facts.get("source", blank)
    for name, node, source, rate in zip(
        store.entities, nodes, sources, store.column("read_bytes_s").tolist(), strict=True
    ):
        if node and rate == rate:
            found.setdefault(node, {})[name] = source
    return found


def quantile(starts: list[Start], level: float) -> float:
    """Seconds a start took at a level; NaN without any."""
    return float(np.quantile([s.took_s for s in starts], level)) if starts else NAN


def by_source(starts: Sequence[Start]) -> dict[str, list[Start]]:
    found: dict[str, list[Start]] = {}
    for start in starts:
        found.setdefault(start.source, []).append(start)
    return found


@lru_cache(maxsize=64)
def _usual(starts: tuple[Start, ...]) -> float:
    """Asked for in every tick, and the same from one start to the next."""
    return max(quantile(group, 0.5) for group in by_source(starts).values())


def expected_s(starts: list[Start], pool: PoolPolicy) -> float:
    """How long a replica started now is expected to take, on the careful side."""
    if not starts:
        return pool.cold_start_s
    measured = quantile(starts, 0.95)
    return measured if len(starts) >= KNOWN else max(measured, pool.cold_start_s)


def with_measured(policy: Policy, starts: Starts) -> Policy:
    """The policy with cold starts as they were measured, for all that looks ahead."""
    pools = tuple(
        replace(p, cold_start_s=expected_s(starts.kept[p.name], p)) if starts.kept.get(p.name) else p
        for p in policy.pools
    )
    return replace(policy, pools=pools)


SIGNALS = ("cold_start_last_s", "cold_start_p50_s")
RECENT_S = 1800.0


def with_starts(frames: Frames, starts: Starts) -> Frames:
    """Frames with what is known of starts beside each pool, as a Frame of kind "pool_start", for detectors.

    cold_start_last_s : of the last start, while it is younger than half an hour; NaN otherwise. cold_start_p50_s : of those before it, from the
    slowest source that is used.
    """
    names = tuple(starts.kept)
    values = np.full((len(names), len(SIGNALS)), NAN)
    for i, kept in enumerate(starts.kept.values()):
        before = kept[:-1]
        is_new = frames.at - kept[-1].at <= RECENT_S
        values[i] = (
            kept[-1].took_s if is_new else NAN,
            _usual(tuple(before)) if is_new and len(before) >= KNOWN else NAN,
        )
    made = Frame(frames.at, "pool_start", names, SIGNALS, values, np.zeros(len(names)))
    return Frames(frames.at, {**frames.by_kind, "pool_start": made}, frames.events, frames.told)
