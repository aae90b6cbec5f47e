"""Controllers against worlds: one batch of pools stepped through its weeks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.autoscale_engine import (
    GRID,
    RUNNING,
    STEP_S,
    Array,
    Engines,
    Indices,
    rate_at,
    table,
    throughput,
)
from bench.autoscale_traces import DAY_S, Case
from daemon.rivals import OF_RUNNING, RIVALS, Policy, Pools, Seen
from simulator.spec import PoolSpec

TARGET = 0.99


@dataclass(frozen=True, slots=True)
class Cell:
    """One pool of one case."""

    case: int
    pool: int
    spec: PoolSpec
    most: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Cases of one length side by side. arrived, failures : (step, cell). blind : (step, cell)."""

    cases: tuple[Case, ...]
    cells: tuple[Cell, ...]
    arrived: Array
    failures: Array
    blind: np.ndarray

    @property
    def steps(self) -> int:
        return int(self.arrived.shape[0])

    @property
    def days(self) -> float:
        return self.steps * STEP_S / DAY_S


def batch(cases: Sequence[Case]) -> Batch:
    cells = tuple(
        Cell(index, pool, spec, int(case.most[pool]))
        for index, case in enumerate(cases)
        for pool, spec in enumerate(case.pools)
    )
    arrived = np.concatenate([c.arrived for c in cases]).T
    failures = np.concatenate([c.failures for c in cases]).T
    blind = np.stack([cases[c.case].blind for c in cells], axis=1)
    return Batch(tuple(cases), cells, np.ascontiguousarray(arrived), np.ascontiguousarray(failures), blind)


@dataclass(frozen=True, slots=True)
class Result:
    """(world,) sums of a run: requests in time, all, lost; GPU-hours; flaps; pool-days; fleet of the world's case."""

    good: Array
    asked: Array
    lost: Array
    gpu_hours: Array
    flaps: Array
    pool_days: Array

    def of(self, chosen: np.ndarray) -> dict[str, float]:
        days = float(self.pool_days[chosen].sum())
        return {
            "slo_attainment": float(self.good[chosen].sum() / self.asked[chosen].sum()),
            "gpu_hours": float(self.gpu_hours[chosen].sum()),
            "flaps_per_pool_day": float(self.flaps[chosen].sum() / days),
            "requests_lost": float(self.lost[chosen].sum()),
        }


FLAP_S = 900.0
"""A change of direction within a quarter of an hour is a flap: what was given back is taken again or the other way round."""


class Flaps:
    """Counts changes of direction."""

    def __init__(self, worlds: int) -> None:
        self.count, self.sign = np.zeros(worlds), np.zeros(worlds)
        self.at = np.full(worlds, -np.inf)

    def see(self, change: Array, at_s: float) -> None:
        sign = np.sign(change)
        moved = sign != 0
        if moved.any():
            self.count += moved & (sign == -self.sign) & (at_s - self.at < FLAP_S)
            self.sign, self.at = np.where(moved, sign, self.sign), np.where(moved, at_s, self.at)


def run(given: Batch, worlds: Indices, policy: Policy, first: Array) -> Result:
    """Step a policy through a batch. worlds : (world,) which cell each world is. first : replicas it begins with."""
    cells = [given.cells[w] for w in worlds]
    most = np.array([float(c.most) for c in cells])
    cold = np.array([round(given.cases[c.case].cold_s / STEP_S) for c in cells], dtype=np.intp)
    engines = Engines([c.spec for c in cells], np.clip(first, 1.0, most), cold)
    flaps = Flaps(len(cells))
    for step in range(given.steps):
        seen = _hidden(engines.seen, given.blind[step - 1, worlds]) if step else engines.seen
        if step:
            now = engines.ready + engines.starting
            wanted = np.clip(policy.decide(step, seen, now), 1.0, most)
            flaps.see(wanted - now, step * STEP_S)
            engines.resize(wanted)
        engines.fail(given.failures[step, worlds])
        engines.step(given.arrived[step, worlds])
    tp = np.array([c.spec.tp for c in cells])
    days = np.full(len(cells), given.steps * STEP_S / DAY_S)
    return Result(
        engines.good, engines.asked, engines.lost, engines.replica_s * tp / 3600.0, flaps.count, days
    )


def _hidden(seen: Seen, blind: np.ndarray) -> Seen:
    if not blind.any():
        return seen
    return Seen(*(np.where(blind, np.nan, getattr(seen, name)) for name in Seen.__slots__))


def start_of(given: Batch) -> Array:
    """(cell,) replicas that hold the first minutes with room."""
    rate = given.arrived[:8].mean(axis=0) / STEP_S
    return np.ceil(rate / np.array([0.8 * rate_at(c.spec) for c in given.cells])) + 1.0


def running_at(spec: PoolSpec) -> float:
    """Requests that run in a replica at TARGET."""
    place = int(rate_at(spec) / throughput(spec) * (GRID - 1))
    return float(table(spec)[place, RUNNING])


def candidates(name: str, budget: int) -> list[dict[str, float]]:
    """Parameter sets evenly over the ranges, by a low-discrepancy sequence."""
    ranges = RIVALS[name][1]
    steps = (0.6180339887, 0.7548776662, 0.5698402910)[1 if len(ranges) > 1 else 0 :]
    found = []
    for k in range(budget):
        at = [(0.5 + s * k) % 1.0 for s in steps] if len(ranges) > 1 else [(k + 0.5) / budget]
        found.append(
            {p: low + (high - low) * x for (p, (low, high)), x in zip(ranges.items(), at, strict=False)}
        )
    return found


def baseline(name: str, given: Batch, sets: Sequence[Sequence[Mapping[str, float]]]) -> list[Result]:
    """Results of every parameter set of a controller: sets[cell] are those tried on that cell."""
    tried = len(sets[0])
    worlds = np.repeat(np.arange(len(given.cells)), tried)
    make, ranges = RIVALS[name]
    numbers = {p: np.array([chosen[p] for cell in sets for chosen in cell]) for p in ranges}
    specs = [given.cells[w].spec for w in worlds]
    for p in OF_RUNNING & set(ranges):
        numbers[p] = numbers[p] * np.array([running_at(s) for s in specs])
    pools = Pools(
        np.array([float(given.cells[w].most) for w in worlds]), np.array([rate_at(s) for s in specs]), STEP_S
    )
    found = run(given, worlds, make(pools, numbers), start_of(given)[worlds])
    return [
        Result(*(getattr(found, f).reshape(-1, tried)[:, k] for f in Result.__slots__)) for k in range(tried)
    ]


def tuned(name: str, given: Batch, budget: int) -> dict[tuple[int, float], dict[str, float]]:
    """(fleet, cold start) -> the parameters with the fewest GPU-hours that keep TARGET there, else the best kept."""
    tries = candidates(name, budget)
    results = baseline(name, given, [tries] * len(given.cells))
    found = {}
    for group, chosen in groups(given).items():
        scored = [r.of(chosen) for r in results]
        good = [k for k in range(budget) if scored[k]["slo_attainment"] >= TARGET]
        best = (
            min(good, key=lambda k: scored[k]["gpu_hours"])
            if good
            else max(range(budget), key=lambda k: scored[k]["slo_attainment"])
        )
        found[group] = tries[best]
    return found


def groups(given: Batch) -> dict[tuple[int, float], np.ndarray]:
    """(fleet, cold start) -> (cell,) which cells are of it."""
    of = [(given.cases[c.case].gpus, given.cases[c.case].cold_s) for c in given.cells]
    return {group: np.array([g == group for g in of]) for group in sorted(set(of))}
