"""A day of a simulated cluster in seconds: the unchanged daemon against a named scenario, scored by the truth."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daemon.clock import VirtualLoop, loop_clock, run_virtual
from daemon.coldstart import by_source, quantile
from daemon.energy import power_by
from daemon.evolution import advice
from daemon.foresight import Fit
from daemon.fragments import wishes as pieced
from daemon.lastresort import limited
from daemon.loop import Daemon, News, Pace
from daemon.model import Array, Decision, Outcome, Verb
from daemon.placement import wishes
from daemon.posture import assess
from daemon.record import Record
from daemon.storage import to_warm
from daemon.web.standing import past
from simulator.defaults import default_spec
from simulator.globe import region_loss
from simulator.policies import VERBS, policy_of, with_last_resort
from simulator.scenarios import LAST_RESORT, RACK_CAPS, SCENARIOS, at_epoch
from simulator.score import score
from simulator.sources import WorldSource
from simulator.spec import WorldSpec
from simulator.world import World

EPOCH = 1_780_272_000.0
"""2026-06-01 00:00 UTC, a Monday."""
FORECAST_EVERY_S = 3 * 3600.0
"""A drill has no worker: its forecasts are made on the loop, a third as often as a service makes them."""
MORNING = 8 * 3600.0
"""A short scenario begins at 08:00, when the cluster works; a day begins at midnight."""

GLOBAL: Mapping[str, float] = {"region-loss": 3.0}
"""Scenario of several regions -> hours it runs."""


@dataclass(frozen=True, slots=True)
class WorldHistory:
    """The simulated weeks before the epoch, as a store would give them."""

    world: World
    weeks: int = 4

    async def demand(
        self, pools: Mapping[str, Mapping[str, str]], since: float, until: float, step_s: float
    ) -> Mapping[str, Mapping[str, tuple[Array, Array]]]:
        return self.world.history(self.weeks, max(step_s, 3600.0))

    async def gpus(
        self, uuids: Sequence[str], since: float, until: float, step_s: float
    ) -> Mapping[str, tuple[Array, Array]]:
        """Nothing: the weeks before were drawn as demand alone, no hardware was simulated."""
        return {}


def drill(
    assemble: Callable[[Any], Daemon],
    parts: Callable[..., Any],
    fit: Fit,
    *,
    scenario: str,
    seed: int = 1,
    gpus: int = 64,
    hours: float | None = None,
) -> dict[str, Any]:
    """Run a scenario to its end under virtual time.

    Returns the score (see simulator.score) with scenario, seed, gpus, hours, incidents, steps, wall_s and
    journal_sha256. Raises ValueError for an unknown scenario, naming those there are.
    """
    if scenario not in (*SCENARIOS, *GLOBAL):
        raise ValueError(f"no scenario {scenario!r}; there are: {', '.join((*SCENARIOS, *GLOBAL))}")
    if scenario in GLOBAL:
        return _drill_globe(assemble, parts, fit, scenario, seed, gpus, hours)
    rng = np.random.default_rng([seed, 0xD1])
    spec, faults, usual = SCENARIOS[scenario](default_spec(gpus), rng)
    length = usual if hours is None else hours
    epoch = EPOCH + (0.0 if usual >= 24.0 else MORNING)
    begun = time.perf_counter()

    async def main(loop: VirtualLoop) -> dict[str, Any]:
        world = World(spec, seed, epoch)
        for fault in at_epoch(faults, epoch):
            world.inject(fault)
        return await _run(assemble, parts, fit, world, spec, loop, length, scenario)

    # A day makes millions of short-lived objects and hardly a cycle: looking for cycles costs a tenth of the run.
    gc.freeze()
    threshold = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        result = run_virtual(main)
    finally:
        gc.set_threshold(*threshold)
    return (
        {"scenario": scenario, "seed": seed, "gpus": spec.gpus, "hours": length}
        | result
        | {"wall_s": round(time.perf_counter() - begun, 2)}
    )


def _drill_globe(
    assemble: Callable[[Any], Daemon],
    parts: Callable[..., Any],
    fit: Fit,
    scenario: str,
    seed: int,
    gpus: int,
    hours: float | None,
) -> dict[str, Any]:
    """Several regions at once; the result tells other things, see simulator.globe."""
    length = GLOBAL[scenario] if hours is None else hours
    begun = time.perf_counter()

    async def main(loop: VirtualLoop) -> dict[str, Any]:
        return await region_loss(assemble, parts, fit, loop, seed=seed, gpus=gpus, epoch=EPOCH, hours=length)

    result = run_virtual(main)
    spent = {"wall_s": round(time.perf_counter() - begun, 2)}
    return {"scenario": scenario, "seed": seed, "hours": length} | result | spent


async def _run(
    assemble: Callable[[Any], Daemon],
    parts: Callable[..., Any],
    fit: Fit,
    world: World,
    spec: WorldSpec,
    loop: VirtualLoop,
    hours: float,
    scenario: str,
) -> dict[str, Any]:
    clock = loop_clock(loop, world.epoch)
    record = Record.open(None)
    outcomes: list[Outcome] = []

    draws: dict[str, float] = {}
    read_in: dict[str, None] = {}

    def listen(news: News) -> None:
        if isinstance(news, Decision) and policy.rack_caps:
            for rack, watts in power_by(daemon.frames, "rack").items():
                draws[rack] = max(draws.get(rack, 0.0), watts) if watts == watts else draws.get(rack, 0.0)
        if isinstance(news, Decision) and news.at % 3600.0 < policy.tick_s:
            core = daemon.core
            known = core.topology, core.state.fleet, core.policy, core.outlook, core.state.starts
            read_in.update(dict.fromkeys(wish.text for wish in to_warm(news.at, *known)))
        if isinstance(news, Outcome) and news.step.verb is not Verb.NOTIFY:
            outcomes.append(news)

    policy = policy_of(spec, "drill")
    if scenario in LAST_RESORT:
        policy = with_last_resort(policy)
    if scenario in RACK_CAPS:
        policy = replace(policy, rack_caps={world.wiring.racks[-1]: RACK_CAPS[scenario]})
    daemon = assemble(
        parts(
            policy=policy,
            sources={"world": WorldSource(world, clock)},
            record=record,
            clock=clock,
            fit=fit,
            backends={"simulated": world},
            action_of=dict.fromkeys(VERBS, "simulated"),
            history=WorldHistory(world),
            listeners=(listen,),
            pace=Pace(forecast_every_s=FORECAST_EVERY_S),
        )
    )
    await daemon.run(ticks=int(hours * 3600.0 / policy.tick_s))
    incidents = record.incidents(limit=100_000)
    result = score(world, incidents, outcomes)
    result["incidents"] = [
        {
            "id": i.id,
            "kind": i.kind,
            "scope": str(i.scope),
            "at_s": i.opened - world.epoch,
            "severity": i.severity.value,
            "closed_s": i.closed - world.epoch if i.state == "closed" else None,
        }
        for i in sorted(incidents, key=lambda i: i.id)
    ]
    result["steps"] = dict(sorted(_count(outcomes).items()))
    result["requests_slow"] = world.ledger()["requests_slow"]
    result["pools"] = world.ledger()["pools"]
    result["gpu_hours_serving"] = world.ledger()["gpu_hours_serving"]
    core, frames = daemon.core, daemon.frames
    result["posture"] = [
        {
            "item": score.item,
            "tier": score.tier,
            "state": score.state,
            "value": score.value if score.value == score.value else None,
            "target": score.target,
            "missing": score.missing,
            "todo": score.todo,
        }
        for score in assess(core.state.day, frames, core.topology, core.policy, core.outlook)
    ]
    result["advice"] = advice(core.state.day, frames, core.policy, before=past(daemon))
    result["rack_peak_w"] = {rack: round(watts) for rack, watts in draws.items()}
    result["reasons"] = sorted({o.step.reason for o in outcomes if "not in rack" in o.step.reason})[:5]
    result["limits"] = limited(core.state.fleet)
    result["placement"] = [
        {
            "kind": w.kind,
            "subject": str(w.subject),
            "text": w.text,
            "bytes_s": w.bytes_s if w.bytes_s == w.bytes_s else None,
            "to": w.to,
        }
        for w in (
            *wishes(frames, core.topology, core.state.fleet),
            *pieced(core.topology, core.state.fleet, policy),
        )
    ]
    result["scalings"] = [
        f"{o.at - world.epoch:.0f} {o.step.target.name}: {o.step.reason}"
        for o in outcomes
        if o.step.verb is Verb.SCALE
    ]
    # Of one decision they bear one time, however long each took.
    result["recalls"] = [
        f"{o.at - o.took_s - world.epoch:.0f} {o.step.target.name}: {o.step.reason}"
        for o in outcomes
        if o.step.verb is Verb.RECALL
    ]
    result["read_in"] = list(read_in)
    result["starts"] = {
        pool: {source: round(quantile(group, 0.5), 1) for source, group in sorted(by_source(kept).items())}
        for pool, kept in sorted(core.state.starts.kept.items())
    }
    result["journal_sha256"] = record.journal_sha256()
    record.close()
    return result


def _count(outcomes: list[Outcome]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        key = f"{outcome.step.verb.value} {outcome.result.value}"
        counts[key] = counts.get(key, 0) + 1
    return counts
