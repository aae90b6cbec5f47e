"""How often the fleet's nodes fail, learnt from the fleet itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from daemon.model import NAN

PRIOR_MTBF_H = 6300.0
"""Node-hours between failures before any were seen. Source: Llama 3 (2024), 419 in 54 days on 2,048 nodes."""
PRIOR_REPAIR_S = 24 * 3600.0
"""Time a node stays out before any came back. Source: judgement, a ticket to the vendor."""
PRIOR_FAILURES = 2.0
LONGEST_S = 3600.0
"""A longer pause between two looks was a stop of the daemon: nobody watched."""
SHARE = 0.9


@dataclass(slots=True)
class Wear:
    """node_s : node time watched. out_s : node time isolated. failures : nodes that were isolated. out : how many are now."""

    node_s: float = 0.0
    out_s: float = 0.0
    failures: int = 0
    out: int = 0
    at: float = NAN

    def watch(self, at: float, nodes: int, out: int) -> None:
        """Take in one look. nodes : in the fleet; out : of them isolated."""
        elapsed = at - self.at
        if 0.0 < elapsed <= LONGEST_S:
            self.node_s += elapsed * nodes
            self.out_s += elapsed * self.out
        self.failures += max(0, out - self.out)
        self.out, self.at = out, at

    @property
    def mtbf_s(self) -> float:
        """Node time between failures, drawn to the prior by PRIOR_FAILURES."""
        prior = PRIOR_FAILURES * PRIOR_MTBF_H * 3600.0
        return (self.node_s + prior) / (self.failures + PRIOR_FAILURES)

    @property
    def repair_s(self) -> float:
        """How long a failed node stays out."""
        return (self.out_s + PRIOR_FAILURES * PRIOR_REPAIR_S) / (self.failures + PRIOR_FAILURES)

    def nodes_out(self, nodes: int) -> int:
        """Nodes out at once that are exceeded one time in ten: a Poisson quantile of failures times their length.

        >>> Wear().nodes_out(8), Wear().nodes_out(1250)
        (0, 8)
        """
        mean = nodes * self.repair_s / self.mtbf_s
        chance = below = math.exp(-mean)
        number = 0
        while below < SHARE and number < nodes:
            number += 1
            chance *= mean / number
            below += chance
        return number
