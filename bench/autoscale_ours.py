"""The daemon's own sizing in the benchmark: the very functions it decides with, fed with what a scrape would show."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from bench.autoscale_engine import STEP_S, Array, rate_at
from bench.autoscale_run import Batch, running_at
from bench.autoscale_traces import HOUR_S, Case
from daemon import replica, sizing
from daemon.model import Forecast, Frame
from daemon.policy import PoolPolicy, spare_of, tier_of
from daemon.rivals import Seen
from detectors.forecast import LEVELS, forecast_series
from detectors.forecast_blend import INLINE
from simulator.spec import PoolSpec

HORIZON_H = 76
SIGNALS = ("running", "waiting", "kv_used_ratio", "itl_mean_s", "ttft_p95_s", "queue_p95_s")
_FITS: dict[tuple[str, int, float, int, int], Forecast] = {}
"""Forecasts by case, length, pool and hour: demand does not depend on who scales, so all runs share them."""


def forecast_of(case: Case, pool: int, hour: int) -> Forecast | None:
    """What the forecaster says at a full hour of a case, as requests in flight; None while it has nothing to say."""
    key = (case.name, case.steps, case.begins, pool, hour)
    if key not in _FITS:
        spec, per_hour = case.pools[pool], int(HOUR_S / STEP_S)
        seen = case.arrived[pool, : hour * per_hour].reshape(hour, per_hour).mean(axis=1) / STEP_S
        values = np.concatenate((case.history[pool], seen)) * in_flight(spec)
        made = forecast_series(values, HORIZON_H, INLINE)
        at = case.begins + hour * HOUR_S
        _FITS[key] = Forecast(
            at, spec.name, "concurrency", HOUR_S, LEVELS, made.quantiles, skill=made.skill, ranks=made.ranks
        )
    found = _FITS[key]
    return found if math.isfinite(float(found.quantiles[0, 0])) else None


def in_flight(spec: PoolSpec) -> float:
    """Seconds a request stays at the load replicas are meant for."""
    return running_at(spec) / rate_at(spec)


@dataclass
class Ours:
    """One learnt state a pool, as the daemon keeps it. foresees : whether forecasts are given."""

    given: Batch
    foresees: bool
    learnt: list[replica.Learnt] = field(init=False)
    needs: list[sizing.Need] = field(init=False)

    def __post_init__(self) -> None:
        cells = self.given.cells
        self.learnt = [replica.Learnt() for _ in cells]
        self.needs = [sizing.Need(c.spec.name, None) for c in cells]
        self.policies = [
            PoolPolicy(
                c.spec.name,
                replicas_max=c.most,
                gpus_per_replica=c.spec.tp,
                ttft_slo_s=c.spec.ttft_slo_s,
                itl_slo_s=c.spec.itl_slo_s,
                cold_start_s=self.given.cases[c.case].cold_s,
            )
            for c in cells
        ]
        fleets = [self.given.cases[c.case].gpus for c in cells]
        self.spare = [spare_of(tier_of(g // 8, g)) for g in fleets]

    def moved(self, given: Batch) -> Ours:
        """The same daemon in the time that follows, with all it has learnt."""
        later = Ours(given, self.foresees)
        later.learnt = self.learnt
        return later

    def decide(self, step: int, seen: Seen, now: Array) -> Array:
        wanted = now.copy()
        columns = _columns(seen)
        for cell, row in enumerate(columns):
            wanted[cell] = self._one(cell, step, row, int(now[cell]))
        return wanted

    def _one(self, cell: int, step: int, row: dict[str, float], now: int) -> int:
        which = self.given.cells[cell]
        case = self.given.cases[which.case]
        at = case.begins + step * STEP_S
        learnt, policy = self.learnt[cell], self.policies[cell]
        row["replicas"] = float(now)
        if replica.is_due(learnt, at) and not math.isnan(row["running"]):
            each = max(row["ready"], 1.0)
            values = [row["running"] / each, row["waiting"] / each, *(row[s] for s in SIGNALS[2:])]
            frame = Frame(at, "engine", ("e",), SIGNALS, np.array([values]), np.zeros(1))
            replica.learn(learnt, frame, np.ones(1, dtype=bool), policy)
        hour = int(step * STEP_S // HOUR_S)
        forecast = forecast_of(case, which.pool, hour) if self.foresees else None
        found = self.needs[cell] = sizing.need(learnt, row, policy, forecast, at, self.spare[cell], now)
        return now if found.wanted is None else found.wanted


def _columns(seen: Seen) -> list[dict[str, float]]:
    """A pool's row of signals a cell, as daemon.pools makes it."""
    names = {
        "ready": seen.ready,
        "running": seen.running,
        "waiting": seen.waiting,
        "concurrency": seen.running + seen.waiting,
        "kv_used_ratio": seen.kv,
        "itl_mean_s": seen.itl_s,
        "ttft_p95_s": seen.ttft_s,
        "queue_p95_s": seen.queue_s,
        "requests_done_per_s": seen.done_s,
        "prompt_tokens_s": seen.prompt_s,
        "generation_tokens_s": seen.output_s,
        "lb_sessions_per_s": seen.arrived_s,
        "over_slo_ratio": seen.late,
    }
    table = np.stack(list(names.values()), axis=1).tolist()
    return [dict(zip(names, row, strict=True)) for row in table]
