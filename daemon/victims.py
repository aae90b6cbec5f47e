"""Which replicas of a pool go when it shrinks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from daemon.fleet import Fleet
from daemon.model import Entity, Frame
from daemon.topology import Topology


def leaving(
    pool: str,
    number: int,
    topology: Topology,
    fleet: Fleet,
    engines: Frame,
    blamed: Collection[Entity],
) -> Sequence[str]:
    """`number` engines of the pool, those that go first first.

    Those that serve nobody; then what is flagged (a lowered weight, an open incident on it or under it); then what stands
    on spot nodes, which came last; then from the node that is nearest to being empty, so that whole nodes come free; then
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

    def rank(engine: str) -> tuple[bool, bool, bool, int, float, str]:
        running = held.get(engine, np.nan)
        is_silent = running != running
        load = 0.0 if is_silent else running
        return not is_silent, not is_flagged(engine), not is_spot(engine), in_use(engine), load, engine

    return sorted(nodes, key=rank)[:number]
