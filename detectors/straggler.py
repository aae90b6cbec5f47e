"""Who is slower than comparable others: GPUs, replicas, and the nodes where it keeps happening."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from daemon.model import Evidence, Finding, Frame, Frames
from detectors.fusion import Fusion
from detectors.gpupace import LOCKSTEP, GpuPace
from detectors.hostload import HostLoad
from detectors.offenders import Offenders
from detectors.replicapace import ReplicaPace
from detectors.scales import QUARTER
from detectors.signs import signs

FELT = 0.3
"""A rank that its group waits for makes each step as much longer; with the noise of both less than this share of it is a
contradiction. On tune fleets true ones show 0.5 to 1.3 of it, false ones under 0.2."""
SETTLED_MIN = 60
"""Minutes until a group's noise is known: its first blocks are few and alike. On tune fast 165 a replica was told after 17."""
LARGE, CONFIRMED = 0.10, 0.9
"""From this lead on the noise of no pair of ranks reaches on tune fleets; below it the chance that all signs together must give."""


@dataclass(slots=True)
class StragglerDetector:
    """A claim stands from the minute that shows it until one that no longer does.

    judged : minutes of replicas that were put together so far.
    """

    gpus: GpuPace = field(default_factory=GpuPace)
    replicas: ReplicaPace = field(default_factory=ReplicaPace)
    hosts: HostLoad = field(default_factory=HostLoad)
    fusion: Fusion = field(default_factory=Fusion)
    offenders: Offenders = field(default_factory=Offenders)
    judged: int = 0

    def update(self, frames: Frames) -> list[Finding]:
        gpu, engine, node = frames["gpu"], frames["engine"], frames["node"]
        owners = dict(zip(gpu.entities, gpu.facts.get("engine", ()), strict=False))
        sick = self.fusion.claims.keys() | {owners.get(name, "") for name in self.gpus.claims} - {""}
        # A claim does not outlive the telemetry it was made from.
        found = [
            *(self.gpus.update(gpu, sick) if gpu.entities else ()),
            *(self.replicas.update(engine, sick) if engine.entities else ()),
        ]
        if node.entities:
            self.hosts.update(node, engine, sick | self.replicas.sizes.keys())
        if engine.entities:
            self._together(gpu, engine, node)
            found = self._with_confidence(found, owners)
        found += self.offenders.update(frames.at, found, engine)
        # A replica that has left is judged no more: until the next minute the claim would stand alone, its node unknown.
        present = set(engine.entities) if found else ()
        found = [c for c in found if c.entity.kind != "engine" or c.entity.name in present]
        return [replace(claim, at=frames.at) for claim in found] if found else found

    def _together(self, gpu: Frame, engine: Frame, node: Frame) -> None:
        """Once a minute, after each family has judged it."""
        if self.replicas.lags.count == self.judged:
            return
        self.judged = self.replicas.lags.count
        if self.judged < SETTLED_MIN:
            return
        what, suspect = signs(gpu, engine, node, self.gpus, self.replicas, self.hosts)
        lag = self.replicas.lags.latest[QUARTER]
        self.fusion.judge(engine, gpu, what, suspect, lag, self.replicas.alike(engine))

    def _with_confidence(self, found: Iterable[Finding], owners: dict[str, str]) -> list[Finding]:
        """What one family says, with how sure all are; then what they say together of those that none accuses."""
        told, blamed = [], set()
        for claim in found:
            name = owners.get(claim.entity.name, "") if claim.entity.kind == "gpu" else claim.entity.name
            if claim.rule == LOCKSTEP and self._is_doubtful(claim.entity.name, name):
                continue
            blamed.add(name)
            sure = self.fusion.confidence(name)
            if sure == sure:
                claim = replace(claim, evidence=(*claim.evidence, Evidence("confidence", sure, "ratio")))
            told.append(claim)
        return [*told, *(c for name, c in self.fusion.claims.items() if name not in blamed)]

    def _is_doubtful(self, gpu: str, engine: str) -> bool:
        """Whether the replica of an accused rank does not show it: a small lead needs all signs together, a large one only that
        nothing contradicts. A replica without peers contradicts nothing and confirms nothing."""
        if gpu not in self.gpus.sizes:
            return False
        _, span, size = self.gpus.sizes[gpu]
        if size < LARGE:
            return not self.fusion.confidence(engine) >= CONFIRMED
        lags = self.replicas.lags
        known = engine in lags.names
        return known and bool(lags.latest[min(span, QUARTER)][lags.names.index(engine)] < FELT * size)
