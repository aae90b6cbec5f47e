"""Which pool gets the GPUs when there are not enough for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.policy import PoolKind, PoolPolicy
from daemon.sizing import Need

ROOM = 1.1
"""What a pool keeps over its bare need when it helps another out: else the next minute it would ask for it back."""
Claimant = tuple[PoolPolicy, Need, int, int]
"""Policy, need, GPUs of a replica, replicas standing."""


@dataclass(slots=True)
class Claim:
    """A pool in the division. wanted, standing, has : replicas it wants, holds, and is to have."""

    policy: PoolPolicy
    need: Need
    size: int
    standing: int
    wanted: int
    has: int

    @property
    def urgency(self) -> tuple[int, int, float, str]:
        """Lowest first: by kind, by priority, then by the late requests a second that a replica more saves for each of its GPUs."""
        late, more = self.need.late_per_s, self.has - self.standing
        saved = late[more] - late[more + 1] if 0 <= more < len(late) - 1 else 0.0
        rank, priority = self.policy.standing
        return -rank, -priority, -saved / max(self.size, 1), self.policy.name


def share(needs: Sequence[Claimant], gpus: float) -> dict[str, int]:
    """Replicas each pool may have under one GPU budget: pool -> replicas.

    One replica after another goes where it saves the most late requests a GPU, pools of higher priority first. Where
    nothing is free, pools that hold more than they need give that up at once; to one that is late now they give also what
    they keep for what may come. No pool is cut below what its demand needs now for another's growth: that would only move
    the pain, and requests that come as a mix starve with their scarcest pool. Unless it is of a lower kind: training gives way to all that
    serve or prepare, pre-processing to what serves when that is late now, both down to their least replicas. A pool of unknown need
    keeps what it has.
    """
    left = gpus - sum(
        (standing if need.wanted is None else min(need.wanted, standing)) * size
        for _, need, size, standing in needs
    )
    claims = [
        Claim(policy, need, size, standing, need.wanted, min(need.wanted, standing))
        for policy, need, size, standing in needs
        if need.wanted is not None
    ]
    hungry = [c for c in claims if c.wanted > c.has]
    while hungry:
        first = min(hungry, key=lambda c: c.urgency)
        left += _freed(first, claims, first.size - left)
        if left < first.size:
            hungry.remove(first)
            continue
        left -= first.size
        first.has += 1
        if first.has == first.wanted:
            hungry.remove(first)
    return {c.policy.name: c.has for c in claims}


def _freed(claim: Claim, claims: Sequence[Claim], gpus: float) -> float:
    """Have others give up so many GPUs that they do not need; 0 and nothing given up when together they cannot."""
    is_late = claim.has < claim.need.bare
    given: dict[str, int] = {}
    found = 0.0
    for other in sorted(claims, key=lambda c: (c.policy.standing, c.need.least - c.has, c.policy.name)):
        kept = _kept(other, claim, is_late)
        more = max(0, other.has - min(kept, other.need.least)) if other is not claim and other.size else 0
        number = min(more, math.ceil(max(0.0, gpus - found) / max(other.size, 1)))
        given[other.policy.name] = number
        found += number * other.size
    if found < gpus:
        return 0.0
    for other in claims:
        other.has -= given[other.policy.name]
    return found


def _kept(other: Claim, claim: Claim, is_late: bool) -> int:
    """Replicas a pool keeps when another asks."""
    if other.policy.gives_way(claim.policy) and (is_late or other.policy.kind is PoolKind.TRAINING):
        return other.policy.replicas_min
    return math.ceil(other.need.bare * ROOM) if is_late else other.need.least
