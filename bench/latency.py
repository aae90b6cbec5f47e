"""How soon a fault costs the routing weight: from its onset to a verified weight of zero, in virtual time on the unchanged daemon.

    python -m bench.latency                200 onsets of each kind, spread over every phase of a scrape

Virtual time: scrapes, ticks, early ticks and time-outs as they are set; what computing and the balancer take is not in it (bench.acting).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from daemon.__main__ import Parts, assemble, fit_here
from daemon.cli.logs import to_stderr
from daemon.clock import VirtualLoop, loop_clock, run_virtual
from daemon.loop import Daemon, News
from daemon.model import Decision, Entity, Outcome, Result, Source, Verb
from daemon.record import Record
from daemon.telemetry.kernel_log import KernelLog
from simulator.defaults import default_spec
from simulator.drill import EPOCH, MORNING
from simulator.faults import Fault
from simulator.policies import VERBS, policy_of
from simulator.sources import WorldSource
from simulator.world import World

SCRAPE_S = 15.0
GPUS = 32
SETTLED_S = 300.0
SICK = "n00/gpu0"
XID_48 = "NVRM: Xid (PCI:0000:3b:00): 48, pid=1234, name=python3, DBE (double bit error)"


def onset(trial: int, trials: int) -> float:
    """Seconds after the start: every phase of a tick gets its turn."""
    return SETTLED_S + SCRAPE_S * (trial + 0.37) / trials


def first_after(
    at_s: float,
    begin: Callable[[World, Daemon, Path, float], Any],
    is_it: Callable[[News], bool],
    folder: Path,
    trial: int,
) -> float:
    """Seconds from the onset to the first news that `is_it`; inf when there was none within four minutes."""
    epoch = EPOCH + MORNING
    log = folder / f"kern-{trial}.log"
    log.touch()
    heard: list[float] = []

    async def live(loop: VirtualLoop) -> None:
        world, clock = World(default_spec(GPUS), trial, epoch), loop_clock(loop, epoch)
        kernel = KernelLog(str(log), "n00", clock, lambda: {"0000:3b:00": SICK})
        sources: dict[str, Source] = {"world": WorldSource(world, clock), "kernel_log": kernel}

        def listen(news: News) -> None:
            if is_it(news) and loop.time() >= at_s:
                heard.append(loop.time() - at_s)
                daemon.stop()

        daemon = assemble(
            Parts(
                policy=policy_of(default_spec(GPUS), "latency"),
                sources=sources,
                record=Record.open(None),
                clock=clock,
                fit=fit_here,
                backends={"simulated": world},
                action_of=dict.fromkeys(VERBS, "simulated"),
                listeners=(listen,),
            )
        )
        begin(world, daemon, log, at_s)
        await daemon.run(ticks=int((SETTLED_S + 240.0) / SCRAPE_S))

    run_virtual(live)
    return heard[0] if heard else math.inf


def takes_weight(news: News) -> bool:
    return (
        isinstance(news, Outcome)
        and news.step.verb is Verb.REROUTE
        and news.step.amount == 0.0
        and news.result is Result.DONE
    )


def finds_hang(news: News) -> bool:
    return isinstance(news, Decision) and any(i.kind == "engine_hung" for i in news.opened)


def writes_log(world: World, daemon: Daemon, log: Path, at_s: float) -> None:
    """The driver writes its line at the instant of the fault."""

    def write() -> None:
        with log.open("a") as file:
            file.write(f"[  812.101] {XID_48}\n")

    asyncio.get_running_loop().call_at(at_s, write)


def falls_off(world: World, daemon: Daemon, log: Path, at_s: float) -> None:
    world.inject(Fault("xid79", Entity("gpu", SICK), world.epoch + at_s, 3600.0))


def hangs(world: World, daemon: Daemon, log: Path, at_s: float) -> None:
    world.inject(Fault("engine-hang", Entity("engine", "n00:8000"), world.epoch + at_s, 3600.0))


class Way(NamedTuple):
    """One way a fault is told. goal_s : for the 99th percentile."""

    begin: Callable[[World, Daemon, Path, float], Any]
    is_it: Callable[[News], bool]
    goal_s: float


WAYS: Mapping[str, Way] = {
    "kernel log, to the weight": Way(writes_log, takes_weight, 2.0),
    "gauge, to the weight": Way(falls_off, takes_weight, 2 * SCRAPE_S + 1.0),
    "hung engine with an idle page, found": Way(hangs, finds_hang, 2 * SCRAPE_S + 1.0),
}


def delays(way: Way, trials: int) -> Sequence[float]:
    """Seconds of each onset; inf for one that was not answered within four minutes."""
    with tempfile.TemporaryDirectory() as folder:
        return [first_after(onset(t, trials), way.begin, way.is_it, Path(folder), t) for t in range(trials)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200, help="onsets of each kind")
    trials = parser.parse_args().trials
    to_stderr(logging.WARNING)
    found = {}
    print(f"{'':38}{'p50':>8}{'p99':>8}{'worst':>8}{'goal':>8}   seconds, {trials} onsets each")
    for name, way in WAYS.items():
        taken = delays(way, trials)
        p50, p99 = (float(q) for q in np.quantile(taken, (0.5, 0.99)))
        found[name] = {"p50": p50, "p99": p99, "worst": max(taken), "goal": way.goal_s}
        print(f"{name:38}{p50:8.1f}{p99:8.1f}{max(taken):8.1f}{way.goal_s:8.1f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
