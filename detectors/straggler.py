"""Who is slower than comparable others: GPUs by clock and activity, replicas by time a step at given batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.stats import Groups, Rings, groups, peers, rows
from detectors.steps import StepModel
from detectors.versions import VersionWatch

STEP_SIGNALS = ("itl_mean_s", "running", "itl_per_s", "prompt_tokens_s", "prompt_cached_tokens_s")


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
    steps: Rings = field(default_factory=lambda: Rings((60.0,)))
    batches: Rings = field(default_factory=lambda: Rings((60.0,)))
    prompts: Rings = field(default_factory=lambda: Rings((60.0,)))
    lags: Rings = field(default_factory=lambda: Rings((300.0, 900.0)))
    models: dict[str, StepModel] = field(default_factory=dict)
    versions: VersionWatch = field(default_factory=VersionWatch)
    blamed: list[str] = field(default_factory=list)
    gpu_claims: list[Finding] = field(default_factory=list)
    replica_claims: list[Finding] = field(default_factory=list)

    def update(self, frames: Frames) -> list[Finding]:
        gpu, engine = frames["gpu"], frames["engine"]
        # A claim does not outlive the telemetry it was made from.
        if gpu.entities:
            self._gpus(gpu)
        else:
            self.gpu_claims = []
        if engine.entities:
            self._replicas(engine)
        else:
            self.replica_claims = []
        # A claim stands until the next block of the shortest span says otherwise.
        return [replace(claim, at=frames.at) for claim in (*self.gpu_claims, *self.replica_claims)]

    # -- GPUs -------------------------------------------------------------------------------------------

    def _gpus(self, gpu: Frame) -> None:
        """Clock deficit of busy GPUs against busy peers of the same pool and SKU."""
        clock, util = gpu.column("sm_clock_mhz"), gpu.column("util_ratio")
        busy = util > 0.3 if np.isfinite(util).any() else gpu.column("tensor_active_ratio") > 0.02
        if not self.clocks.push(gpu.at, gpu.entities, np.where(busy, clock, NAN)):
            return
        medians = self.clocks.medians()
        self.gpu_claims = []
        # Whoever is slow is well below the fastest of all: in most minutes there is nobody to compare further.
        fastest = np.fmax.reduce(medians[0], initial=0.0)
        if not (medians[0] < fastest * np.exp(-0.5 * self.gpu_share)).any():
            return
        where = groups(gpu.facts.get("peer", ("",) * len(gpu.entities)))
        around = [peers(values, where, least=3) for values in medians]
        with np.errstate(invalid="ignore", divide="ignore"):
            residuals = [np.log(p.median / values) for p, values in zip(around, medians, strict=True)]
            sigma = around[0].sigma / around[0].median
        slow, span = self._judge(residuals, np.full(len(gpu.entities), self.gpu_share), sigma)
        # A long span remembers what the last minute shows to be over, or, of an idle GPU, does not show at all.
        slow &= residuals[0] > 0.5 * self.gpu_share
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
        """Time a step at given load against peers of the same version. Busy is not slow: what batch and prompts
        explain is taken out by a model of the peer group's own minutes."""
        step, batch, number, prompts, cached = engine.columns(STEP_SIGNALS).T
        prompts = prompts - np.fmax(cached, 0.0)
        active = (batch >= self.least_running) & (number > 0)
        rings = ((self.steps, step), (self.batches, batch), (self.prompts, prompts))
        ended = [
            ring.push(engine.at, engine.entities, np.where(active, values, NAN)) for ring, values in rings
        ]
        if not ended[0]:
            return
        step, batch, prompts = (ring.medians()[0] for ring, _ in rings)
        size = len(engine.entities)
        peer = engine.facts.get("peer", ("",) * size)
        version = engine.facts.get("version", ("",) * size)
        where = groups(tuple(f"{p}|{v}" if p else "" for p, v in zip(peer, version, strict=True)))
        over = self._over_expected(engine, peer, step, batch, np.nan_to_num(prompts))
        lag = over - peers(over, where, least=2).median
        self.lags.push(engine.at, engine.entities, lag)
        medians = [lag, *self.lags.medians()]
        medians[0] = np.where(lag > self.replica_sure, lag, NAN)
        around = peers(medians[1], where, least=2)
        slow, span = self._judge(
            medians, np.full(size, np.log1p(self.replica_share)), np.fmax(around.sigma, 0.03)
        )
        slow &= lag > 0.5 * np.log1p(self.replica_share)
        found, shared = self._common(engine, over, lag, slow, where)
        spans = (60.0, *self.lags.spans_s)
        for i in rows(slow & ~shared):
            evidence = (
                Evidence("inter_token_latency", float(step[i]), "s"),
                Evidence("slower_at_equal_load", float(np.expm1(medians[span[i]][i])), "ratio", 0.0),
                Evidence("running", float(batch[i]), "requests"),
            )
            since = engine.at - spans[span[i]]
            score = 0.85 if around.count[i] >= 3 else 0.6
            entity = Entity("engine", engine.entities[i])
            found.append(
                Finding(
                    engine.at, "straggler", entity, "replica_slow", score, Severity.WARNING, evidence, since
                )
            )
        self.replica_claims = found
        self.blamed = [f.entity.name for f in found]

    def _over_expected(
        self, engine: Frame, peer: tuple[str, ...], step: Array, batch: Array, prompts: Array
    ) -> Array:
        """(engine,) log of step time over what its peer group's model expects; NaN = not measured or not learnt."""
        over = np.full(len(engine.entities), NAN)
        known = np.isfinite(step) & np.isfinite(batch)
        for name in sorted({p for p in peer if p}):
            members = np.array([p == name for p in peer]) & known
            if not members.any():
                continue
            model = self.models.setdefault(name, StepModel())
            over[members] = np.log(step[members]) - model.expected(batch[members], prompts[members])
            clean = members & np.array([n not in self.blamed for n in engine.entities])
            if clean.any():
                model.learn(batch[clean], prompts[clean], step[clean])
        return over

    def _common(
        self, engine: Frame, over: Array, lag: Array, slow: np.ndarray, where: Groups
    ) -> tuple[list[Finding], np.ndarray]:
        """Slowness that follows a version, or that takes much of a group: one finding, and nobody is blamed."""
        pools = engine.facts.get("pool", ("",) * len(engine.entities))
        version = engine.facts.get("version", ("",) * len(engine.entities))
        shared = np.zeros(lag.size, dtype=bool)
        found = self.versions.judge(engine.at, pools, version, over)
        guilty = {f.entity.name for f in found}
        for member in where.member:
            group = [int(i) for i in member if i >= 0]
            hit = [i for i in group if slow[i]]
            if pools[group[0]] in guilty:
                shared[group] = True
            elif len(group) >= 6 and len(hit) > max(2.0, self.shared * len(group)):
                shared[hit] = True
                share = (Evidence("replicas_slow", float(len(hit)), f"of {len(group)}"),)
                pool = Entity("pool", pools[group[0]])
                found.append(
                    Finding(
                        engine.at, "straggler", pool, "fleet_slow", 0.6, Severity.WARNING, share, engine.at
                    )
                )
        return found, shared
