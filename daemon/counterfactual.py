"""What controllers would have made of a recorded demand: replicas, lateness and GPU-hours of each."""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daemon import replica, sizing, tails
from daemon.model import Array
from daemon.policy import PoolPolicy
from daemon.replay import PoolTape
from daemon.rivals import OF_RUNNING, RIVALS, Pools, Seen

TRIES = 9
"""Parameter sets of each rival; it is shown with the one that was best in hindsight."""
DRAIN_S = 60.0
FLAP_S = 900.0


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """One pool of a recording, (tick,) arrays. arrived : requests per second, NaN = not known. late : share of requests
    over their objective. stay : (share of full load, seconds a request was in flight) as seen. kv_each : share of the
    cache one running request took."""

    name: str
    policy: PoolPolicy
    gpus: int
    spare: int
    step_s: float
    at: Array
    arrived: Array
    ready: Array
    late: Array
    stay_s: float
    kv_each: float
    tape: PoolTape
    learnt: replica.Learnt

    @property
    def served_at_most(self) -> float:
        """Requests per second of a replica, beyond which a queue grows."""
        return tails.full_load(self.learnt.tails, 0.5) / self.learnt.work

    @property
    def profiled(self) -> float:
        """Requests per second of a replica at the objective."""
        meant = tails.bearable(self.learnt.tails, 1.0 - self.policy.slo_target)
        return tails.full_load(self.learnt.tails, meant) / self.learnt.work


def recorded(
    name: str, tape: PoolTape, learnt: replica.Learnt, policy: PoolPolicy, spare: int, step_s: float
) -> Recorded | str:
    """A pool ready to be judged, or why it cannot be."""
    if not learnt.tails.is_known:
        return f"too few requests with a latency objective were seen ({sum(learnt.tails.requests):.0f})"
    column = {s: np.array([row[s] for row in tape.rows]) for s in _COLUMNS}
    at = np.array(tape.at)
    arrived = column["lb_sessions_per_s"]
    change = np.diff(column["concurrency"], prepend=np.nan) / np.diff(at, prepend=np.nan)
    arrived = np.where(np.isnan(arrived), np.maximum(column["requests_done_per_s"] + change, 0.0), arrived)
    if not np.isfinite(arrived).any():
        return "neither sessions nor finished requests were recorded"
    each = column["kv_used_ratio_mean"] * column["ready"] / np.maximum(column["running"], 1e-9)
    busy = column["running"] > column["ready"]
    kv_each = float(np.nanmedian(each[busy])) if busy.any() and np.isfinite(each[busy]).any() else math.nan
    return Recorded(
        name,
        policy,
        policy.gpus_per_replica or tape.gpus,
        spare,
        step_s,
        at,
        arrived,
        column["ready"],
        column["over_slo_ratio"],
        learnt.stay_s,
        kv_each,
        tape,
        learnt,
    )


_COLUMNS = (
    "lb_sessions_per_s",
    "requests_done_per_s",
    "concurrency",
    "running",
    "ready",
    "kv_used_ratio_mean",
    "over_slo_ratio",
)


@dataclass(slots=True)
class Worlds:
    """One pool under several controllers at once: starts take the pool's cold start, what goes is drained.

    ready, queue : (world,). good, asked, replica_s, flaps : (world,) sums.
    """

    pool: Recorded
    ready: Array
    queue: Array = field(init=False)
    start: Array = field(init=False)
    drain: Array = field(init=False)
    good: Array = field(init=False)
    asked: Array = field(init=False)
    replica_s: Array = field(init=False)
    flaps: Array = field(init=False)
    _turn: Array = field(init=False)
    _turned: Array = field(init=False)

    def __post_init__(self) -> None:
        n, step = self.ready.size, self.pool.step_s
        self.start = np.zeros((n, max(1, round(self.pool.policy.cold_start_s / step))))
        self.drain = np.zeros((n, max(1, round(DRAIN_S / step))))
        self.queue, self.good, self.asked, self.replica_s, self.flaps = (np.zeros(n) for _ in range(5))
        self._turn, self._turned = np.zeros(n), np.full(n, -np.inf)

    @property
    def now(self) -> Array:
        return np.asarray(self.ready + self.start.sum(axis=1))

    def resize(self, wanted: Array, at: float) -> None:
        change = wanted - self.now
        sign = np.sign(change)
        self.flaps += (sign != 0) & (sign == -self._turn) & (at - self._turned < FLAP_S)
        self._turn = np.where(sign != 0, sign, self._turn)
        self._turned = np.where(sign != 0, at, self._turned)
        self.start[:, -1] += np.maximum(change, 0.0)
        shrink = np.maximum(-change, 0.0)
        for column in range(self.start.shape[1] - 1, -1, -1):
            taken = np.minimum(self.start[:, column], shrink)
            self.start[:, column] -= taken
            shrink = shrink - taken
        gone = np.minimum(shrink, np.maximum(self.ready - 1.0, 0.0))
        self.ready = self.ready - gone
        self.drain[:, -1] += gone

    def step(self, arrived: float) -> Seen:
        """Serve a step's arrivals (1/s, NaN = not known: nobody is judged). Returns what a scrape would show."""
        pool, span = self.pool, self.pool.step_s
        self.replica_s += (self.now + self.drain.sum(axis=1)) * span
        self.ready = self.ready + self.start[:, 0]
        for ring in (self.start, self.drain):
            ring[:, :-1] = ring[:, 1:]
            ring[:, -1] = 0.0
        n = self.ready.size
        if math.isnan(arrived):
            return Seen(*(np.full(n, np.nan) for _ in Seen.__slots__))
        ready = np.maximum(self.ready, 1e-9)
        most = pool.served_at_most * ready
        offered = arrived + self.queue / span
        served = np.minimum(offered, most)
        left = np.minimum((offered - served) * span, most * 30.0)
        wait_s = (self.queue + left) / 2 / np.maximum(served, 1e-9)
        self.queue = left
        late = self._late(served / ready * pool.learnt.work)
        in_time = (1.0 - late) * np.clip(1.0 - wait_s / pool.policy.ttft_slo_s, 0.0, 1.0)
        self.good += arrived * span * in_time
        self.asked += arrived * span
        running = served * pool.stay_s
        unknown = np.full(n, np.nan)
        return Seen(
            self.ready.copy(),
            self.start.sum(axis=1),
            running,
            self.queue.copy(),
            running / ready * pool.kv_each,
            unknown,
            unknown,
            unknown,
            unknown,
            served,
            unknown,
            unknown,
            np.full(n, arrived),
            1.0 - in_time,
        )

    def _late(self, load: Array) -> Array:
        curve = self.pool.learnt.tails
        middles = (np.arange(tails.BINS) + 0.5) * tails.WIDTH * curve.unit
        return np.interp(load, middles, curve.curve)


def judge(pool: Recorded, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Controller -> its figures on the recording. What was recorded stands beside them as "recorded"."""
    found = {"recorded": _as_it_was(pool)}
    for name in names:
        if name in ("ours", "ours_reactive"):
            found[name] = _ours(pool, foresees=name == "ours")
        else:
            found[name] = _rival(pool, name)
    return found


def _as_it_was(pool: Recorded) -> dict[str, Any]:
    known = np.isfinite(pool.late) & np.isfinite(pool.arrived)
    asked = float(pool.arrived[known].sum()) * pool.step_s
    late = float((pool.arrived[known] * pool.late[known]).sum()) * pool.step_s
    hours = float(np.nansum(pool.ready)) * pool.step_s / 3600.0 * pool.gpus
    change = np.sign(np.diff(pool.ready[np.isfinite(pool.ready)]))
    return _figures(
        pool, asked - late, asked, hours, int((np.diff(change[change != 0]) != 0).sum()), pool.ready
    )


def _figures(
    pool: Recorded, good: float, asked: float, gpu_hours: float, flaps: float, ready: Array
) -> dict[str, Any]:
    return {
        "slo_attainment": good / asked if asked > 0 else None,
        "requests": asked,
        "gpu_hours": gpu_hours,
        "flaps": flaps,
        "replicas": ready,
    }


def _rival(pool: Recorded, name: str) -> dict[str, Any]:
    make, ranges = RIVALS[name]
    share = (np.arange(TRIES) + 0.5) / TRIES
    numbers = {
        p: low + (high - low) * ((share * (1 + 3 * k)) % 1.0)
        for k, (p, (low, high)) in enumerate(ranges.items())
    }
    each = pool.profiled * pool.stay_s
    numbers = {p: values * each if p in OF_RUNNING else values for p, values in numbers.items()}
    most = pool.policy.replicas_max or max(1.0, 2.0 * float(np.nanmax(pool.ready)))
    given = Pools(np.full(TRIES, float(most)), np.full(TRIES, pool.profiled), pool.step_s)
    policy = make(given, numbers)
    worlds = Worlds(pool, np.full(TRIES, max(1.0, float(pool.ready[np.isfinite(pool.ready)][0]))))
    seen, ready = None, np.empty((pool.at.size, TRIES))
    for step, arrived in enumerate(pool.arrived.tolist()):
        if seen is not None:
            wanted = policy.decide(step, seen, worlds.now)
            worlds.resize(np.clip(np.where(np.isnan(wanted), worlds.now, wanted), 1.0, most), pool.at[step])
        seen = worlds.step(arrived)
        ready[step] = worlds.ready
    share_good = worlds.good / np.maximum(worlds.asked, 1e-9)
    kept = np.flatnonzero(share_good >= pool.policy.slo_target)
    best = int(kept[worlds.replica_s[kept].argmin()]) if kept.size else int(share_good.argmax())
    return _of(worlds, best, ready[:, best])


def _of(worlds: Worlds, which: int, ready: Array) -> dict[str, Any]:
    hours = float(worlds.replica_s[which]) / 3600.0 * worlds.pool.gpus
    return _figures(
        worlds.pool,
        float(worlds.good[which]),
        float(worlds.asked[which]),
        hours,
        float(worlds.flaps[which]),
        ready,
    )


def _ours(pool: Recorded, *, foresees: bool) -> dict[str, Any]:
    """The daemon's own sizing, knowing of the pool what the recording taught, as the others know their best parameters."""
    learnt = copy.deepcopy(pool.learnt)
    learnt.pace.kept, learnt.pace.past, learnt.pace.at, learnt.pace.noted = [], [], math.nan, math.nan
    learnt.row_at, learnt.needs, learnt.stood = math.nan, [], 0
    learnt.grown_at = learnt.shrunk_at = -math.inf
    learnt.pace.fast = learnt.pace.slow = math.nan
    made = [f.at for f in pool.tape.forecasts]
    worlds = Worlds(pool, np.array([max(1.0, float(pool.ready[np.isfinite(pool.ready)][0]))]))
    seen, ready = None, np.empty(pool.at.size)
    for step, (at, arrived) in enumerate(zip(pool.at.tolist(), pool.arrived.tolist(), strict=True)):
        if seen is not None:
            place = bisect_right(made, at)
            forecast = pool.tape.forecasts[place - 1] if foresees and place else None
            now = int(worlds.now[0])
            need = sizing.need(learnt, _row(seen, now), pool.policy, forecast, at, pool.spare, now)
            worlds.resize(np.array([float(max(1, now if need.wanted is None else need.wanted))]), at)
        seen = worlds.step(arrived)
        ready[step] = worlds.ready[0]
    return _of(worlds, 0, ready)


def _row(seen: Seen, now: int) -> Mapping[str, float]:
    running, waiting = float(seen.running[0]), float(seen.waiting[0])
    return {
        "ready": float(seen.ready[0]),
        "replicas": float(now),
        "running": running,
        "waiting": waiting,
        "concurrency": running + waiting,
        "requests_done_per_s": float(seen.done_s[0]),
        "lb_sessions_per_s": float(seen.arrived_s[0]),
        "over_slo_ratio": float(seen.late[0]),
    }


def totals(
    judged: Mapping[str, Mapping[str, Mapping[str, Any]]], gpu_hour: float
) -> dict[str, dict[str, Any]]:
    """Controller -> figures summed over the pools. judged : pool -> controller -> figures. gpu_hour : price, NaN = none."""
    names = list(dict.fromkeys(n for pool in judged.values() for n in pool))
    found = {}
    for name in names:
        rows = [pool[name] for pool in judged.values() if name in pool]
        asked = sum(r["requests"] for r in rows)
        good = sum((r["slo_attainment"] or 0.0) * r["requests"] for r in rows)
        hours = sum(r["gpu_hours"] for r in rows)
        found[name] = {
            "slo_attainment": good / asked if asked > 0 else None,
            "gpu_hours": hours,
            "cost": hours * gpu_hour if gpu_hour == gpu_hour else None,
            "flaps": sum(r["flaps"] for r in rows),
        }
    return found
