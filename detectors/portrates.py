"""Ports that negotiated less than they had, or less than all of their peers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.stats import groups, peers, rows

ACTIVE = 4.0
"""State of a port that carries traffic. Source: InfiniBand port state, as node_exporter shows it."""


@dataclass(slots=True)
class PortRates:
    """Deterministic: no statistics, the port itself says so.

    odd_share : a larger share of equal ports below the others is a generation or a setting, and nobody's fault.
    best_rate : highest rate each port was seen with, B/s. was_active : ports that carried traffic while we looked; one
    that never did is not in use, and its state and rate say nothing.
    """

    odd_share: float = 0.05
    best_rate: dict[str, float] = field(default_factory=dict)
    was_active: set[str] = field(default_factory=set)
    names: tuple[str, ...] = ()
    best: Array = field(default_factory=lambda: np.empty(0))
    in_use: Array = field(default_factory=lambda: np.empty(0))

    def update(self, port: Frame, rate: Array, state: Array) -> list[Finding]:
        """rate : (port,) B/s. state : (port,) code; NaN = not exported."""
        if port.entities != self.names:
            self.names = port.entities
            self.best = np.array([self.best_rate.get(n, 0.0) for n in port.entities])
            self.in_use = np.array([float(n in self.was_active) for n in port.entities])
        up = (state == ACTIVE) | ~np.isfinite(state)
        fresh = up & (self.in_use == 0)
        if fresh.any():
            self.in_use[fresh] = 1.0
            self.was_active |= {port.entities[i] for i in rows(fresh)}
        rate = np.where(self.in_use > 0, rate, NAN)
        higher = rate > self.best
        if higher.any():
            self.best[higher] = rate[higher]
            self.best_rate |= {port.entities[i]: float(rate[i]) for i in rows(higher)}
        best = self.best
        low, high = float(np.fmin.reduce(rate, initial=np.inf)), float(np.fmax.reduce(rate, initial=0.0))
        # Only when some rate differs from another is there anybody to compare with.
        if low < 0.9 * high:
            best = np.fmax(best, self._best_of_peers(port, rate))
        reduced, dark = rate < 0.9 * best, ~up & (self.in_use > 0)
        if not (reduced.any() or dark.any()):
            return []
        return [
            *(
                _say(port, i, "nic_downgrade", 1.0, Severity.WARNING, Evidence("rate", float(rate[i]), "B/s", float(best[i])))
                for i in rows(reduced)
            ),
            *(
                _say(port, i, "bad_cable", 0.9, Severity.CRITICAL, Evidence("state", float(state[i]), "code", ACTIVE))
                for i in rows(dark)
            ),
        ]  # fmt: skip

    def _best_of_peers(self, port: Frame, rate: Array) -> Array:
        """(port,) rate of equal ports elsewhere, NaN where too many differ for one of them to be at fault."""
        where = groups(alike(port.entities))
        best = peers(rate, where, least=3).median
        for member in where.member:
            of = member[member >= 0]
            below = int((rate[of] < 0.9 * best[of]).sum())
            if below > max(1.0, self.odd_share * of.size):
                best[of] = NAN
        return best


@lru_cache(maxsize=8)
def alike(ports: tuple[str, ...]) -> tuple[str, ...]:
    """Ports of the same name on different nodes are peers: they are cabled alike."""
    return tuple(name.split("/", 1)[-1] for name in ports)


def _say(port: Frame, row: int, kind: str, score: float, severity: Severity, *evidence: Evidence) -> Finding:
    entity = Entity("port", port.entities[row])
    return Finding(port.at, "congestion", entity, kind, score, severity, evidence, port.at)
