"""Which replicas of a pool go when it shrinks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from heapq import nsmallest

import numpy as np

from daemon.fleet import Fleet
from daemon.model import Entity, Frame
from daemon.packing import free_gpus
from daemon.topology import Topology


def leaving(
    pool: str,
    number: int,
    topology: Topology,
    fleet: Fleet,
    engines: Frame,
    blamed: Collection[Entity],
    room: int = 0,
    costs: Mapping[str, float] | None = None,
) -> Sequence[str]:
    """`number` engines of the pool, those that go first first.

    Those that serve nobody; then what is flagged (a lowered weight, an open incident on it or under it); then those that make room for a
    replica of `room` GPUs of another pool, from the node where the fewest must go for it; then what stands
    on spot nodes, which came last; then where a token costs most (costs : engine -> over the cheapest); then from the node that is nearest to being empty, so that whole nodes come free; then
    the least loaded.
    """
    held = dict(zip(engines.entities, engines.column("running").tolist(), strict=True))
    nodes = {e: topology.node_of_engine.get(e, "") for e in topology.engines_in(pool)}
    flagged = {engine for engine, weight in fleet.weights.items() if weight < 1.0}
    for entity in blamed:
        if entity.kind in ("engine", "gpu", "node"):
            flagged.update(topology.engines_touched(entity))

    dear = costs or {}
    free = free_gpus(topology, fleet) if room else {}
    own = dict.fromkeys(nodes.values(), 0)
    for engine, node in nodes.items() if room else ():
        own[node] += len(topology.gpus_of.get(engine, ()))

    def lacks(node: str) -> tuple[float, str]:
        """GPUs that must come free on a node for the other replica, and the node; the same for all where the pool's own are not enough."""
        lacking = room - free.get(node, 0)
        return (lacking, node) if 0 < lacking <= own[node] else (math.inf, "")

    def standing(node: str) -> tuple[tuple[float, str], bool, int]:
        """What all engines of a node share: what it lacks, whether it stays, GPUs in use there."""
        is_spot = topology.place.get(node, {}).get("capacity") == "spot"
        in_use = sum(len(topology.gpus_of.get(e, ())) or 1 for e in topology.engines_on.get(node, ()))
        return lacks(node), not is_spot, in_use

    of_node = {node: standing(node) for node in own}

    def rank(engine: str) -> tuple[bool, bool, tuple[float, str], bool, float, int, float, str]:
        running = held.get(engine, np.nan)
        is_silent = running != running
        load = 0.0 if is_silent else running
        lacking, stays, in_use = of_node[nodes[engine]]
        cost = -dear.get(engine, 1.0)
        return not is_silent, engine not in flagged, lacking, stays, cost, in_use, load, engine

    return nsmallest(number, nodes, key=rank)
