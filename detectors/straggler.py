"""Who is slower than comparable others: GPUs, replicas, and the nodes where it keeps happening."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from daemon.model import Finding, Frames
from detectors.gpupace import GpuPace
from detectors.offenders import Offenders
from detectors.replicapace import ReplicaPace


@dataclass(slots=True)
class StragglerDetector:
    """A claim stands from the minute that shows it until one that no longer does."""

    gpus: GpuPace = field(default_factory=GpuPace)
    replicas: ReplicaPace = field(default_factory=ReplicaPace)
    offenders: Offenders = field(default_factory=Offenders)

    def update(self, frames: Frames) -> list[Finding]:
        gpu, engine = frames["gpu"], frames["engine"]
        # A claim does not outlive the telemetry it was made from.
        found = [
            *(self.gpus.update(gpu) if gpu.entities else ()),
            *(self.replicas.update(engine) if engine.entities else ()),
        ]
        found += self.offenders.update(frames.at, found, engine)
        return [replace(claim, at=frames.at) for claim in found] if found else found
