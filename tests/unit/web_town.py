"""A daemon with a past: the real parts on a simulated cluster, lived through under virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from daemon import web
from daemon.__main__ import Parts, assemble, fit_here
from daemon.clock import VirtualLoop, run_virtual
from daemon.loop import Daemon, News
from daemon.model import Entity, Outcome, Verb
from daemon.policy import Mode
from daemon.record import Record
from daemon.settings import Settings
from daemon.telemetry import load_catalogue
from simulator.defaults import default_spec
from simulator.drill import EPOCH, MORNING, WorldHistory
from simulator.faults import Fault
from simulator.policies import VERBS, policy_of
from simulator.sources import WorldSource
from simulator.world import World


@dataclass
class Town:
    """now : the clock once the past is lived through. outcomes : those since then."""

    world: World
    daemon: Daemon
    source: WorldSource
    now: float
    outcomes: asyncio.Queue[Outcome] = field(default_factory=asyncio.Queue)

    async def beat(self) -> None:
        """One more tick, 15 s later, on fresh telemetry."""
        self.now += 15.0
        for scrape in await self.source.read():
            self.daemon.builder.absorb(scrape)
        self.daemon.tick()

    def hear(self, news: News) -> None:
        if isinstance(news, Outcome) and news.step.verb is not Verb.NOTIFY:
            self.outcomes.put_nowait(news)


def lived(hours: float, mode: Mode, *faults: Fault, gpus: int = 32, cluster: str = "town") -> Town:
    """A town after `hours`; fault times are seconds after its beginning."""
    spec = default_spec(gpus)
    epoch = EPOCH + MORNING
    made: dict[str, Any] = {}

    async def live(loop: VirtualLoop) -> None:
        world = World(spec, 5, epoch)
        for fault in faults:
            world.inject(dataclasses.replace(fault, at=epoch + fault.at))

        def clock() -> float:
            return made["town"].now if "town" in made else epoch + loop.time()

        source = WorldSource(world, clock)
        policy = dataclasses.replace(policy_of(spec, cluster), mode=mode)
        daemon = assemble(
            Parts(
                policy=policy,
                sources={"world": source},
                record=Record.open(None),
                clock=clock,
                fit=fit_here,
                backends={"simulated": world},
                action_of=dict.fromkeys(VERBS, "simulated"),
                history=WorldHistory(world),
            )
        )
        await daemon.run(ticks=int(hours * 240))
        made["town"] = Town(world, daemon, source, epoch + loop.time())

    run_virtual(live)
    town: Town = made["town"]
    town.daemon.listeners.append(town.hear)
    return town


def first_gpu(gpus: int = 32) -> Entity:
    """A GPU that serves: replicas fill the first nodes."""
    return Entity("gpu", World(default_spec(gpus), 5, EPOCH).wiring.gpus[0])


@asynccontextmanager
async def pages(
    town: Town, settings: Settings | None = None, config: Path | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the real server, on a port of its own."""
    base = settings or Settings()
    chosen = base.model_copy(update={"web": base.web.model_copy(update={"listen": "127.0.0.1:0"})})
    async with (
        web.serving(town.daemon, chosen, config, load_catalogue()) as url,
        aiohttp.ClientSession(url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as client,
    ):
        yield client
