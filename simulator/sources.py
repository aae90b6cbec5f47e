"""A simulated cluster as a source of scrapes, without text or sockets."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.clock import Clock
from daemon.model import GONE, Scrape
from simulator import offline
from simulator.world import World


class WorldSource:
    """Reads every target of the world at the clock's time, and lets the world live until then.

    It is both target discovery and scraper: replicas that come or go are seen at the next read.
    """

    def __init__(self, world: World, clock: Clock) -> None:
        self._world, self._clock = world, clock
        self._known: frozenset[str] = frozenset()

    async def read(self) -> Sequence[Scrape]:
        at = self._clock()
        self._world.advance(at)
        present = frozenset(t.address for t in self._world.targets())
        gone = [Scrape(name, at, None, None, error=GONE) for name in sorted(self._known - present)]
        self._known = present
        return [*gone, *self._world.sweep(), offline.scrape(self._world)]
