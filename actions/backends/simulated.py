"""A cluster held in this process, such as the simulator's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemon.model import Backend, Step


@dataclass(frozen=True, slots=True)
class Simulated:
    """Hands every call to `world`, `latency_s` later by the running loop: no real system answers at once."""

    world: Backend
    latency_s: float = 0.0

    async def apply(self, step: Step) -> str:
        await asyncio.sleep(self.latency_s)
        return await self.world.apply(step)

    async def observe(self, step: Step) -> Mapping[str, Any]:
        await asyncio.sleep(self.latency_s)
        return await self.world.observe(step)
