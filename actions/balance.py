"""Setting the share of all requests that a region gets."""

from __future__ import annotations

from dataclasses import dataclass

from actions.observed import number
from daemon.model import Backend, Hopeless, Outcome, Result, Step

SHARE_TOLERANCE = 0.01
"""Balancers hold whole weights, as in `actions.reroute`."""


@dataclass(frozen=True, slots=True)
class Balance:
    """step.target : region. step.amount : its share of all requests 0..1, 0 = nothing new goes there."""

    backend: Backend

    async def apply(self, step: Step) -> Outcome:
        if not 0 <= step.amount <= 1:
            raise Hopeless(f"a share of requests lies between 0 and 1, got {step.amount}")
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def verify(self, step: Step) -> bool:
        share = number(await self.backend.observe(step), "weight", step)
        if step.amount == 0 or share == 0:
            return share == step.amount
        return abs(share - step.amount) <= SHARE_TOLERANCE
