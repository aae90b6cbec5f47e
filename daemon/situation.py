"""All that planning looks at in one tick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from daemon.fleet import Fleet
from daemon.model import Forecast, Frames, Incident
from daemon.outlook import Outlook
from daemon.policy import Policy
from daemon.topology import Topology


@dataclass(frozen=True, slots=True)
class Situation:
    """forecasts : by pool. outlook : GPUs needed ahead, not known until every pool has a forecast."""

    at: float
    frames: Frames
    topology: Topology
    incidents: tuple[Incident, ...]
    fleet: Fleet
    forecasts: Mapping[str, Forecast]
    outlook: Outlook
    policy: Policy

    def sick_nodes(self) -> frozenset[str]:
        """Nodes that an open incident speaks of: that of its scope, and those of what shows it where the scope is wider."""
        entities = {e for i in self.incidents for e in (i.scope, *(f.entity for f in i.findings))}
        return frozenset(self.topology.node_of(e) for e in entities) - {""}
