"""Speculative decoding: drafted tokens, how many of them the model accepts, and what that costs when it falls."""

from __future__ import annotations

import numpy as np

from daemon.model import Array
from simulator.conditions import Conditions
from simulator.spec import WorldSpec
from simulator.wiring import Indices

SIGNALS = ("spec_drafted_tokens_s", "spec_accepted_tokens_s")
DRAFTED = 4.0
"""Tokens proposed a step."""


class Drafts:
    """counters : (slot, SIGNALS) since the start of the world, 0 in pools without speculative decoding."""

    def __init__(self, spec: WorldSpec, slots: int) -> None:
        self.accepted = np.array([pool.accepted for pool in spec.pools])
        self.any = bool(self.accepted.any())
        self.counters = np.zeros((slots, len(SIGNALS)))

    def count(self, made: Array, pool_of: Indices, ills: Conditions) -> None:
        """One step. made : (slot,) tokens. A step that accepts a share a of k drafted tokens makes a k + 1."""
        if not self.any:
            return
        share = (self.accepted * ills.pool_accept)[pool_of]
        drafted = np.where(self.accepted[pool_of] > 0, made * DRAFTED / (1.0 + DRAFTED * share), 0.0)
        self.counters[:, 0] += drafted
        self.counters[:, 1] += drafted * share

    def slower(self, pool_of: Indices, ills: Conditions) -> Array | float:
        """(slot,) times a token takes longer than with the pool's usual acceptance."""
        if not self.any:
            return 1.0
        usual = 1.0 + DRAFTED * self.accepted
        found: Array = (usual / (1.0 + DRAFTED * self.accepted * ills.pool_accept))[pool_of]
        return found
