"""Three regions under one balancer, each with its own daemon; one is cut off for an hour and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from daemon.clock import Clock, VirtualLoop, loop_clock
from daemon.foresight import Fit
from daemon.headroom import SIGNALS
from daemon.loop import Daemon, News, Pace
from daemon.model import Decision, Entity, Hopeless, Layout, Outcome, Scrape, Series, Step, Verb
from daemon.policy import Budgets, Federation, Member, Mode, Policy
from daemon.record import Record
from daemon.regional import own_report, turned_away
from simulator.defaults import default_spec
from simulator.policies import VERBS, policy_of
from simulator.sources import WorldSource
from simulator.world import World

PARTS = {"east": 800, "west": 400, "south": 200}
"""Region -> its part of the GPUs, as in the white paper's picture of a large cluster."""
LEAST_GPUS = 32
OVERFLOW = "busy"
CUT_S, BACK_S = 2400.0, 6000.0
TICK_S = 15.0
GROWTH = Budgets(scale_step_max=16, scale_steps_per_hour_max=120)
"""Who may inherit another region's requests must be allowed to grow faster than by four replicas a step."""


@dataclass(slots=True)
class Globe:
    """The balancer over the regions. shares : as set. gone : regions nobody reaches. refused, lost : requests so far."""

    worlds: Mapping[str, World]
    shares: dict[str, float]
    gone: set[str] = field(default_factory=set)
    refused: float = 0.0
    lost: float = 0.0

    async def apply(self, step: Step) -> str:
        if step.verb is not Verb.BALANCE or step.target.name not in self.shares:
            raise Hopeless(
                f"the balancer knows no {step.verb} of {step.target}; regions: {', '.join(self.shares)}"
            )
        self.shares[step.target.name] = step.amount
        self.route()
        return f"{step.target.name} gets {step.amount:.0%}"

    async def observe(self, step: Step) -> Mapping[str, Any]:
        share = self.shares.get(step.target.name)
        return {} if share is None else {"weight": share}

    def route(self) -> None:
        """Every region gets its share of what all clients ask of a pool; weights that are not 1 together are relative."""
        whole = sum(self.shares.values())
        wanted: dict[str, float] = {}
        for world in self.worlds.values():
            for pool in world.spec.pools:
                wanted[pool.name] = wanted.get(pool.name, 0.0) + pool.requests_per_s
        for name, world in self.worlds.items():
            share = 0.0 if name in self.gone or not whole else self.shares[name] / whole
            world.send(np.array([share * wanted[p.name] / p.requests_per_s for p in world.spec.pools]))

    def asked_per_s(self) -> float:
        """Requests a second of all clients now, by the profile of the day."""
        return sum(world.asked_per_s() for world in self.worlds.values())

    def count(self, seconds: float) -> None:
        """Add what found nobody: sent to a region that is gone, or to the overflow."""
        whole = sum(self.shares.values()) or 1.0
        asked = self.asked_per_s() * seconds / whole
        self.lost += asked * sum(self.shares[n] for n in self.gone)
        self.refused += asked * self.shares.get(OVERFLOW, 0.0)


@dataclass(slots=True)
class Reports:
    """What the daemons of the regions say of theirs, as a source of the daemon that keeps the view."""

    daemons: Mapping[str, Daemon]
    globe: Globe
    clock: Clock
    layouts: dict[str, Layout] = field(default_factory=dict)

    async def read(self) -> Sequence[Scrape]:
        return [self._ask(name) for name in self.daemons]

    def _ask(self, name: str) -> Scrape:
        target, at = f"{name}:9095", self.clock()
        if name in self.globe.gone:
            return Scrape(target, at, None, None, error="no route to host")
        layout = self.layouts.setdefault(
            name, Layout(target, tuple(Series(s, Entity("region", name)) for s in SIGNALS))
        )
        said = own_report(self.daemons[name])
        return Scrape(target, at, layout, np.array([said[s] for s in SIGNALS]))


@dataclass(slots=True)
class Balanced:
    """What the balancer over the regions says it turned away on behalf of one, as a source of that region's daemon."""

    region: str
    views: Sequence[Daemon]
    globe: Globe
    clock: Clock

    async def read(self) -> Sequence[Scrape]:
        target, at = "globe:9095", self.clock()
        if not self.views:
            return []
        if self.region in self.globe.gone:
            return [Scrape(target, at, None, None, error="no route to host")]
        said = turned_away(self.views[0])
        return [Scrape(target, at, self.layout, np.array([said.get(self.region, np.nan)]))]

    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        entity = Entity("region", self.region)
        self.layout = Layout("globe:9095", (Series("turned_away_per_s", entity),))


@dataclass(slots=True)
class Story:
    """What happened when, in seconds after the begin. loads : (at, region -> requests over what its replicas carry)."""

    epoch: float
    lines: list[tuple[float, str]] = field(default_factory=list)
    loads: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    def hear(self, news: News) -> None:
        if isinstance(news, Decision):
            at = news.at - self.epoch
            self.lines += [(at, f"found: {i.kind} of {i.scope}") for i in news.opened]
            self.lines += [(at, f"over: {i.kind} of {i.scope}") for i in news.closed]
        elif isinstance(news, Outcome) and news.step.verb is Verb.BALANCE:
            self.lines.append(
                (news.at - self.epoch, f"{news.result}: {news.step.target}, {news.step.reason}")
            )


async def region_loss(
    assemble: Callable[[Any], Daemon],
    parts: Callable[..., Any],
    fit: Fit,
    loop: VirtualLoop,
    *,
    seed: int,
    gpus: int,
    epoch: float,
    hours: float,
) -> dict[str, Any]:
    """Run it under virtual time and tell what came of it."""
    sizes = {name: max(LEAST_GPUS, round(gpus * part / 1400 / 8) * 8) for name, part in PARTS.items()}
    worlds = {
        name: World(default_spec(size), seed + index, epoch)
        for index, (name, size) in enumerate(sizes.items())
    }
    clock = loop_clock(loop, epoch)
    whole = sum(sizes.values())
    globe = Globe(worlds, {name: round(size / whole, 2) for name, size in sizes.items()} | {OVERFLOW: 0.0})
    globe.route()
    views: list[Daemon] = []
    daemons = {
        name: assemble(
            parts(
                policy=replace(policy_of(world.spec, name), budgets=GROWTH),
                sources={
                    "world": WorldSource(world, clock),
                    "balancer": Balanced(name, views, globe, clock),
                },
                record=Record.open(None),
                clock=clock,
                fit=fit,
                backends={"simulated": world},
                action_of=dict.fromkeys(VERBS, "simulated"),
                pace=Pace(forecast_every_s=float("inf")),
            )
        )
        for name, world in worlds.items()
    }
    story = Story(epoch)
    view = assemble(
        parts(
            policy=Policy(
                cluster="globe",
                mode=Mode.AUTO,
                federation=Federation(members={name: Member() for name in worlds}, overflow=OVERFLOW),
            ),
            sources={"regions": Reports(daemons, globe, clock)},
            record=Record.open(None),
            clock=clock,
            fit=fit,
            backends={"globe": globe},
            action_of={Verb.BALANCE: "globe"},
            listeners=(story.hear,),
        )
    )
    views.append(view)
    ticks = int(hours * 3600.0 / TICK_S)
    async with asyncio.TaskGroup() as group:
        for daemon in (*daemons.values(), view):
            group.create_task(daemon.run(ticks=ticks))
        group.create_task(_happen(globe, daemons, story, ticks))
    result = _told(globe, view, story, sizes)
    for daemon in (*daemons.values(), view):
        daemon.record.close()
    return result


async def _happen(globe: Globe, daemons: Mapping[str, Daemon], story: Story, ticks: int) -> None:
    """Cut the largest region off and let it come back, and keep the books."""
    for tick in range(ticks):
        at = tick * TICK_S
        if at == CUT_S:
            globe.gone.add("east")
        elif at == BACK_S:
            globe.gone.discard("east")
        if at in (CUT_S, BACK_S):
            globe.route()
            story.lines.append((at, f"region east is {'cut off' if at == CUT_S else 'back'}"))
        globe.count(TICK_S)
        story.loads.append((at, {name: _load(daemon) for name, daemon in daemons.items()}))
        await asyncio.sleep(TICK_S)


def _load(daemon: Daemon) -> float:
    said = own_report(daemon)
    return said["requests_per_s"] / said["carries_per_s"]


def _told(globe: Globe, view: Daemon, story: Story, sizes: Mapping[str, int]) -> dict[str, Any]:
    during = [loads for at, loads in story.loads if CUT_S + 180.0 <= at < BACK_S]
    rest = [load[name] for load in during for name in load if name != "east" and load[name] == load[name]]
    asked = sum(world.ledger()["requests_total"] for world in globe.worlds.values())
    slow = sum(world.ledger()["requests_slow"] for world in globe.worlds.values())
    found = next((at for at, line in story.lines if line.startswith("found: region_lost")), None)
    moved = next(
        (at for at, line in story.lines if at > CUT_S and "region east" in line and "-> 0%" in line), None
    )
    returned = next((at for at, line in story.lines if at > BACK_S and "region east, 0%" in line), None)
    return {
        "gpus": sum(sizes.values()),
        "regions": dict(sizes),
        "found_s": None if found is None else found - CUT_S,
        "moved_s": None if moved is None else moved - CUT_S,
        "returned_s": None if returned is None else returned - BACK_S,
        "load_of_the_rest_p95": float(np.quantile(np.array(rest), 0.95)) if rest else None,
        "shares_at_the_end": dict(globe.shares),
        "requests_total": round(asked),
        "requests_slow": round(slow),
        "requests_lost": round(globe.lost),
        "requests_refused": round(globe.refused),
        "story": [f"+{at / 60.0:.1f} min  {line}" for at, line in story.lines],
        "journal_sha256": view.record.journal_sha256(),
    }
