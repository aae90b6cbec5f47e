"""Forecast demand against the GPUs that stand: what will be needed, when it will be short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from daemon import sizing
from daemon.fleet import Fleet
from daemon.model import NAN, Array, Forecast, Frame, Frames
from daemon.policy import Policy
from daemon.topology import Topology

SIGNALS = (
    "gpus_usable",
    "gpus_needed_q50",
    "gpus_needed_q90",
    "short_in_s",
    "short_gpu_hours",
    "horizon_s",
    "made_at_s",
    "learnt_s",
)


@dataclass(frozen=True, slots=True)
class Outlook:
    """needed : level -> (step,) GPUs all pools need, all NaN when a pool's future is unknown. usable : GPUs to be had.

    learnt_s : for how long the capacity of a replica has been learnt, of the pool least known.
    """

    at: float
    step_s: float
    needed: Mapping[float, Array]
    usable: float
    made_at: float
    learnt_s: float = 0.0

    @property
    def is_known(self) -> bool:
        return bool(self.needed) and not any(np.isnan(v).any() for v in self.needed.values())


LEVELS = (0.5, 0.9)


def look(
    at: float,
    topology: Topology,
    fleet: Fleet,
    policy: Policy,
    forecasts: Mapping[str, Forecast],
    learnt: Mapping[str, sizing.Learnt],
) -> Outlook:
    """GPUs needed ahead at each level. Adding the pools' q90s overstates the sum: the careful side for lending."""
    usable = float(sum(len(g) for n, g in topology.gpus_on.items() if not fleet.is_isolated(n)))
    pools = topology.pools()
    known = [p for p in pools if p in forecasts and p in learnt and learnt[p].capacity == learnt[p].capacity]
    if not pools or len(known) < len(pools):
        return Outlook(at, NAN, {}, usable, NAN)
    steps = min(forecasts[p].quantiles.shape[1] - _first(forecasts[p], at) for p in pools)
    if steps <= 0:
        return Outlook(at, NAN, {}, usable, NAN)
    needed = {}
    for level in LEVELS:
        total = np.zeros(steps)
        for pool in pools:
            forecast, capacity = forecasts[pool], learnt[pool].capacity
            first = _first(forecast, at)
            demand = np.maximum(forecast.at_level(level)[first : first + steps], 0.0)
            own = policy.pool(pool)
            size = (own.gpus_per_replica if own else 0) or topology.gpus_per_replica(pool)
            replicas = np.maximum(
                np.ceil(demand / (capacity * sizing.LOAD_TARGET)),
                np.ceil(demand / (capacity * 0.95)) + policy.spare_min,
            )
            total += np.maximum(replicas, own.replicas_min if own else 1) * size
        needed[level] = total
    some = forecasts[pools[0]]
    learnt_s = 60.0 * min(learnt[p].minutes for p in pools)
    return Outlook(at, some.step_s, needed, usable, min(forecasts[p].at for p in pools), learnt_s)


def _first(forecast: Forecast, at: float) -> int:
    return max(0, int((at - forecast.at) / forecast.step_s))


def frame(outlook: Outlook, policy: Policy) -> Frame:
    """The outlook as a Frame of kind "cluster" with one row, so that a detector can judge it."""
    row = dict.fromkeys(SIGNALS, NAN)
    row["gpus_usable"] = outlook.usable
    if outlook.is_known:
        high = outlook.needed[0.9]
        short = np.flatnonzero(high > outlook.usable)
        row["gpus_needed_q50"] = float(outlook.needed[0.5].max())
        row["gpus_needed_q90"] = float(high.max())
        into_s = outlook.at % outlook.step_s  # steps are full hours: the first one is under way
        row["short_in_s"] = max(0.0, float(short[0]) * outlook.step_s - into_s) if short.size else NAN
        row["short_gpu_hours"] = float(np.maximum(high - outlook.usable, 0.0).sum()) * outlook.step_s / 3600.0
        row["horizon_s"] = high.size * outlook.step_s
        row["made_at_s"] = outlook.made_at
        row["learnt_s"] = outlook.learnt_s
    values = np.array([[row[s] for s in SIGNALS]])
    return Frame(outlook.at, "cluster", (policy.cluster,), SIGNALS, values, np.zeros(1))


def with_outlook(frames: Frames, outlook: Outlook, policy: Policy) -> Frames:
    return Frames(frames.at, {**frames.by_kind, "cluster": frame(outlook, policy)}, frames.events)
