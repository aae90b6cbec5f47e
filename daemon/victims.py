"""Which replicas of a pool go when it shrinks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

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
    nodes = {e: topology.node_of(Entity("engine", e)) for e in topology.engines_in(pool)}

    def is_flagged(engine: str) -> bool:
        places = {Entity("engine", engine), Entity("node", nodes[engine])}
        places |= {Entity("gpu", g) for g in topology.gpus_of.get(engine, ())}
        return fleet.weights.get(engine, 1.0) < 1.0 or bool(places & set(blamed))

    def is_spot(engine: str) -> bool:
        return topology.place.get(nodes[engine], {}).get("capacity") == "spot"

    def in_use(engine: str) -> int:
        return sum(len(topology.gpus_of.get(e, ())) or 1 for e in topology.engines_on.get(nodes[engine], ()))

    dear = costs or {}
    free = free_gpus(topology, fleet) if room else {}
    own: dict[str, int] = {}
    for engine, node in nodes.items():
        own[node] = own.get(node, 0) + len(topology.gpus_of.get(engine, ()))

    def lacks(engine: str) -> tuple[float, str]:
        """GPUs that must come free on its node for the other replica, and the node; the same for all where the pool's own are not enough."""
        node = nodes[engine]
        lacking = room - free.get(node, 0)
        return (lacking, node) if 0 < lacking <= own[node] else (math.inf, "")

    def rank(engine: str) -> tuple[bool, bool, tuple[float, str], bool, float, int, float, str]:
        running = held.get(engine, np.nan)
        is_silent = running != running
        load = 0.0 if is_silent else running
        return (
            not is_silent,
            not is_flagged(engine),
            lacks(engine),
            not is_spot(engine),
            -dear.get(engine, 1.0),
            in_use(engine),
            load,
            engine,
        )

    return sorted(nodes, key=rank)[:number]
