"""What was before the first start: read from a store once, and kept as if it had been measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from daemon import outlook, replica
from daemon.demand import BUCKET_S, rows_of
from daemon.model import Array, Frames
from daemon.policy import Policy
from daemon.record import Record
from daemon.topology import Topology

Series = Mapping[str, tuple[Array, Array]]
"""signal -> (at, values); NaN = gap."""
SETTLED_MIN = 180
"""Minutes of evidence until what a replica holds may turn past demand into GPUs: as many as a capacity warning needs."""


class History(Protocol):
    """Where the past comes from at the first start. Both raise SourceError."""

    async def demand(
        self, pools: Mapping[str, Mapping[str, str]], since: float, until: float, step_s: float
    ) -> Mapping[str, Series]:
        """pools : name -> facts of its engines. Returns pool -> its signals."""
        ...

    async def gpus(self, uuids: Sequence[str], since: float, until: float, step_s: float) -> Series:
        """What the GPUs of these UUIDs showed together: gpus_healthy, those that reported, and power_w."""
        ...


class Past:
    """history : None = there is none to read. span_s : how far back it is read."""

    def __init__(self, record: Record, history: History | None, span_s: float) -> None:
        self._record, self._history, self._span_s = record, history, span_s
        self._is_counted = False

    @property
    def is_wanted(self) -> bool:
        """Whether there is a past to read that no start before has read."""
        return self._history is not None and self._told() is None

    async def read(self, frames: Frames, policy: Policy, now: float, joint: float) -> None:
        """Read it into the record. joint : left edge of the first live bucket; nothing is counted twice there, and
        nothing is missing. Raises SourceError."""
        assert self._history is not None
        since = now - self._span_s
        pools = await self._history.demand(pools_of(frames, policy), since, now, BUCKET_S)
        uuids = [u for u in frames["gpu"].facts.get("uuid", ()) if u]
        gpus = await self._history.gpus(uuids, since, now, BUCKET_S) if uuids else {}
        rows = [*rows_of("pool", pools, joint), *rows_of("cluster", {policy.cluster: gpus}, joint)]
        self._record.rollup(rows)
        self._record.event(now, "backfill", {"pools": sorted(pools), "rows": len(rows), "until": joint})

    def count_gpus(
        self, now: float, topology: Topology, policy: Policy, learnt: Mapping[str, replica.Learnt]
    ) -> None:
        """The GPUs that the demand of the past would have needed, once it is known what a replica of each pool holds."""
        told, pools = self._told(), topology.pools()
        if self._is_counted or told is None or not pools:
            return
        if any(p not in learnt or learnt[p].minutes < SETTLED_MIN for p in pools):
            return
        self._is_counted = True
        since, joint = now - self._span_s, float(told["until"])
        found = {p: self._record.series("pool", p, "concurrency", since, joint) for p in pools}
        at = np.unique(np.concatenate([times for times, _ in found.values()]))
        known = self._record.series("cluster", policy.cluster, "gpus_needed", since, joint)[0]
        if not at.size or known.size:
            return
        demand = {p: np.full(at.size, math.nan) for p in pools}
        for p, (times, values) in found.items():
            demand[p][np.searchsorted(at, times)] = values
        needed = outlook.gpus_needed(demand, topology, policy, learnt)
        self._record.rollup(list(rows_of("cluster", {policy.cluster: {"gpus_needed": (at, needed)}}, joint)))

    def _told(self) -> Mapping[str, Any] | None:
        """What the record says of the reading, None while there was none."""
        return next((e.payload for e in self._record.events(type="backfill", limit=1)), None)


def pools_of(frames: Frames, policy: Policy) -> dict[str, dict[str, str]]:
    """Every pool with the facts its engines have in a store: as configured, else the model that was found."""
    engine = frames["engine"]
    of, model = engine.facts.get("pool", ()), engine.facts.get("model", ())
    found = {pool: {"model": name} for pool, name in zip(of, model, strict=True) if pool and name}
    return found | {p.name: dict(p.match) or found.get(p.name, {"pool": p.name}) for p in policy.pools}
