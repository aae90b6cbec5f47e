"""Taking a pool back to the version before."""

from __future__ import annotations

from dataclasses import dataclass

from actions.observed import word
from daemon.model import Backend, Hopeless, Outcome, Result, Step


@dataclass(frozen=True, slots=True)
class Rollback:
    """step.target : pool. step args : version = the one wanted, from = the one that is worse."""

    backend: Backend

    async def apply(self, step: Step) -> Outcome:
        if not step.arg("version"):
            raise Hopeless(f"no version to take {step.target} back to")
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def verify(self, step: Step) -> bool:
        """The system wants that version. When every replica runs it is telemetry: a roll-out outlasts any deadline."""
        return word(await self.backend.observe(step), "version", step) == step.arg("version")
