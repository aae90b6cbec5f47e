"""An engine that is to go: out of the routing first, then its last requests are waited for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from actions.backends.metrics_page import Busy
from daemon.model import Backend, Entity, Step, Verb

DRAIN_SHARE = 0.4
"""Of a step's deadline; the executor gives an apply half of it."""
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Goodbye:
    """router : the backend that sets routing weights, None = nobody does, and requests are only waited for.

    busy : requests on an engine. drain_s : how long they are waited for.
    """

    router: Callable[[], Backend | None]
    busy: Busy
    drain_s: float

    async def leave(self, engine: str, step: Step) -> float:
        """Take an engine out of the routing. Returns the requests that are left when the wait is over, NaN = it does not tell."""
        await self._weigh(engine, 0.0, step)
        loop = asyncio.get_running_loop()
        end = loop.time() + min(self.drain_s, DRAIN_SHARE * step.deadline_s)
        while True:
            left = await self.busy(f"http://{engine}/metrics")
            if math.isnan(left) or left <= 0 or loop.time() + POLL_S > end:
                return left
            await asyncio.sleep(POLL_S)

    async def enter(self, engine: str, step: Step) -> None:
        """Give an engine its requests back."""
        await self._weigh(engine, 1.0, step)

    async def _weigh(self, engine: str, weight: float, step: Step) -> None:
        router = self.router()
        if router is not None:
            way = "in" if weight else "out"
            inner = replace(
                step, id=f"{step.id}-{way}", verb=Verb.REROUTE, target=Entity("engine", engine), amount=weight
            )
            await router.apply(inner)
