"""Taking a node or GPU out of service and giving back only what we took."""

from __future__ import annotations

from dataclasses import dataclass

from actions.observed import flag, word
from daemon.model import Backend, Hopeless, Outcome, Result, Step


@dataclass(frozen=True, slots=True)
class Isolate:
    """step.target : node or gpu. step.arg("owner") : our mark, ``tidewarden/<cluster>``."""

    backend: Backend

    async def apply(self, step: Step) -> Outcome:
        owner = _our_mark(step)
        seen = await self.backend.observe(step)
        # Somebody else's isolation is left alone: marking it as ours would let us lift it later.
        if seen.get("isolated") is True:
            holder = word(seen, "owner", step)
            if holder != owner:
                raise Hopeless(
                    f"{step.target} is already isolated by {holder or 'somebody else'}; left to them"
                )
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def verify(self, step: Step) -> bool:
        seen = await self.backend.observe(step)
        return flag(seen, "isolated", step) and word(seen, "owner", step) == _our_mark(step)


@dataclass(frozen=True, slots=True)
class Release:
    """step.target : node or gpu. step.arg("owner") : our mark; what carries another one stays isolated."""

    backend: Backend

    async def apply(self, step: Step) -> Outcome:
        owner = _our_mark(step)
        seen = await self.backend.observe(step)
        if not flag(seen, "isolated", step):
            return Outcome(step, Result.DONE, f"{step.target} was in service already")
        holder = word(seen, "owner", step)
        if holder != owner:
            raise Hopeless(
                f"{step.target} is isolated by {holder or 'somebody else'}, not by {owner}; left to them"
            )
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def verify(self, step: Step) -> bool:
        return not flag(await self.backend.observe(step), "isolated", step)


def _our_mark(step: Step) -> str:
    owner = step.arg("owner")
    if not owner:
        raise Hopeless(f'step {step.id} carries no owner mark; set args owner="tidewarden/<cluster>"')
    return owner
