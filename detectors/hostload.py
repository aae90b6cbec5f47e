"""How much of a node's processors is in use, against nodes that carry the same replicas and against its own past."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from daemon.model import NAN, Frame
from detectors.minutes import Minutes
from detectors.scales import Scales
from detectors.stats import Rings, groups, peers

SIGNALS = ("cpus", "cpu_idle_s_per_s")
BLOCK_S = 300.0
BLOCKS_AN_HOUR = 12
HOURS = 26
LEAST_HOURS = 2
MORE = 1.15
"""Times the most cores that a node had in use over five minutes of the last day, the last one to two hours left out: load comes back every
day, what is new does not. On tune fleets sound nodes stay under 1.1 of it."""


@dataclass(slots=True)
class HostLoad:
    """A replica that shares its processors with something else schedules late: a cause, and no fault by itself.

    excess : log of cores in use over the median of nodes with the same replicas, NaN where there are not two of them. blocks : cores in
    use by node, medians of five minutes; count : how many. most : node -> the largest of each hour of the last day, newest last. new : nodes that
    had more than ever in the last block. crowded : in two in a row -> cores now, and the most before.
    """

    minutes: Minutes = field(default_factory=Minutes)
    excess: Scales = field(default_factory=lambda: Scales(usual_max=0.3))
    blocks: Rings = field(default_factory=lambda: Rings((BLOCK_S,)))
    count: int = 0
    most: dict[str, list[float]] = field(default_factory=dict)
    new: frozenset[str] = frozenset()
    crowded: dict[str, tuple[float, float]] = field(default_factory=dict)

    def update(self, node: Frame, engine: Frame, sick: Set[str]) -> None:
        """Take one tick in. sick : engines that are accused; their nodes teach nothing."""
        values = node.columns(SIGNALS)
        if self.blocks.push(node.at, node.entities, values[:, 0] - values[:, 1]):
            self._remember(node.entities)
        minute = self.minutes.push(node, values)
        if minute is None:
            return
        used = minute[:, 0] - minute[:, 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            log_used = np.where(used > 0, np.log(used), NAN)
        homes = engine.facts.get("node", ("",) * len(engine.entities))
        carried = carries(node.entities, homes, engine.facts.get("pool", ("",) * len(engine.entities)))
        self.excess.push(node.entities, log_used - peers(log_used, groups(carried), least=2).median)
        ill = {home for name, home in zip(engine.entities, homes, strict=True) if name in sick}
        self.excess.learn(np.array([name in ill for name in node.entities], dtype=bool))

    def _remember(self, names: tuple[str, ...]) -> None:
        """Take a finished block in: which nodes use more than they ever did, then the block for what they did."""
        used = dict(zip(names, self.blocks.medians()[0].tolist(), strict=True))
        is_full = self.count % BLOCKS_AN_HOUR == 0
        self.count += 1
        more: dict[str, tuple[float, float]] = {}
        for name, cores in used.items():
            if not cores > 0:
                continue
            past = self.most.setdefault(name, [])
            if len(past) >= LEAST_HOURS + 2 and cores > MORE * max(past[:-2]):
                more[name] = cores, max(past[:-2])
            if is_full or not past:
                past.append(cores)
                del past[:-HOURS]
            past[-1] = max(past[-1], cores)
        self.crowded = {name: how for name, how in more.items() if name in self.new}
        self.new = frozenset(more)
        self.most = {name: past for name, past in self.most.items() if name in used}


@lru_cache(maxsize=8)
def carries(nodes: tuple[str, ...], homes: tuple[str, ...], pools: tuple[str, ...]) -> tuple[str, ...]:
    """The pools of the replicas on each node, one name a replica; "" for a node without any.

    >>> carries(("n0", "n1"), ("n0", "n0"), ("chat", "batch"))
    ('batch chat', '')
    """
    found: dict[str, list[str]] = {}
    for home, pool in zip(homes, pools, strict=True):
        found.setdefault(home, []).append(pool)
    return tuple(" ".join(sorted(found.get(node, ()))) for node in nodes)
