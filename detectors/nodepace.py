"""Nodes all of whose replicas are a little slower than comparable ones: together they show what none of them shows alone."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.hostload import carries
from detectors.replicapace import OWN_MOST, TAIL_OF
from detectors.scales import Scales
from detectors.stats import groups, middle, rows

LEAST = 3
"""Measured replicas of a node: of two the middle is half of one."""
SCORE = 0.55
"""Below what isolates: it is told, and wakes people only once it has lasted."""
FEW = 2
"""Nodes that may be slow at once, or a twentieth of all: more have a cause in common that is none of theirs."""
SHARED = 0.05


@dataclass(slots=True)
class NodePace:
    """The middle of what the replicas of a node are slower than their peers at equal load, whatever pool each is of.

    Processors that something else uses slow all replicas of a node by a few per cent, within the noise of each; the noise of
    the middle of eight is less than half of one's. One slow replica moves no middle.

    lags : by node. claims : node -> what is said of it. sizes : node -> over which span, and how much.
    """

    lags: Scales = field(
        default_factory=lambda: Scales(
            (0.25, 0.12, 0.07, 0.05, 0.04, 0.035, 0.03),
            sigmas=6.0,
            prior=1.0,
            tail_least=TAIL_OF,
            tail_floor=0.6,
            own_most=OWN_MOST,
        )
    )
    claims: dict[str, Finding] = field(default_factory=dict)
    sizes: dict[str, tuple[int, float]] = field(default_factory=dict)

    def judge(self, engine: Frame, slower: Array, sick: Set[str]) -> None:
        """One minute. slower : (engine,) log of its step over its peers' at equal load, NaN = not compared. sick : engines that are accused; their
        nodes teach nothing."""
        blank = ("",) * len(engine.entities)
        homes = engine.facts.get("node", blank)
        names = tuple(sorted(set(homes) - {""}))
        if not names:
            self.claims, self.sizes = {}, {}
            return
        place = {name: i for i, name in enumerate(names)}
        of: list[list[float]] = [[] for _ in names]
        ill = np.zeros(len(names), dtype=bool)
        for engine_name, home, value in zip(engine.entities, homes, slower.tolist(), strict=True):
            if home:
                ill[place[home]] |= engine_name in sick
                if value == value:
                    of[place[home]].append(value)
        known = np.array([middle(np.array(v)) if len(v) >= LEAST else NAN for v in of])
        where = groups(carries(names, homes, engine.facts.get("pool", blank)))
        self.lags.push(names, known)
        accused = np.array([name in self.sizes for name in names], dtype=bool)
        hit, span = self.lags.beyond(where)
        self.lags.learn(ill | accused | hit)
        for name in self.sizes.keys() - set(names):
            self._forget(name)
        for i in rows(accused):
            if not self.lags.lasts(i, *self.sizes[names[i]]):
                self.lags.forgive(i)
                hit[i] = False
                self._forget(names[i])
        if hit.sum() > max(FEW, SHARED * len(names)):
            return
        for i in rows(hit):
            self._claim(engine.at, names[i], i, int(span[i]), len(of[i]))

    def _claim(self, at: float, name: str, i: int, span: int, count: int) -> None:
        lag = float(self.lags.latest[span][i])
        self.sizes[name] = span, lag
        before = self.claims.get(name)
        self.claims[name] = say(
            at,
            "straggler.node_replicas",
            Entity("node", name),
            "replica_slow",
            SCORE,
            Severity.WARNING,
            Evidence("slower_at_equal_load", float(np.expm1(lag)), "ratio", 0.0),
            Evidence("replicas_measured", float(count), ""),
            since=before.since if before else at - 60.0 * (self.lags.since_min(i) + 0.5),
            text=f"{count} replicas of {name} take {np.expm1(lag):.0%} longer a step than their peers at equal load (median)",
        )

    def _forget(self, name: str) -> None:
        del self.sizes[name]
        self.claims.pop(name, None)
