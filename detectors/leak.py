"""Memory that only ever grows: of an engine's process, of a host."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from daemon.model import Array, Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.stats import Rings, rows

LOOKS = 12
LOOK_S = 300.0
RISES = 10
GROWTH_AN_HOUR = 0.05
AHEAD_S = 6 * 3600.0
LOOKS_LONG = 48
"""Looks of a slow leak: four hours, in which the tide of a day turns nobody's memory so steadily."""
STEADY = 0.94
"""Kendall's tau of memory over time from which on a rise is no wandering."""
SLOW_SHARE = 0.03
"""Of itself, that a process gains in LOOKS_LONG."""
SLOW_AHEAD_S = 30 * 86400.0


@dataclass(slots=True)
class Leak:
    """Five-minute medians of the last four hours. past : (look)(entity,) in bytes."""

    ring: Rings = field(default_factory=lambda: Rings((LOOK_S,)))
    past: list[list[float]] = field(default_factory=list)
    names: tuple[str, ...] = ()

    def rising(self, at: float, names: tuple[str, ...], used: Array) -> tuple[Array, Array] | None:
        """What an entity gains, in bytes an hour: by the last hour, where nearly every look was higher, and by the last
        four, where the rise is steady. Each (entity,), NaN elsewhere; None between looks."""
        if names != self.names:
            self._follow(names)
        if not self.ring.push(at, names, used):
            return None
        self.past = [*self.past, [float(v) for v in self.ring.medians()[0]]][-LOOKS_LONG:]
        fast = slow = np.full(len(names), np.nan)
        if len(self.past) >= LOOKS:
            table = np.array(self.past[-LOOKS:])
            often = (np.diff(table, axis=0) > 0).sum(axis=0) >= RISES
            fast = np.where(often, table[-1] - table[0], np.nan)
        if len(self.past) == LOOKS_LONG:
            table = np.array(self.past)
            hours = (LOOKS_LONG - 1) * LOOK_S / 3600.0
            slow = np.where(kendall(table) >= STEADY, (table[-1] - table[0]) / hours, np.nan)
        return fast, slow

    def _follow(self, names: tuple[str, ...]) -> None:
        """Re-order what is remembered to a new list of entities; a newcomer starts unknown."""
        place = {name: i for i, name in enumerate(self.names)}
        self.past = [[row[place[n]] if n in place else np.nan for n in names] for row in self.past]
        self.names = names


def kendall(table: Array) -> Array:
    """(entity,) Kendall's tau of each column of (time, entity) with time: 1 = only ever rises. NaN where one is missing.

    >>> kendall(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])).tolist()
    [1.0, -1.0]
    """
    size = len(table)
    total = sum(np.sign(table[k:] - table[:-k]).sum(axis=0) for k in range(1, size))
    return np.asarray(total / (0.5 * size * (size - 1)))


@dataclass(slots=True)
class Leaks:
    """Leaks of engines and of nodes, with the claims of the last look."""

    engines: Leak = field(default_factory=Leak)
    nodes: Leak = field(default_factory=Leak)
    claims: dict[str, list[Finding]] = field(default_factory=dict)

    def update(self, engine: Frame, node: Frame) -> list[Finding]:
        """A process that gains 5 % of itself an hour, or 3 % in four hours without a pause; a host whose memory is gone
        within hours, or goes so steadily that it lasts no month."""
        if node.entities:
            total, free = node.columns(("mem_total_bytes", "mem_available_bytes")).T
            gained = self.nodes.rising(node.at, node.entities, total - free)
            if gained is not None:
                fast, slow = gained
                with np.errstate(divide="ignore", invalid="ignore"):
                    is_fast = (free / fast * 3600.0 < AHEAD_S) & (fast > 0.01 * total)
                    is_slow = (free / slow * 3600.0 < SLOW_AHEAD_S) & ~is_fast
                self.claims["node"] = [
                    *(_of_node(node, i, free, fast, LOOKS, Severity.WARNING) for i in rows(is_fast)),
                    *(_of_node(node, i, free, slow, LOOKS_LONG, Severity.INFO) for i in rows(is_slow)),
                ]
        if engine.entities:
            rss = engine.column("rss_bytes")
            gained = self.engines.rising(engine.at, engine.entities, rss)
            if gained is not None:
                fast, slow = gained
                hours = (LOOKS_LONG - 1) * LOOK_S / 3600.0
                is_fast = fast > GROWTH_AN_HOUR * rss
                is_slow = (slow * hours > SLOW_SHARE * rss) & ~is_fast
                self.claims["engine"] = [
                    *(_of_engine(engine, i, rss, fast, LOOKS) for i in rows(is_fast)),
                    *(_of_engine(engine, i, rss, slow, LOOKS_LONG) for i in rows(is_slow)),
                ]
        at = max(engine.at, node.at)
        return [replace(c, at=at) for claims in self.claims.values() for c in claims]


def _of_node(node: Frame, i: int, free: Array, an_hour: Array, looks: int, severity: Severity) -> Finding:
    left_s = float(free[i] / an_hour[i] * 3600.0)
    held_s = looks * LOOK_S
    evidence = (
        Evidence("available", float(free[i]), "B"),
        Evidence("gained_an_hour", float(an_hour[i]), "B"),
        Evidence("time_to_none", left_s, "s"),
    )
    left = f"{left_s / 3600.0:.1f} h" if left_s < 2 * 86400.0 else f"{left_s / 86400.0:.0f} days"
    return say(
        node.at,
        "serving.memory_leak_host",
        Entity("node", node.entities[i]),
        "memory_leak",
        0.6,
        severity,
        *evidence,
        since=node.at - held_s,
        text=f"memory has shrunk for {held_s / 3600.0:.0f} h; none is left in {left} at this pace",
    )


def _of_engine(engine: Frame, i: int, rss: Array, an_hour: Array, looks: int) -> Finding:
    held_s = looks * LOOK_S
    evidence = (Evidence("resident", float(rss[i]), "B"), Evidence("gained_an_hour", float(an_hour[i]), "B"))
    return say(
        engine.at,
        "serving.memory_leak",
        Entity("engine", engine.entities[i]),
        "memory_leak",
        0.6,
        Severity.INFO,
        *evidence,
        since=engine.at - held_s,
        text=f"the process has grown for {held_s / 3600.0:.0f} h, by {an_hour[i] / rss[i]:.1%} of itself an hour",
    )
