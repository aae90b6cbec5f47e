"""Pipeline stages of replicas: how their layers are cut, and how long each GPU works at its share of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daemon.model import Array
from simulator.fleet import Engine

if TYPE_CHECKING:
    from simulator.world import World

LAST = 0.88
"""Layers of the last stage over those of any other: it computes the logits beside them and is given fewer. Judgement."""


def of(engine: Engine, stages: int, stage: int) -> tuple[int, ...]:
    """GPUs of one stage, as the daemon cuts the list: stage by stage, in order."""
    return tuple(g for k, g in enumerate(engine.gpus) if k * stages // len(engine.gpus) == stage)


def cut(world: World) -> Array | None:
    """(gpu,) layers of each GPU over those of a GPU of the first stage; None where no pool has stages."""
    if all(pool.pp == 1 for pool in world.spec.pools):
        return None
    found = np.ones(world.spec.gpus)
    for engine in world.fleet.engines.values():
        pp = world.spec.pools[engine.pool].pp
        if pp > 1:
            found[list(of(engine, pp, pp - 1))] = LAST
    return found


def paced(slow: Array, cuts: Array | None, world: World) -> Array:
    """(gpu,) how long each GPU works at its layers, 1 = a healthy one of a first stage. slow : (gpu,) of even layers."""
    if cuts is None and not world.ills.stage_slow:
        return slow
    found: Array = slow * cuts if cuts is not None else slow.copy()
    for address, (stage, times) in world.ills.stage_slow.items():
        engine = world.engine_at(address)
        if engine is not None:
            found[list(of(engine, world.spec.pools[engine.pool].pp, stage))] *= times
    return found
