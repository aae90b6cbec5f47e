"""A simulated cluster as a source of scrapes, without text or sockets."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.clock import Clock
from daemon.model import Scrape
from simulator.world import World


class WorldSource:
    """Reads every target of the world at the clock's time, and lets the world live until then.

    It is both target discovery and scraper: replicas that come or go are seen at the next read.
    """

    def __init__(self, world: World, clock: Clock) -> None:
        self._world, self._clock = world, clock

    async def read(self) -> Sequence[Scrape]:
        self._world.advance(self._clock())
        return self._world.sweep()
