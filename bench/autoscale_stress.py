"""Three short trials: demand that doubles at once, telemetry that falls silent at the peak, replicas that die."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.autoscale_engine import STEP_S, Engines, rate_at
from bench.autoscale_ours import Ours
from bench.autoscale_run import Batch, batch, start_of
from bench.autoscale_traces import EPOCH, OUTAGE_S, Case
from daemon.rivals import Seen
from simulator.defaults import default_spec

COLD_S = (30.0, 60.0, 90.0, 240.0)
HOUR = int(3600.0 / STEP_S)


def _case(cold_s: float, level: np.ndarray, most: int, seed: int = 1) -> Case:
    """One pool whose demand is `level` (step,) replicas' worth at the load they are meant for."""
    spec = default_spec(64).pools[0]
    rng = np.random.default_rng(seed)
    arrived = rng.poisson(level * rate_at(spec) * STEP_S).astype(float)[None, :]
    still = np.zeros(arrived.shape)
    return Case(
        f"stress-{cold_s:.0f}s",
        most * spec.tp,
        cold_s,
        (spec,),
        arrived,
        still,
        np.zeros(level.size, dtype=bool),
        np.zeros((1, 0)),
        np.array([most], dtype=np.intp),
        EPOCH,
    )


def _watch(given: Batch, blind: slice | None = None) -> tuple[np.ndarray, Engines]:
    """(step, cell) replicas asked for by the daemon without forecasts, and the engines at the end."""
    policy, cells = Ours(given, foresees=False), given.cells
    cold = np.array([round(given.cases[c.case].cold_s / STEP_S) for c in cells], dtype=np.intp)
    engines = Engines([c.spec for c in cells], start_of(given), cold)
    asked = np.empty((given.steps, len(cells)))
    most = np.array([float(c.most) for c in cells])
    for step in range(given.steps):
        seen = engines.seen
        if blind is not None and blind.start <= step < blind.stop:
            seen = Seen(*(np.full(len(cells), np.nan) for _ in Seen.__slots__))
        now = engines.ready + engines.starting
        asked[step] = np.clip(policy.decide(step, seen, now), 1.0, most) if step else now
        engines.resize(asked[step])
        engines.step(given.arrived[step])
    return asked, engines


def double() -> dict[str, Any]:
    """Demand of two replicas doubles after twelve hours: cold start -> replicas
    before, most asked for after, and at the end four hours later."""
    level = np.where(np.arange(16 * HOUR) < 12 * HOUR, 1.7, 3.4)
    given = batch([_case(cold, level, 64) for cold in COLD_S])
    asked, _ = _watch(given)
    after = asked[12 * HOUR :]
    return {
        f"{cold:.0f}s": {
            "before": int(asked[12 * HOUR - 1, k]),
            "most": int(after[:, k].max()),
            "end": int(after[-1, k]),
        }
        for k, cold in enumerate(COLD_S)
    }


def blackout() -> dict[str, Any]:
    """A day with its telemetry silent for a quarter of an hour at the peak, against the same day with it."""
    hour = np.arange(48 * HOUR) / HOUR
    given = batch([_case(90.0, 10.0 + 5.0 * np.cos((hour - 14.0) / 24.0 * 2 * np.pi), 30)])
    begin = 38 * HOUR
    silent = slice(begin, begin + int(OUTAGE_S / STEP_S))
    asked, without = _watch(given, silent)
    _, with_all = _watch(given)
    during = asked[silent.start - 1 : silent.stop, 0]
    return {
        "scaled_down": int((np.diff(during) < 0).sum()),
        "slo_attainment": float(without.good[0] / without.asked[0]),
        "slo_attainment_seen": float(with_all.good[0] / with_all.asked[0]),
    }
