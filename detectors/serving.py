"""Trouble in serving: full caches, growing queues, missed objectives, engines that hang."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from daemon.model import NAN, Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.burn import Burn
from detectors.cache import Cache
from detectors.claims import say
from detectors.leak import Leaks
from detectors.pools import members
from detectors.stats import rows
from detectors.witnesses import Witnesses

LOOK_S = 60.0
CHANCE_SIGMAS = 4.0
"""Standard deviations of a Poisson count that one replica of a hundred stands above the mean now and then."""


@dataclass(slots=True)
class ServingDetector:
    """Engine page and gateway are judged together: a hung engine looks idle on its own page.

    kv_full : share of blocks in use. thrash_per_s : preemptions a replica. burn_fast, burn_slow : multiples of the
    error budget over (5 min, 1 h) and (30 min, 6 h); slo_target : objective of a pool without one of its own.
    start_s : an engine that has never served may still be loading its weights for so long.
    hung_s : sessions open and nothing completed for so long; two scrapes. uneven : (max - mean) / mean of the load.
    What moves over minutes is looked at once a minute and claimed until the next look: `looked_at`, `slow`.
    Sources: docs/en/reference/serving.md.
    """

    kv_full: float = 0.92
    thrash_per_s: float = 0.05
    queue_share: float = 0.25
    queue_least: float = 4.0
    slo_target: float = 0.99
    burn_fast: float = 14.4
    burn_slow: float = 6.0
    hung_s: float = 14.0
    hung_sessions: float = 3.0
    uneven: float = 0.6
    start_s: float = 900.0
    replica_full_s: float = 300.0
    burn: Burn = field(default_factory=Burn)
    cache: Cache = field(default_factory=Cache)
    witnesses: Witnesses = field(default_factory=Witnesses)
    leaks: Leaks = field(default_factory=Leaks)
    looked_at: float = NAN
    slow: list[Finding] = field(default_factory=list)

    def update(self, frames: Frames) -> list[Finding]:
        engine, pool = frames["engine"], frames["pool"]
        if not engine.entities:
            return []
        if not frames.at - self.looked_at < LOOK_S:
            self.looked_at = frames.at
            self.slow = [
                *self.cache.slowly(engine),
                *self._uneven(engine),
                *self.leaks.update(engine, frames["node"]),
            ]
        return [
            *self.cache.full(engine, self.kv_full, self.thrash_per_s, self.replica_full_s),
            *self._queues(pool),
            *self.burn.update(pool, self.slo_target, self.burn_fast, self.burn_slow),
            *self.witnesses.update(frames, self.hung_sessions, self.hung_s, self.start_s),
            *(replace(claim, at=frames.at) for claim in self.slow),
        ]

    def _queues(self, pool: Frame) -> list[Finding]:
        waiting, running, over, target, held, came, bound = pool.columns(
            (
                "waiting",
                "running",
                "over_slo_ratio",
                "slo_target",
                "gateway_queue",
                "lb_sessions_per_s",
                "ttft_slo_s",
            )
        ).T
        long = (waiting > self.queue_least) & (waiting > self.queue_share * running)
        if not long.any():
            return []
        late = over > 1.0 - np.where(np.isfinite(target), target, self.slo_target)
        # Engines count from when they have a request; what a gateway holds longer than the objective is late all the same.
        with np.errstate(invalid="ignore", divide="ignore"):
            late |= held / came > bound
        return [
            say(
                pool.at,
                "serving.queue_growth",
                Entity("pool", pool.entities[i]),
                "queue_growth",
                0.85,
                Severity.WARNING,
                Evidence("waiting", float(waiting[i]), "requests"),
                Evidence("running", float(running[i]), "requests"),
                Evidence("over_objective", float(over[i]), "ratio"),
                *([Evidence("held_by_gateway", float(held[i]), "requests")] if held[i] > 0 else ()),
                Evidence("ttft_p95", float(pool.column("ttft_p95_s_max")[i]), "s"),
                rejected=("a queue nobody feels: requests miss their objective because of it",),
            )
            for i in rows(long & late)
        ]

    def _uneven(self, engine: Frame) -> list[Finding]:
        """(max - mean) / mean of the load of a pool's replicas, and of the nodes they sit on."""
        running, waiting = engine.columns(("running", "waiting")).T
        load = running + np.fmax(waiting, 0.0)
        nodes = engine.facts.get("node", ())
        found = []
        for name, rows_of in members(engine).items():
            values = load[rows_of]
            is_known = np.isfinite(values)
            if is_known.sum() < 3 or values[is_known].mean() < 4.0:
                continue
            by_replica = _deviation(values[is_known])
            # Of few requests the fullest replica has many more than the mean by chance alone.
            limit = max(self.uneven, CHANCE_SIGMAS / math.sqrt(values[is_known].mean()))
            if by_replica > limit:
                found.append(self._claim(engine.at, "replicas", name, values[is_known], by_replica, limit))
            elif nodes:
                homes = [nodes[i] for i in rows_of[is_known]]
                sums = {h: 0.0 for h in homes}
                for home, value in zip(homes, values[is_known].tolist(), strict=True):
                    sums[home] += value / homes.count(home)
                by_node = np.array([v for h, v in sums.items() if h])
                if by_node.size >= 3 and (deviation := _deviation(by_node)) > limit:
                    found.append(self._claim(engine.at, "nodes", name, by_node, deviation, limit))
        return found

    def _claim(
        self, at: float, what: str, pool: str, values: np.ndarray, deviation: float, limit: float
    ) -> Finding:
        return say(
            at,
            f"serving.load_{what}",
            Entity("pool", pool),
            "imbalance",
            0.6,
            Severity.INFO,
            Evidence("load_deviation", deviation, "ratio", limit),
            Evidence("most_loaded", float(values.max()), "requests", float(values.mean())),
            text=f"load is spread unevenly over {what}",
        )


def _deviation(values: np.ndarray) -> float:
    mean = float(values.mean())
    return (float(values.max()) - mean) / mean if mean > 0 else 0.0
