"""Setting the share of requests that goes to an engine."""

from __future__ import annotations

from dataclasses import dataclass

from actions.observed import number
from daemon.model import Backend, Hopeless, Outcome, Result, Step

WEIGHT_TOLERANCE = 0.01
"""Balancers hold whole weights: HAProxy 0..256 and nginx about 1..100, so one part in a hundred is the same."""


@dataclass(frozen=True, slots=True)
class Reroute:
    """step.target : engine. step.amount : routing weight 0..1, 0 = nothing new goes there."""

    backend: Backend

    async def apply(self, step: Step) -> Outcome:
        if not 0 <= step.amount <= 1:
            raise Hopeless(f"a routing weight lies between 0 and 1, got {step.amount}")
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def verify(self, step: Step) -> bool:
        weight = number(await self.backend.observe(step), "weight", step)
        if step.amount == 0 or weight == 0:
            # A drained engine that still gets one request in a hundred is not drained.
            return weight == step.amount
        return abs(weight - step.amount) <= WEIGHT_TOLERANCE
