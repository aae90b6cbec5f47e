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
        """Raises Hopeless where the system wants a number from which this would be a step to the other side: it was decided on
        a view of fewer or more replicas than there are, or somebody else has just set another number."""
        if not (step.amount >= 0 and float(step.amount).is_integer()):
            raise Hopeless(f"replicas must be a whole number of at least 0, got {step.amount}")
        if step.arg("from"):
            await self._refuse_opposite(step)
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def _refuse_opposite(self, step: Step) -> None:
        """A floor under somebody else's autoscaler is no number of replicas, and what cannot be told contradicts nothing."""
        seen = await self.backend.observe(step)
        standing = seen.get("replicas")
        if seen.get("is_floor") or isinstance(standing, bool) or not isinstance(standing, int | float):
            return
        if (standing - step.amount) * (float(step.arg("from")) - step.amount) < 0:
            raise Hopeless(
                f"{step.target} was decided to go from {step.arg('from')} to {step.amount:g} replicas, but the system wants"
                f" {standing:g}: nothing is changed; where somebody else sets the number, leave the pool to one of the two"
            )

    async def verify(self, step: Step) -> bool:
        """The system wants that many. Whether they are ready is telemetry: a cold start outlasts any deadline."""
        return number(await self.backend.observe(step), "replicas", step) == step.amount
