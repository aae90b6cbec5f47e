"""Memory that only ever grows: of an engine's process, of a host."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from daemon.model import Array, Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.stats import Rings

LOOKS = 12
LOOK_S = 300.0
RISES = 10
GROWTH_AN_HOUR = 0.05
AHEAD_S = 6 * 3600.0


@dataclass(slots=True)
class Leak:
    """Five-minute medians of the last hour. past : (look)(entity,) in bytes."""

    ring: Rings = field(default_factory=lambda: Rings((LOOK_S,)))
    past: list[list[float]] = field(default_factory=list)
    names: tuple[str, ...] = ()

    def rising(self, at: float, names: tuple[str, ...], used: Array) -> Array | None:
        """(entity,) bytes gained in the last hour where nearly every look was higher, NaN elsewhere; None between looks."""
        if names != self.names:
            self.names, self.past = names, []
        if not self.ring.push(at, names, used):
            return None
        self.past = [*self.past, [float(v) for v in self.ring.medians()[0]]][-LOOKS:]
        if len(self.past) < LOOKS:
            return np.full(len(names), np.nan)
        table = np.array(self.past)
        steady = (np.diff(table, axis=0) > 0).sum(axis=0) >= RISES
        gained: Array = np.where(steady, table[-1] - table[0], np.nan)
        return gained


@dataclass(slots=True)
class Leaks:
    """Leaks of engines and of nodes, with the claims of the last look."""

    engines: Leak = field(default_factory=Leak)
    nodes: Leak = field(default_factory=Leak)
    claims: dict[str, list[Finding]] = field(default_factory=dict)

    def update(self, engine: Frame, node: Frame) -> list[Finding]:
        """A process that gains 5 % of itself an hour; a host whose memory is gone within hours."""
        if node.entities:
            total, free = node.columns(("mem_total_bytes", "mem_available_bytes")).T
            gained = self.nodes.rising(node.at, node.entities, total - free)
            if gained is not None:
                with np.errstate(divide="ignore", invalid="ignore"):
                    left_s = free / gained * 3600.0
                hit = np.flatnonzero((left_s < AHEAD_S) & (gained > 0.01 * total))
                self.claims["node"] = [_of_node(node, int(i), free, gained, left_s) for i in hit]
        if engine.entities:
            rss = engine.column("rss_bytes")
            gained = self.engines.rising(engine.at, engine.entities, rss)
            if gained is not None:
                hit = np.flatnonzero(gained > GROWTH_AN_HOUR * rss)
                self.claims["engine"] = [_of_engine(engine, int(i), rss, gained) for i in hit]
        at = max(engine.at, node.at)
        return [replace(c, at=at) for claims in self.claims.values() for c in claims]


def _of_node(node: Frame, i: int, free: Array, gained: Array, left_s: Array) -> Finding:
    evidence = (
        Evidence("available", float(free[i]), "B"),
        Evidence("gained_last_hour", float(gained[i]), "B"),
        Evidence("time_to_none", float(left_s[i]), "s"),
    )
    return say(
        node.at,
        "serving.memory_leak_host",
        Entity("node", node.entities[i]),
        "memory_leak",
        0.6,
        Severity.WARNING,
        *evidence,
        since=node.at - LOOKS * LOOK_S,
        text=f"memory has shrunk for an hour; none is left in {left_s[i] / 3600.0:.1f} h at this pace",
    )


def _of_engine(engine: Frame, i: int, rss: Array, gained: Array) -> Finding:
    evidence = (Evidence("resident", float(rss[i]), "B"), Evidence("gained_last_hour", float(gained[i]), "B"))
    return say(
        engine.at,
        "serving.memory_leak",
        Entity("engine", engine.entities[i]),
        "memory_leak",
        0.6,
        Severity.INFO,
        *evidence,
        since=engine.at - LOOKS * LOOK_S,
        text=f"the process has grown for an hour, by {gained[i] / max(rss[i] - gained[i], 1.0):.0%}",
    )
