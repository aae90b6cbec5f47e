"""Who is slower than comparable others: GPUs by clock and activity, replicas by time a step at given batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.stats import Groups, Rings, groups, peers, rows


@dataclass(slots=True)
class StragglerDetector:
    """Residuals against leave-one-out peers, judged at block medians of several spans.

    gpu_share, replica_share : effect floors: below them a difference is silicon lottery or noise, however certain.
    replica_sure : log gap of a replica that one minute may decide.
    sigmas : distance in robust standard deviations, on top of the floor. shared : share of a group anomalous at once
    that is a common cause and nobody's fault. Sources: docs/en/reference/stragglers.md.
    """

    gpu_share: float = 0.07
    replica_share: float = 0.18
    replica_sure: float = 0.5
    sigmas: tuple[float, ...] = (5.0, 4.0, 3.5)
    sigma_floor: float = 0.012
    shared: float = 0.34
    least_running: float = 2.0
    clocks: Rings = field(default_factory=Rings)
    steps: Rings = field(default_factory=Rings)
    batches: Rings = field(default_factory=Rings)
    gpu_claims: list[Finding] = field(default_factory=list)
    replica_claims: list[Finding] = field(default_factory=list)

    def update(self, frames: Frames) -> list[Finding]:
        gpu, engine = frames["gpu"], frames["engine"]
        if gpu.entities:
            self._gpus(gpu)
        if engine.entities:
            self._replicas(engine)
        # A claim stands until the next block of the shortest span says otherwise.
        return [replace(claim, at=frames.at) for claim in (*self.gpu_claims, *self.replica_claims)]

    # -- GPUs -------------------------------------------------------------------------------------------

    def _gpus(self, gpu: Frame) -> None:
        """Clock deficit of busy GPUs against busy peers of the same pool and SKU."""
        clock, util = gpu.column("sm_clock_mhz"), gpu.column("util_ratio")
        busy = util > 0.3 if np.isfinite(util).any() else gpu.column("tensor_active_ratio") > 0.02
        before = self.clocks.finished
        medians = self.clocks.push(gpu.at, gpu.entities, np.where(busy, clock, NAN))
        if self.clocks.finished == before:
            return
        where = groups(gpu.facts.get("peer", ("",) * len(gpu.entities)))
        around = [peers(values, where, least=3) for values in medians]
        with np.errstate(invalid="ignore", divide="ignore"):
            residuals = [np.log(p.median / values) for p, values in zip(around, medians, strict=True)]
            sigma = around[0].sigma / around[0].median
        slow, span = self._judge(residuals, np.full(len(gpu.entities), self.gpu_share), sigma)
        self.gpu_claims = []
        for i in rows(slow):
            evidence = (
                Evidence("sm_clock", float(medians[span[i]][i]), "MHz", float(around[span[i]].median[i])),
                Evidence("slower_by", float(np.expm1(residuals[span[i]][i])), "ratio"),
                Evidence("tensor_active", gpu.value(gpu.entities[i], "tensor_active_ratio"), "ratio"),
                Evidence("power", gpu.value(gpu.entities[i], "power_w"), "W"),
            )
            since = gpu.at - self.clocks.spans_s[span[i]]
            entity = Entity("gpu", gpu.entities[i])
            self.gpu_claims.append(
                Finding(gpu.at, "straggler", entity, "gpu_slow", 0.85, Severity.WARNING, evidence, since)
            )

    def _judge(self, medians: list[Array], floor: Array, sigma: Array) -> tuple[np.ndarray, np.ndarray]:
        """(entity,) bool, and the span that decided. Longer spans may be surer at a smaller distance."""
        slow = np.zeros(floor.size, dtype=bool)
        span = np.zeros(floor.size, dtype=np.intp)
        spread = np.fmax(np.nan_to_num(sigma), self.sigma_floor)
        for k, values in enumerate(medians):
            hit = (values > floor) & (values > self.sigmas[k] * spread / np.sqrt(1 + k))
            span[hit & ~slow] = k
            slow |= hit
        return slow, span

    # -- replicas ---------------------------------------------------------------------------------------

    def _replicas(self, engine: Frame) -> None:
        """Time a step at given batch against peers. Busy is not slow: what the batch explains is taken out first."""
        step, batch = engine.column("itl_mean_s"), engine.column("running")
        active = (batch >= self.least_running) & (engine.column("itl_per_s") > 0)
        before = self.steps.finished
        steps = self.steps.push(engine.at, engine.entities, np.where(active, step, NAN))
        batches = self.batches.push(engine.at, engine.entities, np.where(active, batch, NAN))
        if self.steps.finished == before:
            return
        where = groups(engine.facts.get("peer", ("",) * len(engine.entities)))
        residuals = [at_equal_batch(s, b, where) for s, b in zip(steps, batches, strict=True)]
        around = peers(residuals[1], where, least=2)
        floor = np.full(len(engine.entities), np.log1p(self.replica_share))
        # One minute of a replica is a handful of requests: it decides only where the gap is beyond doubt.
        residuals[0] = np.where(residuals[0] > self.replica_sure, residuals[0], NAN)
        slow, span = self._judge(residuals, floor, np.fmax(around.sigma, 0.03))
        found, shared = self._common(engine, residuals[1], slow, where)
        for i in rows(slow & ~shared):
            evidence = (
                Evidence("inter_token_latency", float(steps[span[i]][i]), "s"),
                Evidence("slower_at_equal_batch", float(np.expm1(residuals[span[i]][i])), "ratio", 0.0),
                Evidence("running", float(batches[span[i]][i]), "requests"),
            )
            since = engine.at - self.steps.spans_s[span[i]]
            score = 0.85 if around.count[i] >= 3 else 0.6
            entity = Entity("engine", engine.entities[i])
            found.append(
                Finding(engine.at, "straggler", entity, "replica_slow", score, Severity.WARNING, evidence, since)
            )
        self.replica_claims = found

    def _common(self, engine: Frame, newest: Array, slow: np.ndarray, where: Groups) -> tuple[list[Finding], np.ndarray]:
        """Slowness that follows a version, or that takes much of a group: one finding, and nobody is blamed."""
        versions = engine.facts.get("version", ("",) * len(engine.entities))
        pools = engine.facts.get("pool", ("",) * len(engine.entities))
        shared = np.zeros(newest.size, dtype=bool)
        found = []
        for member in where.member:
            group = [int(i) for i in member if i >= 0]
            hit = [i for i in group if slow[i]]
            names = {versions[i] for i in group}
            if hit and len(names) > 1:
                blamed = _version(newest, group, versions, self.replica_share)
                if blamed:
                    which, gap = blamed
                    for i in group:
                        shared[i] = shared[i] or versions[i] == which
                    evidence = (Evidence("slower_than_other_versions", gap, "ratio", 0.0), Evidence("replicas", float(len(hit)), ""))
                    text = f"version {which} of {pools[group[0]]} is slower than the one beside it"
                    pool = Entity("pool", pools[group[0]])
                    found.append(
                        Finding(engine.at, "straggler", pool, "deploy_regression", 0.8, Severity.WARNING, evidence, engine.at, text)
                    )
            left = [i for i in hit if not shared[i]]
            if len(group) >= 6 and len(left) > max(2.0, self.shared * len(group)):
                shared[left] = True
                share = (Evidence("replicas_slow", float(len(left)), f"of {len(group)}"),)
                pool = Entity("pool", pools[group[0]])
                found.append(Finding(engine.at, "straggler", pool, "fleet_slow", 0.6, Severity.WARNING, share, engine.at))
        return found, shared


def _version(newest: Array, group: list[int], versions: tuple[str, ...], share: float) -> tuple[str, float] | None:
    """The version whose members are all slower than every other version's median, with its gap."""
    medians = {}
    for name in sorted({versions[i] for i in group}):
        values = newest[[i for i in group if versions[i] == name]]
        values = values[np.isfinite(values)]
        if values.size:
            medians[name] = float(np.median(values))
    if len(medians) < 2:
        return None
    worst = max(medians, key=medians.__getitem__)
    rest = max(v for k, v in medians.items() if k != worst)
    slowest = newest[[i for i in group if versions[i] == worst]]
    slowest = slowest[np.isfinite(slowest)]
    gap = medians[worst] - rest
    if gap > np.log1p(share) * 0.6 and slowest.size >= 1 and slowest.min() > rest:
        return worst, float(np.expm1(gap))
    return None


def at_equal_batch(step_s: Array, batch: Array, where: Groups) -> Array:
    """log of each replica's step time over what its peers show, with the effect of the batch taken out.

    step_s, batch : (engine,), NaN = not measured. The slope of log step against log batch is the median over all
    pairs of peers (Theil-Sen), so one slow replica cannot bend it; with fewer than three peers it is 0.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        y, x = np.log(step_s), np.log(np.maximum(batch, 1.0))
    out = np.full(step_s.size, NAN)
    for member in where.member:
        group = np.array([i for i in member if i >= 0 and np.isfinite(y[i])], dtype=np.intp)
        if group.size < 3:
            continue
        corrected = y[group] - _slope(x[group], y[group]) * x[group]
        out[group] = corrected
    residual = peers(out, where, least=2)
    difference: Array = out - residual.median
    return difference


def _slope(x: Array, y: Array) -> float:
    """Theil-Sen slope held to the physical range 0..1: a larger batch never makes a step faster."""
    dx = x[:, None] - x[None, :]
    pairs = np.abs(dx) > 0.1
    if pairs.sum() < 6:
        return 0.0
    slopes = (y[:, None] - y[None, :])[pairs] / dx[pairs]
    return float(np.clip(np.median(slopes), 0.0, 1.0))
