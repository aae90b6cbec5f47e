"""What detecting costs: processor time of frames, detectors and incidents for a fleet of a given size."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bench.watch import ABLE, TICK_S, Watcher
from daemon.core import Core
from daemon.frame import FrameBuilder
from detectors import DETECTORS
from simulator.defaults import default_spec
from simulator.policies import policy_of
from simulator.world import World

EPOCH = 1_780_272_000.0 + 10 * 3600.0
WARM_TICKS = 8
"""The first ticks bind layouts and learn groups, which happens once a start."""


def core_share(gpus: int, ticks: int, baselines: Mapping[str, Watcher]) -> dict[str, Any]:
    """Record with the share of one core that a fleet needs at one tick every 15 s, scaled to 10,000 GPUs.

    A tick counts from the scrapes in hand to the decision. Reading and parsing pages is not in it: see
    bench/exposition.py.
    """
    spec = default_spec(gpus)
    world = World(spec, 1, EPOCH)
    policy = replace(policy_of(spec, "bench"), able=ABLE)
    builder, core = FrameBuilder(policy), Core(policy, {name: make() for name, make in DETECTORS.items()})
    spent: dict[str, list[float]] = {"frame": [], "decide": [], **{name: [] for name in baselines}}
    clock = time.process_time
    for beat in range(WARM_TICKS + ticks):
        at = EPOCH + beat * TICK_S
        world.advance(at)
        scrapes = world.sweep()
        begun = clock()
        for scrape in scrapes:
            builder.absorb(scrape)
        frames = builder.build(at)
        framed = clock()
        core.tick(frames)
        spent["frame"].append(framed - begun)
        spent["decide"].append(clock() - framed)
        for name, look in baselines.items():
            begun = clock()
            look(frames)
            spent[name].append(clock() - begun)
    scale = 10_000.0 / spec.gpus / TICK_S
    mean = {name: float(np.mean(times[WARM_TICKS:])) * scale for name, times in spent.items()}
    frames_of = {f.kind: [len(f.entities), len(f.signals)] for f in frames}
    return {
        "fleet": f"cpu-{spec.gpus}",
        "gpus": spec.gpus,
        "ticks": ticks,
        "frames": frames_of,
        "frame_share": mean["frame"],
        "decide_share": mean["decide"],
        "cpu_core_10000_gpus": mean["frame"] + mean["decide"],
        "baselines": {name: mean["frame"] + mean[name] for name in baselines},
    }
