"""Which of the replicas that pools are to get find room: a replica of one node needs its GPUs together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from daemon.fleet import Fleet
from daemon.topology import Topology


def free_gpus(topology: Topology, fleet: Fleet) -> dict[str, int]:
    """node -> GPUs that carry no engine, are not isolated and not lent."""
    carries = topology.engine_of.__contains__
    left = {
        node: len(gpus) - sum(map(carries, gpus))
        for node, gpus in topology.gpus_on.items()
        if node not in fleet.leases
    }
    for entity in fleet.isolated:
        if entity.kind == "node":
            left.pop(entity.name, None)
        elif entity.kind == "gpu" and not carries(entity.name):
            node = topology.node_of(entity)
            if node in left and entity.name in topology.gpus_on[node]:
                left[node] -= 1
    return left


@dataclass(frozen=True, slots=True)
class Growth:
    """A pool that is to hold `granted` replicas. seen : replicas that exist. standing : with those ordered and not seen yet, without those that
    are going. size : GPUs of one."""

    pool: str
    size: int
    seen: int
    standing: int
    granted: int


def packed(
    growths: Sequence[Growth], topology: Topology, fleet: Fleet, shut: Collection[str] = ()
) -> dict[str, int]:
    """pool -> replicas it can hold, for those that find less room than they were granted; first come, first served.

    Each replica goes to the node that it fills best. What pools give up may come free on any of their nodes, as far as nobody can
    tell yet. Of a replica wider than any node, or of unknown size, nothing can be said. shut : nodes where nothing may start.
    """
    if not any(g.granted > g.standing for g in growths):
        return {}
    left = _room(growths, topology, fleet)
    for node in shut:
        left.pop(node, None)
    width = max(map(len, topology.gpus_on.values()), default=0)
    placed = [g for g in growths if 0 < g.size <= width]
    for growth in placed:
        for _ in range(growth.standing - growth.seen):
            _take(left, growth.size)
    cut = {}
    for growth in placed:
        for number in range(growth.standing, growth.granted):
            if not _take(left, growth.size):
                cut[growth.pool] = number
                break
    return cut


def _room(growths: Sequence[Growth], topology: Topology, fleet: Fleet) -> dict[str, int]:
    """node -> GPUs that are free, or may be when the pools that shrink have."""
    left = free_gpus(topology, fleet)
    going = {g.pool: max(0, g.seen - min(g.granted, g.standing)) * g.size for g in growths}
    for node in left if any(going.values()) else ():
        held: dict[str, int] = {}
        for engine in topology.engines_on.get(node, ()):
            pool = topology.pool_of.get(engine, "")
            held[pool] = held.get(pool, 0) + len(
                set(topology.gpus_of.get(engine, ())) & set(topology.gpus_on[node])
            )
        left[node] += sum(min(going.get(pool, 0), gpus) for pool, gpus in held.items())
    return left


def _take(left: dict[str, int], size: int) -> bool:
    fits = [(room, node) for node, room in left.items() if room >= size]
    if not fits:
        return False
    left[min(fits)[1]] -= size
    return True
