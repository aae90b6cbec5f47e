"""Setting how many replicas a pool has."""

from __future__ import annotations

from dataclasses import dataclass

from actions.observed import number
from daemon.model import Backend, Hopeless, Outcome, Result, Step


@dataclass(frozen=True, slots=True)
class Scale:
    """step.target : pool. step.amount : replicas wanted, a whole number of at least 0."""

    backend: Backend

    async def apply(self, step: Step) -> Outcome:
        if not (step.amount >= 0 and float(step.amount).is_integer()):
            raise Hopeless(f"replicas must be a whole number of at least 0, got {step.amount}")
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def verify(self, step: Step) -> bool:
        """The system wants that many. Whether they are ready is telemetry: a cold start outlasts any deadline."""
        return number(await self.backend.observe(step), "replicas", step) == step.amount
