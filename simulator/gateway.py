"""What the simulated load balancer counts of pools and of classes of requests, also those that it does not let in."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from daemon.model import Array
from simulator.spec import WorldSpec

CLASS_SHARES = {"batch": 0.3, "free": 0.2}
"""Share of a pool's requests of each class the gateway knows; the rest has none."""
GAUGES = ("queue", "latency_s")
COUNTERS = ("arrivals_per_s", "errors_per_s", "refused_per_s")
LATENCY_TAU_S = 60.0


def names_of(pools: list[str]) -> tuple[str, ...]:
    """Rows: every pool, then every class of every pool."""
    return (*pools, *(f"{pool}/{name}" for pool in pools for name in CLASS_SHARES))


def backend(name: str) -> str:
    """How the balancer calls a row: a pool by its name, a class by a backend of its own."""
    return name.replace("/", "_")


def route_map(spec: WorldSpec) -> str:
    """The target label that says which backend is which class."""
    names = names_of([pool.name for pool in spec.pools])
    return ",".join(f"{backend(name)}={name}" for name in names if "/" in name)


class Gateway:
    """gauges : (row, GAUGES). It holds no queue of its own; latency_s is a fading mean, NaN before the first answer.
    counters : (row, COUNTERS) since the start of the world."""

    def __init__(self, spec: WorldSpec) -> None:
        self._pools = [pool.name for pool in spec.pools]
        count = len(self._pools)
        self._of = np.concatenate((np.arange(count), np.repeat(np.arange(count), len(CLASS_SHARES))))
        self._usual = np.concatenate((np.ones(count), np.tile(list(CLASS_SHARES.values()), count)))
        self._let_in = self._usual
        self.gauges = np.zeros((len(self._of), len(GAUGES)))
        self.gauges[:, 1] = math.nan
        self.counters = np.zeros((len(self._of), len(COUNTERS)))

    def admit(self, admitted: Mapping[str, float]) -> Array:
        """(pool,) share of the requests that is let in from now on. admitted : pool or pool/class -> share."""
        count = len(self._pools)
        door = np.array([admitted.get(pool, 1.0) for pool in self._pools])
        own = np.array([admitted.get(name, 1.0) for name in names_of(self._pools)[count:]])
        classes = self._usual[count:] * own * door[self._of[count:]]
        unnamed = (1.0 - sum(CLASS_SHARES.values())) * door
        total: Array = unnamed + np.bincount(self._of[count:], classes, count)
        self._let_in = np.concatenate((total, classes))
        return total

    def count(self, came: Array, unserved: Array, expected: Array) -> None:
        """One step. came : (pool,) requests that were let in. unserved : those of them that found no replica. expected : how many
        come usually, for a pool where nobody is let in and so nobody is counted."""
        share = self._let_in[: len(came)]
        asked = np.where(share > 0, came / np.maximum(share, 1e-9), expected)[self._of]
        self.counters[:, 0] += asked * self._usual
        self.counters[:, 1] += (unserved / np.maximum(share, 1e-9))[self._of] * self._let_in
        self.counters[:, 2] += asked * (self._usual - self._let_in)

    def time(self, seconds: Array, answered: Array, span: float) -> None:
        """How long the answers of the last `span` seconds took. seconds : (pool,) all of them together. answered : their number."""
        mean = np.where(answered > 0, seconds / np.maximum(answered, 1.0), math.nan)[self._of]
        before, weight = self.gauges[:, 1], -math.expm1(-span / LATENCY_TAU_S)
        faded = np.where(np.isnan(before), mean, before + weight * (mean - before))
        self.gauges[:, 1] = np.where(np.isnan(mean), before, faded)
