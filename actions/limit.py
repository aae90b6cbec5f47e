"""Setting the share of requests that a gateway lets in."""

from __future__ import annotations

from dataclasses import dataclass

from actions.observed import number
from daemon.model import Backend, Hopeless, Outcome, Result, Step

SHARE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Limit:
    """step.target : pool, or class as POOL/CLASS. step.amount : share let in 0..1, 1 = all."""

    backend: Backend

    async def apply(self, step: Step) -> Outcome:
        if not 0 <= step.amount <= 1:
            raise Hopeless(f"a share let in lies between 0 and 1, got {step.amount}")
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def verify(self, step: Step) -> bool:
        share = number(await self.backend.observe(step), "admitted", step)
        return abs(share - step.amount) <= SHARE_TOLERANCE
