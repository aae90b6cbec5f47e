"""Forecast demand against the GPUs that stand: what will be needed, when it will be short, how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from daemon import replica
from daemon.fleet import Fleet
from daemon.model import NAN, Array, Forecast, Frame, Frames
from daemon.policy import Policy
from daemon.topology import Topology
from daemon.wear import Wear

SIGNALS = (
    "gpus_usable",
    "gpus_needed_q50",
    "gpus_needed_q90",
    "gpus_needed_q95",
    "short_in_s",
    "short_gpu_hours",
    "short_chance",
    "exhausted_in_s",
    "exhausted_early_s",
    "gpus_allowance",
    "horizon_s",
    "made_at_s",
    "learnt_s",
    "skill_ratio",
)
POOL_SIGNALS = (
    "replicas_needed_q50",
    "replicas_needed_q90",
    "replicas_more",
    "gpus_more",
    "peak_at_s",
    "short_share",
    "skill_ratio",
    "short_chance",
    "capped_chance",
    "exhausted_in_s",
    "short_gpu_hours",
    "replicas_max",
    "by_tokens",
)
NOW_SIGNALS = ("gpus_needed", "gpus_healthy", "power_w")
LEVELS = (0.5, 0.9, 0.95)
"""The median plans, one in ten warns, one in twenty buys."""
PATHS = 80
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class PoolOutlook:
    """A pool's part. needed : (path, step) replicas. size : GPUs of a replica. standing : replicas that are ready or to
    be. skill : its forecast's error over weekly naive's, NaN = not known. most : replicas it may have, inf = no limit.
    bare : the same as needed, without a spare; empty = not told
    apart. by_tokens : whether its peak follows from tokens a second rather than from requests in flight."""

    needed: Array
    size: int
    standing: float
    skill: float = NAN
    most: float = math.inf
    by_tokens: bool = False
    bare: Array = field(default_factory=lambda: np.empty((0, 0)))


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """needed : level -> (step,) GPUs all pools need, all NaN when a pool's future is unknown. usable : GPUs to be had now.

    learnt_s : for how long the capacity of a replica has been learnt, of the pool least known. paths : (path, step)
    GPUs of all pools along sampled paths they share. ahead : (step,) GPUs to be had then. allowance : GPUs kept for
    failures. pools : each pool's part. Empty arrays = not known.
    """

    at: float
    step_s: float
    needed: Mapping[float, Array]
    usable: float
    made_at: float
    learnt_s: float = 0.0
    paths: Array = field(default_factory=lambda: np.empty((0, 0)))
    ahead: Array = field(default_factory=lambda: np.empty(0))
    allowance: float = 0.0
    pools: Mapping[str, PoolOutlook] = field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        return _is_known(self)


@lru_cache(maxsize=4)
def _is_known(outlook: Outlook) -> bool:
    """Asked several times a tick of one that stands for minutes."""
    return bool(outlook.needed) and not any(np.isnan(v).any() for v in outlook.needed.values())


def look(
    at: float,
    topology: Topology,
    fleet: Fleet,
    policy: Policy,
    forecasts: Mapping[str, Forecast],
    learnt: Mapping[str, replica.Learnt],
    wear: Wear | None = None,
    work: Mapping[str, Mapping[str, Forecast]] | None = None,
) -> Outlook:
    """GPUs needed ahead at each level, summed along paths the pools share: their peaks do not all fall together.

    work : pool -> signal of replica.WORK -> its forecast; where requests grow longer they bind sooner than their number.
    """
    usable = float(sum(fleet.left_of(n, g) for n, g in topology.gpus_on.items()))
    pools = topology.pools()
    known = [p for p in pools if p in forecasts and p in learnt and learnt[p].capacity == learnt[p].capacity]
    if not pools or len(known) < len(pools):
        return Outlook(at, NAN, {}, usable, NAN)
    steps = min(forecasts[p].quantiles.shape[1] - _first(forecasts[p], at) for p in pools)
    if steps <= 0:
        return Outlook(at, NAN, {}, usable, NAN)
    parts = {}
    for pool in pools:
        first = _first(forecasts[pool], at)
        demand = paths_of(forecasts[pool])[:, first : first + steps]
        own = policy.pool(pool)
        size = (own.gpus_per_replica if own else 0) or topology.gpus_per_replica(pool)
        least = own.replicas_min if own else 1
        replicas = replicas_for(demand, replica.room(learnt[pool]), policy.spare_min, least)
        tokens = work_ahead((work or {}).get(pool, {}), at, steps)
        room = replica.room_for_work(learnt[pool])
        bare = replicas_for(demand, replica.room(learnt[pool]), 0, least)
        by_tokens = False
        if tokens is not None and room > 0:
            bare = np.maximum(bare, replicas_for(tokens, room, 0, least))
            wanted = replicas_for(tokens, room, policy.spare_min, least)
            by_tokens = float(np.quantile(wanted, 0.9, axis=0).max()) > float(
                np.quantile(replicas, 0.9, axis=0).max()
            )
            replicas = np.maximum(replicas, wanted)
        standing = fleet.replicas.get(pool, float(len(topology.engines_in(pool))))
        most = float(own.replicas_max) if own and own.replicas_max else math.inf
        parts[pool] = PoolOutlook(replicas, size, standing, forecasts[pool].skill, most, by_tokens, bare)
    paths = sum((p.needed * p.size for p in parts.values()), np.zeros((PATHS, steps)))
    levels = np.quantile(paths, LEVELS, axis=0)
    step_s = forecasts[pools[0]].step_s
    ahead, allowance = usable_ahead(at, steps, step_s, topology, fleet, policy, wear or Wear())
    return Outlook(
        at,
        step_s,
        dict(zip(LEVELS, levels, strict=True)),
        usable,
        min(forecasts[p].at for p in pools),
        60.0 * min(learnt[p].minutes for p in pools),
        paths,
        ahead,
        allowance,
        parts,
    )


def work_ahead(forecasts: Mapping[str, Forecast], at: float, steps: int) -> Array | None:
    """(path, step) work a second, in generated tokens; None while a part of it is unknown or ends sooner."""
    total = np.zeros((PATHS, steps))
    for signal, each in replica.WORK.items():
        found = forecasts.get(signal)
        first = _first(found, at) if found is not None else 0
        if found is None or found.quantiles.shape[1] < first + steps:
            return None
        total += each * paths_of(found)[:, first : first + steps]
    return total


def replicas_for(demand: Array, capacity: float, spare: int, least: int) -> Array:
    """Replicas that hold a demand at planned load, and with the spare ones gone still within capacity."""
    planned = np.ceil(demand / (capacity * replica.LOAD_TARGET))
    without_spare = np.ceil(demand / (capacity * 0.95)) + spare
    return np.asarray(np.maximum(np.maximum(planned, without_spare), least), dtype=float)


@lru_cache(maxsize=256)
def paths_of(forecast: Forecast) -> Array:
    """(path, step) sampled demand. Without ranks (a forecast from before a restart) every path is one level: the
    careful side, because then all pools peak together."""
    ranks = forecast.ranks
    if not ranks.size:
        steady = ((np.arange(PATHS) + 0.5) / PATHS)[:, None]
        ranks = np.repeat(steady, forecast.quantiles.shape[1], axis=1)
    return along(np.maximum(forecast.quantiles, 0.0), forecast.levels, ranks)


def along(quantiles: Array, levels: tuple[float, ...], ranks: Array) -> Array:
    """(path, step) values of sampled ranks in the bands; beyond the outer levels a band goes on at its outer slope."""
    grid = np.array(levels)
    upper = np.clip(np.searchsorted(grid, ranks), 1, grid.size - 1)
    step = np.arange(quantiles.shape[1])[None, : ranks.shape[1]]
    low, high = quantiles[upper - 1, step], quantiles[upper, step]
    share = (ranks - grid[upper - 1]) / (grid[upper] - grid[upper - 1])
    return np.asarray(np.maximum(low + share * (high - low), 0.0), dtype=float)


def usable_ahead(
    at: float,
    steps: int,
    step_s: float,
    topology: Topology,
    fleet: Fleet,
    policy: Policy,
    wear: Wear,
) -> tuple[Array, float]:
    """(step,) GPUs to be had then, and those kept for failures.

    What is isolated comes back at the pace repairs took so far; planned work on a node takes its GPUs away; as many
    nodes as are out one time in ten are kept for failures, growing in as repairs fade.
    """
    size = {n: len(g) for n, g in topology.gpus_on.items()}
    total = float(sum(size.values()))
    out = total - float(sum(fleet.left_of(n, g) for n, g in topology.gpus_on.items()))
    then = at + np.arange(steps) * step_s
    still = np.exp(-(then - at) / wear.repair_s)
    usual = float(np.median(list(size.values()))) if size else 0.0
    allowance = wear.nodes_out(len(size)) * usual
    left = total - np.maximum(out * still, allowance * (1.0 - still))
    for window in policy.maintenance:
        if window.scope is not None and window.end > at:
            gone = sum(
                s for n, s in size.items() if _concerns(window.scope.kind, window.scope.name, n, topology)
            )
            left = left - gone * ((then < window.end) & (then + step_s > window.start))
    return np.maximum(left, 0.0), allowance


def _concerns(kind: str, name: str, node: str, topology: Topology) -> bool:
    return node == name if kind == "node" else topology.place.get(node, {}).get(kind, "") == name


def _first(forecast: Forecast, at: float) -> int:
    return max(0, int((at - forecast.at) / forecast.step_s))


# -- what detectors and pages read -------------------------------------------------------------------------


def crossings(paths: Array, limit: Array | float) -> Array:
    """(path,) first step at which each path needs more than there is, inf = not within the horizon."""
    over = paths > limit
    return np.where(over.any(axis=1), over.argmax(axis=1).astype(float), math.inf)


def frame(outlook: Outlook, policy: Policy) -> Frame:
    """The outlook as a Frame of kind "cluster" with one row, so that a detector can judge it."""
    return Frame(outlook.at, "cluster", (policy.cluster,), SIGNALS, _values(outlook), np.zeros(1))


@lru_cache(maxsize=4)
def _values(outlook: Outlook) -> Array:
    """(1, signal) of an outlook. It stands for minutes and is looked at every tick."""
    row = dict.fromkeys(SIGNALS, NAN)
    row["gpus_usable"] = outlook.usable
    if outlook.is_known:
        limit = outlook.ahead if outlook.ahead.size else outlook.usable
        high = outlook.needed[0.9]
        into_s = outlook.at % outlook.step_s  # steps are full hours: the first one is under way
        short = np.flatnonzero(high > limit)
        row["gpus_needed_q50"] = float(outlook.needed[0.5].max())
        row["gpus_needed_q90"] = float(high.max())
        row["gpus_needed_q95"] = float(outlook.needed.get(0.95, high).max())
        row["short_in_s"] = max(0.0, float(short[0]) * outlook.step_s - into_s) if short.size else NAN
        row["short_gpu_hours"] = float(np.maximum(high - limit, 0.0).sum()) * outlook.step_s / HOUR_S
        row["gpus_allowance"] = outlook.allowance
        row["horizon_s"] = high.size * outlook.step_s
        row["made_at_s"] = outlook.made_at
        row["learnt_s"] = outlook.learnt_s
        skills = [p.skill for p in outlook.pools.values() if p.skill == p.skill]
        row["skill_ratio"] = max(skills, default=NAN)
        if outlook.paths.size:
            first = crossings(outlook.paths, limit) * outlook.step_s - into_s
            row["short_chance"] = float(np.isfinite(first).mean())
            # Censored: fewer than that share of the paths end within the horizon, and nobody knows when the rest do.
            row["exhausted_in_s"] = _quantile(first, 0.5)
            row["exhausted_early_s"] = _quantile(first, 0.1)
    return np.array([[row[s] for s in SIGNALS]])


def _quantile(first: Array, share: float) -> float:
    """When a share of the paths has run short, NaN when it has not within the horizon."""
    found = float(np.sort(first)[math.ceil(share * first.size) - 1])
    return max(0.0, found) if math.isfinite(found) else NAN


@lru_cache(maxsize=4)
def pool_frame(outlook: Outlook) -> Frame:
    """Each pool's part as a Frame of kind "pool_ahead": how likely it runs short and when, what would fix it.

    A pool is short on a path while it needs more replicas than it may have, spares not counted, or more than stand while all pools together
    need more GPUs than there are.
    """
    names = tuple(outlook.pools) if outlook.is_known and outlook.paths.size else ()
    values = np.full((len(names), len(POOL_SIGNALS)), NAN)
    limit = outlook.ahead if outlook.ahead.size else outlook.usable
    short = (outlook.paths > limit) if names else np.empty((0, 0), dtype=bool)
    for i, name in enumerate(names):
        row = _part_row(outlook, outlook.pools[name], short)
        values[i] = [row[signal] for signal in POOL_SIGNALS]
    total = values[:, POOL_SIGNALS.index("short_share")]
    if names and total.sum() > 0:
        values[:, POOL_SIGNALS.index("short_share")] = total / total.sum()
    return Frame(outlook.at, "pool_ahead", names, POOL_SIGNALS, values, np.zeros(len(names)))


def _part_row(outlook: Outlook, part: PoolOutlook, short: NDArray[np.bool_]) -> dict[str, float]:
    """POOL_SIGNALS of one pool. short : (path, step) whether all pools together need more GPUs than there are."""
    middle, high = np.quantile(part.needed, (0.5, 0.9), axis=0)
    more = max(0.0, float(high.max()) - part.standing)
    growth = np.maximum(part.needed - part.standing, 0.0) * part.size
    # A pool that may have no spare is worse off, and not short.
    bare = part.bare if part.bare.size else part.needed
    capped = bare > part.most
    lacking = np.where(short, growth, np.maximum(bare - part.most, 0.0) * part.size)
    into_s = outlook.at % outlook.step_s
    first = crossings(lacking, 0.0) * outlook.step_s - into_s
    return {
        "replicas_needed_q50": float(middle.max()),
        "replicas_needed_q90": float(high.max()),
        "replicas_more": more,
        "gpus_more": more * part.size,
        "peak_at_s": outlook.at - into_s + int(high.argmax()) * outlook.step_s,
        "short_share": float(growth[short].sum()) if short.any() else 0.0,
        "skill_ratio": part.skill,
        "short_chance": float(np.isfinite(first).mean()),
        "capped_chance": float(capped.any(axis=1).mean()),
        "exhausted_in_s": _quantile(first, 0.5),
        "short_gpu_hours": float(lacking.sum(axis=1).mean()) * outlook.step_s / HOUR_S,
        "replicas_max": part.most,
        "by_tokens": float(part.by_tokens),
    }


def cluster_now(
    frames: Frames,
    topology: Topology,
    fleet: Fleet,
    policy: Policy,
    learnt: Mapping[str, replica.Learnt],
) -> Frame:
    """What the whole cluster needs and has at this tick, as one row of a Frame: what is recorded of it.

    gpus_needed : for the requests in flight now, as the outlook counts; NaN while a pool is unknown. gpus_healthy : not
    isolated. power_w : of all GPUs, those that tell nothing taken for the mean of the rest; NaN when most tell nothing.
    """
    pool, power = frames["pool"], frames["gpu"].column("power_w")
    demand = dict(zip(pool.entities, pool.column("concurrency")[:, None], strict=True))
    needed = float(gpus_needed(demand, topology, policy, learnt)[0]) if topology.pools() else NAN
    tells = np.isfinite(power)
    drawn = float(power[tells].mean()) * power.size if tells.sum() * 2 > power.size else NAN
    healthy = float(sum(fleet.left_of(n, g) for n, g in topology.gpus_on.items()))
    values = np.array([[needed, healthy if topology.gpus_on else NAN, drawn]])
    return Frame(frames.at, "cluster", (policy.cluster,), NOW_SIGNALS, values, np.zeros(1))


def gpus_needed(
    demand: Mapping[str, Array], topology: Topology, policy: Policy, learnt: Mapping[str, replica.Learnt]
) -> Array:
    """(step,) GPUs for so many requests in flight. demand : pool -> (step,), NaN = unknown. NaN where a pool is unknown."""
    total = np.zeros(1)
    for name in topology.pools():
        own = policy.pool(name)
        room = replica.room(learnt[name]) if name in learnt else NAN
        size = (own.gpus_per_replica if own else 0) or topology.gpus_per_replica(name)
        asked = demand.get(name, np.full(1, NAN))
        total = total + size * replicas_for(asked, room, policy.spare_min, own.replicas_min if own else 1)
    return total


def with_outlook(frames: Frames, outlook: Outlook, policy: Policy) -> Frames:
    kinds = {"cluster": frame(outlook, policy), "pool_ahead": pool_frame(outlook)}
    return Frames(frames.at, {**frames.by_kind, **kinds}, frames.events)
