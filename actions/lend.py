"""Lending idle GPUs to offline jobs until a time that holds even if the daemon is dead."""

from __future__ import annotations

import math
from dataclasses import dataclass

from actions.observed import flag, number
from daemon.model import Backend, Hopeless, Outcome, Result, Step

UNTIL_TOLERANCE_S = 60.0
"""Schedulers keep the end of a lease in whole minutes (Slurm EndTime)."""


@dataclass(frozen=True, slots=True)
class Lend:
    """step.target : node or gpu. step.until : when the lease ends, seconds since the epoch."""

    backend: Backend

    async def apply(self, step: Step) -> Outcome:
        if not math.isfinite(step.until):
            raise Hopeless(f"a lease needs an end that holds without the daemon, got until={step.until}")
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def verify(self, step: Step) -> bool:
        """Lent, and with an end: a lease that would outlive its time is not what was asked."""
        seen = await self.backend.observe(step)
        if not flag(seen, "lent", step):
            return False
        return abs(number(seen, "until", step) - step.until) <= UNTIL_TOLERANCE_S


@dataclass(frozen=True, slots=True)
class Recall:
    """step.target : node or gpu, wanted back now."""

    backend: Backend

    async def apply(self, step: Step) -> Outcome:
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def verify(self, step: Step) -> bool:
        return not flag(await self.backend.observe(step), "lent", step)
