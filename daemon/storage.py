"""What storage shows, and whose weights should be read in before a rise that is forecast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from daemon.coldstart import MEMORY, Start, Starts, by_source, quantile
from daemon.fleet import Fleet
from daemon.model import NAN, Array, Frames
from daemon.outlook import Outlook
from daemon.policy import Policy
from daemon.topology import LOCAL, Topology

FAST = frozenset({*LOCAL, MEMORY})
"""Sources that need nobody else: what is read from them does not wait for the network."""
AHEAD_S = 6 * 3600.0
"""A rise further away is no reason to read anything in yet: nodes and plans change meanwhile."""
LEVEL = 0.9
NODES_SHOWN = 8
SUMS = ("read_bytes_s", "write_bytes_s", "errors_per_s")
SIGNALS = (
    *SUMS, "reads_per_s", "writes_per_s", "read_s_per_s", "resent_per_s", "busy_ratio", "health", "size_bytes", "free_bytes",
    "cache_hits_per_s", "cache_misses_per_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Store:
    """A shared store, or all local ones of a kind together. NaN = not measured.

    name : of the share, "" for local ones. source : "nvme", "cache", "nfs", "lustre", "ceph". nodes : that tell of it.
    read_time_s : of a read, its mean. slowest, slowest_s : the store where a read takes longest, and how long.
    resent_ratio : requests sent again over requests. health : 0 well 1 warning 2 error. hit_ratio : of loads, answered by a cache.
    """

    name: str
    source: str
    nodes: int
    read_bytes_s: float
    write_bytes_s: float
    read_time_s: float
    busy_ratio: float
    errors_per_s: float
    resent_ratio: float
    health: float
    free_ratio: float
    hit_ratio: float
    slowest: str
    slowest_s: float


def stores(frames: Frames) -> tuple[Store, ...]:
    """Every shared store by itself, local disks and caches as one each."""
    frame = frames["store"]
    if not frame.entities:
        return ()
    blank = ("",) * len(frame.entities)
    keys = list(zip(frame.facts.get("share", blank), frame.facts.get("source", blank), strict=True))
    table = frame.columns(SIGNALS)
    return tuple(
        _store(share, source, table[rows], [frame.entities[i] for i in rows])
        for share, source in sorted(set(keys))
        for rows in [[i for i, key in enumerate(keys) if key == (share, source)]]
    )


def _store(share: str, source: str, table: Array, names: list[str]) -> Store:
    column = dict(zip(SIGNALS, table.T, strict=True))
    reads, writes = column["reads_per_s"], column["writes_per_s"]
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.where(reads > 0, column["read_s_per_s"] / reads, NAN)
    counted = np.isfinite(column["resent_per_s"])
    asked = _sum((reads + writes)[counted])
    hits, misses = _sum(column["cache_hits_per_s"]), _sum(column["cache_misses_per_s"])
    size, free = column["size_bytes"], column["free_bytes"]
    known = np.isfinite(each)
    worst = int(np.nanargmax(each)) if known.any() else -1
    return Store(
        name=share,
        source=source,
        nodes=len({name.split("/", 1)[0] for name in names}),
        read_bytes_s=_sum(column["read_bytes_s"]),
        write_bytes_s=_sum(column["write_bytes_s"]),
        read_time_s=_ratio(_sum(column["read_s_per_s"][known]), _sum(reads[known])),
        busy_ratio=_max(column["busy_ratio"]),
        errors_per_s=_sum(column["errors_per_s"]),
        resent_ratio=max(0.0, _ratio(_sum(column["resent_per_s"]), asked) - 1.0) if counted.any() else NAN,
        health=_max(column["health"]),
        free_ratio=_min(free / size) if np.isfinite(free / size).any() else NAN,
        hit_ratio=_ratio(hits, hits + misses),
        slowest=names[worst] if worst >= 0 else "",
        slowest_s=float(each[worst]) if worst >= 0 else NAN,
    )


def _sum(values: Array) -> float:
    return float(np.nansum(values)) if np.isfinite(values).any() else NAN


def _max(values: Array) -> float:
    return float(np.nanmax(values)) if np.isfinite(values).any() else NAN


def _min(values: Array) -> float:
    return float(np.nanmin(values))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else NAN


@dataclass(frozen=True, slots=True)
class Warm:
    """Weights to read in. at : when the replicas are needed. nodes : free ones that have not had them. saves_s : of a start, NaN =
    not known, because no start from a near source was seen yet."""

    pool: str
    at: float
    replicas: int
    nodes: tuple[str, ...]
    saves_s: float
    text: str


def to_warm(
    at: float, topology: Topology, fleet: Fleet, policy: Policy, outlook: Outlook, starts: Starts
) -> tuple[Warm, ...]:
    """Pools that are forecast to grow onto nodes that would read their weights from far away.

    Said only of a pool whose starts were seen to read from a shared store: what is unknown is no reason to move terabytes.
    """
    if not outlook.is_known:
        return ()
    found = []
    for pool, part in outlook.pools.items():
        kept = starts.kept.get(pool, [])
        groups = by_source(kept)
        far = [s for source, group in groups.items() if source and source not in FAST for s in group]
        rise = _rise(outlook, part.needed, part.standing, at)
        if not far or rise is None:
            continue
        needed_at, more = rise
        near = [s for source, group in groups.items() if source in FAST for s in group]
        had = {s.node for s in kept} | {topology.node_of_engine.get(e, "") for e in topology.engines_in(pool)}
        free = _free_nodes(topology, fleet, part.size)
        cold = [n for n in free if n not in had]
        missing = more - sum(room for n, room in free.items() if n in had)
        if missing <= 0 or not cold:
            continue
        chosen = _enough(cold, free, missing)
        found.append(_warm(pool, needed_at, more, chosen, far, near))
    return tuple(found)


def _rise(outlook: Outlook, needed: Array, standing: float, at: float) -> tuple[float, int] | None:
    """When within AHEAD_S a pool first needs more replicas at LEVEL than stand and than it needs now, and how many more."""
    high = np.quantile(needed, LEVEL, axis=0)
    begin = outlook.at - outlook.at % outlook.step_s
    when = begin + np.arange(high.size) * outlook.step_s
    # The planner may get by with fewer than the outlook asks for now; only what comes on top is a rise.
    now = float(high[when <= at][-1]) if (when <= at).any() else 0.0
    base = max(standing, now)
    rows = np.flatnonzero((when > at) & (when <= at + AHEAD_S) & (high > base))
    if not rows.size:
        return None
    return float(when[rows[0]]), math.ceil(float(high[rows].max()) - base)


def _free_nodes(topology: Topology, fleet: Fleet, size: int) -> dict[str, int]:
    """node -> replicas of `size` GPUs it has room for; lent and isolated ones have none."""
    found = {}
    for node, gpus in sorted(topology.gpus_on.items()):
        if node in fleet.leases or fleet.is_isolated(node):
            continue
        room = sum(g not in topology.engine_of for g in gpus) // max(size, 1)
        if room:
            found[node] = room
    return found


def _enough(nodes: list[str], room: Mapping[str, int], replicas: int) -> tuple[str, ...]:
    chosen: list[str] = []
    for node in nodes:
        if replicas <= 0:
            break
        chosen.append(node)
        replicas -= room[node]
    return tuple(chosen)


def _warm(
    pool: str, at: float, more: int, nodes: tuple[str, ...], far: list[Start], near: list[Start]
) -> Warm:
    slow, fast = quantile(far, 0.5), quantile(near, 0.5)
    from_where = ", ".join(sorted({s.source for s in far}))
    saved = (
        f"a start from {from_where} takes {slow:.0f} s, from near {fast:.0f} s"
        if near
        else f"a start from {from_where} takes {slow:.0f} s; none from a local disk was seen yet"
    )
    shown = ", ".join(nodes[:NODES_SHOWN]) + (
        f" and {len(nodes) - NODES_SHOWN} more" if len(nodes) > NODES_SHOWN else ""
    )
    text = (
        f"{pool} needs {more} replica{'s' if more > 1 else ''} more by {datetime.fromtimestamp(at, UTC):%H:%M} UTC (90 % level) and "
        f"{shown} {'has' if len(nodes) == 1 else 'have'} not had its weights: read them in before ({saved})"
    )
    return Warm(pool, at, more, nodes, slow - fast, text)
