"""Who is slower than comparable others: GPUs, replicas, and the nodes where it keeps happening."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from daemon.model import NAN, Evidence, Finding, Frame, Frames, Severity
from detectors.fusion import LEAST_EFFECT, Fusion
from detectors.gpupace import LARGE, LOCKSTEP, TOLD, GpuPace
from detectors.hostload import HostLoad
from detectors.nodepace import NodePace
from detectors.offenders import Offenders
from detectors.replicapace import ReplicaPace
from detectors.scales import FIVE, QUARTER, deviation, in_units
from detectors.signs import signs
from detectors.stages import Stages
from detectors.stats import rows

FELT = 0.3
"""A rank that its group waits for makes each step as much longer; with the noise of both less than this share of it is a
contradiction. On tune fleets true ones show 0.5 to 1.3 of it, false ones under 0.2."""
OTHER = 2.0
"""A replica slower than so many times the lead is slowed by something else, and the lead is chance until it is large."""
BEFORE_S = 1800.0
"""So is one that was slow so long before the rank led: tune slow 207."""
SETTLED_MIN = 60
"""Minutes until a group's noise is known: its first blocks are few and alike. On tune fast 165 a replica was told after 17."""
LIKELY = 0.99
"""From this chance on a slow replica wakes people. Short spans claim within minutes what all signs together, over a quarter of an hour,
confirm or not; until then traffic goes elsewhere and nobody is told more than that. The model that small faults were trained on too is surer of
everything: it gave a sound replica 0.955 for 10 % (published healthy 106)."""
PLAIN = 1.5
"""Deviations from which a step is plainly longer, as a second witness of a rank that leads."""
PATIENCE = {
    "clock": ((0.08, 900.0),),
    "lockstep": ((0.15, 3600.0),),
    "both": ((0.15, 3600.0),),
    "replica": ((0.15, 3600.0), (0.10, 4 * 3600.0)),
}
"""Family -> sizes below which a claim wakes people, and takes a GPU out, only once it has lasted so many seconds; a larger one does at once. The noise of sound devices
wanders by a tenth for a quarter of an hour in one of thousands of GPU-days and not for an hour (a rank of a pair by 13 %, a replica by 9 %: tune healthy 436 and 441),
and a sound clock dips by 6 % for minutes (published healthy 122, which is not counted)."""
GUESS = 0.5
"""Score of a claim against the own past alone, of which the signs together say nothing."""
CONFIRMED = 0.999
"""The chance that all signs together must give a lead that is not LARGE: about that from which the model would claim by itself. At nine tenths
five leads of a healthy day of 1,536 GPUs were believed (tune healthy 430)."""


@dataclass(slots=True)
class StragglerDetector:
    """A claim stands from the minute that shows it until one that no longer does.

    judged : minutes of replicas that were put together so far.
    """

    gpus: GpuPace = field(default_factory=GpuPace)
    replicas: ReplicaPace = field(default_factory=ReplicaPace)
    hosts: HostLoad = field(default_factory=HostLoad)
    nodes: NodePace = field(default_factory=NodePace)
    fusion: Fusion = field(default_factory=Fusion)
    stages: Stages = field(default_factory=Stages)
    offenders: Offenders = field(default_factory=Offenders)
    judged: int = 0

    def update(self, frames: Frames) -> list[Finding]:
        gpu, engine, node = frames["gpu"], frames["engine"], frames["node"]
        owners = dict(zip(gpu.entities, gpu.facts.get("engine", ()), strict=False))
        sick = self.fusion.claims.keys() | {owners.get(name, "") for name in self.gpus.claims} - {""}
        # A claim does not outlive the telemetry it was made from.
        replicas = self.replicas.update(engine, sick, self.hosts.crowded) if engine.entities else []
        gpus = self.gpus.update(gpu, sick, self._felt(engine)) if gpu.entities else []
        found = [*gpus, *replicas]
        if node.entities:
            self.hosts.update(node, engine, sick | self.replicas.sizes.keys())
        if engine.entities:
            self._together(gpu, engine, node)
            found = self._with_confidence(found, owners, engine)
        found += [self._in_time(claim) for claim in self.nodes.claims.values()] if engine.entities else []
        found += self.stages.update(gpu, sick | self.replicas.sizes.keys()) if gpu.entities else []
        found += self.offenders.update(frames.at, found, engine)
        # A replica that has left is judged no more: until the next minute the claim would stand alone, its node unknown.
        present = set(engine.entities) if found else ()
        found = [c for c in found if c.entity.kind != "engine" or c.entity.name in present]
        return [replace(claim, at=frames.at) for claim in found] if found else found

    def _felt(self, engine: Frame) -> dict[str, tuple[float, float]]:
        """Engine -> log of how much longer its steps of the last five minutes are than its peers', and in deviations, from PLAIN on."""
        lags = self.replicas.lags
        if lags.names != engine.entities or not lags.latest.size or lags.count < SETTLED_MIN:
            return {}
        plain = lags.latest[FIVE] > LEAST_EFFECT
        if not plain.any():
            return {}
        sigmas = in_units(lags, FIVE, self.replicas.alike(engine))
        longer = lags.latest[FIVE]
        return {
            engine.entities[i]: (float(longer[i]), float(sigmas[i])) for i in rows(plain & (sigmas > PLAIN))
        }

    def _together(self, gpu: Frame, engine: Frame, node: Frame) -> None:
        """Once a minute, after each family has judged it."""
        if self.replicas.lags.count == self.judged:
            return
        self.judged = self.replicas.lags.count
        if self.judged < SETTLED_MIN:
            return
        what, suspect = signs(gpu, engine, node, self.gpus, self.replicas, self.hosts)
        lags = self.replicas.lags.latest
        alike = self.replicas.alike(engine)
        self.nodes.judge(engine, lags[0], self.replicas.sizes.keys() | self.fusion.claims.keys())
        self.fusion.judge(engine, gpu, what, suspect, lags[QUARTER], lags[FIVE], alike)

    def _with_confidence(
        self, found: Iterable[Finding], owners: dict[str, str], engine: Frame
    ) -> list[Finding]:
        """What one family says, with how sure all are; then what they say together of those that none accuses."""
        told, blamed = [], set()
        for claim in found:
            name = owners.get(claim.entity.name, "") if claim.entity.kind == "gpu" else claim.entity.name
            if claim.rule == LOCKSTEP and self._is_doubtful(claim, name, engine):
                continue
            blamed.add(name)
            sure = self.fusion.confidence(name)
            if claim.kind == "replica_slow" and claim.score > GUESS and not sure >= LIKELY:
                claim = replace(claim, severity=Severity.INFO)
            claim = self._in_time(claim)
            if sure == sure:
                claim = replace(claim, evidence=(*claim.evidence, Evidence("confidence", sure, "ratio")))
            told.append(claim)
        return [*told, *(c for name, c in self.fusion.claims.items() if name not in blamed)]

    def _in_time(self, claim: Finding) -> Finding:
        """The claim as it stands until what is small has lasted: told, and nobody woken nor hardware taken away."""
        name = claim.entity.name
        if claim.entity.kind == "node":
            family, size, score = "replica", self.nodes.sizes[name][1], claim.score
        elif claim.kind == "replica_slow" and name in self.replicas.sizes:
            family, size, score = "replica", self.replicas.sizes[name][1], claim.score
        elif claim.kind == "gpu_slow" and name in self.gpus.sizes:
            (family, _, size), score = self.gpus.sizes[name], min(claim.score, TOLD)
        else:
            return claim
        wait_s = max((wait_s for below, wait_s in PATIENCE[family] if size < below), default=0.0)
        if claim.at - claim.since >= wait_s:
            return claim
        return replace(claim, severity=Severity.INFO, score=score)

    def _is_doubtful(self, claim: Finding, name: str, engine: Frame) -> bool:
        """Whether the replica of an accused rank does not show it: a small lead needs all signs together, a large one only that
        nothing contradicts. A replica without peers contradicts nothing and confirms nothing."""
        if claim.entity.name not in self.gpus.sizes:
            return False
        family, span, size = self.gpus.sizes[claim.entity.name]
        lags, k = self.replicas.lags, min(span, QUARTER)
        row = lags.names.index(name) if name in lags.names and lags.names == engine.entities else -1
        step = float(lags.latest[k][row]) if row >= 0 else NAN
        if size < LARGE:
            slow = self.replicas.claims.get(name)
            # Two witnesses at once need no third.
            is_sure = family == "both" or self.fusion.confidence(name) >= CONFIRMED
            return (
                not is_sure
                or step > OTHER * size
                or (slow is not None and slow.since < claim.since - BEFORE_S)
            )
        if not step < FELT * size:
            return False
        # What is lost in the noise of the steps contradicts nothing.
        return bool(step + deviation(lags, k, self.replicas.alike(engine))[row] < size)
