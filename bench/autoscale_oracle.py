"""A controller that knows the future and still waits for its replicas to start: the lower bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.autoscale_engine import DRAIN_S, GRID, LATE, STEP_S, Array, table, throughput
from bench.autoscale_run import TARGET, Batch
from daemon.rivals import Seen
from simulator.spec import PoolSpec


def best_load(spec: PoolSpec, late: float) -> float:
    """Requests per second of a replica that is never more than `late` late in the long run."""
    return float(np.interp(late, table(spec)[:, LATE], np.linspace(0.0, 1.0, GRID))) * throughput(spec)


def needed(given: Batch, late: float) -> Array:
    """(step, cell) replicas that serve what arrives around each step."""
    # A replica feels a minute of arrivals: requests stay for about twenty seconds and a queue is no catastrophe.
    arrived = given.arrived
    kernel = np.array([0.25, 0.5, 0.25])
    smooth = np.stack([np.convolve(column, kernel, mode="same") for column in arrived.T], axis=1)
    rate = np.array([best_load(c.spec, late) for c in given.cells])
    least = np.ceil(smooth / STEP_S / rate - 1e-9)
    failed = given.failures
    return np.asarray(np.maximum(least, 1.0) + failed)


def schedule(given: Batch, late: float) -> Array:
    """(step, cell) replicas asked for: each is started its cold start before it is needed, and kept over a gap in which
    letting it go and starting it again would cost as much."""
    need = needed(given, late)
    cold = np.array([round(given.cases[c.case].cold_s / STEP_S) for c in given.cells])
    wanted = np.empty_like(need)
    for cell, most in enumerate(c.most for c in given.cells):
        wanted[:, cell] = _ahead(np.minimum(need[:, cell], most), int(cold[cell]))
    return wanted


def _ahead(need: Array, cold: int) -> Array:
    """(step,) replicas to be held. A level is held from `cold` steps before each need of it, over gaps no longer than a
    cold start and a drain."""
    gap = cold + int(DRAIN_S / STEP_S)
    held = np.zeros(need.size)
    for level in range(1, int(need.max()) + 1):
        on = need >= level
        edges = np.flatnonzero(np.diff(np.concatenate(([0], on.view(np.int8), [0]))))
        starts, ends = edges[::2], edges[1::2]
        keep = np.concatenate(([True], starts[1:] - ends[:-1] > gap))
        last = np.concatenate((keep[1:], [True]))
        for begin, end in zip(starts[keep], ends[last], strict=True):
            held[max(0, begin - cold - 1) : end] += 1
    return held


@dataclass
class Oracle:
    """A schedule as a policy. wanted : (step, world)."""

    wanted: Array

    def decide(self, step: int, seen: Seen, now: Array) -> Array:
        return np.asarray(self.wanted[step])


LATES = (0.004, 0.006, 0.01, 0.02, 0.04, 0.07, 0.12, 0.2)
"""What the oracle may let a replica be late; it takes the most that keeps the target over the whole stretch."""


def oracle(given: Batch) -> tuple[list[Oracle], Array]:
    """One policy a lateness, and the replicas each begins with (lateness, cell)."""
    plans = [schedule(given, late) for late in LATES]
    return [Oracle(plan) for plan in plans], np.stack([plan[0] for plan in plans])


__all__ = ["LATES", "TARGET", "Oracle", "oracle"]
