"""How much of a node's processors is in use, against nodes that carry the same replicas."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from daemon.model import NAN, Frame
from detectors.minutes import Minutes
from detectors.scales import Scales
from detectors.stats import groups, peers

SIGNALS = ("cpus", "cpu_idle_s_per_s")


@dataclass(slots=True)
class HostLoad:
    """A replica that shares its processors with something else schedules late: a cause, and no fault by itself.

    excess : log of cores in use over the median of nodes with the same replicas, NaN where there are not two of them.
    """

    minutes: Minutes = field(default_factory=Minutes)
    excess: Scales = field(default_factory=lambda: Scales(usual_max=0.3))

    def update(self, node: Frame, engine: Frame, sick: Set[str]) -> None:
        """Take one tick in. sick : engines that are accused; their nodes teach nothing."""
        minute = self.minutes.push(node, node.columns(SIGNALS))
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
