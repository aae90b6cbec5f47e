"""The smallest group of ports that is mostly anomalous while the rest is mostly clean."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from daemon.model import Entity
from detectors.stats import groups

LEVELS = ("node", "leaf", "region")
LEAST_INSIDE = 0.5
LEAST_MEMBERS = 3


def vote(anomalous: NDArray[np.bool_], facts: Mapping[str, tuple[str, ...]]) -> tuple[Entity, float] | None:
    """The group the anomaly belongs to, with a confidence 0..1; None where no group fits.

    anomalous : (port,) bool. facts : of the frame of ports. The confidence is the share of the group that is anomalous
    times the share of the others that is clean, each drawn towards a half by one imagined port of either kind: a group
    of two says less than one of twenty. Without switch telemetry this is an inference, so it never reaches one.
    """
    total = anomalous.size
    ill = int(anomalous.sum())
    best: tuple[Entity, float] | None = None
    for level in LEVELS:
        names = facts.get(level)
        if names is None:
            continue
        where = groups(names)
        for member in where.member:
            of = member[member >= 0]
            inside = int(anomalous[of].sum())
            if (
                of.size < (LEAST_MEMBERS if level != "node" else 2)
                or inside < LEAST_INSIDE * of.size
                or inside < 2
            ):
                continue
            outside = (total - of.size) - (ill - inside)
            clean = (outside + 1.0) / (total - of.size + 2.0)
            confidence = (inside + 1.0) / (of.size + 2.0) * clean
            # A larger group must explain more: half as many of a leaf as of a node prove nothing.
            if best is None or confidence > best[1] + 0.02:
                best = (Entity(level, names[int(of[0])]), confidence)
    return best
