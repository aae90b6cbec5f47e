"""How many replicas a pool needs: learnt capacity per replica, demand now, demand ahead."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from daemon.model import NAN, Forecast, Frame
from daemon.policy import PoolPolicy

KV_TARGET = 0.80
"""Share of KV blocks in use at which a replica counts as full. Source: WVA's saturation threshold."""
LOAD_TARGET = 0.75
"""Planned load of a replica: the rest is head-room for queueing. Source: docs/decisions/0005-headroom.md."""
LEARN_UP = 0.02
LEARN_DOWN = 0.1
LEARN_EVERY_S = 60.0
SHRINK_WINDOW_S = 900.0
"""A pool shrinks to the highest need of this window: three times HPA's, because a replica starts in minutes."""
SHRINK_ROOM = 1.25
STAY_WEIGHT = 0.02
BACKLOG_S = 45.0
"""A queue is to be gone within the patience of a client and a little."""
BURST_ROOM = 1.3
"""A burst has no forecast: what arrives more than usual may still be growing."""
PRESSURE_STEP = 0.25
"""A tick's weight: three late ticks in a row are pressure, one is chance."""
MIN_RUNNING = 2.0
MIN_KV = 0.15


@dataclass(slots=True)
class Learnt:
    """What one pool taught us.

    capacity : concurrent requests a replica holds within its objective, NaN = unknown. demand : requests in flight,
    smoothed over DEMAND_TAU_S. minutes : how long it has been learnt. pressure : share of recent ticks that queued and were late.
    stay_s : seconds a request is in flight while nobody queues. needs : (at, replicas) of the shrink window.
    """

    capacity: float = NAN
    demand: float = NAN
    demand_at: float = NAN
    pressure: float = 0.0
    stay_s: float = NAN
    tried_at: float = NAN
    minutes: int = 0
    needs: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Need:
    """Replicas wanted and why. wanted is None when too little is known to say."""

    pool: str
    wanted: int | None
    reactive: int = 0
    floor: int = 0
    why: str = ""


EVIDENCE = ("running", "waiting", "kv_used_ratio", "itl_mean_s", "ttft_p95_s", "queue_p95_s")


def is_due(learnt: Learnt, at: float) -> bool:
    """Whether a minute has passed since the last try to learn something."""
    return not at - learnt.tried_at < LEARN_EVERY_S


def learn(learnt: Learnt, engines: Frame, members: np.ndarray, pool: PoolPolicy) -> None:
    """Take one tick's evidence of what a replica can hold. members : (engine,) bool, those of the pool.

    Full is where KV would reach KV_TARGET, or where requests already wait although KV has room (the cap on running
    sequences binds); where the latency objective is missed, the load of that moment is too much.
    """
    learnt.tried_at = engines.at
    running, waiting, kv, step, first, queue = engines.columns(EVIDENCE)[members].T
    with np.errstate(invalid="ignore", divide="ignore"):
        by_kv = np.where((running >= MIN_RUNNING) & (kv >= MIN_KV), running * KV_TARGET / kv, NAN)
        by_cap = np.where((waiting > 0) & (kv < KV_TARGET), running, np.inf)
        # Latency says something of capacity only where load makes it: a long prompt is late on an idle replica too.
        is_queueing = np.where(np.isfinite(queue), queue > 0.5 * first, waiting > 0)
        near_first = is_queueing & (first > 0.7 * pool.ttft_slo_s)
        by_first = np.where(near_first, running * np.sqrt(pool.ttft_slo_s / first), np.inf)
        by_step = np.where(step > 0.9 * pool.itl_slo_s, running * pool.itl_slo_s / step, np.inf)
        by_latency = np.where(running >= MIN_RUNNING, np.minimum(by_first, by_step), np.inf)
    seen = np.fmin(np.minimum(by_cap, by_latency), by_kv)
    seen = seen[np.isfinite(seen) & (seen > 0)]
    if not seen.size:
        return
    value = statistics.median(seen.tolist())
    learnt.minutes += 1
    # Down fast and up slowly: believing in too much capacity costs requests, in too little only GPUs.
    weight = LEARN_DOWN if value < learnt.capacity else LEARN_UP
    learnt.capacity = (
        value if math.isnan(learnt.capacity) else learnt.capacity + weight * (value - learnt.capacity)
    )


DEMAND_TAU_S = 60.0
"""A handful of requests comes and goes at random; a burst lasts longer than this, and queues speak for themselves."""


def smooth(learnt: Learnt, demand: float, at: float) -> float:
    """Demand as an exponential mean; NaN (unknown) leaves it as it was."""
    if not math.isnan(demand):
        elapsed = at - learnt.demand_at
        known = not math.isnan(learnt.demand) and not math.isnan(elapsed)
        weight = 1.0 - math.exp(-elapsed / DEMAND_TAU_S) if known else 1.0
        learnt.demand = demand if not known else learnt.demand + weight * (demand - learnt.demand)
        learnt.demand_at = at
    return learnt.demand


def need(
    learnt: Learnt,
    row: Mapping[str, float],
    pool: PoolPolicy,
    forecast: Forecast | None,
    at: float,
    spare: int,
    standing: int,
) -> Need:
    """Replicas wanted now. row : the pool's signals. The forecast sets the floor, demand now stays above it.

    standing : replicas there are, or that we asked for a moment ago. Missing telemetry never shrinks a pool: with a
    replica whose state is unknown the need is at least what stands.
    """
    ready = row["ready"]
    demand = smooth(learnt, row["concurrency"], at)
    if row["waiting"] > 0.25 * row["running"]:
        demand = max(row["running"], min(row["concurrency"], _queued_demand(learnt, row)))
    elif row["requests_done_per_s"] > 0:
        stay_s = row["concurrency"] / row["requests_done_per_s"]
        learnt.stay_s = (
            stay_s if math.isnan(learnt.stay_s) else learnt.stay_s + STAY_WEIGHT * (stay_s - learnt.stay_s)
        )
    if math.isnan(row["concurrency"]) or math.isnan(learnt.capacity):
        return Need(pool.name, None, why="demand or capacity per replica is not known yet")
    per_replica = learnt.capacity * LOAD_TARGET
    reactive = replicas_for(demand, per_replica, learnt.capacity, spare)
    if _pressed(learnt, row, pool):
        reactive = max(reactive, math.ceil(ready) + 1)
    ahead = demand_ahead(forecast, at, pool.cold_start_s + 900.0)
    floor = 0 if math.isnan(ahead) else replicas_for(ahead, per_replica, learnt.capacity, spare)
    wanted = max(reactive, floor, pool.replicas_min)
    # Shrinking needs more room than standing still: a pool sized to the last request grows again at the next.
    roomy = max(wanted, replicas_for(demand * SHRINK_ROOM, per_replica, learnt.capacity, spare))
    _remember(learnt, at, roomy)
    if ready < min(standing, row["replicas"]):
        wanted = max(wanted, standing)
    elif wanted < standing:
        later = demand_ahead(forecast, at, 3600.0 + pool.cold_start_s)
        soon = 0 if math.isnan(later) else replicas_for(later, per_replica, learnt.capacity, spare)
        wanted = min(standing, max(soon, *(n for _, n in learnt.needs)))
        if at - learnt.needs[0][0] < SHRINK_WINDOW_S * 0.9:
            wanted = standing
    if pool.replicas_max:
        wanted = min(wanted, pool.replicas_max)
    why = f"{demand:.0f} requests in flight, {learnt.capacity:.0f} fit a replica: {reactive} needed now" + (
        f", {floor} for {ahead:.0f} expected within {pool.cold_start_s + 900:.0f} s" if floor else ""
    )
    return Need(pool.name, wanted, reactive, floor, why)


def _queued_demand(learnt: Learnt, row: Mapping[str, float]) -> float:
    """Requests that would be in flight if nobody had to queue: arrivals, and the backlog worked off in BACKLOG_S, for
    as long as a request usually stays. The queue itself counts the shortage again and again. NaN-safe: inf = unknown.
    """
    arrivals = row["lb_sessions_per_s"]
    if math.isnan(arrivals) or math.isnan(learnt.stay_s):
        return math.inf
    return (arrivals * BURST_ROOM + row["waiting"] / BACKLOG_S) * learnt.stay_s


def _remember(learnt: Learnt, at: float, replicas: int) -> None:
    """Keep the highest need of each minute of the shrink window."""
    if learnt.needs and at - learnt.needs[-1][0] < 60.0:
        learnt.needs[-1] = (learnt.needs[-1][0], max(replicas, learnt.needs[-1][1]))
        return
    learnt.needs.append((at, replicas))
    while at - learnt.needs[0][0] >= SHRINK_WINDOW_S:
        learnt.needs.pop(0)


def _pressed(learnt: Learnt, row: Mapping[str, float], pool: PoolPolicy) -> bool:
    """Whether requests have queued and missed their objective for most of the last minute."""
    is_late = row["waiting"] > 0 and row["over_slo_ratio"] > 1.0 - pool.slo_target
    learnt.pressure += PRESSURE_STEP * (float(is_late) - learnt.pressure)
    return learnt.pressure > 0.6


def replicas_for(demand: float, per_replica: float, capacity: float, spare: int) -> int:
    """Replicas that hold `demand` at planned load, and with `spare` of them gone still within capacity."""
    if demand <= 0:
        return 0
    return max(math.ceil(demand / per_replica), math.ceil(demand / (capacity * 0.95)) + spare)


def demand_ahead(forecast: Forecast | None, at: float, horizon_s: float, level: float = 0.9) -> float:
    """Highest forecast demand of the next `horizon_s` at a quantile level. NaN without a current forecast."""
    if forecast is None:
        return NAN
    first = int((at - forecast.at) / forecast.step_s)
    last = int((at + horizon_s - forecast.at) / forecast.step_s) + 1
    values = forecast.at_level(level)[max(0, first) : max(0, last)]
    return float(values.max()) if values.size else NAN


def share(needs: list[tuple[PoolPolicy, Need, int, int]], gpus: float) -> dict[str, int]:
    """Replicas each pool may have under one GPU budget: pool -> replicas.

    needs : (policy, need, GPUs of a replica, replicas standing). Pools are served by priority, then by name; no pool
    is cut below what it has for another's growth, because shrinking a pool in need would only move the pain.
    """
    # A pool of unknown need keeps what it has: its GPUs are not free for others.
    left = gpus - sum(
        (standing if need.wanted is None else min(need.wanted, standing)) * size
        for _, need, size, standing in needs
    )
    granted = {}
    for policy, need, size, standing in sorted(needs, key=lambda n: (-n[0].priority, n[0].name)):
        if need.wanted is None:
            continue
        extra = max(0, need.wanted - standing)
        affordable = min(extra, int(left // size)) if size else extra
        affordable = max(0, affordable)
        left -= affordable * size
        granted[policy.name] = min(need.wanted, standing) + affordable
    return granted
